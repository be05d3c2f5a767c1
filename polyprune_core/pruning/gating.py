"""The gated form: the reader's input is multiplied by the mask. It pays for the whole model and is the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from polyprune_core.models.layout import Axis, ModelLayout


@contextmanager
def gated(model: nn.Module, layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Runs the block with every removed entry's contribution multiplied by zero; nothing gets smaller.

    `axis_keep` maps axis names to (size,) bool, or float for a soft gate. Where a router chooses among the entries, the
    logarithm of the gate is added to its logits instead: an entry at zero is not chosen, and others take its place.
    """
    with ExitStack() as undo:
        for name, keep in axis_keep.items():
            axis = layout.axis[name]
            if axis.router:
                undo.enter_context(_chosen_from(model, axis, keep))
                continue
            if axis.scaled:
                undo.enter_context(_scaled(model, axis, keep))
                continue
            reader: Any = model.get_submodule(axis.reader_module)
            cut, features = axis.reader_cut, reader.weight.shape[axis.reader_cut.dim]
            own = keep.repeat_interleave(cut.width).to(reader.weight.device, reader.weight.dtype)
            after = features - cut.start - len(own)
            gate = torch.cat([own.new_ones(cut.start), own, own.new_ones(after)])
            undo.enter_context(reader.register_forward_pre_hook(_multiply_by(gate)))
            if not keep.any():  # the whole sublayer goes, its reader's bias with it
                undo.enter_context(reader.register_forward_hook(lambda _module, _inputs, output: output * 0))
        yield model


@contextmanager
def _chosen_from(model: nn.Module, axis: Axis, keep: Tensor) -> Iterator[None]:
    router: Any = model.get_submodule(str(axis.router))
    forward, gate = router.forward, keep.to(router.weight.device).float().log()

    def gated_forward(*args: Any, **kwargs: Any) -> Any:
        with _AddedToLogits(gate):
            return forward(*args, **kwargs)

    with ExitStack() as undo:
        if keep.any():
            router.forward = gated_forward
            undo.callback(router.__dict__.pop, "forward")
            for name in axis.buffers:
                undo.enter_context(_added_to_buffer(model, name, gate))
        else:
            module = model.get_submodule(axis.module)
            undo.enter_context(module.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output)))
        yield


@contextmanager
def _added_to_buffer(model: nn.Module, name: str, vector: Tensor) -> Iterator[None]:
    """Runs the block with a vector added to what a router adds to its choices by itself."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    buffers = dict(owner._buffers)
    before = owner._buffers.pop(leaf)
    try:
        owner.register_buffer(leaf, before + vector.to(before))  # type: ignore[operator]
        yield
    finally:
        owner._buffers.clear()
        owner._buffers.update(buffers)


@contextmanager
def _scaled(model: nn.Module, axis: Axis, keep: Tensor) -> Iterator[None]:
    """Runs the block with a product in place of a parameter, so that gradients reach the gate."""
    path, _, leaf = str(axis.scaled).rpartition(".")
    owner, cut = model.get_submodule(path), next(cut for cut in axis.cuts if cut.parameter == axis.scaled)
    parameters = dict(owner._parameters)
    weight: Any = owner._parameters.pop(leaf)
    try:
        gate = keep.repeat_interleave(cut.width).to(weight.device, weight.dtype)
        vars(owner)[leaf] = (weight.movedim(cut.dim, -1) * gate).movedim(-1, cut.dim).contiguous()
        yield
    finally:
        vars(owner).pop(leaf, None)
        owner._parameters.clear()
        owner._parameters.update(parameters)


class _AddedToLogits(TorchFunctionMode):
    """Adds a vector to what linear maps give: a router runs one."""

    def __init__(self, vector: Tensor) -> None:
        self.vector = vector

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return found + self.vector.to(found.dtype) if func is F.linear else found


def _multiply_by(gate: Tensor) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * gate, *inputs[1:])

    return hook
