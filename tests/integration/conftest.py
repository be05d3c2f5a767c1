"""What tests of whole commands share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from polyprune_core.pydocs import calibration_text, evaluation_text


@pytest.fixture(scope="module")
def two_short_texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Texts in the current folder: to cut the built-in one into tokens takes longer than all else in a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("texts"))
        Path("learn.txt").write_text(calibration_text()[:20_000], "utf-8")
        Path("test.txt").write_text(evaluation_text()[:20_000], "utf-8")
        yield
