"""Whether it is the user who interrupts: Ctrl-C and the signals that stop a process, told from a KeyboardInterrupt.

The command line says which signals arrive here; without it, as in a library, every KeyboardInterrupt is the user's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_received: list[int] | None = None


@contextmanager
def watched() -> Iterator[list[int]]:
    """Yields the list that handlers put the numbers of signals into while the block runs."""
    global _received
    before, _received = _received, []
    try:
        yield _received
    finally:
        _received = before


def by_user(error: BaseException | None = None) -> bool:
    """Whether the user has interrupted, or may have where `error` is a KeyboardInterrupt and nobody watches."""
    return bool(_received) or (_received is None and isinstance(error, KeyboardInterrupt))
