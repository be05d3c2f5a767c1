"""Predictions that are no numbers: refused early, with the number format as the likely cause, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import polyprune, refused

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.perplexity import Evaluator
from polyprune_core.models.sources import load_model
from polyprune_core.testing.tiny import tiny_model, tiny_windows

TEXT = ("--limit", "2", "--eval-seq-len", "32", "--evaluation", "test.txt")
LEARNING = ("--seq-len", "32", "--calibration-samples", "4", "--batch-size", "2", "--calibration", "learn.txt")
HALF = ("--dtype", "float16", "--device", "cpu")

pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def too_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose last states are finite in float32, but not in float16."""
    loaded = load_model("tiny", dtype="float32", device="cpu")
    with torch.no_grad():
        loaded.model.model.norm.weight.mul_(3e4)
    folder = tmp_path_factory.mktemp("too-wide") / "model"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def test_evaluate_refuses_what_is_not_finite_and_names_the_number_format(too_wide) -> None:
    run = polyprune("evaluate", too_wide, *TEXT, *HALF, "-q")
    refused(run, "float16", "not finite", "--dtype float32")


@pytest.mark.parametrize("command", ["prune", "compare"])
def test_what_is_not_finite_is_refused_before_anything_is_scored_or_written(too_wide, tmp_path, command) -> None:
    out = tmp_path / "out"
    run = polyprune(command, "-m", too_wide, *TEXT, *LEARNING, *HALF, "-q", "-o", out)
    refused(run, "the dense model", "float16", "not finite", "--dtype float32")
    assert not out.exists()


def test_the_same_model_in_a_wider_number_format_is_measured(too_wide) -> None:
    assert polyprune("evaluate", too_wide, *TEXT, "--dtype", "float32", "--device", "cpu", "-q").status == 0


def test_no_agreement_is_computed_on_what_is_no_number() -> None:
    dense, broken = tiny_model(), tiny_model()
    with torch.no_grad():
        broken.get_submodule("model.layers.1.mlp.down_proj").weight[0, 0] = torch.nan
    evaluator = Evaluator(tiny_windows())
    evaluator.dense(dense)
    with pytest.raises(ModelError, match="computed in float32 predicts numbers that are not finite; the weights hold"):
        evaluator.compare(broken)
