"""The benchmark of whole layers: what it looks up is what would have been measured, at the same cost."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from polyprune_core.evaluation.losses import Objective
from polyprune_core.pruning.surgery import Compactor
from polyprune_plugins.granularities.layer import Layer

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "layer_search.py"))


def ledger(path: Path) -> object:
    return BENCHMARK["Ledger"](path)


def test_a_mask_is_run_once_and_counted_every_time(tmp_path, tiny, space_of, ids, monkeypatch) -> None:
    model = tiny("llama", num_hidden_layers=4)
    space, path = space_of(model, Layer()), tmp_path / "measured.json"
    masks = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1], [1, 0, 1, 0]]).bool()
    with Compactor(model, space.layout) as compactor:
        plain = Objective(compactor, space)
        expected = plain.losses(masks, ids)
        first = ledger(path)
        found = BENCHMARK["remembering"](first)(compactor, space)
        assert torch.equal(found.losses(masks, ids), expected)
        assert (found.forward_passes, found.forward_tokens) == (plain.forward_passes, plain.forward_tokens)
        assert sorted(first.losses) == ["1,3", "2"]
        first.save()
        monkeypatch.setattr(compactor, "applied", None)  # a later run measures nothing again
        later = BENCHMARK["remembering"](ledger(path))(compactor, space)
        assert torch.equal(later.losses(masks, ids), expected)
        assert later.forward_passes == 3


def test_the_best_pair_is_the_best_of_all_pairs(tmp_path, tiny, space_of, ids) -> None:
    model = tiny("llama", num_hidden_layers=4)
    space = space_of(model, Layer())
    with Compactor(model, space.layout) as compactor:
        known = ledger(tmp_path / "measured.json")
        objective = BENCHMARK["remembering"](known)(compactor, space)
        selection, tokens = BENCHMARK["best_pair"](objective, space, ids)
    assert len(known.losses) == 6
    assert BENCHMARK["named"](selection.keep) == min(known.losses, key=known.losses.__getitem__)
    assert tokens == 6 * ids.numel()
    assert selection.sparsity == pytest.approx(0.5)


def test_a_file_of_other_measurements_is_not_gone_on_from(tmp_path) -> None:
    first = ledger(tmp_path / "measured.json")
    first.require_same({"windows": 4})
    first.save()
    ledger(tmp_path / "measured.json").require_same({"windows": 4})
    with pytest.raises(Exception, match="give another --output"):
        ledger(tmp_path / "measured.json").require_same({"windows": 8})
