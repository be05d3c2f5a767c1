"""Folders that appear whole or not at all, in place of what polyprune wrote and of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polyprune_core.errors import ConfigError
from polyprune_core.utils.outputs import RECORD, check_apart, new_folder, write_record


def write(output: Path, content: str = "new", overwrite: bool = False, **inputs: Path) -> None:
    with new_folder(output, overwrite, inputs) as place, place.filled() as folder:
        (folder / "weights").write_text(content)
        write_record(folder, {"report": {"files": {}}})


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(output: Path, *parts: object, **inputs: Path) -> None:
    before = contents(output.parent)
    with pytest.raises(ConfigError) as error:
        write(output, overwrite=True, **inputs)
    assert all(str(part) in str(error.value) for part in parts), error.value
    assert contents(output.parent) == before


def test_a_folder_that_polyprune_wrote_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path).keys() == {"out/weights", f"out/{RECORD}"}
    assert (tmp_path / "out" / "weights").read_text() == "new"


def test_a_file_that_polyprune_did_not_write_stops_the_replacement(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "sub").mkdir()
    (tmp_path / "out" / "sub" / "thesis").write_text("mine")
    refused(tmp_path / "out", "thesis", "not written by polyprune")


def test_a_file_that_was_changed_since_stops_the_replacement(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "weights").write_text("tuned for a week")
    refused(tmp_path / "out", "weights", "changed after")


def test_a_link_in_place_of_a_file_stops_the_replacement(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "weights").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "weights").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "out", "weights")


@pytest.mark.parametrize("record", ["", "{}", "[]", '{"report": {"files": 3}}', "[" * 100_000])
def test_a_record_that_lists_nothing_makes_a_folder_nobodys_to_replace(tmp_path: Path, record: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD).write_text(record)
    refused(tmp_path / "out", RECORD, "not ours to replace")


PLACES: dict[str, Callable[[Path], Path]] = {
    "is": lambda folder: folder,
    "lies in": lambda folder: folder / "new",
    "holds": lambda folder: folder.parent,
}


@pytest.mark.parametrize("relation", PLACES)
@pytest.mark.parametrize("through_a_link", [False, True])
def test_an_output_that_touches_an_input_is_refused(tmp_path: Path, relation: str, through_a_link: bool) -> None:
    model = tmp_path / "all" / "model"
    write(model)
    (tmp_path / "link").symlink_to(model)
    read = tmp_path / "link" if through_a_link else model
    refused(PLACES[relation](model), f"{relation} model {read}", model=read)
    assert contents(model).keys() == {"weights", RECORD}


def test_an_output_that_holds_what_links_in_an_input_lead_to_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").symlink_to(tmp_path / "out" / "weights")
    refused(tmp_path / "out", "holds model", model=tmp_path / "model")


def test_an_output_beside_its_inputs_and_inputs_that_are_not_there_are_fine(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("read")
    check_apart(tmp_path / "new", {"text": tmp_path / "text", "model": tmp_path / "nowhere", "here": tmp_path / "a"})


def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / ("n" * 250), "too long")


def test_a_request_that_fails_leaves_no_folder_above_its_output(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "some" / "new" / "out", False, {}):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_writes_a_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", False, {}), pytest.raises(ConfigError, match="another process is writing"):
        write(tmp_path / "out")
    write(tmp_path / "out")


DYING = """
import os, sys
from pathlib import Path
from unittest import mock
from polyprune_core.utils import outputs

moment, output = sys.argv[1], Path(sys.argv[2])
replace = os.replace
calls = []

def dying(source, target):
    if len(calls) == {"before": 0, "between": 1, "after": 2}[moment]:
        os._exit(9)
    calls.append(source)
    replace(source, target)

remove = outputs.shutil.rmtree
with outputs.new_folder(output, True, {}) as place, place.filled() as folder:
    (folder / "weights").write_text("new")
    outputs.write_record(folder, {"report": {"files": {}}})
    os.replace = dying
    outputs.shutil.rmtree = lambda *_, **__: os._exit(9)
"""


@pytest.mark.parametrize(("moment", "left"), [("before", "old"), ("between", "new"), ("after", "new")])
@pytest.mark.parametrize("next_output", ["out", "another"])
def test_what_a_killed_process_left_is_finished_or_removed_by_the_next(
    tmp_path: Path, moment: str, left: str, next_output: str
) -> None:
    write(tmp_path / "out", "old")
    died = subprocess.run([sys.executable, "-c", DYING, moment, str(tmp_path / "out")], check=False, timeout=60)
    assert died.returncode == 9
    assert len(list(tmp_path.iterdir())) > 1
    if next_output == "out":
        with pytest.raises(ConfigError, match="is not empty"):
            write(tmp_path / "out")
    else:
        write(tmp_path / "another")
    assert (tmp_path / "out" / "weights").read_text() == left
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"out", next_output})


def test_the_only_copy_that_is_left_beside_a_place_is_put_there(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.polyprune-old")
    (tmp_path / ".out.polyprune-lock").touch()
    write(tmp_path / "another")
    assert (tmp_path / "out" / "weights").read_text() == "old"


def test_what_a_living_process_is_writing_beside_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "one", False, {}) as place, place.filled() as folder:
        (folder / "weights").write_text("half")
        write(tmp_path / "two")
        assert (folder / "weights").read_text() == "half"
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_replacement_that_cannot_be_put_in_place_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "old")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(source).name.endswith("-new"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises(ConfigError, match="cannot"):
            write(tmp_path / "out", overwrite=True)
    assert contents(tmp_path)["out/weights"] == "old"
    assert os.listdir(tmp_path) == ["out"]
