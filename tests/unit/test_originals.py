"""Every metric against what its authors' own code computed on the same tiny models: tests/originals/README.md."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "originals.py"))


@pytest.mark.parametrize(("model_name", "spec"), list(BENCHMARK["recorded"]()))
def test_a_metric_scores_as_its_authors_code(model_name, spec) -> None:
    assert BENCHMARK["difference"](model_name, spec) < 1e-5


def test_every_original_is_named_with_its_file() -> None:
    assert all("/" in BENCHMARK["file_of"](spec) for _, spec in BENCHMARK["recorded"]())
