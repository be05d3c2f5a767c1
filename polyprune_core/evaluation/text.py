"""Text in, token windows out. A window is `seq_len` tokens, cut without overlap; the remainder is dropped."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from polyprune_core.errors import DataError, unknown_name
from polyprune_core.evaluation import pydocs
from polyprune_core.models.quiet import no_bars
from polyprune_core.utils.rng import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["calibration", "evaluation"]
ROLES: tuple[Role, ...] = ("calibration", "evaluation")
BUILTIN = {"pydocs": {"calibration": pydocs.calibration_text, "evaluation": pydocs.evaluation_text}}
HUB_SPLIT = {"calibration": "train", "evaluation": "test"}


@dataclass(frozen=True)
class Text:
    """A named text with the sha256 of its UTF-8 bytes."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Hash of the content."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def load_text(name: str, role: Role) -> Text:
    """Returns `builtin:pydocs`, a text file, or a hub dataset `owner/name[:config[:split]]`.

    A `.raw` file holds one row a line, like the WikiText release, and gives the text that the hub's copy gives: rows
    joined by "\\n\\n", each with its own line end, blank rows empty. Any other file is taken as it is. The built-in
    text and a hub dataset without a stated split give disjoint parts for the two roles.

    Raises:
        DataError: nothing is there, or there is no text in it.
    """
    if name.startswith("builtin:"):
        builtin = name.removeprefix("builtin:")
        if builtin not in BUILTIN:
            raise DataError(unknown_name("built-in text", builtin, BUILTIN))
        content = BUILTIN[builtin][role]()
    elif os.path.isfile(path := Path(os.path.expanduser(name))):
        content, name = _read_file(path), path.name
    elif _names_a_dataset(name):
        content = _read_dataset(name, role)
    else:
        raise DataError(f"no text {name!r}: give builtin:pydocs, an existing text file, or a hub dataset owner/name.")
    if not content.strip():
        raise DataError(f"text {name!r} is empty; give one with at least one window of text.")
    return Text(name, content)


def token_windows(text: Text, tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Tensor:
    """Returns (N, seq_len) int64: the text's consecutive windows.

    Raises:
        DataError: the text is shorter than one window.
    """
    ids = tokenizer(text.content, verbose=False, return_attention_mask=False)["input_ids"]
    count = len(ids) // seq_len
    if not count:
        raise DataError(
            f"text {text.name!r} has {len(ids)} tokens, less than one window of {seq_len}; give a longer text or a "
            "shorter window (--seq-len for calibration, --eval-seq-len for evaluation)."
        )
    return torch.tensor(ids[: count * seq_len]).view(count, seq_len)


def evenly_spaced(windows: Tensor, limit: int | None) -> Tensor:
    """Returns at most `limit` of the windows, evenly spaced over the text; all where limit is None."""
    if limit is None or limit >= len(windows):
        return windows
    return windows[[i * len(windows) // limit for i in range(limit)]]


def sample_windows(windows: Tensor, count: int, seed: int) -> Tensor:
    """Returns up to `count` distinct windows, drawn by `seed`: the calibration sample of one run."""
    order = torch.randperm(len(windows), generator=generator(seed, "calibration windows"))
    return windows[order[:count]]


def search_batches(windows: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yields (batch_size, T) for ever: all windows in a random order, then again in another."""
    rng = generator(seed, "search batches")
    waiting = windows[:0]
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, windows[torch.randperm(len(windows), generator=rng)]])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _read_file(path: Path) -> str:
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}. Give a readable text file.") from error
    return _join_rows(io.StringIO(content)) if path.suffix == ".raw" else content


def _join_rows(rows: Iterable[str]) -> str:
    return "\n\n".join(row if row.strip() else "" for row in rows)


def _names_a_dataset(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(slash and owner and rest and "/" not in rest and not name.startswith((".", "/", "~")))


def _read_dataset(name: str, role: Role) -> str:
    import datasets

    path, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        with no_bars():
            rows = datasets.load_dataset(path, config or None, split=split or HUB_SPLIT[role])
        columns = rows.column_names
        if "text" in columns:
            return _join_rows(rows["text"])
    except Exception as error:  # datasets raises its own, the hub's, pyarrow's and the network's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"cannot load dataset {name!r}: {reason}. Give a text file or builtin:pydocs instead."
        ) from error
    raise DataError(f"dataset {path!r} has no column 'text'; it has {', '.join(columns)}. Give one that has.")
