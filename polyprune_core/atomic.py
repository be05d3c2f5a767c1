"""A file that appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from polyprune_core.errors import ConfigError


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
