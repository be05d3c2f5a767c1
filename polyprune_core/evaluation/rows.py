"""Text files as text: plain ones as they are, WikiText's .raw, and rows of .jsonl, .json or .parquet; each also .gz."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from polyprune_core.errors import DataError

Rows = tuple[Iterable[Any], Sequence[str]]

TEXT_COLUMN = "text"
# Files of these kinds hold text among other things, and would be learned from as they are.
NOT_READ = {
    **dict.fromkeys((".csv", ".tsv"), "a table"),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro"), "a table"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".lz4", ".7z"), "an archive"),
    **dict.fromkeys((".pdf", ".doc", ".docx", ".odt", ".epub", ".rtf"), "a document with markup"),
}


def holds_rows(path: Path) -> bool:
    """Whether a file of this name is read by a column."""
    return _kind(path) in READERS


def read_file(path: Path, column: str | None) -> str:
    """Returns the text of a file: its own, or the rows of a column (None: `text`) joined by blank lines.

    Raises:
        DataError: it cannot be read, is of a kind that is not read, or what it holds is not text.
    """
    kind = _kind(path)
    if kind in NOT_READ:
        raise DataError(
            f"{path} is {NOT_READ[kind]}, which is not read as text; give a text, .jsonl, .json or .parquet file "
            "(.gz is read too)."
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}. Give a readable text file.") from error
    if kind in READERS:
        rows, columns = READERS[kind](content, path, column or TEXT_COLUMN)
        return join_rows(rows, str(path), column, columns)
    text = _decoded(content, path, "utf-8")
    return _joined(io.StringIO(text)) if kind == ".raw" else text


def join_rows(rows: Iterable[Any], name: str, column: str | None, columns: Sequence[str]) -> str:
    """Returns rows of text joined by blank lines; a row that is null or blank is an empty one.

    Raises:
        DataError: a row is not text.
    """
    return _joined(_checked(rows, name, column or TEXT_COLUMN, columns))


def no_column(name: str, column: str | None, columns: Sequence[str]) -> DataError:
    """Returns the refusal of a text that lacks its column."""
    return DataError(
        f"{name!r} has no column {column or TEXT_COLUMN!r}; it has {', '.join(columns) or 'none'}. "
        "Choose the one that holds text with --text-column."
    )


def _checked(rows: Iterable[Any], name: str, column: str, columns: Sequence[str]) -> Iterable[str]:
    for number, row in enumerate(rows, 1):
        if row is not None and not isinstance(row, str):
            raise DataError(
                f"{name!r}, row {number}: column {column!r} holds {type(row).__name__}, not text. Choose a column that "
                f"holds text with --text-column (there are {', '.join(columns)})."
            )
        yield row or ""


def _joined(rows: Iterable[str]) -> str:
    return "\n\n".join(row if row.strip() else "" for row in rows)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _decoded(content: bytes, path: Path, encoding: str) -> str:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}. Give a readable text file.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json_lines(content: bytes, path: Path, column: str) -> Rows:
    records = []
    for number, line in enumerate(_decoded(content, path, "utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number} is not JSON: {error}. Write one JSON value on each line."
                ) from error
    return _fields(records, path, column)


def _json(content: bytes, path: Path, column: str) -> Rows:
    text = _decoded(content, path, "utf-8-sig")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            return _json_lines(content, path, column)
        raise DataError(f"{path} is not JSON: {error}. Give a file with a list of JSON values.") from error
    if isinstance(value, dict) and isinstance(value.get(column), list):
        return value[column], list(value)
    return _fields(value if isinstance(value, list) else [value], path, column)


def _fields(records: list[Any], path: Path, column: str) -> Rows:
    """Returns the column of objects; rows that are strings are text themselves."""
    columns = list(dict.fromkeys(key for record in records if isinstance(record, dict) for key in record))
    if columns and column not in columns:
        raise no_column(str(path), column, columns)
    return [record.get(column) if isinstance(record, dict) else record for record in records], columns


def _parquet(content: bytes, path: Path, column: str) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        columns = list(file.schema_arrow.names)
        if column not in columns:
            raise no_column(str(path), column, columns)
        return file.read(columns=[column]).column(column).to_pylist(), columns
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"cannot read {path} as a Parquet file: {reason}. Give one that a Parquet reader opens."
        ) from error


READERS: dict[str, Callable[[bytes, Path, str], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
}
