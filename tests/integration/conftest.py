"""What tests of whole commands share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyprune_core.evaluation.pydocs import calibration_text, evaluation_text

pytest.register_assert_rewrite("commandline")  # what it checks is shown as in a test


@pytest.fixture(scope="session")
def short_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two texts: to cut the built-in one into tokens takes longer than all else in a run."""
    folder = tmp_path_factory.mktemp("short-texts")
    (folder / "learn.txt").write_text(calibration_text()[:9_000], "utf-8")
    (folder / "test.txt").write_text(evaluation_text()[:20_000], "utf-8")
    return folder


@pytest.fixture
def runtime_here() -> Iterator[None]:
    """Runtimes answer in this process."""
    from commandline import runtimes_here

    with runtimes_here():
        yield


@pytest.fixture(scope="module")
def two_short_texts(short_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Those texts in the current folder, a new one for each file of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shutil.copytree(short_texts, tmp_path_factory.mktemp("texts"), dirs_exist_ok=True))
        yield
