"""`--early-stopping` from end to end: what it looks at, what the row pays, what is said, and what a plan counts."""

from __future__ import annotations

import json

import pytest
from commandline import polyprune

from polyprune_core.config.held_back import held_back_count

pytestmark = pytest.mark.usefixtures("two_short_texts")

LENGTH, STEPS, MASKS, BATCH, SAMPLES = 32, 10, 4, 2, 4
BASE = ("compare", "-m", "tiny", "--limit", 4, "--seq-len", LENGTH, "--eval-seq-len", LENGTH, "--baselines", "none")
BASE += ("--calibration", "learn.txt", "--evaluation", "test.txt", "--calibration-samples", SAMPLES, "--sparsity", 0.3)
BASE += ("--steps", STEPS, "--masks-per-step", MASKS, "--batch-size", BATCH, "--format", "json")
BASE += ("--estimators", "antithetic")
METRIC, LOOK = SAMPLES * LENGTH, held_back_count(SAMPLES) * LENGTH


def test_the_row_pays_for_every_look_and_the_line_says_what_was_taken(tmp_path) -> None:
    run = polyprune(*BASE, "--early-stopping", 9, "-o", tmp_path)
    assert run.status == 0, run.err
    row = next(row for row in run.rows if row["kind"] == "search")
    assert row["forward_tokens"] == METRIC + STEPS * MASKS * BATCH * LENGTH + 3 * LOOK  # before, after 5 and 10 steps
    assert f"all {STEPS} steps; taken is what it had after" in run.err
    steps = [json.loads(line) for line in next(tmp_path.glob("cells/*.trace.jsonl")).read_text().splitlines()]
    assert [step["step"] for step in steps if step["held_back"] is not None] == [5, 10]


def test_a_plan_counts_all_looks(tmp_path) -> None:
    plan = polyprune(*BASE, "--early-stopping", 9, "--dry-run", "-o", tmp_path)
    planned = json.loads(plan.out)["cells"][-1]
    assert planned["forward_tokens"] == METRIC + STEPS * MASKS * BATCH * LENGTH + 3 * LOOK


def test_a_budget_of_tokens_pays_for_the_looks_too(tmp_path) -> None:
    tokens = 7 * MASKS * BATCH * LENGTH + 3 * LOOK
    for given, steps in ((tokens, 7), (tokens - 1, 6)):
        plan = polyprune(*BASE, "--early-stopping", 1, "--forward-tokens", given, "--dry-run", "-o", tmp_path)
        planned = json.loads(plan.out)["cells"][-1]
        assert planned["forward_tokens"] == METRIC + steps * MASKS * BATCH * LENGTH + 3 * LOOK


def test_a_budget_of_tokens_without_room_for_a_step_and_its_looks_is_refused(tmp_path) -> None:
    run = polyprune(*BASE, "--early-stopping", 1, "--forward-tokens", MASKS * BATCH * LENGTH, "-o", tmp_path)
    assert run.status == 2
    assert f"and {2 * LOOK} on text held back" in run.err
