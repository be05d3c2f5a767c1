"""Which device and which number format a model is loaded in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from polyprune_core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Placement:
    """Where weights lie: `spread` over all GPUs, and on each device no more than `limits` (bytes by its name) says."""

    spread: bool = False
    limits: Mapping[str, int] = field(default_factory=dict)

    @property
    def usual(self) -> bool:
        """Whether all weights are on one device, in memory."""
        return not self.spread and not self.limits


USUAL = Placement()
_ACTIVE: ContextVar[Placement | None] = ContextVar("placement", default=None)


@contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Has every model that is loaded within the block, a written one that is read back too, placed so."""
    token = _ACTIVE.set(placement)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def placement() -> Placement:
    """Returns where the models that are loaded now are to lie."""
    return _ACTIVE.get() or USUAL


DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_device(device: str) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:i`; auto is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: another word, or a GPU that is not there.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind == "mps":
        raise ConfigError(
            "device mps, the GPU of Apple's processors, is not supported: its results have not been held against those "
            "of others. Use --device cpu."
        )
    if kind not in ("cpu", "cuda") or device.endswith(":") or (index and not index.isdecimal()):
        raise ConfigError(unknown_name("device", device, ("auto", "cpu", "cuda", "cuda:0")))
    if kind == "cpu":
        if index not in ("", "0"):
            raise ConfigError(f"device {device!r} was asked for, but there is one cpu. Use --device cpu.")
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        have = f"this machine has {count}" if count else "torch sees no CUDA GPU on this machine"
        raise ConfigError(f"device {device!r} was asked for, but {have}. Use --device auto or cpu.")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device, stored: str) -> torch.dtype:
    """The torch dtype for one of DTYPES; auto is `stored`, the model's own, where the device computes in it natively.

    Otherwise auto is float32, which holds every bfloat16 and float16 number.

    Raises:
        ConfigError: another word.
    """
    import torch

    if dtype not in DTYPES:
        raise ConfigError(unknown_name("dtype", dtype, DTYPES))
    if dtype == "auto":
        native = {"bfloat16": _native_bfloat16, "float16": lambda device: device.type == "cuda"}
        dtype = stored if stored in native and native[stored](device) else "float32"
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def _native_bfloat16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(found.get(key, False) for key in ("amx_bf16", "avx512_bf16", "bf16"))
    # An older torch. Not `mkldnn._is_mkldnn_bf16_supported`, which is true for emulated bfloat16 too.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
