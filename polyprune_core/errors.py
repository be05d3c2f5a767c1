"""Errors that a user can put right. A message says what was given, what is allowed, and what to do.

The command line prints the message without a traceback, and exits with the status of the error, usually 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolypruneError(Exception):
    """The base of all errors that a user can put right. The command line exits with `status`."""

    status = 2


class ConfigError(PolypruneError):
    """An option has a value that cannot be used."""


class ModelError(PolypruneError):
    """A model cannot be found, read or understood."""


class DataError(PolypruneError):
    """A text cannot be found, read or cut into windows."""


class BudgetError(PolypruneError):
    """The sparsity or budget that was asked for cannot be met, for instance because too many units have to stay."""


class PluginError(PolypruneError):
    """A plugin is missing, cannot be loaded, or returned something that its contract forbids."""


class ResultError(PolypruneError):
    """A stored result holds a value that no measurement can have."""


class WorkerError(PolypruneError):
    """A worker process died, did not answer in time, or could not be started."""


class VerificationError(PolypruneError):
    """The model that was written to disk computes something else than the model in memory."""

    status = 1


def plain(text: str) -> str:
    """Returns foreign text as one line of printable characters: nothing that controls a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def brief(error: BaseException, limit: int = 300) -> str:
    """Returns what an exception says as one line of at most about `limit` characters, or its type's name.

    What is left out is marked: an ellipsis, and how long the whole is.
    """
    text = plain(str(error)) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit].rstrip()}… ({len(text)} characters in all)"


def counted(number: int, one: str, many: str = "") -> str:
    """Returns "1 cell" or "2 cells"; `many` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def unknown_name(what: str, given: str, allowed: Iterable[str]) -> str:
    """Returns the message for a name outside `allowed`, with the nearest valid one first."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {what} named {given!r}.{hint} Available: {', '.join(names) or 'none'}."
