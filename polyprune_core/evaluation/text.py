"""Names of texts to texts: built-in ones, files, datasets of the hub, and mixes of these to calibrate on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from polyprune_core.errors import ConfigError, DataError, PolypruneError, unknown_name
from polyprune_core.evaluation import prose, pydocs
from polyprune_core.evaluation.rows import TEXT_COLUMN, holds_rows, join_rows, no_column, read_file
from polyprune_core.models.quiet import no_bars

Role = Literal["calibration", "evaluation"]
BUILTIN = {
    "pydocs": {"calibration": pydocs.calibration_text, "evaluation": pydocs.evaluation_text},
    "prose": {"calibration": prose.calibration_text, "evaluation": prose.evaluation_text},
}
MIXES = {"builtin:mix": "builtin:pydocs+builtin:prose"}
HUB_SPLIT = {"calibration": "train", "evaluation": "test"}


@dataclass(frozen=True)
class Text:
    """A named text with the sha256 of its UTF-8 bytes. A mix has `parts`, and no content of its own."""

    name: str
    content: str
    parts: tuple[Text, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Hash of the content; of a mix, of its parts' hashes."""
        content = " ".join(part.sha256 for part in self.parts) if self.parts else self.content
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Texts:
    """What is calibrated on, and what is evaluated on: the first of several is the headline."""

    calibration: Text
    evaluations: tuple[Text, ...]

    @property
    def hashes(self) -> dict[str, Any]:
        """Returns the sha256 of the calibration and of the first evaluation text by role, and of further ones."""
        first, *further = (text.sha256 for text in self.evaluations)
        found = {"calibration": self.calibration.sha256, "evaluation": first}
        return found | ({"further evaluations": further} if further else {})


def load_texts(calibration: str, evaluations: Sequence[str], column: str | None = None) -> Texts:
    """Returns the texts of these names.

    Raises:
        ConfigError: a column was named and no text has columns, or two evaluation texts have one name.
        DataError: as `load_text` does.
    """
    _check_column(column, (calibration, *evaluations))
    _check_column(column, (calibration, *evaluations))
    return Texts(load_text(calibration, "calibration", column), _load_distinct(evaluations, column))


def load_evaluations(names: Sequence[str], column: str | None = None) -> tuple[Text, ...]:
    """Returns the texts to evaluate on; raises as `load_texts` does."""
    _check_column(column, names)
    return _load_distinct(names, column)


def _load_distinct(names: Sequence[str], column: str | None) -> tuple[Text, ...]:
    texts = tuple(load_text(name, "evaluation", column) for name in names)
    called = [text.name for text in texts]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise ConfigError(
            f"--evaluation: two texts are called {twice!r}; results would not tell them apart. Rename one."
        )
    return texts


def _check_column(column: str | None, names: Sequence[str]) -> None:
    if column and not any(_has_columns(part) for name in names for part in parts_of(name)):
        raise ConfigError(
            f"--text-column {column} is about datasets and .jsonl, .json and .parquet files; there are no columns in "
            f"{' and '.join(dict.fromkeys(names))}. Leave it out."
        )


def load_text(name: str, role: Role, column: str | None = None) -> Text:
    """Returns `builtin:pydocs`, `builtin:prose`, a file, a hub dataset `owner/name[:config[:split]]`, or a mix `A+B`.

    A mix is for calibration; `builtin:mix` is that of the built-in texts.

    A `.raw` file holds one row a line, like the WikiText release, and gives the text that the hub's copy gives: rows
    joined by "\\n\\n", each with its own line end, blank rows empty. Rows of a dataset, a .jsonl, a .json or a .parquet
    file are those of `column`, or of "text", joined likewise; a null row is an empty one. Any of these files may be
    compressed (.gz). Any other file is taken as it is. A built-in text and a hub dataset without a stated split give
    disjoint parts for the two roles.

    Raises:
        DataError: nothing is there, or there is no text in it.
    """
    parts = parts_of(name)
    if len(parts) > 1:
        if role == "evaluation":
            told = ",".join(parts)
            raise DataError(
                f"--evaluation {name}: perplexity is of one text, and a mix is for --calibration only. Give {told}."
            )
        if len(set(parts)) < len(parts) or not all(parts):
            raise DataError(f"--calibration {name}: give different texts joined by +, each one once.")
        texts = tuple(load_text(part, role, column) for part in parts)
        return Text("+".join(text.name for text in texts), "", texts)
    if name.startswith("builtin:"):
        builtin = name.removeprefix("builtin:")
        if builtin not in BUILTIN:
            raise DataError(unknown_name("built-in text", builtin, (*BUILTIN, "mix")))
        content = BUILTIN[builtin][role]()
    elif _is_file(path := os.path.expanduser(name)):
        content, name = read_file(Path(path), column), Path(path).name
    elif _names_a_dataset(name):
        content = _read_dataset(name, role, column)
    else:
        raise DataError(f"no text {name!r}: give builtin:pydocs, an existing text file, or a hub dataset owner/name.")
    if not content.strip():
        raise DataError(f"text {name!r} is empty; give one with at least one window of text.")
    return Text(name, content)


def parts_of(name: str) -> list[str]:
    """Returns the names that a mix `A+B` joins; a file whose own name has a + is one text."""
    return [name] if _is_file(name) else [own for part in name.split("+") for own in MIXES.get(part, part).split("+")]


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _has_columns(name: str) -> bool:
    return holds_rows(Path(name)) if _is_file(name) else _names_a_dataset(name)


def _names_a_dataset(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(slash and owner and rest and "/" not in rest and not name.startswith((".", "/", "~")))


def _read_dataset(name: str, role: Role, column: str | None) -> str:
    import datasets

    path, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        with no_bars():
            rows = datasets.load_dataset(path, config or None, split=split or HUB_SPLIT[role])
        columns = rows.column_names
        if (column or TEXT_COLUMN) not in columns:
            raise no_column(path, column, columns)
        return join_rows(rows[column or TEXT_COLUMN], name, column, columns)
    except PolypruneError:
        raise
    except Exception as error:  # datasets raises its own, the hub's, pyarrow's and the network's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot load dataset {name!r}: {reason}. Give a text file or builtin:pydocs instead."
        ) from error
