"""The built-in text: what is calibrated on, what is held out, and what only trains the tiny model."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyprune_core.errors import DataError
from polyprune_core.evaluation import apart, pydocs

ROOT = Path(__file__).resolve().parents[2]
CACHED = (pydocs._topics, pydocs.calibration_text, pydocs.evaluation_text, pydocs.docstrings_text)


@pytest.fixture
def _forgotten() -> Iterator[None]:
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


def shared_runs(a: str, b: str, words: int) -> set[tuple[str, ...]]:
    """Returns the runs of `words` words that occur in both texts, across paragraphs too."""
    first, second = (
        {tuple(split[i : i + words]) for i in range(len(split) - words + 1)} for split in (a.split(), b.split())
    )
    return first & second


def paragraphs(text: str) -> set[str]:
    return {" ".join(p.split()) for p in text.split("\n\n") if p.strip()}


def test_the_texts_are_long_english_prose() -> None:
    assert len(pydocs.calibration_text()) > 200_000
    assert len(pydocs.evaluation_text()) > 50_000
    assert len(pydocs.docstrings_text()) > 500_000
    for text in (pydocs.calibration_text(), pydocs.evaluation_text(), pydocs.docstrings_text()):
        assert text.split().count("the") > len(text.split()) / 40


def test_about_a_quarter_of_the_topics_is_held_out() -> None:
    held, kept = len(pydocs.evaluation_text()), len(pydocs.calibration_text())
    assert 0.18 < held / (held + kept) < 0.32


@pytest.mark.parametrize("other", [pydocs.calibration_text, pydocs.docstrings_text])
def test_the_evaluation_text_shares_no_paragraph_with_a_training_text(other) -> None:
    assert not paragraphs(pydocs.evaluation_text()) & paragraphs(other())


@pytest.mark.parametrize("other", [pydocs.calibration_text, pydocs.docstrings_text])
def test_the_evaluation_text_shares_no_long_passage_with_a_training_text(other) -> None:
    assert not shared_runs(pydocs.evaluation_text(), other(), 2 * apart.RUN)


def test_no_topic_repeats_most_of_another() -> None:
    topics = pydocs._topics()
    assert list(topics) == sorted(topics)
    assert "compound" in topics
    assert "with" not in topics
    assert len(set(topics.values())) == len(topics)


def test_every_topic_is_on_one_side_of_the_split() -> None:
    for name, text in pydocs._topics().items():
        assert (text in pydocs.calibration_text()) != pydocs._held_out(name)


def test_another_process_reads_the_same_texts_without_torch() -> None:
    code = (
        "import sys, zlib; from polyprune_core.evaluation import pydocs as p; "
        "print([zlib.crc32(f().encode()) for f in (p.calibration_text, p.evaluation_text, p.docstrings_text)]); "
        "assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    texts = (pydocs.calibration_text(), pydocs.evaluation_text(), pydocs.docstrings_text())
    assert run.stdout == f"{[zlib.crc32(text.encode()) for text in texts]}\n"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _forgotten: None) -> Path:
    """An empty folder in place of the standard library."""
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def test_docstrings_of_private_names_and_tests_are_left_out(library: Path) -> None:
    (library / "json.py").write_text(
        '"""Module."""\nclass A:\n    """Class."""\n    def f(self): """Method."""\n    def _g(self): """No."""\n'
        'class _B:\n    """No."""\n    def f(self): """No."""\nasync def h(): """Function."""\n'
    )
    for path in ("json/_private.py", "json/tests/case.py", "idlelib/run.py", "json/__main__.py"):
        (library / path).parent.mkdir(parents=True, exist_ok=True)
        (library / path).write_text('"""No."""')
    assert pydocs.docstrings_text() == "Module.\n\nClass.\n\nMethod.\n\nFunction."


def test_a_docstring_repeated_or_quoting_the_evaluation_text_is_left_out(library: Path) -> None:
    quoted = max(apart.paragraphs(pydocs.evaluation_text()), key=len)
    (library / "json.py").write_text(f"{quoted!r}\ndef f(): 'Once.'\ndef g(): 'Once.'", encoding="utf-8")
    assert pydocs.docstrings_text() == "Once."


def test_a_python_without_library_source_is_a_data_error(library: Path) -> None:
    with pytest.raises(DataError, match=f"no standard-library source under {library}"):
        pydocs.docstrings_text()


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize("text", [pydocs.calibration_text, pydocs.evaluation_text, pydocs.docstrings_text])
def test_a_python_without_help_topics_is_a_data_error(text, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="Give a text file"):
        text()
