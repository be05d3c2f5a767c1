"""`masks diff`: overlap and rank correlation, of numbers small enough to count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyprune_core import Scores
from polyprune_core.errors import ConfigError
from polyprune_core.pruning.mask_file import write_masks
from polyprune_core.runs.masks_diff import diff, table
from polyprune_core.testing.tiny import tiny_base, tiny_pruned, tiny_space


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    base = tiny_base(tmp_path / "base")
    scores = {"up": torch.tensor([1.0, 2.0, 3.0]), "swapped": torch.tensor([2.0, 1.0, 3.0])}
    written = {}
    for name, values in scores.items():
        space = tiny_space(base.model, "head")
        pruned = tiny_pruned(base, space, (values > 1.5).repeat(3))
        object.__setattr__(pruned, "scores", Scores(values.repeat(3), name))
        (tmp_path / name).mkdir()
        write_masks(pruned, tmp_path / name)
        written[name] = tmp_path / name
    (tmp_path / "layers").mkdir()
    layers = tiny_space(base.model, "layer")
    write_masks(tiny_pruned(base, layers, torch.tensor([True, False, True])), tmp_path / "layers")
    return written | {"layers": tmp_path / "layers"}


def test_overlap_and_rank_correlation_of_every_layer(folders: dict[str, Path]) -> None:
    found = diff(folders["up"], folders["swapped"])
    assert [(group.layer, group.first, group.second, group.both) for group in found] == [(n, 2, 2, 1) for n in range(3)]
    assert {group.overlap for group in found} == {1 / 3}
    assert [group.tau for group in found] == pytest.approx([1 / 3] * 3)  # of three pairs two agree, one does not
    assert table(found)[-1].split() == ["all", "9", "6", "6", "3", "33.3%"]


def test_masks_of_other_units_are_not_compared(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"masks of head in .* of layer in"):
        diff(folders["up"], folders["layers"])
