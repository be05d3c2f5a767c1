"""RIA: how much of its row and of its column a weight makes up, times a root of the input's norm.

Zhang et al., "Plug-and-Play", ICLR 2024: (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) |x_j|^power, with W (out, in).
A unit's score is the sum over its columns of the attention output and MLP down projections.
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
    size = weight.abs()
    of_row = size / size.sum(dim=1, keepdim=True).clamp(min=TINY)
    of_column = size / size.sum(dim=0, keepdim=True).clamp(min=TINY)
    return (of_row + of_column) * input_norm**power
