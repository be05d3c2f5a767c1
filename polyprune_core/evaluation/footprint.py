"""What a model weighs: parameters, bytes, KV cache, multiply-accumulates, peak memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyprune_core.utils.memory import PeakMemory
from polyprune_core.utils.rng import generator


@dataclass(frozen=True)
class Footprint:
    """`macs` and `peak_memory_mb` (10^6 bytes) are those of one pass over `pass_tokens` tokens of one sequence.

    `kv_cache_bytes_per_token` is what one token adds, as long as no sliding window is full. `bytes_on_disk` are those
    of the files that hold the weights or masks; None for a model made in memory.
    """

    parameters: int
    bytes_in_memory: int
    bytes_on_disk: int | None
    kv_cache_bytes_per_token: int
    pass_tokens: int
    macs: int
    peak_memory_mb: float


def footprint(model: Any, files: list[Path], pass_tokens: int) -> Footprint:
    """Measures a model that is loaded; `files` are what it was read from."""
    parameters = list(model.parameters())
    weight_bytes = sum(p.numel() * p.element_size() for p in parameters)
    ids = torch.randint(
        int(model.config.get_text_config().vocab_size), (1, pass_tokens), generator=generator(0, "footprint tokens")
    )
    macs = _macs(model, ids)
    memory = PeakMemory(model.device, weight_bytes)
    memory.restart()
    with torch.inference_mode():
        model(input_ids=ids.to(model.device), use_cache=False)
    peak = memory.megabytes()
    return Footprint(
        parameters=sum(p.numel() for p in parameters),
        bytes_in_memory=weight_bytes,
        bytes_on_disk=sum(path.stat().st_size for path in files) if files else None,
        kv_cache_bytes_per_token=_cached_bytes(model, ids[:, :1].to(model.device)),
        pass_tokens=pass_tokens,
        macs=macs,
        peak_memory_mb=peak,
    )


@torch.inference_mode()
def _cached_bytes(model: Any, ids: Tensor) -> int:
    cache = model(input_ids=ids, use_cache=True).past_key_values
    held = [tensor for layer in cache.layers for tensor in _kept_of(layer)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _kept_of(layer: Any) -> list[Tensor]:
    """Returns the keys and values of one layer's cache; a layer that is no attention keeps none a token."""
    both = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return [tensor for tensor in both if tensor is not None]


@torch.inference_mode()
def _macs(model: Any, ids: Tensor) -> int:
    """Counts with plain attention: the counter does not see every device's fused kernels."""
    from torch.utils.flop_counter import FlopCounterMode

    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        model.set_attn_implementation(usual)
    return int(counter.get_total_flops() // 2)
