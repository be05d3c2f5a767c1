"""Wanda-sp: the mean absolute weight of an input column of a reader, times the norm of that input.

Wanda (arXiv 2306.11695, eq. 1) in the structured form that FLAP (arXiv 2312.11983) compares with. The score of a unit
is the sum over its columns of the attention output and MLP down projections. It takes forward passes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import ConfigError, Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace


@dataclass(frozen=True)
class Wanda:
    """Scores units by Wanda-sp.

    Options:
        sequential: the fraction of units to remove from each layer, worst first, before the next layer is measured.
            That is done in the released code of FLAP, and at the start of the released search of arXiv 2406.10576. It
            takes one pass over the text for each layer. With 0, all layers are measured in one pass of the dense model.
    """

    sequential: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sequential < 1:
            raise ConfigError(f"wanda: sequential={self.sequential:g} is no share of units; give 0 to less than 1.")

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        if self.sequential:
            return layer_by_layer(model, space, calibration, self.sequential)
        inputs = calibration.input_statistics()
        return space.sum_columns(model, lambda axis, weight: weight.abs().mean(dim=0) * inputs[axis].mean_square.sqrt())


def layer_by_layer(model: nn.Module, space: MaskSpace, calibration: Calibration, share: float) -> Tensor:
    """Returns (U,) scores from inputs that have passed through earlier layers without their worst `share` of units."""
    from polyprune_core import MaskSpace

    if all(group.count == 1 for group in space.groups):
        raise ConfigError(
            "wanda: sequential is a share of the units of a layer, and "
            f"{space.name or 'this granularity'} has none that are parts of one; leave it out, or use head or channel."
        )
    if any(space.layout.axis[name].stack for name in space.axes):
        raise ConfigError("wanda: sequential hides what linear modules take in, and experts are none; leave it out.")
    norms: dict[str, Tensor] = {}

    def column(axis: str, weight: Tensor) -> Tensor:
        return weight.abs().mean(dim=0) * norms[axis]

    with ExitStack() as undo:
        for layer in range(space.layout.num_layers):
            groups = [group for group in space.groups if group.layer == layer]
            if not groups:
                continue
            part = MaskSpace(space.layout, groups)
            norms |= input_norms(part, calibration)
            for name, kept in part.axis_keep(without_worst(part.sum_columns(model, column), part, share)).items():
                axis = space.layout.axis[name]
                reader = model.get_submodule(axis.reader_module)
                undo.enter_context(reader.register_forward_pre_hook(only(kept.repeat_interleave(axis.reader_width))))
    return space.sum_columns(model, column)


def input_norms(space: MaskSpace, calibration: Calibration) -> dict[str, Tensor]:
    """Returns, by axis name, (F,) float32 root mean squares of its reader's inputs, in the model as it now runs."""
    squares: dict[str, Tensor] = {}

    def add(name: str, rows: Tensor) -> None:
        square = rows.square().sum(dim=0)
        squares[name] = squares[name] + square if name in squares else square

    calibration.observe_readers(space.axes, add)
    return {name: (square / calibration.windows.numel()).sqrt() for name, square in squares.items()}


def without_worst(scores: Tensor, space: MaskSpace, share: float) -> Tensor:
    """Returns (U,) bool without the worst `share` of each group, rounded down."""
    import torch

    keep = torch.ones(len(space), dtype=torch.bool)
    for where, group in zip(space.slices(), space.groups, strict=True):
        keep[where][scores[where].argsort(stable=True)[: int(share * group.count)]] = False
    return keep


def only(columns: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Returns a hook that hides all input features but `columns` (F,) bool from a linear module."""

    def hook(_reader: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * columns.to(inputs[0].device), *inputs[1:])

    return hook


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "wanda",
        "weight size times input norm",
        Wanda,
        needs=frozenset({"calibration"}),
        reference="arXiv 2306.11695, eq. 1; structured form of arXiv 2312.11983",
    )
