"""`polyprune sample`: a file of text that the model wrote, the same for the same seed, which `--calibration` takes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from commandline import polyprune

from polyprune_core.evaluation.sampling import sample
from polyprune_core.models.sources import load_model

SMALL = ("sample", "-m", "tiny", "--tokens", "100", "--length", "16", "-q")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_file_holds_whole_texts_of_the_model_and_says_what_they_cost() -> None:
    run = polyprune(*SMALL, "-o", "own.txt", "--format", "json")
    assert (run.status, run.err) == (0, "")
    told, written = json.loads(run.out), Path("own.txt").read_bytes()
    assert told["sha256"] == hashlib.sha256(written).hexdigest()
    assert (told["path"], told["model"], told["texts"]) == ("own.txt", "tiny", 7)
    assert told["forward_tokens"] == 7 * 16
    model = load_model("tiny")
    ids = sample(model.model, model.tokenizer(told["start"], return_tensors="pt").input_ids[0], texts=7, length=16)
    texts = [model.tokenizer.decode(text, skip_special_tokens=True).strip() for text in ids]
    assert written.decode() == "".join(f"{text}\n\n" for text in texts)


def test_the_seed_decides_what_is_written_and_a_start_is_gone_on_from() -> None:
    for name, more in {"a": (), "b": (), "c": ("--seed", "1"), "d": ("--start", "The class")}.items():
        assert polyprune(*SMALL, "-o", name, *more).status == 0
    a, b, c, d = (Path(name).read_text("utf-8") for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_a_low_temperature_takes_the_likeliest_token() -> None:
    model = load_model("tiny")
    start = model.tokenizer("The", return_tensors="pt").input_ids[0]
    (drawn,) = sample(model.model, start, texts=1, length=6, temperature=1e-4)
    ids = start[None]
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat([ids, model.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(drawn, ids[0, len(start) :])


def test_each_token_is_drawn_as_often_as_the_model_predicts_it_and_the_generator_is_put_back() -> None:
    model = load_model("tiny", dtype="float32")
    start = model.tokenizer("The", return_tensors="pt").input_ids[0]
    before = torch.get_rng_state()
    first = sample(model.model, start, texts=4000, length=1, batch_size=1000).flatten()
    assert torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        expected = model.model(start[None]).logits[0, -1].double().softmax(-1)
    found = torch.bincount(first, minlength=len(expected)) / 4000
    assert float((found - expected).abs().max()) < 5 * (0.25 / 4000) ** 0.5
    assert len(first.unique()) > 50  # of the whole distribution, not of its head alone


def test_a_comparison_calibrates_on_it() -> None:
    assert polyprune(*SMALL, "--tokens", "4000", "-o", "own.txt").status == 0
    small = ("--limit", "2", "--seq-len", "32", "--eval-seq-len", "32", "--calibration-samples", "4", "-q")
    asked = ("--calibration", "builtin:mix+own.txt", "--baselines", "wanda", "--sparsity", "0.3", "--format", "json")
    run = polyprune("compare", "-m", "tiny", *asked, *small)
    assert run.status == 0, run.err
    assert [row["status"] for row in json.loads(run.out)["rows"]] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("-o", "there.txt"), ("there.txt is there already", "--overwrite")),
        (("-o", "."), ("is a folder", "give a file as --output")),
        (("-o", "nowhere/own.txt"), ("there is no folder nowhere",)),
        (("-o", "own.txt", "--length", "9999"), ("--length 9999", "positions; give a shorter one")),
        (("-o", "own.txt", "--start", ""), ("start",)),
        (("-o", "own.txt", "--temperature", "0"), ("temperature",)),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_lost(more, parts) -> None:
    Path("there.txt").write_text("mine", encoding="utf-8")
    run = polyprune(*SMALL, *more)
    assert run.status == 2
    for part in parts:
        assert part in run.err
    assert [path.name for path in Path().iterdir()] == ["there.txt"]
    assert Path("there.txt").read_text("utf-8") == "mine"


def test_a_file_is_replaced_where_that_is_asked_for() -> None:
    Path("there.txt").write_text("mine", encoding="utf-8")
    assert polyprune(*SMALL, "-o", "there.txt", "--overwrite").status == 0
    assert Path("there.txt").read_text("utf-8") != "mine"
