"""`polyprune evaluate` on the bundled model, on what `prune` writes, and on masks: what is measured, what refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from commandline import Run, polyprune

from polyprune_core.evaluation import tasks as tasks_module
from polyprune_core.models.sources import load_model

TEXT = ("--evaluation", "test.txt", "--limit", "2")
ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "benchmarks" / "tasks"
PRUNE = ("-m", "tiny", "--seq-len", "32", "--eval-seq-len", "64", "--calibration-samples", "4", "--batch-size", "2")
PRUNE += ("--calibration", "learn.txt", *TEXT, "--sparsity", "0.4")


pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def written() -> Callable[[str], Path]:
    """The tiny model pruned once by each exporter; a test must leave it as it was."""

    def once(exporter: str) -> Path:
        folder = Path(f"pruned-{exporter}").resolve()
        if not folder.exists():
            assert polyprune("prune", *PRUNE, "--exporter", exporter, "-o", folder).status == 0
        return folder

    return once


def evaluate(target: object, *more: object) -> dict[str, Any]:
    run = polyprune("evaluate", target, *TEXT, *more, "--format", "json", "-q")
    assert run.status == 0, run.err
    return json.loads(run.out, parse_constant=pytest.fail)


def refused(run: Run, *parts: str) -> None:
    assert run.status == 2, run.err
    assert run.out == ""
    (complaint,) = [line for line in run.err.splitlines() if line.startswith("polyprune: ")]
    for part in parts:
        assert part in complaint


@pytest.mark.parametrize(
    ("exporter", "file"), [("huggingface", ""), ("masks", ""), ("gguf", ""), ("gguf", "model.gguf")]
)
def test_what_prune_wrote_is_evaluated_beside_the_dense_model_it_names(written, exporter, file) -> None:
    folder = written(exporter)
    record = json.loads((folder / "polyprune.json").read_text("utf-8"))
    found = evaluate(folder / file, "--eval-seq-len", 64)
    ours, theirs = found["model"], found["reference"]
    assert theirs["name"].endswith("tiny")
    assert theirs["sha256"] == load_model("tiny").sha256
    measured = ours["evaluations"][0]
    assert measured["perplexity"] == pytest.approx(record["reloaded"]["perplexity"], rel=1e-6)
    assert theirs["evaluations"][0]["perplexity"] == pytest.approx(record["dense"]["perplexity"], rel=1e-6)
    assert measured["kl_to_dense"] == pytest.approx(record["in_memory"]["kl_to_dense"], rel=1e-2)
    assert theirs["evaluations"][0]["kl_to_dense"] is None
    assert ours["footprint"]["parameters"] == record["report"]["parameters"]
    assert ours["footprint"]["macs"] < theirs["footprint"]["macs"]
    on_disk = [name for name in record["report"]["files"] if name.endswith((".safetensors", ".gguf", "masks.json"))]
    assert ours["footprint"]["bytes_on_disk"] == sum((folder / name).stat().st_size for name in on_disk)


def test_a_model_beside_itself_agrees_with_itself() -> None:
    found = evaluate("tiny", "--reference", "tiny", "--eval-seq-len", "16,64")
    for length, windows, measured in zip((16, 64), (2, 1), found["model"]["evaluations"], strict=True):
        assert measured["kl_to_dense"] == pytest.approx(0, abs=1e-6)
        assert measured["top1_agreement"] == 1.0
        assert measured["tokens"] == windows * (length - 1)
    assert found["model"]["footprint"]["macs"] == found["reference"]["footprint"]["macs"]


def test_a_dense_model_alone_has_no_reference(written) -> None:
    assert evaluate("tiny")["reference"] is None
    assert evaluate(written("masks"), "--reference", "none")["reference"] is None


def test_masks_are_applied_to_the_model_that_is_given(written, tmp_path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(written("masks"), moved)
    usual = evaluate(written("masks"))
    for target in (moved, moved / "masks.json", moved / "masks.safetensors"):
        assert evaluate(target, "--model", "tiny")["model"]["evaluations"] == usual["model"]["evaluations"]


def test_two_pruned_models_can_be_compared(written) -> None:
    found = evaluate(written("huggingface"), "--reference", written("masks"))
    assert found["model"]["evaluations"][0]["kl_to_dense"] == pytest.approx(0, abs=1e-3)


def test_a_dense_model_that_changed_is_no_reference(written, tmp_path) -> None:
    folder = tmp_path / "pruned"
    shutil.copytree(written("huggingface"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["polyprune"]["base"]["sha256"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    run = polyprune("evaluate", folder, *TEXT, "--format", "json", "-q")
    assert json.loads(run.out)["reference"] is None
    assert "other weights" in run.err


def test_latency_says_plainly_what_is_not_faster(written) -> None:
    small = ("--latency", "--latency-batch-sizes", "1,3", "--prompt-tokens", "16", "--new-tokens", "2", "--turns", "3")
    found = evaluate(written("huggingface"), *small)
    for side in ("model", "reference"):
        assert list(found[side]["latency"]) == ["1", "3"]
    run = polyprune("evaluate", "tiny", "--reference", "tiny", *TEXT, *small)
    verdicts = [line for line in run.out.splitlines() if "of the time of tiny" in line]
    assert [line.split(":")[0] for line in verdicts] == [
        f"{p}, batch {b}" for b in (1, 3) for p in ("prefill", "decode")
    ]
    assert all("faster, " in line for line in verdicts)
    for part in (
        "cpu (",
        "bfloat16" if "bfloat16" in run.out else "float32",
        "1 thread",
        "3 turns after 1",
        "16 tokens",
    ):
        assert part in run.out


def test_what_both_write_after_a_prompt_is_shown(written) -> None:
    found = evaluate(written("huggingface"), "--generate", "def f(x):", "--generate", "The", "--new-tokens", 4)
    assert [len(found[side]["samples"]) for side in ("model", "reference")] == [2, 2]
    again = evaluate(written("huggingface"), "--generate", "def f(x):", "--new-tokens", 4)
    assert again["model"]["samples"] == found["model"]["samples"][:1]
    run = polyprune("evaluate", "tiny", *TEXT, "--generate", "def f(x):", "--new-tokens", 4)
    assert "> def f(x):" in run.out


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_people_see_the_same_figures(written, form) -> None:
    found = evaluate(written("huggingface"))
    run = polyprune("evaluate", written("huggingface"), *TEXT, "--format", form)
    assert f"{found['model']['footprint']['parameters']:,}" in run.out
    assert f"{found['model']['evaluations'][0]['perplexity']:.2f}" in run.out
    assert "KV-cache bytes per token" in run.out
    assert "Perplexity on test.txt: 2 windows of 128." in run.out


def test_csv_has_a_line_a_number_and_a_column_a_model(written) -> None:
    found = evaluate(written("huggingface"))
    run = polyprune("evaluate", written("huggingface"), *TEXT, "--format", "csv", "-q")
    lines = {line["measure"]: line for line in csv.DictReader(io.StringIO(run.out))}
    for side in ("model", "reference"):
        assert float(lines["evaluations.0.nll"][side]) == found[side]["evaluations"][0]["nll"]
        assert int(lines["footprint.macs"][side]) == found[side]["footprint"]["macs"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere"], ["no model named 'nowhere'"]),
        (["tiny", "--model", "tiny"], ["--model tiny", "no folder of masks", "--reference"]),
        (["tiny", "--eval-seq-len", "1"], ["--eval-seq-len"]),
        (["tiny", "--eval-seq-len", "99999"], ["less than one window"]),
        (["tiny", "--turns", "1"], ["--turns"]),
        (["tiny", "--evaluation", "missing.txt"], ["missing.txt"]),
        (["tiny", "--generate", ""], ["no token"]),
        (["tiny", "--include-path", "."], ["--include-path", "give --tasks"]),
        (["tiny", "--num-fewshot", "2"], ["--num-fewshot", "give --tasks"]),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(arguments, parts) -> None:
    refused(polyprune("evaluate", *TEXT, *arguments, "-q"), *parts)


def test_models_of_two_vocabularies_are_not_compared(tiny, tmp_path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    shutil.copyfile(load_model("tiny").path / "tokenizer.json", tmp_path / "tokenizer.json")
    run = polyprune("evaluate", "tiny", "--reference", tmp_path, *TEXT, "-q")
    assert run.status == 2
    assert "embeddings" in run.err or "vocabulary" in run.err


def test_without_the_harness_tasks_name_the_extra(monkeypatch) -> None:
    monkeypatch.setattr(tasks_module, "find_spec", lambda name: None)
    for command in (("evaluate", "tiny", *TEXT), ("compare", "-m", "tiny", *TEXT, "--calibration", "learn.txt")):
        refused(polyprune(*command, "--tasks", "hellaswag"), "lm-evaluation-harness", "pip install 'polyprune[tasks]'")


@pytest.mark.parametrize(
    ("option", "part"), [("--prompt-tokens", "no more than 1024 positions"), ("--new-tokens", "1024 positions")]
)
def test_more_tokens_than_the_model_has_positions_are_refused_before_it_is_measured(option, part) -> None:
    with mock.patch("polyprune_core.runs.evaluate.footprint", side_effect=AssertionError("it was measured")):
        refused(polyprune("evaluate", "tiny", *TEXT, "--latency", option, 5000, "-q"), f"{option} 5000", part)
    refused(polyprune("evaluate", "tiny", *TEXT, "--latency", option, 999999999, "-q"), option, "less than or equal")
