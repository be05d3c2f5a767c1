"""Folders that appear whole or not at all, in place of what polyprune wrote there before and of nothing else."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from polyprune_core.errors import ConfigError, PolypruneError
from polyprune_core.utils.files import read_json, write_json

RECORD = "polyprune.json"
LONGEST_NAME = 200
NEW, OLD, LOCK = ".polyprune-new", ".polyprune-old", ".polyprune-lock"


@dataclass(frozen=True)
class NewFolder:
    """The place of a folder to be, without links; this process alone writes there."""

    path: Path

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """Yields a folder beside the place that takes it when the block succeeds, else vanishes.

        An error of the user that names it names the place instead.

        Raises:
            ConfigError: the place cannot be taken.
        """
        new = _beside(self.path, NEW)
        try:
            try:
                new.mkdir(mode=0o700)
            except OSError as error:
                raise ConfigError(
                    f"cannot write beside {self.path}: {error.strerror}. Give another --output."
                ) from error
            yield new
            for path in (new, *new.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            _publish(new, self.path)
        except PolypruneError as error:
            if str(new) in str(error):
                raise type(error)(str(error).replace(str(new), str(self.path))) from error
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextmanager
def new_folder(output: Path, overwrite: bool, inputs: Mapping[str, Path]) -> Iterator[NewFolder]:
    """Holds the place `output` for this process; what a dead process left beside it is finished or removed.

    `inputs` are what the request reads, by what they are. A folder is replaced only with `overwrite`, and only if it
    holds a record and no other files than those that the record lists.

    Raises:
        ConfigError: nothing may or can be written there, or another process is writing there.
    """
    output = _checked(output, inputs)
    made = _make_parents(output)
    try:
        with _claimed(output):
            for lock in output.parent.glob(f".*{LOCK}"):
                _clean_up_after(lock, output)
            _check_replaceable(output, overwrite)
            yield NewFolder(output)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes RECORD, which lists every file in `folder` under `report.files` by its SHA-256."""
    listed = record["report"]["files"]
    there = {name: listed.get(name) or _sha256(folder / name) for name in _files(folder)}
    write_json(folder / RECORD, record | {"report": record["report"] | {"files": there}})


def check_apart(output: Path, inputs: Mapping[str, Path]) -> None:
    """Checks that writing `output` touches no input.

    Raises:
        ConfigError: one is the other or lies in it, or `output` holds what a link in an input leads to.
    """
    above = [_identity(path) for path in (output, *output.parents)]
    for what, path in inputs.items():
        if not os.path.exists(path):
            continue
        place = Path(os.path.realpath(path))
        relation = ""
        if _identity(place) in above:
            relation = "is" if _identity(place) == above[0] else "lies in"
        elif any(_lies_in(each, output) for each in (place, *_linked(place))):
            relation = "holds"
        if relation:
            raise ConfigError(f"{output} {relation} {what} {path}, which is read; give another --output.")


def _checked(output: Path, inputs: Mapping[str, Path]) -> Path:
    output = Path(os.path.realpath(output))
    if len(os.fsencode(output.name)) > LONGEST_NAME:
        raise ConfigError(
            f"the name {output.name[:40]}… is too long; give --output one of at most {LONGEST_NAME} bytes."
        )
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; give a folder as --output.")
    if os.path.ismount(output):
        raise ConfigError(f"{output} is a disk of its own, which cannot be replaced; give a folder in it as --output.")
    check_apart(output, inputs)
    return output


def _make_parents(output: Path) -> list[Path]:
    """Makes what is missing above `output` and returns it, the deepest first."""
    made: list[Path] = []
    try:
        missing = [path for path in output.parents if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            made.insert(0, path)
    except OSError as error:
        raise ConfigError(f"cannot write beside {output}: {error.strerror}. Give another --output.") from error
    return made


@contextmanager
def _claimed(output: Path) -> Iterator[None]:
    path = _beside(output, LOCK)
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"another process is writing {output}; wait for it, or give another --output.") from None
    except OSError as error:
        raise ConfigError(f"cannot write beside {output}: {error.strerror}. Give another --output.") from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()


def _clean_up_after(lock: Path, held: Path) -> None:
    """Finishes or removes what a process that died left with its lock; one that lives keeps its own."""
    output = lock.with_name(lock.name.removeprefix(".").removesuffix(LOCK))
    with suppress(OSError, ConfigError):
        if output == held:
            _finish(output)
        elif os.name == "nt" or lock.lstat().st_uid == os.getuid():
            with _claimed(output):
                _finish(output)


def _finish(output: Path) -> None:
    new, old = _beside(output, NEW), _beside(output, OLD)
    if old.exists() and not output.exists():
        os.replace(new if new.exists() else old, output)  # the old one is moved away once the new one is complete
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)


def _check_replaceable(output: Path, overwrite: bool) -> None:
    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{output} is not empty; give another --output, or --overwrite to replace it.")
    if not (output / RECORD).is_file():
        raise ConfigError(f"{output} holds no {RECORD}, so it is not ours to replace; give another --output.")
    try:
        listed = dict(read_json(output / RECORD)["report"]["files"])
    except (OSError, ValueError, TypeError, KeyError):
        raise ConfigError(
            f"{output / RECORD} does not list what was written, so it is not ours to replace; give another --output."
        ) from None
    for name in _files(output):
        path = output / name
        if name not in listed or path.is_symlink():
            raise ConfigError(f"{path} was not written by polyprune; move it away, or give another --output.")
        if listed[name] != _sha256(path):
            raise ConfigError(f"{path} was changed after polyprune wrote it; move it away, or give another --output.")


def _publish(new: Path, output: Path) -> None:
    old = _beside(output, OLD)
    try:
        try:
            if output.exists():
                os.replace(output, old)
            os.replace(new, output)
        except BaseException:
            if old.exists() and not output.exists():
                os.replace(old, output)
            raise
    except OSError as error:
        raise ConfigError(f"cannot put the result at {output}: {error.strerror}. Give another --output.") from error
    shutil.rmtree(old, ignore_errors=True)


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f".{output.name}{suffix}")


def _files(folder: Path) -> list[str]:
    """Everything below a folder that is no folder, but the record."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for path in found if (name := path.relative_to(folder).as_posix()) != RECORD)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> tuple[int, int] | Path:
    """What two names of one place share."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _lies_in(path: Path, folder: Path) -> bool:
    return _identity(folder) in map(_identity, (path, *path.parents))


def _linked(place: Path) -> Iterable[Path]:
    """What the links in a folder lead to."""
    if place.is_dir():
        yield from (Path(os.path.realpath(path)) for path in place.iterdir() if path.is_symlink())
