"""GGUF: one file for llama.cpp and programs built on it (Ollama, LM Studio and others), each layer in its own width.

If all layers have the same widths, the file has the architecture of the family. Otherwise it has one that reads
`attention.head_count`, `attention.head_count_kv` and `feed_forward_length` as arrays: `deci` for Llama, Mistral and
Qwen2, and `openelm` for Qwen3, whose heads have norms. Both compute the same as the family's own layer. The fields of
the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

Shapes that neither can hold are padded with zeros, which changes no result: an MLP that is removed as a whole keeps one
block of channels. So does the attention of the first layer, from which llama.cpp takes the size of a head. config.json
and the tokenizer are beside the file, so that polyprune can read it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from polyprune_core import Exporter, ExportReport, LegalShapes, Provider, Runtime, hookimpl
from polyprune_plugins.exporters.gguf.architecture import Form, check_form, holds_biases
from polyprune_plugins.exporters.gguf.fields import write_fields
from polyprune_plugins.exporters.gguf.quantise import MIXTURES, ROUNDING, STEP, missing
from polyprune_plugins.exporters.gguf.tensors import read_tensors, write_file
from polyprune_plugins.exporters.gguf.vocabulary import has_form, vocabulary

if TYPE_CHECKING:
    from polyprune_core import LoadedModel, ModelLayout, PrunedModel

FILE = "model.gguf"
PROGRAM = Path(__file__).with_name("run_llama_cpp.py")
RELOAD = """\
# llama-cli -m DIR/model.gguf -p "Once upon a time"    or with torch:
from pathlib import Path
from polyprune_plugins.exporters.gguf import Gguf

model = Gguf().load(Path(DIR)).model
"""
FORMATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# How far log-probabilities may be from those of the same weights in float32: llama.cpp rounds activations to the number
# format of the weights that they meet. In blocks of 8 bits it depends on the model, and is measured on the dense one.
TOLERANCE = {"f32": 1e-3, "f16": 0.05, "bf16": 0.25}


@dataclass(frozen=True)
class Gguf:
    """Writes a file for llama.cpp.

    Options:
        type: the number format of matrices. `stored` is that of the dense model's files. q4_k, q5_k and q6_k are the
            mixtures that llama.cpp's own tool calls Q4_K_M, Q5_K_M and Q6_K. Vectors are always float32.
        multiple: channels are kept in multiples of this number. 0 stands for 32 with q8_0, for 256 with K-quants, and
            for 1 otherwise. A decision that was made without it is padded with zeros.
        shape: with `uniform`, all layers keep the same number of units, and the file has the architecture of the
            family; with `free`, each layer keeps its own.
        ids_only: whether to write a file without a tokenizer if llama.cpp has no form for it. Such a file is for
            programs that give llama.cpp's library token ids.
    """

    type: Literal["stored", "f32", "f16", "bf16", "q8_0", "q4_k", "q5_k", "q6_k"] = "stored"
    multiple: int = 0
    shape: Literal["free", "uniform"] = "free"
    ids_only: bool = False

    @property
    def rounding(self) -> float:
        """What is lost of a weight: half a step of the largest in its block."""
        return ROUNDING.get(self.type, 0.0)

    @property
    def step(self) -> int:
        """The number that channels come in multiples of."""
        return self.multiple or STEP.get(self.type, 1)

    def check(self, base: LoadedModel) -> None:
        """Refuses what llama.cpp would compute otherwise than transformers."""
        from polyprune_core import ConfigError, ModelError, check_writable

        if self.type in MIXTURES and missing():
            raise ConfigError(
                f"gguf:{self.type} is made by llama.cpp's own quantiser, which is not installed: pip install "
                "'polyprune[gguf]'."
            )
        check_writable(base)
        check_form(base, varying=self.shape == "free")
        if not self.ids_only and not has_form(base.tokenizer):
            raise ModelError(
                f"llama.cpp has no form for the tokenizer of {base.name}, so that it could not read text. "
                "--exporter gguf:ids_only=true writes a file for programs that feed it token ids."
            )

    def legal_shapes(self, layout: ModelLayout) -> LegalShapes:
        uniform = self.shape == "uniform"
        channels = min(axis.size for axis in layout.of_kind("mlp"))
        step = self.step if self.step <= channels else 1
        return LegalShapes(
            {"channel": step} if step > 1 else {},
            equal_widths=uniform,
            empty_sublayers=not uniform,
            added_biases=holds_biases(layout.family),
        )

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        from polyprune_core import export_report, write_settings

        pruned = pruned.stored_as(pruned.base.stored_dtype)
        kind = FORMATS[str(pruned.base.stored_dtype).removeprefix("torch.")] if self.type == "stored" else self.type
        form = Form.of(pruned, self.step)
        origin = pruned.provenance() | {"layers": pruned.kept_layers}
        origin["dtype"] |= {"written": kind}
        model = form.pruned.build()
        words = vocabulary(pruned.base.tokenizer, model.config.vocab_size)
        write_settings(model, pruned.base.tokenizer, out_dir, origin, pruned.base.licence_files)
        write_file(out_dir / FILE, form, model, kind, lambda writer: write_fields(writer, form, model, words, origin))
        told = words.get("tokenizer.ggml.pre", "none: token ids alone; tokenizer.json lies beside the file")
        details = {"architecture": form.architecture, "type": kind, "tokenizer": told}
        if zeros := model.num_parameters() - pruned.parameters:
            details["filled up"] = f"with {zeros:,} zeros, to what the format holds; --target says it before selecting"
        return export_report(out_dir, "gguf", RELOAD, model.num_parameters(), **details)

    def load(
        self, path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> LoadedModel:
        """Reads the weights of the file back into the model that config.json beside it describes."""
        from polyprune_core import assemble_model

        file = path / FILE
        tensors, stored = read_tensors(file)
        with file.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        stored = {"f32": "float32", "f16": "float16"}.get(stored, "bfloat16")
        return assemble_model(path, tensors, sha256=sha256, stored=stored, dtype=dtype, device=device)

    def runtime(self) -> Runtime:
        """llama.cpp, as xllamacpp packs it, with a cache of the weights' own precision."""
        tolerance = TOLERANCE.get("bf16" if self.type == "stored" else self.type)
        return Runtime("llama.cpp", {"xllamacpp": "polyprune[gguf]"}, PROGRAM, tolerance)


@hookimpl
def polyprune_exporters() -> Iterator[Provider[Exporter]]:
    yield Provider("gguf", "one file for llama.cpp, with widths per layer", Gguf)
