"""A search on disk, so that it goes on where it was: one safetensors file, its structure as JSON in the header."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polyprune_core.errors import ConfigError, brief
from polyprune_core.utils.files import write_atomically
from polyprune_core.utils.progress import Reporter

FORMAT = "polyprune-search 1"
SECONDS_BETWEEN = 2.0
SHARE_OF_TIME = 0.01
T = TypeVar("T")
# What reading a file raises that is cut short, foreign, or written for another search.
FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, SafetensorError)


class Checkpoint:
    """The file that holds one cell's search, or what else of it is `work`, while it runs.

    Written at most every `SECONDS_BETWEEN`, and less often where writing would cost more than 1 % of the search. What
    cannot be read or written is a warning with the file's name, and the search goes on without it.
    """

    def __init__(self, path: Path, cell: str, reporter: Reporter | None = None, work: str = "search") -> None:
        self.path, self.cell, self.reporter, self.work = path, cell, reporter or Reporter(), work
        self._next = time.monotonic() + SECONDS_BETWEEN
        self._warned = False

    def read(self, parse: Callable[[Any], T]) -> T | None:
        """Returns `parse(the state that was kept)`, or None where there is none that can be used."""
        try:
            state = parse(unpack(self.path, self.cell))
            self.reporter.status(f"the {self.work} goes on from {self.path}")
            return state
        except FileNotFoundError:
            return None
        except FAULTS as error:
            self.reporter.warn(
                f"{self.path} is not the checkpoint of a {self.work} ({brief(error, 160)}); its cell starts over"
            )
            return None

    def keep(self, state: Callable[[], Any]) -> None:
        """Writes `state()` if it is time to."""
        start = time.monotonic()
        if start < self._next:
            return
        try:
            write_atomically(self.path, pack(state(), self.cell))
        except ConfigError as error:
            if not self._warned:
                self.reporter.warn(
                    f"{error} The {self.work} goes on, but could not go on from here after an interruption."
                )
            self._warned = True
        end = time.monotonic()
        self._next = end + max(SECONDS_BETWEEN, (end - start) / SHARE_OF_TIME)

    def of_repair(self) -> Checkpoint:
        """Returns the one of the same cell's repair, in a file beside this one."""
        return Checkpoint(self.path.with_name(f"{self.cell}.repair.safetensors"), self.cell, self.reporter, "repair")

    def remove(self) -> None:
        """Deletes the file and that of the repair: their cell is finished, or has to start over."""
        for path in (self.path, self.of_repair().path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def pack(tree: Any, cell: str) -> bytes:
    """Returns a tree of numbers and tensors (mappings, lists and tuples of them, None) as a safetensors file.

    Raises:
        TypeError: there is something else in it.
    """
    tensors: dict[str, Tensor] = {}
    record = json.dumps({"format": FORMAT, "cell": cell, "tree": _flattened(tree, tensors)})
    return save(tensors, {"polyprune": record})


def unpack(path: Path, cell: str) -> Any:
    """Returns the tree that `pack` was given, its tensors on the CPU.

    Raises:
        FAULTS: the file is not there, is broken, or is not of this cell.
    """
    path.stat()
    with safe_open(path, framework="pt") as file:
        record = json.loads((file.metadata() or {})["polyprune"])
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, not {FORMAT!r}")
        if record["cell"] != cell:
            raise ValueError(f"it holds cell {record['cell']}")
        return _grown(record["tree"], lambda name: file.get_tensor(name).clone())


def unsupported_type(tree: Any) -> str:
    """Returns the name of a type in `tree` that `pack` refuses, or nothing."""
    try:
        _flattened(tree, {})
    except TypeError as error:
        return str(error)
    return ""


def _flattened(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, Tensor) and value.layout == torch.strided:
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        strange = [key for key in value if not isinstance(key, str)]
        if strange:
            raise TypeError(f"a key that is a {type(strange[0]).__name__}")
        return {"mapping": {key: _flattened(item, tensors) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_flattened(item, tensors) for item in value]}
    raise TypeError(f"a {type(value).__name__}")


def _grown(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "mapping":
        return {key: _grown(item, tensor) for key, item in content.items()}
    return {"list": list, "tuple": tuple}[kind](_grown(item, tensor) for item in content)
