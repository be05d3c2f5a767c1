"""`polyprune export`: masks and finished cells in another format, proved by reading back, refused where they differ."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from commandline import Run, polyprune
from safetensors.torch import load_file

from polyprune_core.models.sources import load_model
from polyprune_core.pruning.mask_file import MaskFile
from polyprune_plugins.exporters.huggingface import HuggingFace

SMALL = ("-m", "tiny", "--limit", "2", "--seq-len", "32", "--eval-seq-len", "32", "--calibration-samples", "4")
SMALL += ("--batch-size", "2", "--calibration", "learn.txt", "--evaluation", "test.txt")
DECIDED = ("--initializer", "wanda", "-s", "0.3", "--scope", "global")

pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def masks() -> Path:
    run = polyprune("prune", *SMALL, *DECIDED, "--exporter", "masks", "-o", "masks")
    assert run.status == 0, run.err
    return Path("masks").resolve()


@pytest.fixture(scope="module")
def store(masks) -> Path:
    """A store of two pruned cells, of which one decided what the masks did."""
    grid = ("--baselines", "wanda,magnitude", "-s", "0.3", "--scope", "global")
    run = polyprune("compare", *SMALL, *grid, "-o", "runs", "--format", "json")
    assert run.status == 0, run.err
    return Path("runs").resolve()


def export(source: object, output: object, *more: object) -> Run:
    return polyprune("export", source, "-o", output, *more, "-q")


def refused(run: Run, output: Path, *parts: str) -> None:
    assert run.status == 2, run.err
    assert run.out == ""
    assert not output.exists()
    (complaint,) = [line for line in run.err.splitlines() if line.startswith("polyprune: ")]
    for part in parts:
        assert part in complaint


def wanda_cell(store: Path) -> str:
    rows = [json.loads(path.read_text("utf-8")) for path in (store / "cells").glob("*.json")]
    (found,) = [row for row in rows if row["row"]["initializer"] == "wanda"]
    return found["row"]["id"]


@pytest.mark.usefixtures("runtime_here")
def test_masks_become_the_model_that_prune_would_have_written(masks, tmp_path) -> None:
    run = export(masks, tmp_path / "new", "--verify")
    assert run.status == 0, run.err
    assert "same top-1 100.0% of 256 positions" in run.out
    whole = polyprune("prune", *SMALL, *DECIDED, "-o", tmp_path / "whole")
    assert whole.status == 0
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("new", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    card = (tmp_path / "new" / "README.md").read_text("utf-8")
    assert card == (tmp_path / "whole" / "README.md").read_text("utf-8")
    (command,) = (line for line in card.splitlines() if line.startswith("polyprune prune"))
    again = shlex.split(command.removesuffix(" --exporter huggingface --output pruned"))[1:]
    assert polyprune(*again, "--exporter", "masks", "-o", tmp_path / "again", "--quiet").status == 0
    assert MaskFile.read(tmp_path / "again").keep.equal(MaskFile.read(masks).keep)
    scored = MaskFile.read(masks).measured[0]
    assert f"| {scored['text']} | {scored['window']} | {scored['tokens']:,} | {scored['perplexity']:.4f} | " in card


@pytest.mark.usefixtures("runtime_here")
def test_a_finished_cell_becomes_a_model_by_the_beginning_of_its_id_or_by_its_file(masks, store, tmp_path) -> None:
    cell = wanda_cell(store)
    run = export(store, tmp_path / "by-id", "--cell", cell[:6], "--verify", "--format", "json")
    assert run.status == 0, run.err
    assert json.loads(run.out)["verification"]["top1_agreement"] == 1.0
    assert export(store / "cells" / f"{cell}.json", tmp_path / "by-file").status == 0
    assert export(masks, tmp_path / "same").status == 0
    for name in ("by-id", "by-file"):
        card = (tmp_path / name / "README.md").read_text("utf-8")
        assert "\npolyprune compare --model" in card
        assert "| this model | dense |" in card
    by_id, by_file, same = (load_file(tmp_path / name / "model.safetensors") for name in ("by-id", "by-file", "same"))
    assert by_id.keys() == by_file.keys() == same.keys()
    assert all(torch.equal(by_id[name], tensor) for name, tensor in same.items())
    assert all(torch.equal(by_file[name], tensor) for name, tensor in same.items())


@pytest.mark.usefixtures("runtime_here")
def test_a_cell_goes_to_masks_and_those_to_another_budget(store, tmp_path) -> None:
    cell = wanda_cell(store)
    assert export(store, tmp_path / "masks", "--cell", cell, "--exporter", "masks", "--verify").status == 0
    more = ("--limit", "2", "--seq-len", "32", "--eval-seq-len", "32", "--evaluation", "test.txt")
    run = polyprune(
        *("prune", "--from-masks", tmp_path / "masks", *more, "--calibration", "learn.txt"),
        *("--budget", "kv-cache=0.5", "-o", tmp_path / "half"),
    )
    assert run.status == 0, run.err
    assert "kv-cache=0.5 asked, 0.5 achieved" in run.out
    found = json.loads((tmp_path / "half" / "polyprune.json").read_text("utf-8"))
    assert (found["budget"], found["budget_achieved"]) == ("kv-cache=0.5", 0.5)


def test_a_model_that_reads_back_as_another_is_not_left_behind(masks, tmp_path) -> None:
    real = HuggingFace.load

    def broken(self, path, **settings):
        loaded = real(self, path, **settings)
        next(loaded.model.parameters()).data.mul_(1.5)
        return loaded

    with mock.patch.object(HuggingFace, "load", broken):
        refused(export(masks, tmp_path / "new", "--verify"), tmp_path / "new", "is another one", "a logit differs by")
        assert export(masks, tmp_path / "unseen").status == 0


def test_a_folder_with_something_in_it_is_replaced_only_when_told_to(masks, tmp_path) -> None:
    assert export(masks, tmp_path / "new").status == 0
    assert export(masks, tmp_path / "new").status == 2
    assert export(masks, tmp_path / "new", "--exporter", "masks", "--overwrite").status == 0
    assert (tmp_path / "new" / "masks.json").is_file()


def test_what_cannot_be_exported_is_refused(masks, store, tmp_path, tiny) -> None:
    new, wanda = tmp_path / "new", wanda_cell(store)
    (other,) = {path.stem for path in (store / "cells").glob("*.json")} - {wanda} - _dense(store)
    refused(export(tmp_path, new), new, "no folder of masks and no results store")
    refused(export(store, new), new, "has 2 pruned cells", "--cell", wanda, "magnitude")
    refused(export(store, new, "--cell", "zzz"), new, "0 cells", "begin with 'zzz'", wanda)
    shutil.copytree(store, tmp_path / "older")
    (tmp_path / "older" / "cells" / f"{other}.safetensors").unlink()
    refused(export(tmp_path / "older", new, "--cell", other), new, "does not hold what the cell kept", "Run the")
    refused(export(masks, new, "--exporter", "gold"), new, "no exporter named 'gold'")
    tiny("llama").save_pretrained(tmp_path / "another")
    tokenizer = load_model("tiny").path / "tokenizer.json"
    (tmp_path / "another" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    run = export(store, new, "--cell", wanda, "--model", tmp_path / "another")
    assert run.status == 2
    assert not new.exists()


def _dense(store: Path) -> set[str]:
    cells = (store / "cells").glob("*.json")
    return {path.stem for path in cells if json.loads(path.read_text("utf-8"))["row"]["kind"] == "dense"}


def test_a_decision_that_is_cut_short_is_refused(store, tmp_path) -> None:
    path = store / "cells" / f"{wanda_cell(store)}.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        refused(
            export(store, tmp_path / "new", "--cell", path.stem),
            tmp_path / "new",
            "does not hold the details of a cell",
        )
    finally:
        path.write_bytes(whole)


def test_an_export_never_takes_the_place_of_what_it_reads(masks, store, tmp_path) -> None:
    shutil.copytree(masks, tmp_path / "around" / "masks")
    read = tmp_path / "around" / "masks"
    before = {path: path.read_bytes() for path in read.iterdir()}
    (tmp_path / "link").symlink_to(read)
    for output, relation in (
        (read, "is"),
        (tmp_path / "link", "is"),
        (read.parent, "holds"),
        (read / "new", "lies in"),
    ):
        run = export(read, output, "--overwrite")
        assert run.status == 2
        assert f"{relation} what was decided, {read}, which is read" in run.err
    assert {path: path.read_bytes() for path in read.iterdir()} == before
    refused(export(store, store / "new", "--cell", wanda_cell(store)), store / "new", "lies in what was decided")


def test_a_cell_is_asked_of_a_store_only(masks, store, tmp_path) -> None:
    refused(export(masks, tmp_path / "new", "--cell", "abc"), tmp_path / "new", "--cell abc", "holds masks")
    file = store / "cells" / f"{wanda_cell(store)}.json"
    refused(export(file, tmp_path / "new", "--cell", "zzz"), tmp_path / "new", "--cell zzz", str(file))
