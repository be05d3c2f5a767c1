"""The one mechanism that removes units: kept slices of each parameter, copied as whole rows.

The search runs the smaller model through `Compactor`, one sublayer at a time in shared buffers, so that a mask costs
one pass over the kept weights and no memory of the model's size. Exporters take the same slices for good with
`compact_state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.models.layout import Axis, ModelLayout
from polyprune_core.pruning.entries import entry_rows
from polyprune_core.pruning.sublayer import Sublayer


@dataclass(frozen=True)
class Remains:
    """What is left of each parameter: `stays` maps its name and a dimension to (length,) bool; `gone` are prefixes."""

    stays: Mapping[str, Mapping[int, Tensor]]
    gone: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> Remains:
        """Works it out; an axis that `axis_keep` ({axis name: (size,) bool}) does not name stays whole."""
        stays: dict[str, dict[int, Tensor]] = {}
        gone: list[str] = []
        empty: dict[int, set[str]] = {}
        for name, keep in axis_keep.items():
            axis = layout.axis[name]
            if not keep.any():
                gone += [f"{axis.module}.", *axis.module_only]
                empty.setdefault(axis.layer, set()).add(axis.of or name)
            for cut in axis.cuts:
                length = model.get_parameter(cut.parameter).shape[cut.dim]
                rows = stays.setdefault(cut.parameter, {}).setdefault(cut.dim, torch.ones(length, dtype=torch.bool))
                rows[entry_rows(cut, axis.size).flatten()] = keep.repeat_interleave(cut.width)
            for buffer in axis.buffers:
                stays[buffer] = {0: keep}
        for index, names in empty.items():
            if index not in layout.fixed and names >= {axis.name for axis in layout.axes if axis.layer == index}:
                gone.append(f"{layout.layers}.{index}.")
        return cls(stays, tuple(gone))

    def shape(self, name: str, tensor: Tensor) -> tuple[int, ...] | None:
        """Returns the shape that is left of a parameter, None where it is gone."""
        if name.startswith(self.gone):
            return None
        cuts = self.stays.get(name, {})
        return tuple(int(cuts[dim].sum()) if dim in cuts else size for dim, size in enumerate(tensor.shape))

    def slice(self, name: str, tensor: Tensor) -> Tensor:
        """Returns what is left of a parameter, contiguous."""
        for dim, rows in self.stays.get(name, {}).items():
            tensor = tensor.index_select(dim, rows.nonzero().flatten().to(tensor.device))
        return tensor.contiguous()


def as_of(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Returns a parameter's new value on the device of its module, in the number format of that."""
    like = next(model.get_submodule(name.rpartition(".")[0]).parameters(), None)
    like = next(model.parameters()) if like is None else like
    return tensor.to(like.device, like.dtype)


def compact_items(
    model: nn.Module,
    layout: ModelLayout,
    axis_keep: Mapping[str, Tensor],
    updates: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[tuple[str, Tensor]]:
    """Yields the state dict of the smaller model; a sublayer with no entry left is absent, its norm with it.

    `axis_keep` maps axis names to (size,) bool; an axis it does not name stays whole. `updates` are parameters that a
    repair has changed or added, in their kept shape; they take on the model's number format.
    """
    remains = Remains.of(model, layout, axis_keep)
    state = model.state_dict()
    for name in [*state, *(name for name in updates if name not in state)]:
        if name in updates:
            yield name, as_of(model, name, updates[name]).contiguous()
        elif not name.startswith(remains.gone):
            yield name, remains.slice(name, state[name])


def compact_state_dict(
    model: nn.Module,
    layout: ModelLayout,
    axis_keep: Mapping[str, Tensor],
    updates: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Returns what `compact_items` yields."""
    return dict(compact_items(model, layout, axis_keep, updates))


class Compactor:
    """Runs a model without the units a mask removes; the weights themselves are never changed.

    While active, each reader's weight is held transposed, so that its columns too are copied as rows. Kept widths are
    rounded up with zero rows to a multiple of 64 reader inputs: every new shape costs the matrix library a set-up.

    Use as a context manager; then `with compactor.applied(axis_keep): model(...)`.
    """

    def __init__(self, model: nn.Module, layout: ModelLayout) -> None:
        self.model, self.layout = model, layout
        axes: dict[str, list[Axis]] = {}
        for axis in (*layout.axes, *layout.views):
            axes.setdefault(axis.module, []).append(axis)
        self._sublayers = [Sublayer(model, own) for own in axes.values()]
        self._buffers: dict[Any, Tensor] = {}
        self._active = False
        self._replaced: dict[str, Tensor | None] = {}

    def __enter__(self) -> Compactor:
        try:
            for sublayer in self._sublayers:
                sublayer.attach(self._buffer)
        except BaseException:
            self.__exit__()
            raise
        self._active = True
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False
        for sublayer in self._sublayers:
            sublayer.detach()
        self._buffers.clear()

    @contextmanager
    def applied(
        self, axis_keep: Mapping[str, Tensor], updates: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Iterator[nn.Module]:
        """Runs the block with only the kept entries, and with `updates`; both as for `compact_state_dict`.

        Inside another such block it holds alone, until it ends.
        """
        changed = {name: as_of(self.model, name, tensor) for name, tensor in updates.items()}
        before = [(sublayer.axis, sublayer.index, sublayer.updates) for sublayer in self._sublayers]
        replaced = self._replaced
        try:
            with ExitStack() as undo:
                for name, original in replaced.items():
                    undo.enter_context(_in_place_of(self.model, name, original))
                for sublayer in self._sublayers:
                    own = {name: changed.pop(name) for name in sublayer.names & changed.keys()}
                    sublayer.keep(axis_keep, own)
                self._replaced = {}
                for name, tensor in changed.items():
                    self._replaced[name] = undo.enter_context(_in_place_of(self.model, name, tensor))
                yield self.model
        finally:
            self._replaced = replaced
            for sublayer, was in zip(self._sublayers, before, strict=True):
                sublayer.axis, sublayer.index, sublayer.updates = was

    @contextmanager
    def paused(self) -> Iterator[nn.Module]:
        """Runs the block with the untouched model, for instance to time it; also outside of the context."""
        active = self._active
        if active:
            self.__exit__()
        try:
            yield self.model
        finally:
            if active:
                self.__enter__()

    def _buffer(self, slot: str, like: Tensor) -> Tensor:
        key = (slot, like.shape[1:], like.dtype, like.device)
        if key not in self._buffers or len(self._buffers[key]) < len(like):
            with torch.inference_mode(False):  # usable inside and outside of inference mode
                self._buffers[key] = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return self._buffers[key][: len(like)]


@contextmanager
def _in_place_of(model: nn.Module, name: str, tensor: Tensor | None) -> Iterator[Tensor | None]:
    """Runs the block with another value of a parameter, also of one that the module does not have, such as a bias.

    Yields the value before, None where there was none.
    """
    module, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    before = module._parameters[leaf]
    module._parameters[leaf] = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
    try:
        yield before
    finally:
        module._parameters[leaf] = before
