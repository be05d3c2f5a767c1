"""Text in, token windows out; whatever cannot be used is refused with what to do."""

from __future__ import annotations

import hashlib
import os
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from polyprune_core.errors import DataError
from polyprune_core.evaluation import pydocs
from polyprune_core.evaluation.text import Text, evenly_spaced, load_text, sample_windows, search_batches, token_windows


def letters(text: str, **_: object) -> dict[str, list[int]]:
    """A tokenizer: one token a character."""
    return {"input_ids": [ord(c) for c in text]}


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# Text.


@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_the_built_in_text_is_that_of_pydocs_for_its_role(role) -> None:
    expected = {"calibration": pydocs.calibration_text, "evaluation": pydocs.evaluation_text}[role]()
    assert load_text("builtin:pydocs", role) == Text("builtin:pydocs", expected)


def test_the_hash_of_a_text_is_that_of_its_utf8_bytes() -> None:
    assert Text("any", "naïve é\n").sha256 == hashlib.sha256("naïve é\n".encode()).hexdigest()


@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_a_file_is_taken_as_it_is(tmp_path, role) -> None:
    content = " = Title = \n\n  A paragraph, é.\n\tindented\n\n\n"
    name = write(tmp_path / "some.txt", content)
    assert load_text(name, role) == Text("some.txt", content)


def test_a_raw_file_holds_one_row_a_line_joined_by_blank_lines(tmp_path) -> None:
    name = write(tmp_path / "wiki.test.raw", " \n = Title = \n \n First row . \n Second row . \n")
    # The rows as the hub's copy of WikiText gives them: "", " = Title = \n", "", " First row . \n", " Second row . \n".
    rows = ["", " = Title = \n", "", " First row . \n", " Second row . \n"]
    assert load_text(name, "evaluation").content == "\n\n".join(rows)


def test_only_a_line_end_ends_a_row_of_a_raw_file(tmp_path) -> None:
    """Other separators, which WikiText has inside its rows, do not: the hub's copy was cut at line ends alone."""
    name = write(tmp_path / "wiki.raw", "one \x0b two \x0c three \x85 four \u2028 five \x1c six \u2029 seven\nnext\n")
    expected = "one \x0b two \x0c three \x85 four \u2028 five \x1c six \u2029 seven\n\n\nnext\n"
    assert load_text(name, "evaluation").content == expected


def test_a_raw_file_without_a_last_line_end_keeps_its_last_row(tmp_path) -> None:
    assert load_text(write(tmp_path / "wiki.raw", "one\ntwo"), "evaluation").content == "one\n\n\ntwo"


@pytest.fixture
def hub(monkeypatch) -> SimpleNamespace:
    """Stands in for the datasets package: `rows` is what it serves or raises, `asked` what it was asked for."""
    served = SimpleNamespace(rows=None, asked=[])

    class Rows:
        @property
        def column_names(self) -> list[str]:
            return list(served.rows)

        def __getitem__(self, name: str) -> list[str]:
            return served.rows[name]

    def load_dataset(*args: object, **kwargs: object) -> Rows:
        served.asked.append((args, kwargs))
        if isinstance(served.rows, Exception):
            raise served.rows
        return Rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return served


def test_a_dataset_and_the_raw_file_of_its_rows_give_the_same_text(tmp_path, hub) -> None:
    hub.rows = {"text": ["", " = Title = \n", "", " First row . \n", " Second row . \n"]}
    name = write(tmp_path / "wiki.raw", " \n = Title = \n \n First row . \n Second row . \n")
    assert load_text("Salesforce/wikitext", "evaluation").content == load_text(name, "evaluation").content


