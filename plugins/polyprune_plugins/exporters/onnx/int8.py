"""Matrices of an ONNX graph in eight bits, w = scale q with a scale for each row; the runtime multiplies in float32.

ONNX Runtime's dynamic quantisation rounds what matrices are multiplied with to eight bits as well. It was tried and
left out: a log-probability of a pruned model then moved nine times as far as the dense model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

QUANTISED, SCALE = ".int8", ".scale"
LARGEST = 127
# Half a step of the largest weight of a row: what is lost of it.
ROUNDING = 0.5 / LARGEST


def quantise(file: Path, large: bool) -> None:
    """Puts eight bits in place of the matrices in a file; `large`: its weights lie in a file of their own beside it."""
    import numpy
    import onnx
    from onnx import helper, numpy_helper

    model: Any = onnx.load(str(file))
    graph, opened = model.graph, []
    for stored in [each for each in graph.initializer if len(each.dims) == 2]:
        rows = numpy_helper.to_array(stored)
        scale = numpy.maximum(abs(rows).max(axis=1) / LARGEST, numpy.finfo(numpy.float32).tiny)
        steps = (rows / scale[:, None]).round().astype(numpy.int8)
        names = stored.name + QUANTISED, stored.name + SCALE
        graph.initializer.remove(stored)
        graph.initializer.extend(map(numpy_helper.from_array, (steps, scale), names))
        opened.append(helper.make_node("DequantizeLinear", names, [stored.name], axis=0))
    nodes = [*opened, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    onnx.save(model, str(file), save_as_external_data=large, location=f"{file.name}.data")


def restored(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a graph by their own names, whether `quantise` has been at them or not."""
    return {
        name.removesuffix(QUANTISED): value * stored[name.removesuffix(QUANTISED) + SCALE][:, None]
        if name.endswith(QUANTISED)
        else value
        for name, value in stored.items()
        if not name.endswith(SCALE)
    }
