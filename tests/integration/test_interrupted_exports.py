"""Exports that end before they are done, and decisions that a format cannot hold: neither leaves anything behind."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from commandline import polyprune

import polyprune_core
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.pruning import provenance

ONNX = pytest.param("onnx", marks=pytest.mark.slow)
EXPORTERS = ["gguf:f32", "masked", ONNX, "huggingface"]
SMALL = ["--model", "tiny", "--calibration-samples", "2", "--seq-len", "16", "--eval-seq-len", "16", "--limit", "2"]
SMALL += ["--calibration", "learn.txt", "--evaluation", "test.txt"]

pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def masks(two_short_texts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "masks"
    texts = {"calibration": "learn.txt", "evaluation": "test.txt", "limit": 2}
    decided = {"initializer": "magnitude", "sparsity": 0.3, "scope": "global", "scale": "raw"}
    found = polyprune_core.prune(model="tiny", quiet=True, **texts, **decided)
    found.export("masks", folder)
    return folder


def needed(exporter: str) -> None:
    if exporter == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_an_export_that_is_interrupted_leaves_nothing(exporter, masks, tmp_path, monkeypatch) -> None:
    needed(exporter)

    def interrupted(folder: Path, *_: object, **more: object) -> None:
        assert list(folder.iterdir())  # all that the format is has been written
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(provenance, "export_report", interrupted)
    run = polyprune("export", masks, "--exporter", exporter, "-o", tmp_path / "out", "-q")
    assert run.status == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked")
@pytest.mark.parametrize("exporter", ["gguf:f32", "masked", ONNX])
def test_what_a_killed_export_left_is_never_taken_for_the_model_and_goes_with_the_next(
    exporter, masks, tmp_path, monkeypatch
) -> None:
    needed(exporter)
    command = ("export", masks, "--exporter", exporter, "-o", tmp_path / "out", "-q")
    child = os.fork()
    if not child:
        provenance.export_report = lambda *_, **more: os._exit(9)  # as when the process is killed
        try:
            polyprune(*command)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "out").exists()
    assert all(path.name.startswith(".out.polyprune-") for path in tmp_path.iterdir())
    run = polyprune(*command)
    assert run.status == 0, run.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


REFUSED = {
    "blocks that no layer can lose": (
        ["gguf:q4_k", "--granularity", "channel", "-s", "0.5"],
        r"256.*--target",
    ),
    "no layer without attention": (["vllm", "--granularity", "attention", "-s", "0.3"], r"none of them emptied"),
    "no layer emptied where all are alike": (
        ["huggingface:shape=uniform", "--granularity", "mlp", "-s", "0.3"],
        r"none of them emptied",
    ),
    "one layer whole where all are alike": (
        ["gguf:shape=uniform", "--protect", "first=1", "-s", "0.3"],
        r"equal widths, and --protect",
    ),
    "more devices than heads divide into": (
        ["vllm:tp=3", "--granularity", "head", "-s", "0.5"],
        r"multiples of 3 of head",
    ),
    "a target that is not written": (
        ["masks", "--target", "gguf:q4_k", "--granularity", "channel", "-s", "0.5"],
        r"256.*--target",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_decision_that_the_format_cannot_hold_is_refused_before_anything_is_scored(
    name, tmp_path, monkeypatch
) -> None:
    def scored(*_: object) -> None:
        raise AssertionError("something was scored")

    monkeypatch.setattr(Calibration, "__init__", scored)
    (exporter, *more), reason = REFUSED[name]
    run = polyprune("prune", *SMALL, "--exporter", exporter, *more, "--scope", "kind", "-o", tmp_path / "out", "-q")
    assert run.status == 2, run.err
    assert list(tmp_path.iterdir()) == []
    (complaint,) = [line for line in run.err.splitlines() if line.startswith("polyprune: ")]
    assert re.search(reason, complaint), complaint
