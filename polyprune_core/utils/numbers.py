"""Numbers that are not finite: where they come from, and what JSON makes of them."""

from __future__ import annotations

import math
from typing import Any


def exp(value: float) -> float:
    """exp, infinite where that overflows."""
    return math.exp(value) if value < 709 else math.inf


def finite(value: Any) -> Any:
    """Returns the value with every non-finite float, at any depth, as None: JSON has no infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
