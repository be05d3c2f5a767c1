"""The gated form: the reader's input is multiplied by the mask. It pays for the whole model and is the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.models.layout import ModelLayout


@contextmanager
def gated(model: nn.Module, layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Runs the block with every removed entry's contribution multiplied by zero; nothing gets smaller.

    `axis_keep` maps axis names to (size,) bool, or float for a soft gate.
    """
    with ExitStack() as undo:
        for name, keep in axis_keep.items():
            axis = layout.axis[name]
            reader: Any = model.get_submodule(axis.reader_module)
            cut, features = axis.reader_cut, reader.weight.shape[axis.reader_cut.dim]
            own = keep.repeat_interleave(cut.width).to(reader.weight.device, reader.weight.dtype)
            after = features - cut.start - len(own)
            gate = torch.cat([own.new_ones(cut.start), own, own.new_ones(after)])
            undo.enter_context(reader.register_forward_pre_hook(_multiply_by(gate)))
            if not keep.any():  # the whole sublayer goes, its reader's bias with it
                undo.enter_context(reader.register_forward_hook(lambda _module, _inputs, output: output * 0))
        yield model


def _multiply_by(gate: Tensor) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * gate, *inputs[1:])

    return hook
