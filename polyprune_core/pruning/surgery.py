"""The one mechanism that removes units: kept slices of each parameter, copied as whole rows.

The search runs the smaller model through `Compactor`, one sublayer at a time in shared buffers, so that a mask costs
one pass over the kept weights and no memory of the model's size. Exporters take the same slices for good with
`compact_state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.models.layout import Axis, Cut, ModelLayout

KEPT_WIDTH_MULTIPLE = 64


def kept_rows(rows: Tensor, width: int, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns (len(index) * width, …): the rows of the entries in `index`, of `rows` (size * width, …), contiguous."""
    blocks = rows.view(rows.shape[0] // width, -1)
    shape = (len(index) * width, *rows.shape[1:])
    target = None if out is None else out.view(len(index), -1)
    return torch.index_select(blocks, 0, index, out=target).view(shape)


def compact_state_dict(model: nn.Module, layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict of the smaller model; a sublayer with no entry left is absent, its norm with it.

    `axis_keep` maps axis names to (size,) bool; an axis it does not name stays whole.
    """
    cut_by: dict[str, tuple[Cut, Tensor]] = {}
    gone: list[str] = []
    for name, keep in axis_keep.items():
        axis = layout.axis[name]
        if not keep.any():
            gone += [f"{axis.module}.", *axis.module_only]
        cut_by |= {cut.parameter: (cut, keep.nonzero().flatten()) for cut in axis.cuts}
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(tuple(gone)):
            continue
        if name in cut_by:
            cut, index = cut_by[name]
            rows = tensor.transpose(0, cut.dim).contiguous()
            tensor = kept_rows(rows, cut.width, index.to(tensor.device)).transpose(0, cut.dim)
        state[name] = tensor.contiguous()
    return state


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
    def applied(self, axis_keep: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Runs the block with only the kept entries; `axis_keep` as in `MaskSpace.axis_keep`."""
        try:
            for sublayer in self._sublayers:
                sublayer.keep(axis_keep.get(sublayer.axis.name))
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


class _Sublayer:
    """One axis and the module that reads it; swaps slices in around the module's own forward."""

    def __init__(self, model: nn.Module, axis: Axis) -> None:
        self.axis = axis
        self.module = model.get_submodule(axis.module)
        self.parts = [(cut, model.get_parameter(cut.parameter)) for cut in axis.cuts]
        self.step = KEPT_WIDTH_MULTIPLE // math.gcd(KEPT_WIDTH_MULTIPLE, axis.reader_width)
        self.index: Tensor | None = None
        self.whole: list[Tensor] = []

    def attach(self, buffer: Callable[[str, Tensor], Tensor]) -> None:
        self.buffer, self.forward = buffer, self.module.forward
        for cut, parameter in self.parts:
            if cut.dim:
                parameter.data = parameter.data.t().contiguous().t()
        self.whole = [parameter.data for _, parameter in self.parts]
        self.rows = [whole.t() if cut.dim else whole for (cut, _), whole in zip(self.parts, self.whole, strict=True)]
        self.module.forward = self._compact_forward

    def detach(self) -> None:
        self.module.__dict__.pop("forward", None)
        for _, parameter in self.parts:
            parameter.data = parameter.data.contiguous()
        self.whole, self.rows = [], []

    def keep(self, entries: Tensor | None) -> None:
        if entries is None or bool(entries.all()):
            self.index = None
        else:
            self.index = entries.nonzero().flatten().to(self.parts[0][1].device)

    def _compact_forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.index is not None and not len(self.index):
            return self._nothing(args[0] if args else kwargs["hidden_states"])
        try:
            for slot, (cut, parameter) in enumerate(self.parts):
                parameter.data = self._whole(slot, cut) if self.index is None else self._kept(slot, cut, self.index)
            return self.forward(*args, **kwargs)
        finally:
            for (_, parameter), whole in zip(self.parts, self.whole, strict=True):
                parameter.data = whole

    def _whole(self, slot: int, cut: Cut) -> Tensor:
        # In its usual layout, so that the same kernel runs as in the untouched model: the same bits.
        whole = self.whole[slot]
        return self.buffer(f"{slot} whole", whole).copy_(whole) if cut.dim else whole

    def _kept(self, slot: int, cut: Cut, index: Tensor) -> Tensor:
        kept = len(index) * cut.width
        padded = min(-(-len(index) // self.step) * self.step, self.axis.size) * cut.width
        buffer = self.buffer(f"{slot}", self.rows[slot])[:padded]
        kept_rows(self.rows[slot], cut.width, index, out=buffer[:kept])
        buffer[kept:].zero_()
        return buffer.t() if cut.dim else buffer

    def _nothing(self, hidden: Tensor) -> Any:
        output = torch.zeros_like(hidden)
        return output if self.axis.outputs == 1 else (output, *[None] * (self.axis.outputs - 1))
