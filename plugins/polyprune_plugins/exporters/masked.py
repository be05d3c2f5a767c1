"""Masked: a checkpoint in the dense shape, with zeros for removed units. It loads wherever the dense model does.

The model is not smaller and not faster. The files compress well, and other formats can be compared with what it
computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from polyprune_core import Exporter, ExportReport, LegalShapes, Provider, Runtime, hookimpl

if TYPE_CHECKING:
    from polyprune_core import LoadedModel, ModelLayout, PrunedModel

RELOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(DIR)
tokenizer = AutoTokenizer.from_pretrained(DIR)
"""


@dataclass(frozen=True)
class Masked:
    """Writes a dense checkpoint with zeros in place of removed units.

    Options:
        max_shard_size: the largest size of one file of weights.
        dtype: the number format of the weights; `stored` is that of the dense model's files.
    """

    max_shard_size: str = "5GB"
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"

    def __post_init__(self) -> None:
        from polyprune_core import check_shard_size

        check_shard_size(self.max_shard_size, "masked: option max_shard_size")

    def legal_shapes(self, layout: ModelLayout) -> LegalShapes:
        # A router chooses among all of its rows, also those of zeros: all experts stay.
        whole = {axis.kind: axis.size for axis in layout.axes if axis.router}
        return LegalShapes(whole, added_biases=False)

    def check(self, base: LoadedModel) -> None:
        """Refuses a model whose code would not be written with it."""
        from polyprune_core import check_writable

        check_writable(base)

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        import torch

        from polyprune_core import export_report, padded, write_model

        dtype = pruned.base.stored_dtype if self.dtype == "stored" else getattr(torch, self.dtype)
        axes = pruned.layout.divided(pruned.axis_keep())
        whole = padded(pruned.stored_as(dtype), {axis.name: axis.size for axis in axes})
        model = write_model(whole, out_dir, dtype, self.max_shard_size, pruned.provenance())
        return export_report(out_dir, "masked", RELOAD, model.num_parameters(), zeros=_removed(pruned))

    def load(
        self, path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> LoadedModel:
        from polyprune_core import load_model

        return load_model(str(path), dtype=dtype, device=device, trust_remote_code=trust_remote_code)

    def runtime(self) -> Runtime:
        """transformers alone."""
        return Runtime("transformers", {}, Path(__file__).with_name("run_transformers.py"))


def _removed(pruned: PrunedModel) -> int:
    return pruned.selection.total_cost - pruned.selection.kept_cost


WHOLE = "it has all parameters of the dense model, and zeros among them"


@hookimpl
def polyprune_exporters() -> Iterator[Provider[Exporter]]:
    xfail = {"parameters_are_those_that_are_left": WHOLE}
    yield Provider("masked", "the dense shape with zeros, loads anywhere", Masked, xfail=xfail)
