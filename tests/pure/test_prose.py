"""The built-in prose: whole chapters on either side of the split, and nothing that both hold."""

from __future__ import annotations

import pytest

from polyprune_core.errors import DataError
from polyprune_core.evaluation import prose
from polyprune_core.evaluation.text import load_text, parts_of


def words_in_a_row(text: str, count: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + count]) for i in range(len(words) - count + 1)}


def test_the_novel_is_whole_and_nothing_else() -> None:
    chapters = prose.chapters()
    assert [chapter.partition("\n")[0] for chapter in chapters] == [f"Chapter {n}" for n in range(1, 25)]
    assert chapters[0].partition("\n\n")[2].startswith("Sir Walter Elliot, of Kellynch Hall, in Somersetshire,")
    assert chapters[-1].endswith("than in its national importance.")
    text = "".join(chapters)
    assert text.isascii()
    assert not any(word in text for word in ("Gutenberg", "Austen", "ebook"))


def test_chapters_are_on_one_side_and_no_run_of_thirteen_words_is_on_both() -> None:
    calibration, evaluation = prose.calibration_text(), prose.evaluation_text()
    assert [n for n, chapter in enumerate(prose.chapters(), 1) if chapter not in calibration] == [4, 8, 12, 16, 20, 24]
    assert words_in_a_row(calibration, 13).isdisjoint(words_in_a_row(evaluation, 13))
    assert len(calibration) > 300_000
    assert 90_000 < len(evaluation) < 110_000


def test_the_mix_is_that_of_both_built_in_texts() -> None:
    mix = load_text("builtin:mix", "calibration")
    assert mix.name == "builtin:pydocs+builtin:prose"
    assert [part.content for part in mix.parts] == [
        load_text(name, "calibration").content for name in ("builtin:pydocs", "builtin:prose")
    ]
    assert parts_of("builtin:mix") == ["builtin:pydocs", "builtin:prose"]
    assert parts_of("a.txt+builtin:mix") == ["a.txt", "builtin:pydocs", "builtin:prose"]
    with pytest.raises(DataError, match=r"perplexity is of one text.*Give builtin:pydocs,builtin:prose"):
        load_text("builtin:mix", "evaluation")
