"""Plugins of other distributions that are known of, whether or not they are installed."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Listed:
    """One plugin of the gallery: what it is, how it is installed, a command that shows it, and what that printed."""

    name: str
    kind: str
    distribution: str
    summary: str
    source: str
    install: str
    command: str
    row: str

    def has(self, word: str) -> bool:
        """Whether a word stands in anything that is said of it."""
        told = (self.name, self.kind, self.distribution, self.summary, self.source)
        return any(word.lower() in text.lower() for text in told)


@cache
def gallery() -> tuple[Listed, ...]:
    """All plugins of the gallery, polyprune's own distributions first."""
    tables = tomllib.loads(Path(__file__).with_name("gallery.toml").read_text("utf-8"))["plugin"]
    return tuple(Listed(**table) for table in tables)
