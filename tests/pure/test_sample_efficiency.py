"""The tables of the suites say what the rows say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def row(key: str, nll: float, kind: str = "baseline", seed: int = 0, **changes: object) -> dict[str, object]:
    common = {"id": key, "nll": nll, "kind": kind, "seed": seed, "sparsity": 0.3, "initializer": "wanda"}
    cost = {"scope": "kind", "scale": "raw", "estimator": None, "forward_tokens": 10, "backward_passes": 0}
    return common | cost | changes


def record() -> dict[str, object]:
    rows = [
        row("dense", 4.0, "dense", sparsity=None),
        *(row(f"raw {seed}", 6.0 + seed, seed=seed) for seed in range(2)),
        *(row(f"zscore {seed}", 5.0 + seed, seed=seed, scale="zscore") for seed in range(2)),
        *(row(f"search {seed}", 4.5 + seed, "search", seed, estimator="rloo", forward_tokens=90) for seed in range(2)),
        row("other sparsity", 1.0, sparsity=0.2),
    ]
    config = {"policy": "gaussian", "preset": "default"}
    return {"rows": rows, "comparisons": {"all": {"config": config, "rows": [each["id"] for each in rows]}}}


def test_excess_is_a_share_of_the_best_metrics_and_ratios_are_paired_by_seed() -> None:
    made = runpy.run_path(str(BENCHMARKS / "curves.py"))
    found = made["criteria"](record(), 0.3)
    assert [each.name for each in made["in_its_best_pooling"](found)] == ["wanda (kind, zscore)"]
    best, raw, searched = made["table"](record(), 0.3).splitlines()[2:]
    assert "| wanda (kind, zscore) |" in best
    assert "| 100% |" in best
    assert "| wanda (kind, raw) |" in raw
    # 1 nat above the best, whatever the seed: no spread, and e as the ratio.
    assert "| 167% | ×2.718 (2.718 to 2.718) |" in raw
    assert "| wanda → gaussian, rloo | 90 |" in searched
    assert "| 67% | ×0.607 (0.607 to 0.607) |" in searched


def test_the_picture_has_a_panel_for_each_sparsity(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    made = runpy.run_path(str(BENCHMARKS / "curves.py"))
    dense_too = record()
    dense_too["rows"][0]["perplexity"] = 54.6
    made["draw"](dense_too, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()
