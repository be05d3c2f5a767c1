"""What every exporter writes alike: which files were written, and no path of this machine."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from polyprune_core.models.checkpoint import file_sha256
from polyprune_core.pruning.types import ExportReport


def export_report(out_dir: Path, format_name: str, reload: str, parameters: int, **details: Any) -> ExportReport:
    """Returns an exporter's report, with the hash and size of every file that is now in `out_dir`.

    Args:
        out_dir: the folder that was written.
        format_name: a name for the format.
        reload: Python code that leaves the model in a variable `model`; DIR in it stands for the path of the folder.
        parameters: the number of parameters of the model on disk.
        details: anything else to report, as JSON values.
    """
    written = sorted(path for path in out_dir.rglob("*") if path.is_file())
    return ExportReport(
        path=out_dir,
        format=format_name,
        files={path.relative_to(out_dir).as_posix(): file_sha256(path) for path in written},
        reload=reload,
        parameters=parameters,
        bytes=sum(path.stat().st_size for path in written),
        details=details,
    )


def last_name(text: str) -> str:
    """Returns `text`, or if it is an absolute path its last part."""
    if text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    return text


def without_folders(text: str) -> str:
    """Returns the name of a text, or of several joined by +, with only the last part of each absolute path."""
    return "+".join(map(last_name, text.split("+")))


def without_paths(value: Any) -> Any:
    """Returns a JSON-able value with every absolute path in it replaced by its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return last_name(str(value)) if isinstance(value, str | os.PathLike) else value