@pytest.mark.parametrize(
    ("name", "role", "asked"),
    [
        ("owner/name", "calibration", ("owner/name", None, "train")),
        ("owner/name", "evaluation", ("owner/name", None, "test")),
        ("owner/name:config", "evaluation", ("owner/name", "config", "test")),
        ("owner/name:config:validation", "calibration", ("owner/name", "config", "validation")),
        ("owner/name::validation", "evaluation", ("owner/name", None, "validation")),
    ],
)
def test_the_two_roles_read_different_splits_unless_one_is_named(hub, name, role, asked) -> None:
    hub.rows = {"text": ["some text"]}
    assert load_text(name, role) == Text(name, "some text")
    assert hub.asked == [((asked[0], asked[1]), {"split": asked[2]})]


def test_a_dataset_without_a_text_column_is_refused_with_the_columns_it_has(hub) -> None:
    hub.rows = {"id": ["1"], "body": ["some text"]}
    with pytest.raises(DataError, match="'owner/name' has no column 'text'; it has id, body"):
        load_text("owner/name", "calibration")


@pytest.mark.parametrize("error", [ConnectionError("offline\nmore"), ValueError("unknown split"), KeyError("builder")])
def test_a_dataset_that_cannot_be_loaded_is_refused_with_the_reason(hub, error) -> None:
    hub.rows = error
    with pytest.raises(DataError, match="cannot load dataset 'owner/name': ") as refusal:
        load_text("owner/name", "calibration")
    assert error.args[0].splitlines()[0] in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["nothing-here.txt", "./nothing/here", "/nothing/here.raw", "~/text", "a/b/c.txt", ""])
def test_a_text_that_is_not_there_is_refused_without_asking_the_hub(hub, name) -> None:
    with pytest.raises(DataError, match=r"no text '.*give builtin:pydocs, an existing text file, or a hub dataset"):
        load_text(name, "calibration")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["builtin:pydoc", "builtin:", "builtin:wikitext"])
def test_an_unknown_built_in_text_is_refused_with_those_there_are(name) -> None:
    with pytest.raises(DataError, match=r"no built-in text named .* Available: pydocs"):
        load_text(name, "calibration")


def test_a_mistyped_built_in_text_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match="Did you mean 'pydocs'"):
        load_text("builtin:pydoc", "calibration")


@pytest.mark.parametrize("suffix", [".txt", ".raw"])
@pytest.mark.parametrize("content", ["", " ", "\n\n \t\n"])
def test_a_text_of_blanks_is_refused(tmp_path, suffix, content) -> None:
    with pytest.raises(DataError, match="is empty"):
        load_text(write(tmp_path / f"empty{suffix}", content), "calibration")


@pytest.mark.parametrize("suffix", [".txt", ".raw"])
def test_a_file_that_is_not_text_is_refused(tmp_path, suffix) -> None:
    name = write(tmp_path / f"weights{suffix}", bytes(range(256)))
    with pytest.raises(DataError, match=r"cannot read .*weights.* as UTF-8 text"):
        load_text(name, "calibration")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable to this user")
def test_a_file_that_may_not_be_read_is_refused(tmp_path) -> None:
    name = write(tmp_path / "secret.txt", "text")
    Path(name).chmod(0)
    with pytest.raises(DataError, match="cannot read"):
        load_text(name, "calibration")


def test_a_folder_is_no_text(tmp_path) -> None:
    with pytest.raises(DataError, match="no text"):
        load_text(str(tmp_path), "calibration")


# Windows.


def test_windows_are_consecutive_and_the_remainder_is_dropped() -> None:
    windows = token_windows(Text("any", "abcdefghij"), letters, 3)
    assert windows.dtype == torch.int64
    assert ["".join(map(chr, row)) for row in windows.tolist()] == ["abc", "def", "ghi"]


@pytest.mark.parametrize("length", [5, 6, 11])
def test_a_text_has_as_many_windows_as_fit(length) -> None:
    assert token_windows(Text("any", "x" * length), letters, 5).shape == (length // 5, 5)


def test_a_text_shorter_than_one_window_is_refused_with_both_lengths() -> None:
    with pytest.raises(DataError, match=r"'any' has 4 tokens, less than one window of 5.*--seq-len .*--eval-seq-len"):
        token_windows(Text("any", "abcd"), letters, 5)


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
