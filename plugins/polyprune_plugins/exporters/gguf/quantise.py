"""Number formats of a file's matrices, and K-quants by llama.cpp's own quantiser, which xllamacpp brings along.

K-quants are blocks of 256 along a row. A mixture keeps what matters most in six bits: output head, and in an eighth of
the layers at either end and every third between, values and down projections. Rows that are no whole blocks fall back
to a format of 32 a block, then to float16. All of this as llama.cpp's own tool does it, without an importance matrix.
"""

from __future__ import annotations

import ctypes
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

# The format of most matrices and that of those that matter most, by the name of a mixture; and its number in a file.
MIXTURES = {"q4_k": ("Q4_K", "Q6_K"), "q5_k": ("Q5_K", "Q6_K"), "q6_k": ("Q6_K", "Q6_K")}
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "q4_k": 15, "q5_k": 17, "q6_k": 18, "bf16": 32}
SMALLER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
# Half a step of the largest weight of a block: what is lost of it.
ROUNDING = {"q8_0": 0.5 / 127, "q6_k": 0.5 / 32, "q5_k": 1 / 31, "q4_k": 1 / 15}
STEP = {"q8_0": 32} | dict.fromkeys(MIXTURES, 256)


def missing() -> bool:
    """Whether llama.cpp's quantiser is not installed."""
    return find_spec("xllamacpp") is None


def format_of(name: str, shape: tuple[int, ...], kind: str, layers: int, tied: bool) -> Any:
    """Returns the number format of one tensor: float32 for vectors, and a coarser block where rows are not whole."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wanted = MIXTURES[kind][_matters(name, layers, tied)] if kind in MIXTURES else kind.upper()
    for each in (wanted, SMALLER_BLOCKS.get(wanted, wanted)):
        if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[each]][0] == 0:
            return GGMLQuantizationType[each]
    return GGMLQuantizationType.F16


def quantised(values: numpy.ndarray[Any, Any], kind: Any) -> numpy.ndarray[Any, Any]:
    """Returns float32 rows as the bytes of a format."""
    import gguf

    if not kind.name.endswith("_K"):
        blocks: numpy.ndarray[Any, Any] = gguf.quants.quantize(values, kind)
        return blocks
    return _by_llama_cpp(values, kind)


def _by_llama_cpp(values: numpy.ndarray[Any, Any], kind: Any) -> numpy.ndarray[Any, Any]:
    import gguf
    import numpy
    from xllamacpp import xllamacpp

    rows = numpy.ascontiguousarray(values, numpy.float32)
    out = numpy.empty(gguf.quants.quant_shape_to_byte_shape(rows.shape, kind), numpy.uint8)
    quantise = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    written = quantise(kind.value, rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[-1], None)
    if written != out.nbytes:
        raise RuntimeError(f"llama.cpp wrote {written} bytes of {kind.name} where {out.nbytes} are needed.")
    return out


def _matters(name: str, layers: int, tied: bool) -> bool:
    match = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    if match is None:
        return name == ("token_embd.weight" if tied else "output.weight")
    layer, eighth = int(match[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
