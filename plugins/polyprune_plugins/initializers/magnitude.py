"""Magnitude: the sum of |w|^power over all weights that a unit owns.

This is the L1 or L2 criterion of LLM-Pruner (arXiv 2305.11627, section 3.2): a sum over the coupled matrices, without a
root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyprune_core import initializer

if TYPE_CHECKING:
    from torch import Tensor


@initializer("magnitude", summary="size of the removed weights", reference="arXiv 2305.11627, section 3.2")
def magnitude(weight: Tensor, power: float = 2.0) -> Tensor:
    """Returns |weight|^power for each weight.

    Options:
        power: the exponent of the absolute weight; the literature uses 1 and 2.
    """
    return weight.abs() ** power
