"""Text in, token windows out: how they are cut, what they begin with, how they are drawn, what two texts share."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from polyprune_core.errors import ConfigError, DataError
from polyprune_core.evaluation import windows as cutting
from polyprune_core.evaluation.text import Text
from polyprune_core.evaluation.windows import (
    Cutter,
    beginning,
    evenly_spaced,
    sample_windows,
    search_batches,
    shared_runs,
)
from polyprune_core.testing.tiny import tiny_tokenizer


def letters(text: str, **_: object) -> dict[str, list[int]]:
    """A tokenizer: one token a character."""
    return {"input_ids": [ord(c) for c in text]}


def beginner(*tokens: str) -> PreTrainedTokenizerFast:
    """The tokenizer of w0 to w96, which puts these tokens before a text of its own."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokens]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join([*tokens, "$A", "w2"]), special_tokens=[*ids, ("w2", 2)]
    )
    return tokenizer


def words(*numbers: int) -> Text:
    return Text("words", " ".join(f"w{number}" for number in numbers))


def test_windows_are_consecutive_and_the_remainder_is_dropped() -> None:
    windows = Cutter(letters).windows(Text("any", "abcdefghij"), 3)
    assert windows.dtype == torch.int64
    assert ["".join(map(chr, row)) for row in windows.tolist()] == ["abc", "def", "ghi"]


