"""The one mechanism that removes units: kept slices of each parameter, copied as whole rows.

The search runs the smaller model through `Compactor`, one sublayer at a time in shared buffers, so that a mask costs
one pass over the kept weights and no memory of the model's size. Exporters take the same slices for good with
`compact_state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import ModelError
from polyprune_core.models.layout import Axis, Cut, ModelLayout

KEPT_WIDTH_MULTIPLE = 64


def kept_rows(rows: Tensor, width: int, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns (len(index) * width, …): the rows of the entries in `index`, of `rows` (size * width, …), contiguous."""
    blocks = rows.view(rows.shape[0] // width, -1)
    shape = (len(index) * width, *rows.shape[1:])
    target = None if out is None else out.view(len(index), -1)
    return torch.index_select(blocks, 0, index, out=target).view(shape)


def compact_state_dict(
    model: nn.Module,
    layout: ModelLayout,
    axis_keep: Mapping[str, Tensor],
    updates: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Returns the state dict of the smaller model; a sublayer with no entry left is absent, its norm with it.

    `axis_keep` maps axis names to (size,) bool; an axis it does not name stays whole. `updates` are parameters that a
    repair has changed or added, in their kept shape; they take on the model's number format.
    """
    stays: dict[str, dict[int, Tensor]] = {}
    gone: list[str] = []
    state = model.state_dict()
    for name, keep in axis_keep.items():
        axis = layout.axis[name]
        if not keep.any():
            gone += [f"{axis.module}.", *axis.module_only]
        for cut in axis.cuts:
            length = state[cut.parameter].shape[cut.dim]
            rows = stays.setdefault(cut.parameter, {}).setdefault(cut.dim, torch.ones(length, dtype=torch.bool))
            rows[cut.start : cut.start + axis.size * cut.width] = keep.repeat_interleave(cut.width)
    left = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(gone))}
    for name, tensor in left.items():
        for dim, rows in stays.get(name, {}).items():
            tensor = tensor.index_select(dim, rows.nonzero().flatten().to(tensor.device))
        left[name] = tensor.contiguous()
    dense = next(iter(state.values()))
    return left | {name: tensor.to(dense.device, dense.dtype).contiguous() for name, tensor in updates.items()}


class Compactor:
    """Runs a model without the units a mask removes; the weights themselves are never changed.

    While active, each reader's weight is held transposed, so that its columns too are copied as rows. Kept widths are
    rounded up with zero rows to a multiple of 64 reader inputs: every new shape costs the matrix library a set-up.

    Use as a context manager; then `with compactor.applied(axis_keep): model(...)`.
    """

    def __init__(self, model: nn.Module, layout: ModelLayout) -> None:
        self.model, self.layout = model, layout
        self._sublayers = [_Sublayer(model, axis) for axis in layout.axes]
        self._buffers: dict[Any, Tensor] = {}
        self._active = False

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
        """Runs the block with only the kept entries, and with `updates`; both as for `compact_state_dict`."""
        like = next(self.model.parameters())
        changed = {name: tensor.to(like.device, like.dtype) for name, tensor in updates.items()}
        try:
            with ExitStack() as undo:
                for sublayer in self._sublayers:
                    own = {name: changed.pop(name) for name in sublayer.names & changed.keys()}
                    sublayer.keep(axis_keep.get(sublayer.axis.name), own)
                for name, tensor in changed.items():
                    undo.enter_context(_in_place_of(self.model, name, tensor))
                yield self.model
        finally:
            for sublayer in self._sublayers:
                sublayer.keep(None)

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
        key = (slot, like.shape[1:], like.dtype)
        if key not in self._buffers or len(self._buffers[key]) < len(like):
            with torch.inference_mode(False):  # usable inside and outside of inference mode
                self._buffers[key] = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return self._buffers[key][: len(like)]


@contextmanager
def _in_place_of(model: nn.Module, name: str, tensor: Tensor) -> Iterator[None]:
    """Runs the block with another value of a parameter, or with one that the module does not have, such as a bias."""
    module, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    before = module._parameters[leaf]
    module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    try:
        yield
    finally:
        module._parameters[leaf] = before


class _Part:
    """One parameter of a sublayer, cut along one dimension in one place or several, the rest of it whole."""

    def __init__(self, name: str, parameter: nn.Parameter, cuts: Sequence[Cut], size: int) -> None:
        self.name, self.parameter, self.size = name, parameter, size
        self.dim = cuts[0].dim
        if any(cut.dim != self.dim for cut in cuts):
            raise ModelError(f"{name} is cut along several dimensions by one axis, which cannot be run.")
        self.cuts = sorted(cuts, key=lambda cut: cut.start)

    def attach(self) -> None:
        self.parameter.data = self.parameter.data.movedim(self.dim, 0).contiguous().movedim(0, self.dim)
        self.whole = self.parameter.data
        self.rows = self.whole.movedim(self.dim, 0)

    def detach(self) -> None:
        self.parameter.data = self.parameter.data.contiguous()
        for name in ("whole", "rows"):
            vars(self).pop(name, None)

    def fill(self, buffer: Tensor, index: Tensor, padded: int, update: Tensor | None) -> Tensor:
        """Writes the kept rows, or those of `update`, and returns the parameter; zero rows make up `padded` entries."""
        given = None if update is None else update.movedim(self.dim, 0)
        at = taken = read = 0
        for cut in self.cuts:
            between = cut.start - read
            if between:
                buffer[at : at + between] = self.rows[read : cut.start] if given is None else given[taken:][:between]
            at, taken, read = at + between, taken + between, cut.start + self.size * cut.width
            kept, room = len(index) * cut.width, padded * cut.width
            if given is None:
                kept_rows(self.rows[cut.start : read], cut.width, index, out=buffer[at : at + kept])
            else:
                buffer[at : at + kept] = given[taken : taken + kept]
            buffer[at + kept : at + room].zero_()
            at, taken = at + room, taken + kept
        rest = len(self.rows) - read
        if rest:
            buffer[at : at + rest] = self.rows[read:] if given is None else given[taken:]
        return buffer[: at + rest].movedim(0, self.dim)


class _Sublayer:
    """One axis and the module that reads it; swaps slices in around the module's own forward."""

    def __init__(self, model: nn.Module, axis: Axis) -> None:
        self.axis = axis
        self.module = model.get_submodule(axis.module)
        cuts: dict[str, list[Cut]] = {}
        for cut in axis.cuts:
            cuts.setdefault(cut.parameter, []).append(cut)
        self.parts = [_Part(name, model.get_parameter(name), own, axis.size) for name, own in cuts.items()]
        self.names = set(cuts)
        width = axis.reader_width if axis.reader else 1
        self.step = KEPT_WIDTH_MULTIPLE // math.gcd(KEPT_WIDTH_MULTIPLE, width)
        self.index: Tensor | None = None
        self.updates: Mapping[str, Tensor] = {}

    def attach(self, buffer: Callable[[str, Tensor], Tensor]) -> None:
        self.buffer, self.forward = buffer, self.module.forward
        for part in self.parts:
            part.attach()
        self.module.forward = self._compact_forward

    def detach(self) -> None:
        self.module.__dict__.pop("forward", None)
        for part in self.parts:
            part.detach()

    def keep(self, entries: Tensor | None, updates: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        self.updates = updates
        if entries is None or bool(entries.all()):
            self.index = None
        else:
            self.index = entries.nonzero().flatten().to(self.parts[0].parameter.device)

    def _compact_forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.index is not None and not len(self.index):
            return self._nothing(args[0] if args else kwargs["hidden_states"])
        try:
            for slot, part in enumerate(self.parts):
                part.parameter.data = (
                    self._whole(slot, part) if self.index is None else self._kept(slot, part, self.index)
                )
            return self.forward(*args, **kwargs)
        finally:
            for part in self.parts:
                part.parameter.data = part.whole

    def _whole(self, slot: int, part: _Part) -> Tensor:
        # In its usual layout, so that the same kernel runs as in the untouched model: the same bits.
        whole = self.updates.get(part.name, part.whole)
        return self.buffer(f"{slot} whole", whole).copy_(whole) if part.dim else whole

    def _kept(self, slot: int, part: _Part, index: Tensor) -> Tensor:
        padded = min(-(-len(index) // self.step) * self.step, self.axis.size)
        buffer = self.buffer(f"{slot}", part.rows)
        return part.fill(buffer, index, padded, self.updates.get(part.name))

    def _nothing(self, hidden: Tensor) -> Any:
        output = torch.zeros_like(hidden)
        return output if self.axis.outputs == 1 else (output, *[None] * (self.axis.outputs - 1))
