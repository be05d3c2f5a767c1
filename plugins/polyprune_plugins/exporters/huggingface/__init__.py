"""Hugging Face: a folder that transformers loads, in which each layer is as small as what was kept of it.

If all layers that stay have the same widths, it is an ordinary checkpoint of the family. Otherwise config.json states
the widths with transformers' `per_layer_config`, and the folder has a short file of Python code, which a reader without
polyprune has to trust. Weights are written in the number format of the dense model's files, whatever was computed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from polyprune_core import Exporter, ExportReport, LegalShapes, Provider, Runtime, hookimpl
from polyprune_plugins.exporters.huggingface.card import card

if TYPE_CHECKING:
    from polyprune_core import LoadedModel, ModelLayout, PrunedModel

RELOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(DIR{trust})
tokenizer = AutoTokenizer.from_pretrained(DIR{trust})
"""


@dataclass(frozen=True)
class HuggingFace:
    """Writes a folder for transformers.

    Options:
        max_shard_size: the largest size of one file of weights.
        dtype: the number format of the weights; `stored` is that of the dense model's files.
        shape: with `uniform`, all layers keep the same number of units; with `free`, each keeps its own.
        pad: with `widest`, zeros make each layer as wide as the widest, which changes no result and gives an ordinary
            checkpoint. Layers with experts then keep the same number of units instead, because zeros cannot stand for
            experts. A number rounds channels up to a multiple of it. `none` pads nothing.
    """

    max_shard_size: str = "5GB"
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    shape: Literal["free", "uniform"] = "free"
    pad: Literal["none", "widest"] | int = "none"
    by_shard = True

    def __post_init__(self) -> None:
        from polyprune_core import ConfigError, check_shard_size

        check_shard_size(self.max_shard_size, "huggingface: option max_shard_size")
        if isinstance(self.pad, int) and self.pad < 1:
            raise ConfigError(f"huggingface: option pad={self.pad} is no width; give 1 or more, widest or none.")

    def check(self, base: LoadedModel) -> None:
        """Refuses a model whose code would not be written with it."""
        from polyprune_core import check_writable

        check_writable(base)

    def legal_shapes(self, layout: ModelLayout) -> LegalShapes:
        step = self.pad if isinstance(self.pad, int) else 1
        # An expert of zeros would still be chosen, so that where there are experts layers keep as many.
        uniform = self.shape == "uniform" or (self.pad == "widest" and any(axis.router for axis in layout.axes))
        return LegalShapes(
            {"channel": step} if step > 1 else {},
            equal_widths=uniform,
            empty_sublayers=not uniform,
            added_biases=self.pad != "widest",
        )

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        import torch

        from polyprune_core import export_report, write_model

        dtype = pruned.base.stored_dtype if self.dtype == "stored" else getattr(torch, self.dtype)
        origin = pruned.provenance() | {"layers": pruned.kept_layers}
        origin["dtype"] |= {"written": str(dtype).removeprefix("torch.")}
        model = write_model(self._padded(pruned.stored_as(dtype)), out_dir, dtype, self.max_shard_size, origin)
        has_code = hasattr(model.config, "auto_map")
        reload = RELOAD.format(trust=", trust_remote_code=True" if has_code else "")
        parameters = model.num_parameters()
        (out_dir / "README.md").write_text(card(pruned, origin, parameters, reload), encoding="utf-8")
        return export_report(out_dir, "huggingface", reload, parameters, trust_remote_code=has_code)

    def _padded(self, pruned: PrunedModel) -> PrunedModel:
        from polyprune_core import ConfigError, padded

        if self.pad == "none" or not pruned.needs_code:
            return pruned
        if pruned.base.model.device.type == "meta":
            raise ConfigError("pad needs all weights in memory; leave --by-shard out, or pad.")
        kept, keep = set(pruned.kept_layers), pruned.axis_keep()
        axes = [axis for axis in pruned.layout.divided(keep) if axis.layer in kept]
        left = {axis.name: int(keep[axis.name].sum()) if axis.name in keep else axis.size for axis in axes}
        if isinstance(self.pad, int):
            channels = {axis.name: axis.size for axis in axes if axis.kind == "mlp"}
            sizes = {name: min(-(-left[name] // self.pad) * self.pad, size) for name, size in channels.items()}
            return padded(pruned, sizes)
        widest = {axis.kind: max(left[each.name] for each in axes if each.kind == axis.kind) for axis in axes}
        heads = next((axis for axis in axes if axis.kind in ("attention", "query")), None)
        while True:
            filled = padded(pruned, {axis.name: widest[axis.kind] for axis in axes})
            if not filled.needs_code or heads is None or widest[heads.kind] == heads.size:
                return filled
            # LLaMA's own class wants hidden_size to be a multiple of the number of heads; that of the dense model is.
            widest[heads.kind] += heads.blocks

    def runtime(self) -> Runtime:
        """transformers alone."""
        return Runtime("transformers", {}, Path(__file__).parents[1] / "run_transformers.py")

    def load(
        self, path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> LoadedModel:
        """Loads the folder with transformers' and polyprune's own classes; the code in it is not run."""
        from polyprune_core import load_model

        return load_model(str(path), dtype=dtype, device=device, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class Vllm(HuggingFace):
    """Writes the folder of `huggingface` in widths that vLLM's Transformers backend takes.

    Every layer keeps an attention and an MLP sublayer.

    Options:
        tp: the tensor parallelism of vLLM. It divides the numbers of heads and channels of every layer. vLLM 0.33
            checks only the widest layer.
        max_shard_size: the largest size of one file of weights.
        dtype: the number format of the weights, as for `huggingface`.
        shape: whether all layers keep the same number of units, as for `huggingface`.
        pad: whether zeros make layers wider, as for `huggingface`.
    """

    tp: int = 1

    def __post_init__(self) -> None:
        from polyprune_core import ConfigError

        super().__post_init__()
        if self.tp < 1:
            raise ConfigError(f"vllm: option tp={self.tp} is no number of devices; give 1 or more.")

    def legal_shapes(self, layout: ModelLayout) -> LegalShapes:
        held = super().legal_shapes(layout).both(LegalShapes({"channel": self.tp}, empty_sublayers=False))
        groups = min(axis.size for axis in layout.of_kind("attention"))
        if groups < self.tp:  # vLLM gives every device the same key-value heads then
            return held
        return held.both(LegalShapes({"head": self.tp, "query-head": self.tp // math.gcd(groups, self.tp)}))


@hookimpl
def polyprune_exporters() -> Iterator[Provider[Exporter]]:
    yield Provider("huggingface", "a smaller model that transformers loads", HuggingFace)
    yield Provider("vllm", "the same folder in widths that vLLM takes", Vllm)
