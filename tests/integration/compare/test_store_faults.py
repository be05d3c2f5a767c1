"""Stores that are broken, full, or cannot be written: what can be done is done, the rest is named."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from commandline import refused
from elsewhere import Fork
from filelock import FileLock
from forks import forks
from grids import FEW, GRID, cell_files, grid, results_of

from polyprune_core.runs import workplace

pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.mark.parametrize(
    "content",
    ["", '{"row": {"id": "', "[]", '{"cell": 1}', '{"row": {"id": "x", "kind": "dense", "unknown": 1}}'],
    ids=["empty", "truncated", "a list", "another object", "an unknown field"],
)
def test_a_cell_file_that_is_not_ours_fails_its_own_cell_and_is_left_alone(copy, record, cells_run, content) -> None:
    path = copy / "cells" / f"{record['rows'][5]['id']}.json"
    path.write_text(content)
    run = grid(copy)
    assert run.status == 1
    assert [row for row in run.rows if row["status"] == "ok"] == [
        row for row in record["rows"] if row["id"] not in str(path)
    ]
    assert cells_run == []
    for part in (str(path), "Delete that file"):
        assert part in run.rows[5]["error"]
        assert part in run.err
    assert path.read_text() == content
    path.unlink()
    assert results_of(grid(copy).rows) == results_of(record["rows"])


@pytest.mark.parametrize("fault", ["another cell", "a word for a number", "a folder"])
def test_a_cell_file_that_only_looks_like_ours_is_named(copy, record, fault) -> None:
    path, other = (copy / "cells" / f"{record['rows'][index]['id']}.json" for index in (5, 2))
    if fault == "a folder":
        path.unlink()
        path.mkdir()
    else:
        word = re.sub(r'"nll": [\d.]+', '"nll": "low"', path.read_text())
        path.write_text(other.read_text() if fault == "another cell" else word)
    run = grid(copy)
    assert run.status == 1
    assert [row["status"] for row in run.rows].count("failed") == 1
    assert str(path) in run.rows[5]["error"]


@forks
def test_on_a_full_disk_every_file_is_named_and_the_results_are_printed(unbroken, copy, record) -> None:
    kept = cell_files(copy)

    def prepare() -> None:
        open_harness = workplace.open_harness

        def full(*given: Any) -> Any:
            import resource  # which Windows has not

            harness = open_harness(*given)
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
            return harness

        workplace.open_harness = full

    run = Fork(prepare, *GRID, "--seeds", "0,1", "-o", copy, "--format", "json").finished()
    assert run.status == 1, run.err
    rows = run.rows
    assert {row["status"] for row in rows} == {"ok"}
    old = {row["id"] for row in record["rows"]}
    assert results_of([row for row in rows if row["id"] in old]) == results_of(record["rows"])
    warned = [line for line in run.err.splitlines() if line.startswith("warning: cannot write ")]
    assert len(warned) == len([row for row in rows if row["id"] not in old]) + 1
    for row in rows:
        assert any(row["id"] in line for line in warned) == (row["id"] not in old)
    assert str(copy / "results.json") in warned[-1]
    assert cell_files(copy) == kept
    assert not [path for path in copy.rglob("*.*") if path.name.startswith(".") and path.suffix != ".lock"]


@pytest.mark.parametrize("place", ["store", "store/cells", "above"])
def test_a_file_where_the_store_must_go_is_refused(tmp_path, place) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    store = tmp_path / "above" / "store" if place == "above" else tmp_path / "store"
    refused(grid(store), store, "--output")
    assert path.read_text() == "mine"


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be made in the folder; where we are root and could all the same, making anything anywhere fails."""
    folder.chmod(0o555)
    try:
        with contextlib.ExitStack() as patches:
            if os.access(folder, os.W_OK):
                refusal = PermissionError(errno.EACCES, "Permission denied")
                for target, name in ((os, "mkdir"), (tempfile, "mkstemp"), (FileLock, "acquire")):
                    patches.enter_context(mock.patch.object(target, name, side_effect=refusal))
            yield
    finally:
        folder.chmod(0o755)


def test_a_store_in_a_folder_that_cannot_be_written_is_refused(tmp_path) -> None:
    with read_only(tmp_path):
        refused(grid(tmp_path / "store"), tmp_path / "store", "--output")


def test_a_store_that_cannot_be_written_is_refused(tmp_path) -> None:
    (tmp_path / "cells").mkdir()
    with read_only(tmp_path / "cells"):
        refused(grid(tmp_path, base=FEW), tmp_path)


@pytest.mark.parametrize("summary", ["as it would be", "another"])
def test_a_finished_grid_in_a_store_that_cannot_be_written_is_read(copy, record, summary) -> None:
    if summary == "another":
        (copy / "results.json").write_text("{}")
    else:
        assert grid(copy).status == 0
    with read_only(copy / "cells"), read_only(copy):
        run = grid(copy)
    assert run.rows == record["rows"]
    assert run.status == (summary == "another")
    assert (f"not written: {copy / 'results.json'}" in run.err) == (summary == "another")


def test_what_a_killed_process_left_is_removed(copy, record) -> None:
    cell = record["rows"][5]["id"]
    half, late = copy / "cells" / f".{cell}.json.abc", copy / "cells" / f"{cell}.search.safetensors"
    late.write_text("written before the cell was")
    assert grid(copy).status == 0
    assert not late.exists()
    half.write_text("{")
    (copy / "cells" / f"{cell}.json").unlink()
    assert grid(copy).status == 0
    assert not half.exists()
