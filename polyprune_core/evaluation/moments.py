"""Moments of what the readers of a model take in: collected once for all who ask, kept, and beyond a size on disk.

F input features of a reader.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyprune_core.evaluation.losses import last_hidden
from polyprune_core.models.layout import ModelLayout

# What the inner products of one pass over the text may take, in bytes; a larger model takes several passes.
AT_A_TIME = 1e9
# What the moments of all texts may take in memory, in bytes; the oldest of more lie in a temporary folder.
IN_MEMORY = 2e9


@dataclass(frozen=True)
class Moments:
    """Of one reader's inputs x over calibration tokens: `mean` (F,) is E[x], `second` (F, F) is E[x xᵀ]; float32."""

    mean: Tensor
    second: Tensor


@dataclass(frozen=True)
class Reading:
    """One pass over a text: which windows (a hash), and the readers whose inputs are measured in it."""

    text: str
    readers: tuple[str, ...]


class MomentStore:
    """Keeps the moments of readings, and how long each took; the temporary folder goes with the store."""

    def __init__(self, in_memory: float = IN_MEMORY) -> None:
        self.in_memory = in_memory
        self.seconds: dict[Reading, float] = {}
        self.carried = True  # until a model turns out not to be one whose layers can be run one by one
        self._held: dict[tuple[str, str], Moments | Path] = {}
        self._folder: Any = None

    def collect(self, reading: Reading, found: Iterable[tuple[str, Moments]]) -> None:
        """Keeps the moments that are found, by reader."""
        start = time.perf_counter()
        for reader, moments in found:
            self._held[reading.text, reader] = moments
            self._spill()
        self.seconds[reading] = time.perf_counter() - start

    def read(self, text: str, reader: str) -> Moments:
        """Returns tensors of the caller's own."""
        held = self._held[text, reader]
        if isinstance(held, Path):
            return Moments(**load_file(held))
        return Moments(held.mean.clone(), held.second.clone())

    def _spill(self) -> None:
        held = {key: value for key, value in self._held.items() if isinstance(value, Moments)}
        size = sum(value.second.nbytes for value in held.values())
        for key, value in held.items():
            if size <= self.in_memory:
                return
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="polyprune-moments-")
            path = Path(self._folder.name) / f"{len(self._held)}-{abs(hash(key))}.safetensors"
            save_file({"mean": value.mean.contiguous(), "second": value.second.contiguous()}, path)
            self._held[key] = path
            size -= value.second.nbytes


def text_hash(windows: Tensor) -> str:
    """Returns what tells windows (N, T) from others."""
    return hashlib.sha256(repr(tuple(windows.shape)).encode() + windows.cpu().numpy().tobytes()).hexdigest()


def passes_over(model: nn.Module, layout: ModelLayout) -> Iterator[tuple[str, ...]]:
    """Yields the readers of a layout in its order, as many at a time as `AT_A_TIME` holds the products of."""
    together: list[str] = []
    size = 0.0
    cuts = {axis.reader_module: axis.reader_cut for axis in layout.axes if axis.reader is not None}
    for reader, cut in cuts.items():
        needed = 4.0 * model.get_parameter(cut.parameter).shape[cut.dim] ** 2
        if together and size + needed > AT_A_TIME:
            yield tuple(together)
            together, size = [], 0.0
        together.append(reader)
        size += needed
    yield tuple(together)


def collect_moments(
    model: nn.Module, readers: Iterable[str], batches: Iterable[Tensor]
) -> Iterator[tuple[str, Moments]]:
    """Yields readers with their moments, on the CPU, over the tokens of `batches` of windows (B, T)."""
    sums = input_sums(model, readers, lambda x: [x.sum(dim=0), x.T @ x], batches)
    # Taken out one by one: sums and means of all readers together would take twice the memory.
    for name in list(sums):
        yield name, mean_of(*sums.pop(name))


def mean_of(tokens: int, totals: list[Tensor]) -> Moments:
    """Returns the moments of a reader from its sums over tokens."""
    mean, second = ((total / tokens).cpu() for total in totals)
    return Moments(mean, second)


@torch.inference_mode()
def _pass(model: nn.Module, ids: Tensor) -> None:
    last_hidden(model, ids)


def input_sums(
    model: nn.Module,
    modules: Iterable[str],
    measure: Callable[[Tensor], list[Tensor]],
    batches: Iterable[Tensor],
    run: Callable[[Tensor], None] | None = None,
) -> dict[str, tuple[int, list[Tensor]]]:
    """Returns, by module, the number of tokens and what is measured of its inputs (tokens, F) float32, added up.

    `run` has a batch pass by the modules; without it the whole model does, on a text.
    """
    sums: dict[str, tuple[int, list[Tensor]]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().flatten(0, -2).float()
            measured = measure(rows)
            tokens, totals = sums.get(name, (0, [torch.zeros_like(new) for new in measured]))
            for total, new in zip(totals, measured, strict=True):
                total.add_(new)
            sums[name] = (tokens + len(rows), totals)

        return hook

    with ExitStack() as undo:
        for name in modules:
            undo.enter_context(model.get_submodule(name).register_forward_pre_hook(watch(name)))
        for ids in batches:
            run(ids) if run else _pass(model, ids)
    return sums
