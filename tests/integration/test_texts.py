"""What a text becomes on the way to a number: its beginning, its columns, what it shares, tokens no model knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import Run, polyprune, refused

from polyprune_core.evaluation import pydocs
from polyprune_core.models.catalogue import catalogue

SMALL = ("--limit", "3", "--eval-seq-len", "32")
GRID = (*SMALL, "--seq-len", "32", "--calibration-samples", "4", "--baselines", "wanda")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a short text for each role."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text(pydocs.calibration_text()[:9_000], "utf-8")
    (tmp_path / "test.txt").write_text(pydocs.evaluation_text()[:8_000], "utf-8")
    return tmp_path


def compared(*arguments: str, texts: tuple[str, str] = ("train.txt", "test.txt")) -> Run:
    run = polyprune(*("compare", "-m", "tiny", "--calibration", texts[0], "--evaluation", texts[1]), *GRID, *arguments)
    assert run.status == 0, run.err
    return run


def record(run: Run) -> dict[str, Any]:
    return json.loads(run.out)


def test_windows_begin_with_bos_in_every_number_where_that_is_asked_for() -> None:
    found = {
        bos: record(compared("--bos", bos, "--format", "json", "--output", bos)) for bos in ("auto", "always", "never")
    }
    assert {bos: run["texts"]["evaluation"]["bos"] for bos, run in found.items()} == {
        "auto": None,  # the bundled tokenizer begins no text with it
        "always": "<|endoftext|>",
        "never": None,
    }
    numbers = {bos: [row["perplexity"] for row in run["rows"]] for bos, run in found.items()}
    assert numbers["auto"] == numbers["never"]
    assert all(a != b for a, b in zip(numbers["always"], numbers["never"], strict=True))
    ids = [{row["id"] for row in run["rows"]} for run in found.values()]
    assert len(set.union(*ids)) == sum(map(len, ids))
    shown = compared("--bos", "always", "--output", "always").out
    assert "Every window begins with <|endoftext|>." in " ".join(shown.split())


def test_evaluate_says_what_windows_begin_with() -> None:
    run = polyprune("evaluate", "tiny", *SMALL, "--bos", "always", "--latency", "--turns", "2", "--new-tokens", "2")
    assert run.status == 0, run.err
    assert "3 windows of 32, each begun with <|endoftext|>." in run.out


@pytest.fixture
def added(folder: Path) -> str:
    """The bundled model with a token that only its tokenizer knows."""
    from transformers import AutoTokenizer

    shutil.copytree(catalogue()["tiny"].folder, folder / "added")
    tokenizer = AutoTokenizer.from_pretrained(folder / "added")
    tokenizer.add_tokens(["Lily"])
    tokenizer.save_pretrained(folder / "added")
    text = (folder / "test.txt").read_text("utf-8")
    (folder / "lily.txt").write_text("Once upon a time Lily said: " + text, "utf-8")
    return "added"


@pytest.mark.parametrize("command", ["evaluate", "compare", "prune", "generate"])
def test_a_token_that_the_model_does_not_know_is_refused_before_any_work(added, folder, command) -> None:
    grid = ("--calibration", "lily.txt", "--evaluation", "test.txt", "-m", added, *SMALL, "--seq-len", "32")
    commands = {
        "evaluate": ("evaluate", added, "--evaluation", "lily.txt", *SMALL),
        "compare": ("compare", *grid),
        "prune": ("prune", *grid, "--output", "out"),
        "generate": ("evaluate", added, "--generate", "Lily said"),
    }
    refused(polyprune(*commands[command], "-q"), "the token 'Lily' (id 2048)", "embeddings for 2048 tokens only")
    assert not (folder / "out").exists()


def test_a_text_without_such_a_token_is_measured(added) -> None:
    run = polyprune("evaluate", added, "--evaluation", "test.txt", *SMALL, "-q")
    assert run.status == 0, run.err


def test_a_text_that_was_calibrated_on_is_told_with_its_share(folder) -> None:
    train, test = ((folder / name).read_text("utf-8") for name in ("train.txt", "test.txt"))
    (folder / "moved.txt").write_text("\n" + train, "utf-8")
    (folder / "half.txt").write_text(train[:4_000] + test[:4_000], "utf-8")
    whole = compared("--format", "json", texts=("train.txt", "moved.txt"))
    assert record(whole)["texts"]["evaluation"]["overlap"] == pytest.approx(1.0, abs=0.02)
    assert "% of what is evaluated on in moved.txt, in runs of 13 tokens, was calibrated on too" in whole.err
    half = compared("--limit", "40", texts=("train.txt", "half.txt"))
    assert "of what is evaluated on in half.txt" in half.err
    assert "of what is evaluated on was calibrated on too." in " ".join(half.out.split())
    apart = compared()
    assert "calibrated on too" not in apart.err + apart.out


def test_rows_of_a_column_and_a_mix_are_calibrated_on(folder) -> None:
    train = (folder / "train.txt").read_text("utf-8")
    rows = [json.dumps({"id": i, "body": part}) for i, part in enumerate(train.split("\n\n"))]
    (folder / "rows.jsonl").write_text("\n".join(rows), "utf-8")
    as_rows = record(compared("--text-column", "body", "--format", "json", texts=("rows.jsonl", "test.txt")))
    as_text = record(compared("--format", "json"))
    assert as_rows["texts"]["calibration"]["sha256"] == as_text["texts"]["calibration"]["sha256"]
    assert [row["id"] for row in as_rows["rows"]] == [row["id"] for row in as_text["rows"]]
    mix = record(compared("--format", "json", texts=("train.txt+builtin:pydocs", "test.txt")))
    assert mix["texts"]["calibration"]["name"] == "train.txt+builtin:pydocs"
    assert mix["texts"]["calibration"]["windows"] == 2 * as_text["texts"]["calibration"]["windows"]


def test_a_grid_on_a_mix_is_found_again_by_a_dry_run() -> None:
    mix = ("train.txt+builtin:pydocs", "test.txt")
    compared("--output", "runs", texts=mix)
    again = record(compared("--output", "runs", "--dry-run", "--format", "json", texts=mix))
    assert {cell["state"] for cell in again["cells"]} == {"finished"}
