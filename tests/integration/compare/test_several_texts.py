"""Several texts and window lengths in one run: the numbers of one run each, beside the headline's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyprune_core import compare, evaluate, prune
from polyprune_core.errors import ConfigError, DataError
from polyprune_core.evaluation.pydocs import calibration_text, evaluation_text
from polyprune_core.report.load import load
from polyprune_core.results.cell_file import path_of, read_details

SMALL: dict[str, Any] = {
    "model": "tiny",
    "limit": 6,
    "seq_len": 32,
    "calibration_samples": 4,
    "calibration": "learn.txt",
    "baselines": ["random"],
    "scope": "kind",
    "scale": "raw",
    "quiet": True,
}
BOTH = ("one.txt", "other.txt")


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three texts in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    Path("learn.txt").write_text(calibration_text()[:9_000], "utf-8")
    Path("one.txt").write_text(evaluation_text()[:9_000], "utf-8")
    Path("other.txt").write_text(evaluation_text()[20_000:40_000], "utf-8")


def test_several_evaluations_are_those_of_as_many_runs_bit_for_bit() -> None:
    together = compare(**SMALL, evaluation=BOTH, eval_seq_len=(32, 64), output="together")
    places = [(text, length) for text in BOTH for length in (32, 64)]
    for row in together.rows:
        assert [each.place for each in row.evaluations] == places
    for index, (text, length) in enumerate(places):
        limit = 6 * 32 // length
        alone = compare(**SMALL | {"limit": limit}, evaluation=text, eval_seq_len=length, output=f"alone{index}")
        for row, other in zip(together.rows, alone.rows, strict=True):
            assert row.evaluations[index] == other.evaluations[0]
            ours, theirs = (
                read_details(path_of(Path(name) / "cells", each.id))
                for name, each in (("together", row), (f"alone{index}", other))
            )
            losses = (ours.window_nll, *ours.further_nll)[index]
            assert losses.tobytes() == theirs.window_nll.tobytes()
            assert len(losses) == limit


def test_the_first_text_at_the_first_length_is_the_headline() -> None:
    results = compare(**SMALL, evaluation=BOTH, eval_seq_len=(32, 64), seeds=(0, 1))
    dense = results.rows[0]
    for row in results.rows:
        first = row.evaluations[0]
        assert (row.perplexity, row.nll, row.kl_to_dense) == (first.perplexity, first.nll, first.kl_to_dense)
        assert (row.eval_tokens, row.top1_agreement) == (first.tokens, first.top1_agreement)
        for ours, theirs in zip(row.evaluations, dense.evaluations, strict=True):
            assert ours.excess == ours.nll - theirs.nll
    alone = compare(**SMALL, evaluation="one.txt", eval_seq_len=32, seeds=(0, 1))
    assert [s.perplexity for s in results.summaries()] == [s.perplexity for s in alone.summaries()]
    assert results.texts["evaluation"] == alone.texts["evaluation"]
    assert [each["name"] for each in results.texts["evaluations"]] == ["one.txt", "one.txt", "other.txt", "other.txt"]
    assert "evaluations" not in alone.texts


def test_a_list_of_one_is_the_cell_of_a_single_value_and_two_are_another() -> None:
    one = compare(**SMALL, evaluation="one.txt", eval_seq_len=32)
    for same in ({"evaluation": ["one.txt"], "eval_seq_len": 32}, {"evaluation": "one.txt", "eval_seq_len": [32]}):
        again = compare(**SMALL, **same)
        assert [row.id for row in again.rows] == [row.id for row in one.rows]
        assert again.config == one.config
    assert one.config["evaluation"] == "one.txt"
    assert one.config["eval_seq_len"] == 32
    others = [
        compare(**SMALL, **more)
        for more in (
            {"evaluation": BOTH, "eval_seq_len": 32},
            {"evaluation": BOTH[::-1], "eval_seq_len": 32},
            {"evaluation": "one.txt", "eval_seq_len": (32, 64)},
        )
    ]
    assert len({row.id for each in (one, *others) for row in each.rows}) == 2 * 4


def test_what_is_written_is_read_again() -> None:
    made = compare(**SMALL, evaluation=BOTH, eval_seq_len=(32, 64), output="store")
    (comparison,) = load([Path("store")]).comparisons
    assert comparison.results.rows == made.rows
    cell = json.loads(next(Path("store/cells").glob("*.json")).read_text("utf-8"))["row"]
    assert [each["text"] for each in cell["evaluations"]] == ["one.txt", "one.txt", "other.txt", "other.txt"]
    rebuilt = made.pruned(made.rows[1])
    assert [(each.text, each.seq_len, each.nll) for each in rebuilt.evaluations] == [
        (each.text, each.seq_len, each.nll) for each in made.rows[1].evaluations
    ]
    assert [len(each.window_nll) for each in rebuilt.evaluations] == [6, 3, 6, 3]


def test_what_cannot_be_evaluated_is_refused() -> None:
    Path("short.txt").write_text("too short", "utf-8")
    with pytest.raises(DataError, match=r"'short\.txt' has \d tokens, less than one window of 64"):
        compare(**SMALL, evaluation=("one.txt", "short.txt"), eval_seq_len=64)
    Path("folder").mkdir()
    Path("folder/one.txt").write_text("text " * 100, "utf-8")
    with pytest.raises(ConfigError, match=r"two texts are called 'one\.txt'"):
        compare(**SMALL, evaluation=("one.txt", "folder/one.txt"))
    with pytest.raises(ConfigError, match="--evaluation"):
        compare(**SMALL, evaluation=())


def test_prune_and_evaluate_report_every_evaluation() -> None:
    asked = {"evaluation": BOTH, "eval_seq_len": (32, 64)}
    made = prune(**{**SMALL, "baselines": None}, **asked, initializer="random", sparsity=0.3, output="pruned")
    found = evaluate("pruned", **asked, limit=6, quiet=True)
    assert [each.place for each in found.model.evaluations] == [(t, n) for t in BOTH for n in (32, 64)]
    for cut, read, dense, measured in zip(
        made.evaluations, made.written.reloaded, made.dense_evaluations, found.model.evaluations, strict=True
    ):
        assert measured.nll == pytest.approx(read.nll, rel=1e-6) == pytest.approx(cut.nll, rel=1e-3)
        assert measured.excess == pytest.approx(read.nll - dense.nll, rel=1e-4)
        assert measured.kl_to_dense == pytest.approx(cut.kl_to_dense, rel=1e-2)
    lines = [line for line in made.written.lines() if line.startswith("  perplexity")]
    assert len(lines) == 4
    assert all("no part of the calibration" in line and "KL to dense" in line for line in lines)
    record = json.loads(Path("pruned/polyprune.json").read_text("utf-8"))
    assert [each["calibrated_on"] for each in record["evaluations"]] == [False] * 4
    assert record["evaluations"][0]["dense"] == record["dense"]
