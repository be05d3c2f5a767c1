"""Finished cells on disk: whole or not there, ours or refused, one process at a time."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forks import posix

from polyprune_core.errors import ConfigError
from polyprune_core.results.store import Store
from polyprune_core.search.trace import StepRecord, Trace
from polyprune_core.utils.files import write_atomically, write_json
from tests.rows import row as made_row

KEY = "0123456789abcdef"
ROW = made_row(id=KEY, kind="search", estimator="rloo", perplexity=43.5, nll=math.log(43.5), plugins={"a": "b 1"})
STEP = StepRecord(1, (3.5, math.inf), 0.1, 0.2, 0.3, 1, 256, 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "some" / "store")
    store.make()
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_cell_is_read_back_as_it_was(store: Store) -> None:
    store.write(ROW)
    assert store.read(KEY) == ROW
    assert Store(store.folder).read(KEY) == ROW


def test_a_cell_that_is_not_there_is_none(store: Store) -> None:
    assert store.read(KEY) is None


def test_an_infinite_perplexity_survives(store: Store) -> None:
    row = dataclasses.replace(ROW, perplexity=math.inf, nll=1000.0)
    store.write(row)
    assert store.read(KEY) == row


def test_the_steps_of_a_search_are_strict_json_one_a_line(store: Store) -> None:
    store.write(ROW, Trace(steps=[STEP, dataclasses.replace(STEP, step=2)]))
    lines = (store.cells / f"{KEY}.trace.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [record["step"] for record in records] == [1, 2]
    assert records[0]["losses"] == [3.5, None]


def test_the_steps_are_there_before_the_cell_counts_as_finished(store: Store, monkeypatch) -> None:
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    store.write(ROW, Trace(steps=[STEP]))
    assert order == [f"{KEY}.trace.jsonl", f"{KEY}.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"rows": []}',
        pytest.param(
            b'{"row": null}',
        ),
        b'{"row": {"id": "x"}}',
        b'{"row": {"new": 1}}',
        b"\xff",
    ],
    ids=repr,
)
def test_a_broken_or_foreign_file_is_one_line_that_names_it(store: Store, content: bytes) -> None:
    path = store.cells / f"{KEY}.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as failure:
        store.read(KEY)
    assert str(path) in str(failure.value)
    assert len(str(failure.value).splitlines()) == 1
    assert path.read_bytes() == content


def test_a_folder_that_an_exporter_wrote_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "polyprune.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"as results store: it holds a model or masks.*another --output"):
        Store(tmp_path)


def test_a_folder_in_place_of_a_file_is_not_said_to_lack_space(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ConfigError, match=r"Is a directory\. Give another --output\.$"):
        write_atomically(tmp_path / "report.html", "text")


def test_a_cell_cut_short_anywhere_is_refused(store: Store) -> None:
    store.write(ROW)
    path = store.cells / f"{KEY}.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=KEY):
            store.read(KEY)


def test_another_cells_file_under_this_name_is_refused(store: Store) -> None:
    store.write(dataclasses.replace(ROW, id="another"))
    shutil.copy(store.cells / "another.json", store.cells / f"{KEY}.json")
    with pytest.raises(ConfigError, match=KEY):
        store.read(KEY)


@pytest.mark.parametrize("place", ["store", "store/cells", "above"])
def test_a_file_where_the_store_must_go_is_refused_and_left_alone(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="--output"):
        Store(tmp_path / "above" / "store" if place == "above" else tmp_path / "store")
    assert path.read_text() == "mine"


def test_a_file_is_replaced_by_the_whole_new_text_and_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer")
    before = os.umask(0o077)
    try:
        write_atomically(path, "new é\n")
    finally:
        os.umask(before)
    assert path.read_bytes() == "new é\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_fault_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, fault) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args: object) -> None:
        raise fault

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else ConfigError) as failure:
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]
    if isinstance(fault, OSError):
        assert str(path) in str(failure.value)
        assert "No space left" in str(failure.value)


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, {"key": object()})
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_written_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"a": [math.inf, math.nan, (1.5, -math.inf)]})
    assert json.loads((tmp_path / "file").read_text()) == {"a": [None, None, [1.5, None]]}


def test_a_claimed_cell_is_held_against_others_and_no_other_cell_is(store: Store) -> None:
    other = Store(store.folder)
    with store.claimed(KEY, wait=True) as mine:
        assert mine
        with other.claimed(KEY, wait=False) as theirs:
            assert not theirs
        with other.claimed("another", wait=False) as theirs:
            assert theirs
    with other.claimed(KEY, wait=False) as theirs:
        assert theirs


def test_a_claim_that_failed_leaves_the_cell_with_its_holder(store: Store) -> None:
    with store.claimed(KEY, wait=False):
        for _ in range(2):
            with store.claimed(KEY, wait=False) as mine:
                assert not mine


def test_waiting_ends_when_the_holder_lets_go(store: Store) -> None:
    held, order = threading.Event(), []

    def hold() -> None:
        with store.claimed(KEY, wait=True):
            held.set()
            time.sleep(0.2)
            order.append("let go")

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with Store(store.folder).claimed(KEY, wait=True) as mine:
        order.append("claimed")
    thread.join()
    assert (mine, order) == (True, ["let go", "claimed"])


def test_a_cell_is_free_again_after_a_fault(store: Store) -> None:
    with pytest.raises(RuntimeError), store.claimed(KEY, wait=False):
        raise RuntimeError
    with store.claimed(KEY, wait=False) as mine:
        assert mine


def test_a_lock_file_left_by_a_dead_process_stops_nobody(store: Store) -> None:
    (store.cells / f"{KEY}.lock").touch()
    with store.claimed(KEY, wait=False) as mine:
        assert mine


@posix
def test_a_pipe_is_written_into_and_a_link_stays(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        write_atomically(tmp_path / "pipe", "through")
        assert read.result(60) == "through"
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("file")
    write_atomically(tmp_path / "link", "behind")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "behind"


def test_a_full_device_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot write /dev/full: No space left"):
        write_atomically(Path("/dev/full"), "a row")
