"""One sublayer run with the kept entries of an axis alone: slices of parameters, and numbers that code counts by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import ModelError
from polyprune_core.models.layout import Axis, Cut
from polyprune_core.models.modeling_polyprune import OwnConfig
from polyprune_core.models.placing import is_in_file
from polyprune_core.pruning.entries import entry_rows

KEPT_WIDTH_MULTIPLE = 64


def kept_rows(rows: Tensor, width: int, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns (len(index) * width, …): the rows of the entries in `index`, of `rows` (size * width, …), contiguous."""
    blocks = rows.view(rows.shape[0] // width, -1)
    shape = (len(index) * width, *rows.shape[1:])
    target = None if out is None else out.view(len(index), -1)
    return torch.index_select(blocks, 0, index, out=target).view(shape)


class _Part:
    """One parameter of a sublayer, cut along one dimension by one of its axes, in one place or several."""

    def __init__(self, name: str, parameter: Tensor, cuts: Mapping[str, Sequence[Cut]]) -> None:
        self.name, self.parameter = name, parameter
        self.cuts = {axis: sorted(own, key=lambda cut: cut.start) for axis, own in cuts.items()}
        for axis, own in self.cuts.items():
            if any(cut.dim != own[0].dim for cut in own):
                raise ModelError(f"{name} is cut along several dimensions by {axis}, which cannot be run.")
        dims = {own[0].dim for own in self.cuts.values()}
        # One that stays in its file is not laid out anew, which would be a copy in memory.
        self.in_file = is_in_file(parameter)
        self.dim = dims.pop() if len(dims) == 1 and not self.in_file else 0

    def attach(self) -> None:
        self.parameter.data = self.parameter.data.movedim(self.dim, 0).contiguous().movedim(0, self.dim)
        self.whole = self.parameter.data
        self.rows = self.whole.movedim(self.dim, 0)

    def detach(self) -> None:
        self.parameter.data = self.parameter.data.contiguous()
        for name in ("whole", "rows"):
            vars(self).pop(name, None)

    def scattered(self, axis: Axis) -> bool:
        """Whether the entries of an axis are no runs of the rows that are laid out."""
        return any(cut.dim != self.dim or cut.gap for cut in self.cuts[axis.name])

    def taken(self, axis: Axis, index: Tensor, update: Tensor | None) -> Tensor:
        """Returns what `index` keeps of an axis whose entries are `scattered`."""
        if update is not None:
            return update
        own = self.cuts[axis.name]
        stays = torch.ones(self.whole.shape[own[0].dim], dtype=torch.bool, device=index.device)
        kept = torch.zeros(axis.size, dtype=torch.bool, device=index.device).index_fill_(0, index, True)
        for cut in own:
            stays[entry_rows(cut, axis.size).flatten().to(stays.device)] = kept.repeat_interleave(cut.width)
        return self.whole.index_select(own[0].dim, stays.nonzero().flatten())

    def fill(self, axis: Axis, buffer: Tensor, index: Tensor, padded: int, update: Tensor | None) -> Tensor:
        """Writes the kept rows, or those of `update`, and returns the parameter; zero rows make up `padded` entries."""
        given = None if update is None else update.movedim(self.dim, 0)
        at = taken = read = 0
        for cut in self.cuts[axis.name]:
            between = cut.start - read
            if between:
                buffer[at : at + between] = self.rows[read : cut.start] if given is None else given[taken:][:between]
            at, taken, read = at + between, taken + between, cut.start + axis.size * cut.width
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


class Sublayer:
    """The axes of one sublayer, of which one is cut at a time; swaps slices in around the forward of a module."""

    def __init__(self, model: nn.Module, axes: Sequence[Axis]) -> None:
        self.model, self.axes, self.axis = model, {axis.name: axis for axis in axes}, axes[0]
        self.module = model.get_submodule(axes[0].runs_in)
        cuts: dict[str, dict[str, list[Cut]]] = {}
        for axis in axes:
            for cut in axis.cuts:
                cuts.setdefault(cut.parameter, {}).setdefault(axis.name, []).append(cut)
            for buffer in axis.buffers:
                cuts.setdefault(buffer, {}).setdefault(axis.name, []).append(Cut(buffer, 0, 0, 1))
        self.parts = [_Part(name, tensor_of(model, name), own) for name, own in cuts.items()]
        self.names = set(cuts)
        self.in_file = any(part.in_file for part in self.parts)
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

    def keep(self, axis_keep: Mapping[str, Tensor], updates: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        self.updates, self.index = updates, None
        for name in self.axes.keys() & axis_keep.keys():
            if bool(axis_keep[name].all()):
                continue
            if self.index is not None:
                raise ModelError(f"{self.axis.name} and {name} divide the same sublayer; only one of them can be cut.")
            self.axis = self.axes[name]
            self.index = axis_keep[name].nonzero().flatten().to(self.parts[0].parameter.device)

    def _compact_forward(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as undo:
            if self.index is not None and not len(self.index):
                nothing = partial(_nothing, self.axis, width_out(self.model, self.axis))
                if self.axis.module == self.axis.runs_in:
                    return nothing(*args, **kwargs)
                undo.enter_context(_forward_of(self.model.get_submodule(self.axis.module), nothing))
                return self.forward(*args, **kwargs)
            undo.callback(self._restore)
            for slot, part in enumerate(self.parts):
                part.parameter.data = (
                    self._whole(slot, part)
                    if self.index is None or self.axis.name not in part.cuts
                    else self._kept(slot, part, self.index)
                )
            if self.index is not None:
                undo.enter_context(counted(self.model, self.axis, self._padded(self.index)))
            return self.forward(*args, **kwargs)

    def _restore(self) -> None:
        for part in self.parts:
            part.parameter.data = part.whole

    def _whole(self, slot: int, part: _Part) -> Tensor:
        # In its usual layout, so that the same kernel runs as in the untouched model: the same bits.
        whole = self.updates.get(part.name, part.whole)
        return self.buffer(f"{slot} whole", whole).copy_(whole) if part.dim else whole

    def _kept(self, slot: int, part: _Part, index: Tensor) -> Tensor:
        update = self.updates.get(part.name)
        if part.scattered(self.axis):
            return part.taken(self.axis, index, update)
        return part.fill(self.axis, self.buffer(f"{slot}", part.rows), index, self._padded(index), update)

    def _padded(self, index: Tensor) -> int:
        """Returns how many entries run; not padded: a second division, what nothing reads, files."""
        if self.axis.reader is None or self.axis.of or self.in_file:
            return len(index)
        step = KEPT_WIDTH_MULTIPLE // math.gcd(KEPT_WIDTH_MULTIPLE, self.axis.reader_width)
        return min(-(-len(index) // step) * step, self.axis.size)


@contextmanager
def counted(model: nn.Module, axis: Axis, entries: int) -> Iterator[None]:
    """Runs the block with the attributes that count an axis' entries set to those of `entries` of them."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, value in counts_of(model, axis, entries):
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def counts_of(model: nn.Module, axis: Axis, entries: int) -> Iterator[tuple[Any, str, Any]]:
    """Yields (object, attribute, value) of what counts an axis' entries in a model's code, for `entries` of them."""
    for name, value in counts_by_name(model, axis, entries):
        path, _, leaf = name.rpartition(".")
        owner: Any = model.get_submodule(path.removesuffix(".config"))
        yield (
            (owner, "config", OwnConfig(owner.config, {leaf: value}))
            if path.endswith(".config")
            else (
                owner,
                leaf,
                value,
            )
        )
    for name in dict.fromkeys(cut.parameter.rpartition(".")[0] for cut in axis.cuts):
        owner = model.get_submodule(name)
        if hasattr(owner, "nf"):
            yield owner, "nf", owner.weight.shape[1]


def counts_by_name(model: nn.Module, axis: Axis, entries: int) -> Iterator[tuple[str, int]]:
    """Yields dotted names of the attributes that count an axis' entries and their values for `entries` of them."""
    for name in (*axis.attributes, *axis.capped):
        path, _, leaf = name.rpartition(".")
        owner: Any = model.get_submodule(path.removesuffix(".config"))
        value = getattr(owner.config if path.endswith(".config") else owner, leaf)
        yield name, min(value, entries) if name in axis.capped else value * entries // axis.size


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    had = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        if had is not None:
            module.forward = had


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """Returns the parameter or the buffer of a dotted name."""
    path, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(path), leaf)
    return found


def width_out(model: nn.Module, axis: Axis) -> int:
    """Returns the output features of the module that reads an axis; 0 where nothing does."""
    if axis.reader is None:
        return 0
    return int(model.get_parameter(axis.reader_cut.parameter).shape[1 - axis.reader_cut.dim])


def _nothing(axis: Axis, width: int, *args: Any, **kwargs: Any) -> Any:
    hidden = args[0] if args else kwargs["hidden_states"]
    if axis.returns is not None:
        output = args[axis.returns]
    elif axis.module == axis.reader:
        output = hidden.new_zeros(*hidden.shape[:-1], width)
    else:
        output = torch.zeros_like(hidden)
    return output if axis.outputs == 1 else (output, *[None] * (axis.outputs - 1))
