"""What several files of unit tests start from."""

from __future__ import annotations

import pytest
import torch

from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.testing.tiny import tiny_base, tiny_pruned, tiny_space


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> PrunedModel:
    """A model without its second layer, so that the small one counts its layers anew."""
    base = tiny_base(tmp_path_factory.mktemp("base"))
    space = tiny_space(base.model)
    keep = torch.rand(len(space), generator=torch.Generator().manual_seed(0)) < 0.6
    keep[[where.start for where in space.slices()]] = True
    keep[space.layer == 1] = False
    return tiny_pruned(base, space, keep)
