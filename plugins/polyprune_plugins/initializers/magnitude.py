"""Magnitude: sum of |w|^power over every weight that goes with the unit.

LLM-Pruner's L1 / L2 criterion (arXiv 2305.11627): a sum over the coupled matrices, without a root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyprune_core import initializer

if TYPE_CHECKING:
    from torch import Tensor


@initializer("magnitude", summary="size of the removed weights", reference="arXiv 2305.11627, section 3.2")
def magnitude(weight: Tensor, power: float = 2.0) -> Tensor:
    """`power`: exponent of the absolute weight, 1 or 2 in the literature."""
    return weight.abs() ** power
