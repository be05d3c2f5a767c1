"""ONNX: a graph of opset 18 for ONNX Runtime, for any batch size and length.

With a cache, the inputs are `input_ids` (B, T) and for each layer N `past.N.key` and `past.N.value` (B, heads, P,
head_dim). The outputs are `logits` (B, T, vocabulary), `present.N.key` and `present.N.value` (B, heads, P + T,
head_dim). P is 0 at first, and `present` of one call is `past` of the next. A layer without attention counts tokens in
a cache of one number each. All sequences of a batch have the same length. Without a cache, there are only `input_ids`
and `logits`.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polyprune_core import Exporter, ExportReport, Provider, Runtime, hookimpl
from polyprune_plugins.exporters.onnx.int8 import ROUNDING, quantise, restored

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import LoadedModel, PrunedModel

OPSET = 18
FILE = "model.onnx"
FORMATS = {"f32": "float32", "int8": "int8"}
INSIDE = "model."  # how torch.onnx calls the model within what is exported
CONSTANT = "constant."
LARGEST = 1_500_000_000  # bytes; ONNX holds no more than 2 GB in one file
RELOAD = """\
# onnxruntime.InferenceSession(DIR + "/model.onnx"), or with torch:
from pathlib import Path
from polyprune_plugins.exporters.onnx import Onnx

model = Onnx().load(Path(DIR)).model
"""


@dataclass(frozen=True)
class Onnx:
    """Writes a graph for ONNX Runtime.

    Options:
        cache: whether keys and values of earlier tokens are inputs and outputs of the graph.
        type: the number format of matrices in the file. With `int8` the file is a quarter as large; ONNX Runtime still
            computes in float32.
    """

    cache: bool = True
    type: Literal["f32", "int8"] = "f32"

    @property
    def rounding(self) -> float:
        """What is lost of a weight: half a step of the largest in its row."""
        return ROUNDING if self.type == "int8" else 0.0

    def check(self, base: LoadedModel) -> None:
        """Refuses a model whose code would not be written with it, and asks for what torch exports with."""
        from polyprune_core import ConfigError, check_writable

        check_writable(base)
        missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
        if missing:
            raise ConfigError(f"ONNX is written with {' and '.join(missing)}: pip install 'polyprune[onnx]'.")

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        from polyprune_core import assemble_model, export_report, write_settings

        model: Any = pruned.build().float().cpu()
        model.config.dtype = model.dtype
        parameters = model.num_parameters()
        origin = pruned.provenance() | {"layers": pruned.kept_layers}
        origin["dtype"] |= {"written": FORMATS[self.type]}
        write_settings(model, pruned.base.tokenizer, out_dir, origin, pruned.base.licence_files)
        # Read as `load` does: constants that were computed in the format of the dense model have its rounding.
        model = assemble_model(out_dir, model.state_dict(), sha256="", dtype="float32", device="cpu").model
        with _quiet():
            program = _exported(model, self.cache)
            _forget_origins(program.model)
            _set_constants_apart(program.model, set(model.state_dict()))
            large = 4 * parameters > LARGEST
            program.save(out_dir / FILE, external_data=large)
            if self.type == "int8":
                quantise(out_dir / FILE, large)
        return export_report(out_dir, "onnx", RELOAD, parameters, opset=OPSET, cache=self.cache, type=self.type)

    def load(
        self, path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> LoadedModel:
        """Reads the weights of the graph back into the model that config.json beside it describes."""
        from polyprune_core import assemble_model

        file = path / FILE
        with file.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        return assemble_model(path, _weights(file), sha256=sha256, dtype=dtype, device=device)

    def runtime(self) -> Runtime:
        """ONNX Runtime."""
        program = Path(__file__).with_name("run_onnxruntime.py")
        return Runtime("ONNX Runtime", {"onnxruntime": "polyprune[onnx]"}, program)


def _exported(model: Any, cache: bool) -> Any:
    """Returns the graph that torch makes of a model."""
    import torch
    from torch import nn
    from transformers import DynamicCache

    class WithCache(nn.Module):
        """The model as a function of tensors alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, past: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
            known = DynamicCache()
            for layer, (keys, values) in enumerate(past):
                known.update(keys, values, layer)
            places = past[0][0].shape[2] + torch.arange(input_ids.shape[1]).unsqueeze(0)
            found = self.model(input_ids=input_ids, past_key_values=known, position_ids=places, use_cache=True)
            kept = found.past_key_values.layers
            return found.logits, *(tensor for layer in kept for tensor in (layer.keys, layer.values))

    class Whole(nn.Module):
        """The model without a cache."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor) -> Tensor:
            logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
            return logits

    model.set_attn_implementation("eager")
    ids = torch.arange(14).reshape(2, 7) % model.config.vocab_size
    with torch.no_grad():
        layers = model(ids, use_cache=True).past_key_values.layers
    any_size = torch.export.Dim.DYNAMIC
    past = [(layer.keys[:, :, :3], layer.values[:, :, :3]) for layer in layers]
    names = [f"{index}.{part}" for index in range(len(past)) for part in ("key", "value")]
    each = ({0: any_size, 2: any_size}, {0: any_size, 2: any_size})
    settings: dict[str, Any] = {"dynamo": True, "opset_version": OPSET, "optimize": False, "verbose": False}
    shapes: dict[str, Any] = {"input_ids": {0: any_size, 1: any_size}}
    if not cache:
        return torch.onnx.export(
            Whole().eval(),
            (ids,),
            dynamic_shapes=shapes,
            input_names=["input_ids"],
            output_names=["logits"],
            **settings,
        )
    return torch.onnx.export(
        WithCache().eval(),
        (ids[:, 3:], past),
        dynamic_shapes=shapes | {"past": [each] * len(past)},
        input_names=["input_ids", *(f"past.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        **settings,
    )


def _forget_origins(graph: Any) -> None:
    """Takes out of a graph the lines of code, with the folders of this machine, that its parts were made by."""
    for part in (graph, graph.graph, *graph.graph.all_nodes()):
        part.metadata_props.clear()


def _set_constants_apart(graph: Any, weights: set[str]) -> None:
    """Renames what a model computes once and no checkpoint holds, so that it is not taken for a weight."""
    stored = graph.graph.initializers
    for name in [name for name in stored if name.removeprefix(INSIDE) not in weights and name.startswith(INSIDE)]:
        constant = stored.pop(name)
        constant.name = CONSTANT + name.removeprefix(INSIDE)
        stored[constant.name] = constant


def _weights(file: Path) -> dict[str, Tensor]:
    """Returns the parameters in a graph, by transformers' names; of tied ones both."""
    import onnx
    import torch
    from onnx import numpy_helper

    stored = {}
    for each in onnx.load(str(file)).graph.initializer:
        if each.name.startswith(INSIDE):
            value = torch.from_numpy(numpy_helper.to_array(each, str(file.parent)).copy())
            stored[each.name.removeprefix(INSIDE)] = value
    found = restored(stored)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    if embedding not in found and head in found:
        found[embedding] = found[head]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch's exporter says of packages that are not needed here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@hookimpl
def polyprune_exporters() -> Iterator[Provider[Exporter]]:
    yield Provider("onnx", "a graph for ONNX Runtime", Onnx)
