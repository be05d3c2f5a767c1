"""Wanda-sp: mean |w| of a reader's input column times the norm of that input.

Wanda (arXiv 2306.11695, eq. 1) in the structured form that FLAP (arXiv 2312.11983) compares with. A unit's score is
the sum over its columns of the attention output and MLP down projections. The statistics are those of the whole model:
no layer sees the output of an already pruned one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace


@dataclass(frozen=True)
class Wanda:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        inputs = calibration.input_statistics()

        def column(axis: str, weight: Tensor) -> Tensor:
            return weight.abs().mean(dim=0) * inputs[axis].mean_square.sqrt()

        return space.sum_columns(model, column)


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "wanda",
        "weight size times input norm",
        Wanda,
        needs=frozenset({"calibration"}),
        reference="arXiv 2306.11695, eq. 1; structured form of arXiv 2312.11983",
    )
