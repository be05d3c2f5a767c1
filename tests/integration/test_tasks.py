"""Tasks of lm-evaluation-harness on models in memory; skipped where it is not installed (the extra `tasks`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commandline import polyprune

from polyprune_core.errors import ConfigError, DataError
from polyprune_core.evaluation.pydocs import calibration_text, evaluation_text
from polyprune_core.evaluation.tasks import Tasks
from polyprune_core.models.sources import load_model

pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed")
OURS = Path(__file__).resolve().parents[2] / "benchmarks" / "tasks"
TEXT = ("--evaluation", "test.txt", "--limit", "2")
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{a}}}}"
doc_to_target: t
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module", autouse=True)
def _somewhere_without_a_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("texts"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        Path("learn.txt").write_text(calibration_text()[:20_000], "utf-8")
        Path("test.txt").write_text(evaluation_text()[:20_000], "utf-8")
        yield


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two tasks of the same three items: the likeliest ending, and the least likely, by the bundled model."""
    from polyprune_core.evaluation.losses import token_losses

    loaded = load_model("tiny")
    items = []
    for start, endings in (
        ("def f", ["(x):", " zzz qqq"]),
        ("import", [" sys", " )))"]),
        ("return", [" None", " ((("]),
    ):
        losses = []
        for ending in endings:
            ids = torch.tensor([loaded.tokenizer(start + " " + ending)["input_ids"]])
            skip = len(loaded.tokenizer(start)["input_ids"]) - 1
            losses.append(float(token_losses(loaded.model, ids)[0, skip:].sum()))
        items.append({"q": start, "a": endings, "best": losses.index(min(losses))})
    for name, right in (("likely", lambda best: best), ("unlikely", lambda best: 1 - best)):
        lines = [json.dumps({"q": i["q"], "a": i["a"], "t": right(i["best"])}) for i in items]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=f"{name}.jsonl"), "utf-8")
    return tmp_path


def test_scores_are_those_of_the_likeliest_answers(folder) -> None:
    loaded = load_model("tiny")
    scores = Tasks(["likely", "unlikely"], folder).run(loaded.model, loaded.tokenizer)
    assert {name: one["acc"] for name, one in scores.items()} == {"likely": 1.0, "unlikely": 0.0}
    assert {one["items"] for one in scores.values()} == {3.0}


def test_a_run_leaves_the_model_and_the_global_random_state_alone_and_can_be_repeated(folder) -> None:
    loaded = load_model("tiny")
    before, state = {n: p.clone() for n, p in loaded.model.named_parameters()}, torch.get_rng_state()
    tasks = Tasks(["english_facts"], OURS, limit=10)
    first = tasks.run(loaded.model, loaded.tokenizer)
    assert first == tasks.run(loaded.model, loaded.tokenizer, batch_size=3)
    assert first["english_facts"]["items"] == 10
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) for n, p in loaded.model.named_parameters())
    assert not loaded.model.training


def test_a_task_file_stands_for_its_folder_and_paths_in_it_start_there(folder, monkeypatch, tmp_path) -> None:
    loaded, other = load_model("tiny"), tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    found = Tasks(["likely"], folder / "likely.yaml").run(loaded.model, loaded.tokenizer)
    assert found["likely"]["acc"] == 1.0
    assert Path.cwd() == other.resolve()


def test_what_decides_the_scores_is_part_of_their_identity(folder) -> None:
    identity = Tasks(["likely"], folder).identity()
    assert identity == Tasks(["likely"], folder).identity()
    assert identity != Tasks(["likely"], folder, limit=2).identity()
    assert identity != Tasks(["likely"], folder, num_fewshot=1).identity()
    with (folder / "likely.jsonl").open("a") as data:
        data.write('{"q": "x", "a": ["y", "z"], "t": 0}\n')
    assert identity != Tasks(["likely"], folder).identity()


def test_few_shot_items_come_before_each_item(folder) -> None:
    loaded = load_model("tiny")
    tasks = Tasks(["likely"], folder, num_fewshot=2)
    tasks.run(loaded.model, loaded.tokenizer)
    (task,) = tasks._loaded["tasks"].values()
    assert all(context.count("\n\n") == 2 for context in {request.args[0] for request in task.instances})


def test_no_such_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no file or folder nowhere"):
        Tasks(["english_facts"], Path("nowhere"))


def test_data_that_is_not_there_is_told(tmp_path) -> None:
    (tmp_path / "lost.yaml").write_text(TASK.format(name="lost", data="lost.jsonl"), "utf-8")
    with pytest.raises(DataError, match=r"task lost cannot be loaded.*--include-path"):
        Tasks(["lost"], tmp_path)


def test_compare_has_the_scores_of_every_row_and_evaluate_the_same(tmp_path) -> None:
    tasks = ("--tasks", "english_facts", "--include-path", OURS, "--tasks-limit", "20")
    setup = ("-m", "tiny", *TEXT, "--eval-seq-len", "32", "--seq-len", "32", "--calibration", "learn.txt")
    run = polyprune(
        *(
            "compare",
            *setup,
            "--baselines",
            "magnitude",
            "-s",
            "0.5",
            *tasks,
            "-o",
            tmp_path / "runs",
            "--format",
            "json",
        )
    )
    assert run.status == 0, run.err
    dense, pruned = (row["tasks"]["english_facts"] for row in run.rows)
    assert dense["items"] == pruned["items"] == 20
    prune = polyprune("prune", *setup, "--initializer", "magnitude", "-s", "0.5", "-o", tmp_path / "pruned")
    assert prune.status == 0, prune.err
    found = json.loads(polyprune("evaluate", tmp_path / "pruned", *TEXT, *tasks, "--format", "json").out)
    assert found["model"]["tasks"]["english_facts"] == pruned
    assert found["reference"]["tasks"]["english_facts"] == dense
    again = polyprune("compare", *setup, "--baselines", "magnitude", "-s", "0.5", "-o", tmp_path / "runs")
    assert len(list((tmp_path / "runs" / "cells").glob("*.json"))) == 4, again.err


def test_a_task_of_nobody_is_refused(tmp_path) -> None:
    run = polyprune("evaluate", "tiny", *TEXT, "-t", "english_fact", "--include-path", OURS)
    assert run.status == 2
    assert "no task named 'english_fact'. Did you mean 'english_facts'?" in run.err


def test_our_items_have_one_right_ending_each_at_no_fixed_place() -> None:
    items = [json.loads(line) for line in (OURS / "english_facts.jsonl").read_text("utf-8").splitlines()]
    assert len(items) >= 50
    assert len({item["start"] for item in items}) == len(items)
    for item in items:
        assert len(set(item["endings"])) == len(item["endings"]) == 3
        assert 0 <= item["right"] < 3
    assert len({item["right"] for item in items}) == 3
