"""Moments of what the readers of a model take in: collected once for all who ask, kept, and beyond a size on disk.

F input features of a reader.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyprune_core.evaluation.observing import Watch, features_of, observe
from polyprune_core.models.layout import Axis, ModelLayout, expert_of, split_expert

# What the inner products of one pass over the text may take, in bytes; a larger model takes several passes.
AT_A_TIME = 1e9
# What those of one reader may take; all experts of a large mixture would take more.
AT_MOST = 16e9
# What the moments of all texts may take in memory, in bytes; the oldest of more lie in a temporary folder.
IN_MEMORY = 2e9


@dataclass(frozen=True)
class Moments:
    """Means over calibration tokens of one reader's inputs x (F,), and of the products of every two of them.

    For a single expert they are means over the tokens that it is chosen for, and 0 if there are none.

    Attributes:
        mean: (F,) float32, E[x].
        second: (F, F) float32, E[x xᵀ].
    """

    mean: Tensor
    second: Tensor


@dataclass(frozen=True)
class Reading:
    """One pass over a text: which windows (a hash), and the readers, or single experts, that are measured in it."""

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


def passes_over(model: nn.Module, layout: ModelLayout, reader: str) -> Iterator[tuple[str, ...]]:
    """Yields the readers that are measured together with one, as many at a time as `AT_A_TIME` holds the products of.

    Linear modules are measured together, mixtures of experts as one map each, and experts one by one. A reader whose
    products would take more than `AT_MOST` is left out.
    """
    together: list[str] = []
    size = 0.0
    for name, needed in _alike(model, layout, reader).items():
        if together and size + needed > AT_A_TIME:
            yield tuple(together)
            together, size = [], 0.0
        together.append(name)
        size += needed
    if together:
        yield tuple(together)


def _alike(model: nn.Module, layout: ModelLayout, reader: str) -> dict[str, float]:
    """Returns the readers that are measured as one is, with the bytes of their products."""
    module, expert = split_expert(reader)
    stacked = {axis.reader_module: axis.stack is not None for axis in layout.axes if axis.is_read}
    sizes: dict[str, float] = {}
    for axis in layout.axes:
        if not axis.is_read or stacked[axis.reader_module] is not stacked[module]:
            continue
        names = [axis.reader_module]
        if axis.stack is not None and expert is not None:
            names = [expert_of(axis.reader_module, number) for number in range(axis.stack.maps)]
        sizes |= dict.fromkeys(names, size_of_moments(model, axis, expert))
    return {name: size for name, size in sizes.items() if size <= AT_MOST}


def size_of_moments(model: nn.Module, axis: Axis, expert: int | None = None) -> float:
    """Returns the bytes of the second moments of what reads an axis, or of one expert of it."""
    if axis.stack is not None:
        return 4.0 * (axis.stack.width * (axis.stack.maps if expert is None else 1)) ** 2
    return 4.0 * model.get_parameter(axis.reader_cut.parameter).shape[axis.reader_cut.dim] ** 2


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
    mean, second = ((total / max(tokens, 1)).cpu() for total in totals)
    return Moments(mean, second)


def input_sums(
    model: nn.Module,
    readers: Iterable[str],
    measure: Callable[[Tensor], list[Tensor]],
    batches: Iterable[Tensor],
    run: Callable[[Tensor], None] | None = None,
) -> dict[str, tuple[int, list[Tensor]]]:
    """Returns, by reader, the number of tokens and what is measured of its features (tokens, F) float32, added up.

    A reader is a module, or one expert of it. `run` has a batch pass by the modules; without it the whole model does,
    on a text.
    """
    sums: dict[str, tuple[int, list[Tensor]]] = {}

    def watch(name: str) -> tuple[str, Watch]:
        module, expert = split_expert(name)

        def add(inputs: tuple[Any, ...], _output: Any) -> None:
            rows = features_of(model.get_submodule(module), inputs, expert)
            measured = measure(rows)
            tokens, totals = sums.get(name, (0, [torch.zeros_like(new) for new in measured]))
            for total, new in zip(totals, measured, strict=True):
                total.add_(new)
            sums[name] = (tokens + len(rows), totals)

        return module, add

    observe(model, map(watch, readers), batches, run)
    return sums
