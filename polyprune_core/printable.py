"""Text of plugins and files, made safe to print."""

from __future__ import annotations


def plain(text: str) -> str:
    """Returns a text as one line of printable characters: nothing that controls a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
