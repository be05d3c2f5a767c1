"""The benchmark that kills a grid at random moments, in small."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "kill_grid.py"))


@pytest.mark.slow
def test_a_grid_that_is_killed_at_random_moments_equals_the_unbroken_one(tmp_path) -> None:
    record = BENCHMARK["measure"](tmp_path, seeds=1, steps=60, kills=4, seed=1)
    assert record["cells"] == 19
    assert len(record["kills"]) == 4
    assert {fault: record[fault] for fault in BENCHMARK["FAULTS"] if record[fault]} == {}


def test_a_number_that_differs_is_told_and_time_and_memory_are_not() -> None:
    row = {"id": "a", "nll": 3.0, "search_seconds": 1.0, "peak_memory_mb": 1.0}
    differences = BENCHMARK["differences"]
    assert differences([row], [row | {"search_seconds": 2.0, "peak_memory_mb": 9.0}]) == []
    assert differences([row], [row | {"nll": 3.0000000000000004}]) == ["a nll: 3.0, 3.0000000000000004"]
    assert differences([row], [row, row]) == ["the cells"]
