"""Files that are written whole or not at all, and JSON that may have been written by anybody."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from polyprune_core.errors import ConfigError
from polyprune_core.utils.numbers import finite

INTEGERS = 2**63
LONGEST_NAME = 255


def user_path(text: str) -> Path:
    """Returns the path that a user wrote, with ~ for the home folder.

    Raises:
        ValueError: it is empty, or nothing can be called so.
    """
    if not text.strip() or "\0" in text:
        raise ValueError(f"{text!r} names no file or folder")
    path = Path(os.path.expanduser(text))
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"{text[:40]!r}… is too long for the name of a file or folder")
    return path


def size_told(count: int) -> str:
    """Returns a number of bytes for people: "2.2 MB", or "6.1 kB" where that would be less than 0.1 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def check_shard_size(size: str, option: str) -> None:
    """Checks the largest size of one file of weights, such as "5GB"; `option` is its name in the message.

    Raises:
        ConfigError: the size is not a number with KB, MB, GB or TB.
    """
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", size, re.IGNORECASE):
        raise ConfigError(f"{option}={size!r} is no size; give a number with KB, MB, GB or TB, such as 5GB.")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, unless it holds just that already; text as UTF-8.

    A link stays, and what it leads to is written; a device or a pipe is written into.

    Raises:
        ConfigError: it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    with suppress(OSError):
        if path.is_file() and path.read_bytes() == content:
            return
    try:
        if path.is_char_device() or path.is_fifo():
            path.write_bytes(content)
            return
        path = Path(os.path.realpath(path))
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "Free space there, or give another --output." if full else "Give another --output."
        raise ConfigError(f"cannot write {path}: {error.strerror}. {advice}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with null for what is not finite."""
    write_atomically(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns what a JSON file of ours holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON that polyprune writes.
    """
    return parse_json(path.read_text("utf-8"))


def parse_json(text: str) -> Any:
    """Returns what JSON of ours holds: no deep nesting, no number that is not finite, no integer above 64 bits.

    Raises:
        ValueError: it is anything else.
    """

    def integer(digits: str) -> int:
        if len(digits) > 20 or not -INTEGERS <= int(digits) < INTEGERS:
            raise ValueError(f"the integer {digits[:20]}… is too large")
        return int(digits)

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_int=integer, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
