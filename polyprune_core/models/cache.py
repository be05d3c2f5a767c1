"""The user's cache of converted models: each folder is made once, by one process at a time, and appears whole."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from polyprune_core.errors import ModelError
from polyprune_core.models.quiet import Status

CACHE_VARIABLE = "POLYPRUNE_CACHE"


def cache_root() -> Path:
    """The folder polyprune keeps its downloads in: $POLYPRUNE_CACHE, or the platform's user cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(os.path.expanduser(given)).absolute() if given else platformdirs.user_cache_path("polyprune")


def models_folder() -> Path:
    """The part of the cache that holds converted models, one folder each."""
    return cache_root() / "models"


def model_folder(name: str) -> Path:
    """Where the model kept under `name` is, or would be."""
    return models_folder() / name


def build_once(name: str, usable: Callable[[Path], bool], build: Callable[[Path], None], status: Status) -> Path:
    """The folder `name` of the cache, filled by `build(empty folder)` unless `usable(folder)` holds already.

    The work happens in a folder beside the final one, which is renamed when everything in it is on the disk: a process
    that is killed leaves nothing under the final name. A lock makes a second process wait and then use the first one's
    result; whoever holds it removes what killed processes left.

    Raises:
        ModelError: the cache cannot be written. What `build` raises is passed on, and nothing is kept.
    """
    final = model_folder(name)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(final.parent / f".{name}.lock")
        _acquire(lock, name, status)
    except OSError as error:
        raise _unwritable(error) from error
    try:
        if usable(final):
            return final
        for leftover in final.parent.glob(f".{name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        work = final.parent / f".{name}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            work.mkdir()
            build(work)
            _publish(work, final)
        except OSError as error:
            raise _unwritable(error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return final
    finally:
        lock.release()


def _acquire(lock: FileLock, name: str, status: Status) -> None:
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        status(f"{name}: another process is preparing it, waiting")
        lock.acquire()


def _publish(work: Path, final: Path) -> None:
    for path in work.rglob("*"):
        _flush(path)
    _flush(work)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(work, final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(error: OSError) -> ModelError:
    return ModelError(
        f"the model cache {cache_root()} cannot be used: {error.strerror or error}. "
        f"Free some space there, or set {CACHE_VARIABLE} to a folder you can write to."
    )
