"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyprune_core.errors import ConfigError, PolypruneError

RECORD = "polyprune.json"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; text as UTF-8.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}. Free space there or give another --output."
        ) from error


def check_output(output: Path, overwrite: bool) -> Path:
    """Returns `output` without links, if a new folder can take its place.

    Raises:
        ConfigError: it is a file, it is not empty and may not be replaced, or nothing can be written beside it. Only a
            folder that holds a polyprune.json is ever replaced.
    """
    output = output.resolve()
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; give a folder as --output.")
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise ConfigError(f"{output} is not empty; give another --output, or --overwrite to replace it.")
        if not (output / RECORD).is_file():
            raise ConfigError(f"{output} holds no {RECORD}, so it is not ours to replace; give another --output.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise ConfigError(f"cannot write beside {output}: {error.strerror}. Give another --output.") from error
    return output


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `output` that takes its place when the block succeeds, else vanishes.

    An error of the user that names it names `output` instead.

    Raises:
        ConfigError: the place cannot be taken.
    """
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        yield folder
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        _replace(folder, output)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, PolypruneError) and str(folder) in str(error):
            raise type(error)(str(error).replace(str(folder), str(output))) from error
        raise


def _replace(folder: Path, output: Path) -> None:
    old = Path(f"{folder}.old")
    try:
        if output.exists():
            os.replace(output, old)
        os.replace(folder, output)
    except OSError as error:
        raise ConfigError(f"cannot put the result at {output}: {error.strerror}. Give another --output.") from error
    shutil.rmtree(old, ignore_errors=True)