@pytest.mark.parametrize("length", [5, 6, 11])
def test_a_text_has_as_many_windows_as_fit(length) -> None:
    assert Cutter(letters).windows(Text("any", "x" * length), 5).shape == (length // 5, 5)


def test_a_text_shorter_than_one_window_is_refused_with_both_lengths() -> None:
    with pytest.raises(DataError, match=r"'any' has 4 tokens, less than one window of 5.*--seq-len .*--eval-seq-len"):
        Cutter(letters).windows(Text("any", "abcd"), 5)


def rows(count: int) -> torch.Tensor:
    return torch.arange(count)[:, None].repeat(1, 2)


@pytest.mark.parametrize(("count", "limit"), [(10, 5), (10, 3), (100, 7), (10, 1), (10, 9)])
def test_evenly_spaced_windows_start_at_the_first_and_stand_as_far_apart_as_can_be(count, limit) -> None:
    chosen = evenly_spaced(rows(count), limit)[:, 0]
    assert len(chosen) == limit
    assert chosen[0] == 0
    gaps = torch.cat([chosen, torch.tensor([count])]).diff()
    assert gaps.min() >= count // limit
    assert gaps.max() <= -(-count // limit)


@pytest.mark.parametrize("limit", [None, 10, 11])
def test_a_limit_that_does_not_bind_keeps_every_window(limit) -> None:
    assert torch.equal(evenly_spaced(rows(10), limit), rows(10))


def test_a_sample_has_distinct_windows_that_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (sample_windows(rows(50), 20, seed)[:, 0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 20
    assert torch.equal(torch.get_rng_state(), before)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one() -> None:
    assert torch.equal(sample_windows(rows(50), 10, 3), sample_windows(rows(50), 20, 3)[:10])


def test_a_sample_larger_than_the_text_is_the_whole_text() -> None:
    assert torch.equal(sample_windows(rows(5), 20, 0)[:, 0].sort().values, torch.arange(5))


# What windows begin with.


@pytest.mark.parametrize(
    ("tokens", "auto", "always"), [((), (), (1,)), (("w1",), (1,), (1,)), (("w3", "w1"), (3, 1), (3, 1))], ids=str
)
def test_windows_begin_as_the_tokenizer_begins_a_text_unless_told(tokens, auto, always) -> None:
    tokenizer = beginner(*tokens)
    found = [beginning(tokenizer, bos) for bos in ("auto", "always", "never")]
    assert found == [auto, always, ()]


def test_a_beginning_that_the_tokenizer_does_not_have_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert beginning(tokenizer, "auto") == ()
    with pytest.raises(ConfigError, match="--bos always: the tokenizer has no beginning-of-sequence token"):
        beginning(tokenizer, "always")


def test_what_windows_begin_with_takes_the_first_places_of_every_one() -> None:
    cutter = Cutter(beginner("w1"), (1,))
    assert cutter.windows(words(*range(30, 37)), 4).tolist() == [[1, 30, 31, 32], [1, 33, 34, 35]]
    assert cutter.told == "w1"


def test_without_it_nothing_that_the_tokenizer_adds_is_in_a_window() -> None:
    cutter = Cutter(beginner("w1"))
    assert cutter.windows(words(*range(30, 36)), 3).tolist() == [[30, 31, 32], [33, 34, 35]]
    assert cutter.told is None


def test_windows_without_room_for_text_are_refused() -> None:
    with pytest.raises(DataError, match="windows of 2 tokens have no room for text after w3w1"):
        Cutter(tiny_tokenizer(), (3, 1)).windows(words(*range(30, 36)), 2)


def test_a_token_beyond_the_embedding_is_refused_by_name_and_id() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Lily"])
    text = Text("any", "w5 w6 Lily w7")
    assert Cutter(tokenizer, embeddings=98).windows(text, 4).tolist() == [[5, 6, 97, 7]]
    with pytest.raises(DataError, match=r"the token 'Lily' \(id 97\), but the model has embeddings for 97 tokens only"):
        Cutter(tokenizer, embeddings=97).windows(text, 4)


# Large texts and mixes.


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Makes texts of more than 4,000 characters large; holds the characters of each piece that was cut into tokens."""
    seen: list[int] = []

    def encode(self: Cutter, text: Any) -> Any:
        seen.extend(map(len, [text] if isinstance(text, str) else text))
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    monkeypatch.setattr(cutting, "LARGE", 4000)
    monkeypatch.setattr(Cutter, "_encode", encode)
    return seen


LONG = words(*np.random.default_rng(0).integers(30, 97, 20_000).tolist())


def test_of_a_large_text_only_what_a_limit_needs_is_cut_into_tokens(counted) -> None:
    cutter = Cutter(tiny_tokenizer(), (1,))
    found = cutter.windows(LONG, 16, 10)
    assert sum(counted) < len(LONG.content) / 20
    assert found.shape == (10, 16)
    assert (found[:, 0] == 1).all()
    whole = cutter.tokenizer(LONG.content)["input_ids"]
    places = [next(i for i in range(len(whole)) if whole[i : i + 15] == row[1:]) for row in found.tolist()]
    gaps = np.diff([*places, len(whole)])
    assert places[0] == 0
    assert gaps.min() > 0.95 * len(whole) / 10
    assert gaps.max() < 1.05 * len(whole) / 10


def test_a_large_text_of_which_most_is_needed_is_cut_as_any_other(counted) -> None:
    cutter = Cutter(tiny_tokenizer())
    every = cutter.windows(LONG, 16)
    assert counted == [len(LONG.content)]
    assert torch.equal(cutter.windows(LONG, 16, 1000), evenly_spaced(every, 1000))
    blank = Text("any", "w5" + " " * 8000 + LONG.content[:4000])
    assert cutter.windows(blank, 16, 4).shape == (4, 16)


def test_a_text_that_is_not_large_has_the_windows_it_always_had() -> None:
    cutter = Cutter(tiny_tokenizer())
    assert torch.equal(cutter.windows(LONG, 16, 10), evenly_spaced(cutter.windows(LONG, 16), 10))
    assert torch.equal(cutter.pool(LONG, 16, 4), cutter.windows(LONG, 16))


def test_the_pool_of_a_large_text_is_a_few_times_what_metrics_look_at(counted, monkeypatch) -> None:
    monkeypatch.setattr(cutting, "POOL_TOKENS", 256)
    cutter = Cutter(tiny_tokenizer())
    assert cutter.pool(LONG, 16, 2).shape == (16, 16)
    assert cutter.pool(LONG, 16, 10).shape == (40, 16)
    assert max(counted) < len(LONG.content)


def test_a_mix_has_as_many_windows_of_each_part() -> None:
    mix = Text("a+b", "", (words(*[5] * 12), words(*[6] * 40, *[7] * 40)))
    found = Cutter(tiny_tokenizer()).windows(mix, 4)
    assert found[:, 0].tolist() == [5, 5, 5, 6, 6, 7]


# What two texts share.


def test_a_text_shares_everything_with_itself_wherever_its_windows_begin() -> None:
    cutter = Cutter(tiny_tokenizer(), (1,))
    moved = Text("moved", "w5 " + LONG.content)
    ours, theirs = cutter.windows(LONG, 32, 50), cutter.windows(moved, 20)
    assert shared_runs(ours, theirs, cutter.beginning) == 1.0


def test_the_share_is_that_of_the_runs_that_occur_in_both() -> None:
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 50_000, (8, 64)))
    other = torch.from_numpy(np.random.default_rng(2).integers(0, 50_000, (20, 64)))
    assert shared_runs(ids, other) == 0.0
    other[3], other[7] = ids[2], ids[5]
    assert shared_runs(ids, other) == 2 / 8
    other[9, :12] = ids[0, :12]  # one token short of a run
    assert shared_runs(ids, other) == 2 / 8


# Batches of the search.


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 12, 25])
def test_batches_go_through_every_window_once_a_round(batch_size) -> None:
    batches = list(islice(search_batches(rows(10), batch_size, 0), 40))
    assert all(batch.shape == (batch_size, 2) for batch in batches)
    stream = torch.cat(batches)[:, 0]
    rounds = stream[: len(stream) // 10 * 10].view(-1, 10)
    assert torch.equal(rounds.sort(dim=1).values, torch.arange(10).expand(len(rounds), 10))


def test_each_round_has_an_order_of_its_own() -> None:
    first, second = islice(search_batches(rows(30), 30, 0), 2)
    assert not torch.equal(first, second)


def test_batches_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (torch.stack(list(islice(search_batches(rows(10), 4, seed), 9))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_and_the_calibration_sample_are_drawn_apart() -> None:
    """Both are permutations by the run's seed, but each purpose has a generator of its own."""
    assert not torch.equal(next(search_batches(rows(30), 30, 0)), sample_windows(rows(30), 30, 0))
