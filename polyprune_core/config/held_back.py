"""Text that is held back: how much of it, and how often a search looks at it."""

from __future__ import annotations

# Windows of calibration text that no metric looks at, and no search that stops by them learns from.
FEWEST, MOST = 8, 16
# Steps of a search from one look at that text to the next.
LOOK_EVERY = 5


def held_back_count(calibration_samples: int) -> int:
    """Returns how many windows are held back: a quarter of those that a metric looks at, within bounds."""
    return min(max(calibration_samples // 4, FEWEST), MOST)


def looks(steps: int) -> int:
    """Returns how often a search of that many steps looks at the text held back: before the first, and at the end."""
    return 1 + -(-steps // LOOK_EVERY)


def is_due(done: int, steps: int) -> bool:
    """Whether a search looks at the text held back after `done` of its steps."""
    return done % LOOK_EVERY == 0 or done == steps
