"""A GGUF file rewritten as a transformers folder: config, safetensors weights in floating point, tokenizer.

Number format of the result: float32 or float16 where the file's matrices are that, else bfloat16. Measured for the
4-bit (Q4_1) file of SmolLM2-135M on 16 windows of 512 tokens of Python's language reference, computed in float32:
perplexity 14.9369 with the dequantised values kept in float32 (538 MB), 14.9370 in float16, 14.9346 in bfloat16 (269 MB
each). Rounding moves the weights by 1.9e-4 of their RMS in float16 and 1.4e-3 in bfloat16. bfloat16 is kept: these
models are computed in it, no weight overflows it, and it changes perplexity by 0.02 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ModelError, brief
from polyprune_core.models.fitting import require_fit
from polyprune_core.models.quiet import Status, heartbeat, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Vocabularies whose merges were learned with every digit alone (llama.cpp treats these names as one). transformers
# reads them with GPT-2's splits, which differ where two or more spaces or line ends come before a digit.
DIGITS_ALONE = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def convert_gguf(file: Path, out: Path, status: Status) -> None:
    """Writes the model and tokenizer of a GGUF file to the existing folder `out`, ready for from_pretrained.

    Raises:
        ModelError: not a GGUF file, a damaged one, an architecture or tokenizer transformers cannot read, or a
            package that reading needs is missing.
        OSError: the folder cannot be written.
    """
    require_packages()
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise ModelError(f"{file} is not a GGUF file (it does not begin with the letters GGUF). Download it again.")
    status(f"converting {file.name} to safetensors (once)")
    with heartbeat(status, lambda seconds: f"converting {file.name}: {seconds:.0f} s"), quiet(), _no_gguf_bar():
        model, tokenizer = _read(file)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def require_packages() -> None:
    """Checks that what reading a GGUF file needs is installed.

    Raises:
        ModelError: it is not; the message says what to install.
    """
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModelError(f"reading a GGUF file needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def _read(file: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reader: Any = AutoModelForCausalLM
    # transformers 5.23 can also leave weights packed; releases before that always unpack and have no such option.
    packing = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": packing(dequantize=True)} if packing else {}
    try:
        dtype, splitter = _describe(file)
        model, report = reader.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:
        # Not a list of types: what the readers raise on a damaged file is nowhere stated.
        raise ModelError(
            f"{file} cannot be read as a GGUF model: {brief(error)}. Download it again, or give a folder."
        ) from error
    require_fit(file, model, report)
    # save_pretrained refuses a model that still says it is quantised; these weights no longer are.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if splitter in DIGITS_ALONE:
        _split_digits(tokenizer)
    return model, tokenizer


def _describe(file: Path) -> tuple[str, str]:
    """The torch dtype's name to keep the weights in, and the name of the rule that splits text ("" if none)."""
    from gguf import GGUFReader

    reader = GGUFReader(str(file))
    kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    kind = kinds.most_common(1)[0][0] if kinds else "F32"
    field = reader.get_field("tokenizer.ggml.pre")
    return {"F32": "float32", "F16": "float16"}.get(kind, "bfloat16"), str(field.contents()) if field else ""


def _split_digits(tokenizer: Any) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel):
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )


@contextmanager
def _no_gguf_bar() -> Iterator[None]:
    """Hides the one progress bar of transformers that its own switch does not reach."""
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils
    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar
