"""Requests that cannot be met: status 2, one line that says what to change, nothing half-done left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
from commandline import Run, polyprune

SMALL = ("--limit", "2", "--seq-len", "32", "--eval-seq-len", "32", "--calibration-samples", "4", "--batch-size", "2")
TINY = ("-m", "tiny", *SMALL, "--steps", "1")


def refused(run: Run, *parts: str) -> None:
    """Checks for status 2 and the one line on stderr, with every part in it."""
    assert run.status == 2, run
    assert run.out == ""
    lines = run.err.splitlines()
    assert len(lines) == 1, run.err
    assert lines[0].startswith("polyprune: ")
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with texts, models and configurations of all sorts that cannot be used."""
    monkeypatch.chdir(tmp_path)
    texts = {
        "a-file": b"mine",
        "empty.txt": b"",
        "blank.txt": b" \n\n\t\n",
        "short.txt": b"Call me Ishmael.",
        "latin.txt": "Café. ".encode("latin-1") * 200,
        "no-toml.toml": b"steps = = 3\n",
        "unknown.toml": b'sparsityy = [0.2]\nmodel = "tiny"\n',
        "a-word.toml": b'masks-per-step = "many"\n',
        "deep.toml": b"masks-per-step = " + b"[" * 100_000,
        "long.toml": b"masks-per-step = " + b"9" * 5_000,
        "large.toml": b"learning-rate = 1" + b"0" * 400,
        "larger.toml": b"masks-per-step = 1" + b"0" * 400,
        "twice.toml": b"masks-per-step = 2\nmasks_per_step = 4\n",
        "truth.toml": b"masks-per-step = true\n",
        "table.toml": b"[output]\nname = 3\n",
    }
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    config = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    for name in ("no-weights", "pickle-only", "cut-short"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
        (tmp_path / name / "tokenizer.json").write_text("{}")
    (tmp_path / "pickle-only" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "cut-short" / "model.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "no-config").mkdir()
    return tmp_path


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


LONG = "n" * 300
BY_BOTH: dict[str, tuple[str, tuple[str, ...]]] = {
    "an unknown model": ("-m tinny", ("'tinny'", "Did you mean 'tiny'?")),
    "an unknown option": ("--sparsityy 0.2", ("--sparsityy", "'--sparsity'?")),
    "an option without its value": ("--steps", ("--steps",)),
    "a word for a number": ("--steps many", ("--steps", "'many'")),
    "a fraction for a whole number": ("--batch-size 1.5", ("--batch-size", "'1.5'")),
    "sparsity 0": ("--sparsity 0", ("sparsity 0 ", "above 0 and below 1")),
    "sparsity 1": ("--sparsity 1", ("sparsity 1 ", "above 0 and below 1")),
    "sparsity 1.5": ("--sparsity 1.5", ("sparsity 1.5 ", "above 0 and below 1")),
    "a negative sparsity": ("--sparsity -0.2", ("sparsity -0.2 ", "above 0 and below 1")),
    "sparsity nan": ("--sparsity nan", ("sparsity nan ", "above 0 and below 1")),
    "an infinite sparsity": ("--sparsity inf", ("sparsity inf ", "above 0 and below 1")),
    "a word for sparsity": ("--sparsity abc", ("--sparsity", "'abc'")),
    "more sparsity than units allow": (
        "--sparsity 0.99",
        ("sparsity 0.99 ", "Use sparsity 0.75 or less", "--min-keep"),
    ),
    "more units to keep than there are": ("--min-keep 5000", ("5000 unit(s)", "--min-keep")),
    "a negative number to keep": ("--min-keep -1", ("--min-keep", "-1")),
    "a missing calibration text": ("--calibration nothere.txt", ("'nothere.txt'", "builtin:pydocs")),
    "a missing evaluation text": ("--evaluation nothere.txt", ("'nothere.txt'", "builtin:pydocs")),
    "an unknown built-in text": ("--evaluation builtin:pydoc", ("'pydoc'", "Did you mean 'pydocs'?")),
    "a folder for a text": ("--evaluation no-config", ("'no-config'",)),
    "an empty calibration text": ("--calibration empty.txt", ("'empty.txt'", "empty")),
    "a blank evaluation text": ("--evaluation blank.txt", ("'blank.txt'", "empty")),
    "a text that is not UTF-8": ("--calibration latin.txt", ("latin.txt", "UTF-8")),
    "a calibration text below a window": ("--calibration short.txt", ("'short.txt'", "one window of 32", "--seq-len")),
    "an evaluation text below a window": ("--evaluation short.txt", ("'short.txt'", "32", "--eval-seq-len")),
    "a model folder that is not there": ("-m ./nothere", ("nothere",)),
    "a model folder without a configuration": ("-m ./no-config", ("no-config", "config.json")),
    "a model folder without weights": ("-m ./no-weights", ("no-weights", "model.safetensors")),
    "a model of pickles alone": ("-m ./pickle-only", ("pytorch_model.bin", "convert to safetensors")),
    "weights cut short": ("-m ./cut-short", ("model.safetensors", "cut short")),
    "a file that is no model": ("-m ./a-file", ("a-file",)),
    "a revision of what has none": ("--revision main", ("'main'", "'tiny'")),
    "an unknown number format": ("--dtype float33", ("--dtype", "'float33'", "'float32'")),
    "an unknown device": ("--device gpu", ("'gpu'", "cpu")),
    "a device without its number": ("--device cuda:", ("'cuda:'",)),
    "a device that is not there": ("--device cuda:99", ("'cuda:99'", "--device")),
    "no steps": ("--steps 0", ("--steps", "greater than 0")),
    "no masks": ("--masks-per-step 0", ("--masks-per-step", "greater than 0")),
    "an empty batch": ("--batch-size 0", ("--batch-size", "greater than 0")),
    "no calibration": ("--calibration-samples 0", ("--calibration-samples", "greater than 0")),
    "windows of one token": ("--seq-len 1", ("--seq-len", "greater than or equal to 2")),
    "evaluation windows of one token": ("--eval-seq-len 1", ("--eval-seq-len", "greater than or equal to 2")),
    "a negative limit": ("--limit -1", ("--limit", "greater than 0")),
    "no limit": ("--limit 0", ("--limit", "greater than 0")),
    "no tokens": ("--forward-tokens 0", ("--forward-tokens", "greater than 0")),
    "no learning rate": ("--learning-rate 0", ("--learning-rate", "greater than 0")),
    "a learning rate that is no number": ("--learning-rate nan", ("--learning-rate", "nan")),
    "an unknown preconditioner": ("--precondition full", ("--precondition", "'full'", "half-natural")),
    "unknown start": ("--policy probabilities:start=flat", ("start", "'flat'", "const")),
    "a missing configuration": ("-C nothere.toml", ("nothere.toml",)),
    "a folder as configuration": ("-C no-config", ("no-config",)),
    "a configuration that is not TOML": ("-C no-toml.toml", ("no-toml.toml", "line 1")),
    "an unknown key": ("-C unknown.toml", ("unknown.toml", "'sparsityy'", "sparsity")),
    "a word in a configuration": ("-C a-word.toml", ("a-word.toml: masks-per-step", "'many'")),
    "a configuration nested deeply": ("-C deep.toml", ("deep.toml", "too deeply")),
    "an endless number in a configuration": ("-C long.toml", ("long.toml", "digits")),
    "a number that no machine has": ("-C large.toml", ("large.toml: learning-rate", "10000")),
    "a whole number beyond reason": ("-C larger.toml", ("larger.toml: masks-per-step", "less than")),
    "an option in two spellings": ("-C twice.toml", ("twice.toml", "masks_per_step twice")),
    "true for a number": ("-C truth.toml", ("truth.toml: masks-per-step", "true and false")),
    "a table for an output": ("-C table.toml", ("table.toml", "output")),
    "an empty configuration's name": ("--config=", ("--config", "''")),
    "an empty output": ("--output=", ("--output", "''")),
    "an empty revision": ("--revision=", ("--revision", "''")),
    "an empty device": ("--device=", ("device", "''")),
    "a second cpu": ("--device cpu:1", ("'cpu:1'", "--device cpu")),
    "a name that is too long": (f"-m {LONG}", ("no model named", LONG)),
    "a path that is too long": (f"-m ./{LONG}", ("no file or folder", LONG)),
    "a text's name that is too long": (f"--calibration {LONG}", ("no text", LONG)),
    "an output's name that is too long": (f"-o {LONG}", ("--output", "too long")),
    "a configuration's name that is too long": (f"-C {LONG}", ("--config", "too long")),
    "an option that is like none": ("--cache-dir x", ("No such option '--cache-dir'.",)),
    "an argument too many": ("wanda", ("wanda",)),
}
BY_COMPARE = {
    "an unknown estimator": ("--estimators rlo", ("estimator", "'rlo'", "Did you mean 'rloo'?")),
    "an unknown initializer": ("--initializers wnda --estimators rloo", ("'wnda'", "Did you mean 'wanda'?")),
    "an unknown baseline": ("--baselines magnitud", ("'magnitud'", "Did you mean 'magnitude'?")),
    "an unknown granularity": ("--granularity hed+channel", ("granularity", "'hed'", "Did you mean 'head'?")),
    "a granularity in two": ("--granularity head+head", ("head",)),
    "half a granularity": ("--granularity head+", ("granularity",)),
    "no granularity": ("--granularity none", ("--granularity",)),
    "no sparsity": ("--sparsity none", ("--sparsity",)),
    "one bad sparsity of many": ("--sparsity 0.2,2", ("sparsity 2 ",)),
    "no seeds": ("--seeds none", ("--seeds",)),
    "a word for a seed": ("--seeds 0,one", ("--seeds", "'0,one'", "whole numbers")),
    "an unknown format": ("--format jsn", ("--format", "'jsn'", "'json'")),
    "rloo with one mask": ("--estimators rloo --masks-per-step 1", ("'rloo'", "at least 2", "--masks-per-step")),
    "pairs of an odd number": ("--estimators antithetic --masks-per-step 3", ("multiples of 2", "--masks-per-step")),
    "an unknown plugin option": ("--baselines llm-pruner:tailor=mix", ("'tailor'", "Did you mean 'taylor'?")),
    "a plugin without options": ("--estimators rloo:k=3", ("'rloo'", "'k'", "Available: none")),
    "a bad value of a plugin": ("--baselines llm-pruner:taylor=vec", ("taylor='vec'", "'vector'")),
    "a plugin option without a value": ("--baselines llm-pruner:taylor", ("'taylor'", "'vector'")),
    "an empty list": ("--estimators=", ("--estimators", "write none")),
    "a list of nothing": ("--baselines ,", ("--baselines", "write none")),
    "a seed beyond reason": (f"--seeds 1{'0' * 400}", ("--seeds", "less than")),
    "an unknown start of no search": ("--initializers tihnet:foo=1", ("'tihnet'", "Did you mean 'thinet'?")),
    "a folder of tasks around the store": ("--tasks x --include-path . -o store", ("lies in the folder of tasks .",)),
    "an output that is a file": ("-o a-file", ("a-file", "--output")),
    "an output below a file": ("-o a-file/store", ("a-file", "--output")),
}
BY_PRUNE = {
    "an unknown estimator": ("--estimator rlo", ("estimator", "'rlo'", "Did you mean 'rloo'?")),
    "an unknown initializer": ("--initializer wnda", ("'wnda'", "Did you mean 'wanda'?")),
    "an unknown granularity": ("--granularity chanel", ("'chanel'", "Did you mean 'channel'?")),
    "an unknown scope": ("--scope kinds", ("--scope", "'kinds'", "Did you mean 'kind'")),
    "an unknown scale": ("--scale zscores", ("--scale", "'zscores'", "'zscore'")),
    "an unknown exporter": ("--exporter hugginface", ("'hugginface'", "Did you mean 'huggingface'?")),
    "a shard size that is none": ("--exporter huggingface:max_shard_size=5XB", ("5XB", "such as 5GB")),
    "a shard size that is none for masked": ("--exporter masked:max_shard_size=5", ("'5'", "such as 5GB")),
    "a negative width to pad to": ("--exporter huggingface:pad=-3", ("pad=-3", "1 or more")),
    "an unknown exporter option": ("--exporter huggingface:shard=1GB", ("'shard'", "max_shard_size")),
    "a word for a seed": ("--seed one", ("--seed", "'one'")),
    "masks that are not there": ("--from-masks nothere", ("nothere", "masks.json")),
    "masks that are something else": ("--from-masks no-weights", ("no-weights", "masks.json")),
    "rloo with one mask": ("--estimator rloo --masks-per-step 1", ("'rloo'", "--masks-per-step")),
    "an output that is a file": ("-o a-file", ("a-file", "--output")),
    "an empty estimator": ("--estimator=", ("--estimator", "''")),
    "an empty folder of masks": ("--from-masks=", ("--from-masks", "''")),
    "the current folder, in use": ("-o .", ("is not empty",)),
    "a whole disk": ("-o /", ("a disk of its own",)),
    "an output in use": ("-o no-weights", ("no-weights", "--overwrite")),
}


@pytest.mark.parametrize("fault", [*BY_BOTH, *(name for name in BY_COMPARE if name not in BY_BOTH)])
def test_compare_refuses(folder: Path, fault: str) -> None:
    arguments, parts = {**BY_COMPARE, **BY_BOTH}[fault]
    before = everything(folder)
    refused(polyprune("compare", *TINY, "-q", "-o", "store", *arguments.split()), *parts)
    assert everything(folder) == before


@pytest.mark.parametrize("fault", [*BY_BOTH, *(name for name in BY_PRUNE if name not in BY_BOTH)])
def test_prune_refuses(folder: Path, fault: str) -> None:
    arguments, parts = {**BY_PRUNE, **BY_BOTH}[fault]
    before = everything(folder)
    refused(polyprune("prune", *TINY, "-q", "-o", "new", *arguments.split()), *parts)
    assert everything(folder) == before


@pytest.mark.parametrize("command", ["compare --estimators", "prune --estimator"])
def test_fewer_tokens_than_a_step_needs_are_refused(folder: Path, command: str) -> None:
    run = polyprune(*command.split(), "rloo", *TINY, "-q", "-o", "new", "--forward-tokens", 127)
    refused(run, "127", "one step of 512 tokens", "8 forward passes x 2 sequences x 32")


def test_fewer_tokens_than_a_step_needs_are_refused_before_anything_runs(folder: Path) -> None:
    before = everything(folder)
    polyprune("compare", "--estimators", "rloo", *TINY, "-q", "-o", "store", "--forward-tokens", 127)
    assert everything(folder) == before


@pytest.mark.parametrize(("option", "word", "meant"), [("--scope", "kinds", "kind"), ("--scale", "zscores", "zscore")])
def test_an_unknown_word_in_a_list_is_one_line(folder: Path, option: str, word: str, meant: str) -> None:
    refused(polyprune("compare", *TINY, "-q", option, word), option, f"'{word}'", f"'{meant}'")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [("--scope kinds", "kind"), ("--dtype floot32", "float32"), ("-C unknown.toml", "sparsity")],
)
def test_every_unknown_name_gets_the_nearest_one(folder: Path, arguments: str, meant: str) -> None:
    run = polyprune("prune", *TINY, "-q", "-o", "new", *arguments.split())
    assert f"Did you mean '{meant}'?" in run.err


def test_two_faults_at_once_are_both_told_and_both_lines_are_ours(folder: Path) -> None:
    run = polyprune("prune", *TINY, "-q", "-o", "new", "--steps", 0, "--limit", 0)
    assert run.status == 2
    assert "--steps" in run.err
    assert "--limit" in run.err
    assert all(line.startswith("polyprune: ") for line in run.err.splitlines())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("compar", ("'compar'", "compare")),
        ("plugins lst", ("'lst'", "list")),
        ("plugins show wnda", ("'wnda'", "Did you mean 'wanda'?")),
        ("plugins show", ("NAME",)),
        ("prune -m tiny", ("--output",)),
    ],
)
def test_other_requests_are_refused_alike(folder: Path, arguments: str, parts: tuple[str, ...]) -> None:
    refused(polyprune(*arguments.split()), *parts)


@pytest.mark.parametrize("command", ["compare", "prune"])
def test_what_is_wrong_in_the_words_alone_is_told_before_torch_is_needed(folder: Path, command: str) -> None:
    with mock.patch.dict(sys.modules, {"polyprune_core.runs.compare": None, "polyprune_core.runs.prune": None}):
        refused(polyprune(command, *TINY, "-q", "-o", "new", "--steps", 0), "--steps")


@pytest.mark.parametrize(
    "fault", ["an unknown baseline", "sparsity 1", "rloo with one mask", "a bad value of a plugin"]
)
def test_what_is_wrong_with_names_and_numbers_is_told_before_the_model_loads(folder: Path, fault: str) -> None:
    arguments, parts = {**BY_COMPARE, **BY_BOTH}[fault]
    with mock.patch("polyprune_core.runs.opening.load_model", side_effect=AssertionError("the model was loaded")):
        refused(polyprune("compare", *TINY, "-q", "-o", "store", *arguments.split()), *parts)
