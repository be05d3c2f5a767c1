"""Finished cells on disk: one JSON file a cell, written whole or not at all, one process a cell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from polyprune_core.errors import ConfigError, brief
from polyprune_core.results.row import Row, row_from_json
from polyprune_core.results.trace_file import write_trace
from polyprune_core.search.trace import Trace
from polyprune_core.utils.files import read_json, write_json
from polyprune_core.utils.outputs import RECORD


class Store:
    """A folder of finished cells; it is made when there is something to write. `unwritten` is what could not be.

    Raises:
        ConfigError: the folder cannot be made or written, or holds what an exporter wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = folder / "cells"
        self.summary = folder / "results.json"
        self.unwritten: list[Path] = []
        there = next(path for path in (self.cells, *self.cells.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise self._unusable(f"{there} is no folder")
        if there != self.cells and not os.access(there, os.W_OK | os.X_OK):
            raise self._unusable(f"{there} cannot be written")
        if (folder / RECORD).exists():
            raise self._unusable("it holds a model or masks that polyprune wrote")

    def make(self) -> None:
        """Makes the folder.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, why: str) -> ConfigError:
        return ConfigError(f"cannot use {self.folder} as results store: {why}. Give another --output.")

    def read(self, key: str) -> Row | None:
        """Returns the finished cell, or None.

        Raises:
            ConfigError: the cell's file is there but is not one of ours.
        """
        path = self.cells / f"{key}.json"
        try:
            row = row_from_json(read_json(path)["row"])
            if row.id != key:
                raise ValueError(f"it holds cell {row.id}")
            return row
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} is not a finished cell ({brief(error, 160)}). Delete that file to run the cell again."
            ) from error

    def write(self, row: Row, trace: Trace | None = None) -> None:
        """Writes a cell, and beside it the steps of its search."""
        self.make()
        if trace is not None:
            write_trace(self.cells, row.id, trace)
        write_json(self.cells / f"{row.id}.json", {"row": row.to_json()})

    def checkpoint(self, key: str) -> Path:
        """Returns where the cell's search is kept while it runs."""
        return self.cells / f"{key}.search.safetensors"

    @contextmanager
    def claimed(self, key: str, wait: bool) -> Iterator[bool]:
        """Holds the cell against other processes and yields True; yields False if one has it and `wait` is False.

        The system frees the cell if we are killed; what was half written then is removed by the next to hold it.
        """
        self.make()
        lock = FileLock(self.cells / f"{key}.lock", blocking=wait)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        except OSError as error:
            raise ConfigError(f"cannot write in {self.cells}: {error.strerror}. Give another --output.") from error
        try:
            for leftover in self.cells.glob(f".{key}.*"):
                with suppress(OSError):
                    leftover.unlink()
            yield True
        finally:
            lock.release()
