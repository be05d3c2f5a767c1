"""RIA: the share of a weight in its row and in its column, times a power of the norm of its input.

Zhang et al., "Plug-and-Play", ICLR 2024: (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) |x_j|^power, with W (out, in).
The score of a unit is the sum over its columns of the attention output and MLP down projections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyprune_core import initializer

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-30  # the sum of a row or column of zeros


@initializer(
    "ria",
    summary="share of a weight in its row and column, times input norm",
    reference="Zhang et al., ICLR 2024 (Plug-and-Play)",
    matrices="readers",
)
def ria(weight: Tensor, input_norm: Tensor, power: float = 0.5) -> Tensor:
    """Returns the relative importance of each weight, times the norm of its input to a power.

    Options:
        power: the exponent of the norm; 0.5 in the paper.
    """
    size = weight.abs()
    of_row = size / size.sum(dim=1, keepdim=True).clamp(min=TINY)
    of_column = size / size.sum(dim=0, keepdim=True).clamp(min=TINY)
    return (of_row + of_column) * input_norm**power
