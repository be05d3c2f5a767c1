"""Keeps what is evaluated on apart from what is calibrated on: paragraphs that share a run of words are found."""

from __future__ import annotations

import re

RUN = 12  # words in a row that two paragraphs may not share across the split


def paragraphs(text: str) -> list[str]:
    """Returns the paragraphs of a text that are not blank."""
    return [p for p in re.split(r"\n\s*\n", text.strip("\n")) if p.strip()]


def runs(text: str) -> set[tuple[str, ...]]:
    """Returns every run of `RUN` words inside a paragraph of `text`, and whole the paragraphs that are shorter."""
    found = [tuple(p.split()) for p in paragraphs(text)]
    return {words[i : i + RUN] for words in found for i in range(max(1, len(words) - RUN + 1))}


def without(text: str, seen: set[tuple[str, ...]]) -> str:
    """Returns `text` without the paragraphs that share a run with `seen`."""
    return "\n\n".join(p for p in paragraphs(text) if runs(p).isdisjoint(seen))
