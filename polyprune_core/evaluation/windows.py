"""Text in, token windows out. A window is `seq_len` tokens, cut without overlap; the remainder is dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyprune_core.config.settings import Bos
from polyprune_core.errors import ConfigError, DataError
from polyprune_core.evaluation.text import Text
from polyprune_core.utils.rng import generator

# Of a text of more characters only what is needed is cut into tokens.
LARGE = 2**21
# Characters cut for each token wanted, at first, and tokens at the end of a piece that its cut may have changed.
ROOM, FRINGE = 8, 16
# Tokens to calibrate on that are taken from a large text, and windows for each one that a metric looks at.
POOL_TOKENS, POOL_SAMPLES = 2**18, 4
# Tokens in a row that are rarely shared by chance, and the share of such runs that is worth a warning.
RUN, TELLING_OVERLAP = 13, 0.01


@dataclass(frozen=True)
class Cutter:
    """Cuts texts into windows for one model.

    `beginning` are the token ids at the start of every window, counted in its length; `embeddings` is the number of
    tokens that the model knows (None: any).
    """

    tokenizer: Any
    beginning: tuple[int, ...] = ()
    embeddings: int | None = None

    @classmethod
    def of(cls, tokenizer: Any, model: Any, bos: Bos = "auto") -> Cutter:
        """Returns the cutter of a model; raises ConfigError where `bos` cannot be had."""
        return cls(tokenizer, beginning(tokenizer, bos), model.get_input_embeddings().weight.shape[0])

    @property
    def told(self) -> str | None:
        """What every window begins with, as the tokenizer writes it."""
        return "".join(self.tokenizer.convert_ids_to_tokens(list(self.beginning))) or None

    def windows(self, text: Text, seq_len: int, limit: int | None = None) -> Tensor:
        """Returns (N, seq_len) int64: at most `limit` windows, evenly spaced over the text; all where it is None.

        Of a text of more than `LARGE` characters they are evenly spaced in characters where few are wanted. A mix
        gives as many windows of each part.

        Raises:
            DataError: a text is shorter than one window, or holds a token that the model does not know.
        """
        shares = [self._cut(part, seq_len, limit) for part in text.parts or (text,)]
        fewest = min(map(len, shares))
        windows = torch.cat([evenly_spaced(share, fewest) for share in shares])
        self.check(windows)
        return windows

    def pool(self, text: Text, seq_len: int, samples: int) -> Tensor:
        """Returns (N, seq_len) int64: the windows that metrics draw `samples` from and searches go through.

        All of them, but of a large text `POOL_TOKENS` tokens, and never fewer than `POOL_SAMPLES` times `samples`.
        """
        limit = max(POOL_TOKENS // seq_len, POOL_SAMPLES * samples)
        large = any(len(part.content) > LARGE for part in text.parts or (text,))
        return self.windows(text, seq_len, limit if large else None)

    def check(self, ids: Tensor) -> None:
        """Refuses token ids that the model has no embedding for."""
        if self.embeddings is None or not ids.numel() or int(ids.max()) < self.embeddings:
            return
        beyond = int(ids.max())
        token = self.tokenizer.convert_ids_to_tokens(beyond)
        raise DataError(
            f"the text holds the token {token!r} (id {beyond}), but the model has embeddings for {self.embeddings} "
            "tokens only: it was added to the tokenizer and not to the model. Resize the model's embeddings and train "
            "them, remove the token from the tokenizer, or give a text without it."
        )

    def _cut(self, text: Text, seq_len: int, limit: int | None) -> Tensor:
        length = seq_len - len(self.beginning)
        if length < 1:
            raise DataError(
                f"windows of {seq_len} tokens have no room for text after {self.told}; give longer ones with --seq-len."
            )
        rows = None
        if limit and len(text.content) > LARGE:
            rows = self._spread(text.content, limit, length)
        if rows is None:
            ids = self._encode(text.content)
            count = len(ids) // length
            if not count:
                raise DataError(
                    f"text {text.name!r} has {len(ids)} tokens, less than one window of {length}; give a longer text "
                    "or a shorter window (--seq-len for calibration, --eval-seq-len for evaluation)."
                )
            rows = evenly_spaced(torch.tensor(ids[: count * length]).view(count, length), limit)
        return torch.cat([torch.tensor(self.beginning, dtype=rows.dtype).expand(len(rows), -1), rows], dim=1)

    def _spread(self, content: str, count: int, length: int) -> Tensor | None:
        """Returns (count, length): windows evenly spaced in characters; None where the text is short of them."""
        step, size = len(content) // count, ROOM * length
        starts = [_word(content, index * step, step // 2) if index else 0 for index in range(count)]
        while size <= step // 2:
            pieces = self._encode([content[start : start + size] for start in starts])
            if all(len(ids) >= length + FRINGE for ids in pieces):
                return torch.tensor([ids[:length] for ids in pieces])
            size *= 2
        return None

    def _encode(self, text: Any) -> Any:
        return self.tokenizer(text, verbose=False, return_attention_mask=False, add_special_tokens=False)["input_ids"]


def limits(lengths: Sequence[int], limit: int | None) -> dict[int, int | None]:
    """Returns the windows to evaluate on at each length: `limit` at the first, at others about as many tokens."""
    return {each: limit and max(1, round(limit * lengths[0] / each)) for each in lengths}


def beginning(tokenizer: Any, bos: Bos) -> tuple[int, ...]:
    """Returns the token ids that every window begins with.

    auto: what the tokenizer itself puts before a text; always: its beginning-of-sequence token, whether or not it does
    so itself; never: none.

    Raises:
        ConfigError: `always`, and the tokenizer has no such token.
    """
    if bos == "never":
        return ()
    whole, plain = (list(tokenizer("x", add_special_tokens=special)["input_ids"]) for special in (True, False))
    ends = range(len(whole) - len(plain) + 1)
    own = next((tuple(whole[:end]) for end in ends if whole[end : end + len(plain)] == plain), ())
    if own or bos == "auto":
        return own
    if tokenizer.bos_token_id is None:
        raise ConfigError("--bos always: the tokenizer has no beginning-of-sequence token; use auto or never.")
    return (int(tokenizer.bos_token_id),)


def evenly_spaced(windows: Tensor, limit: int | None) -> Tensor:
    """Returns at most `limit` of the windows, evenly spaced over the text; all where limit is None."""
    if limit is None or limit >= len(windows):
        return windows
    return windows[[i * len(windows) // limit for i in range(limit)]]


def sample_windows(windows: Tensor, count: int, seed: int) -> Tensor:
    """Returns up to `count` distinct windows, drawn by `seed`: the calibration sample of one run."""
    return windows[_order(windows, seed)[:count]]


def held_back_windows(windows: Tensor, count: int, seed: int, most: int) -> Tensor:
    """Returns up to `most` windows that are not among the `count` of `sample_windows`; there may be none."""
    return windows[_order(windows, seed)[count : count + most]]


def other_windows(windows: Tensor, count: int, seed: int, most: int) -> Tensor:
    """Returns all windows but those of `held_back_windows`, in their order."""
    held = _order(windows, seed)[count : count + most]
    others = torch.ones(len(windows), dtype=torch.bool)
    others[held] = False
    return windows[others]


def _order(windows: Tensor, seed: int) -> Tensor:
    return torch.randperm(len(windows), generator=generator(seed, "calibration windows"))


def search_batches(windows: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yields (batch_size, T) for ever: all windows in a random order, then again in another."""
    rng = generator(seed, "search batches")
    waiting = windows[:0]
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, windows[torch.randperm(len(windows), generator=rng)]])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def shared_runs(evaluation: Tensor, calibration: Tensor, beginning: Sequence[int] = ()) -> float:
    """Returns the share of the runs of `RUN` tokens in the evaluation windows that the calibration windows hold too.

    Windows are (N, T) and (M, S), each after the token ids of `beginning`. Runs of calibration go on from one window to
    the next; a window that is shorter than a run is one.
    """
    ours, theirs = evaluation[:, len(beginning) :].numpy(), calibration[:, len(beginning) :].numpy().reshape(1, -1)
    length = min(RUN, ours.shape[1], theirs.shape[1])
    found = np.isin(_hashed(ours, length), _hashed(theirs, length))
    return float(found.mean())


def _hashed(ids: NDArray[np.int64], length: int) -> NDArray[np.uint64]:
    """Returns a number for each run of `length` ids in the rows of (N, T)."""
    runs = ids.shape[1] - length + 1
    found = np.zeros((len(ids), runs), np.uint64)
    for place in range(length):
        found = found * np.uint64(0x9E3779B97F4A7C15) + ids[:, place : place + runs].astype(np.uint64) + np.uint64(1)
    return found.ravel()


def _word(content: str, start: int, most: int) -> int:
    """Returns where the next white space is, at most `most` characters on; `start` where there is none."""
    found = re.compile(r"\s").search(content, start, start + most)
    return found.start() if found else start
