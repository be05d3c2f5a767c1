"""`polyprune prune` from end to end on the bundled model: what is written, read back, replaced, or left alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from commandline import Run, polyprune, refused
from forks import posix
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from polyprune_core import Provider
from polyprune_core.errors import ModelError
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.registry import Registered, Registry, Source, load_registry
from polyprune_core.utils.outputs import write_record
from polyprune_plugins.exporters.huggingface import HuggingFace

TEXT = ("--limit", "2", "--seq-len", "32", "--eval-seq-len", "32", "--calibration-samples", "4", "--batch-size", "2")
TEXT += ("--calibration", "learn.txt", "--evaluation", "test.txt")
TINY = ("-m", "tiny", *TEXT, "--initializer", "wanda", "--scope", "kind", "--scale", "raw")
GRANULARITIES = ("head+channel", "layer", "attention", "mlp")
# Of the bundled model's layers, attentions or MLPs half are removed, so that something is.
SPARSITY = {"head+channel": 0.3, "layer": 0.5, "attention": 0.5, "mlp": 0.5}
FIGURES = {"polyprune", "environment", "report", "sparsity", "dense", "in_memory", "reloaded", "cost"}


def prune(output: Path | str, *more: object, base: tuple[str, ...] = TINY) -> Run:
    """Runs `polyprune prune` in this process."""
    return polyprune("prune", *base, "-o", output, *more)


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "polyprune.json").read_text("utf-8"), parse_constant=pytest.fail)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Run]]:
    """Prunes once by granularity and exporter: exported(granularity, exporter); a test must leave it as it was."""
    done: dict[tuple[str, str], tuple[Path, Run]] = {}

    def once(granularity: str, exporter: str) -> tuple[Path, Run]:
        if (granularity, exporter) not in done:
            output = tmp_path_factory.mktemp("exported") / "pruned"
            settings = ("--granularity", granularity, "--sparsity", SPARSITY[granularity], "--exporter", exporter)
            done[granularity, exporter] = output, prune(output, *settings)
        return done[granularity, exporter]

    return once


@pytest.mark.parametrize("exporter", ["huggingface", "masks"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_pruned_model_reads_back_as_what_it_was_in_memory(exported, granularity, exporter) -> None:
    folder, run = exported(granularity, exporter)
    assert run.status == 0, run.err
    found = figures(folder)
    assert found.keys() >= FIGURES
    # The layers that stay are the same numbers in the same order of work; only kept slices may be laid out otherwise.
    assert found["reloaded"]["nll"] == pytest.approx(found["in_memory"]["nll"], rel=1e-3)
    assert found["reloaded"]["tokens"] == found["in_memory"]["tokens"] == found["dense"]["tokens"] == 2 * 31
    assert found["in_memory"]["kl_to_dense"] > 0
    assert found["report"]["parameters"] < found["dense_parameters"]
    assert SPARSITY[granularity] <= found["sparsity"] < SPARSITY[granularity] + 0.01
    assert found["report"]["format"] == exporter
    assert not [name for name in found["report"]["files"] if not (folder / name).is_file()]
    assert str(folder) in run.out.splitlines()[0]
    assert f"{found['report']['parameters']:,}" in run.out


def test_in_float32_the_two_perplexities_are_the_same_to_seven_digits(tmp_path) -> None:
    assert prune(tmp_path / "new", "--dtype", "float32", "--sparsity", 0.4).status == 0
    found = figures(tmp_path / "new")
    assert found["reloaded"]["nll"] == pytest.approx(found["in_memory"]["nll"], rel=1e-6)
    assert found["in_memory"]["nll"] != found["dense"]["nll"]


def test_the_code_that_is_printed_loads_the_model_that_was_measured(exported) -> None:
    folder, run = exported("head+channel", "huggingface")
    found: dict[str, Any] = {}
    exec(run.out.split("\n\n", 1)[1], found)
    assert found["model"].num_parameters() == figures(folder)["report"]["parameters"]
    assert found["tokenizer"]("def f(x):")["input_ids"]


def test_the_weights_are_those_of_the_dense_model_at_the_kept_places(exported) -> None:
    folder, _ = exported("layer", "huggingface")
    kept = load_file(folder / "model.safetensors")
    dense = load_model("tiny").model.state_dict()
    layers = sorted({int(name.split(".")[2]) for name in kept if ".layers." in name})
    origin = json.loads((folder / "config.json").read_text("utf-8"))["polyprune"]["layers"]
    for name, tensor in kept.items():
        old = re.sub(r"layers\.(\d+)", lambda match: f"layers.{origin[int(match[1])]}", name)
        assert torch.equal(tensor, dense[old]), name
    assert 0 < len(layers) < max(int(name.split(".")[2]) for name in dense if ".layers." in name) + 1


def test_where_all_layers_are_alike_transformers_alone_loads_it(exported) -> None:
    folder, run = exported("layer", "huggingface")
    assert "trust_remote_code" not in run.out
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == figures(folder)["report"]["parameters"]


def test_the_figures_name_no_path_of_this_machine(exported) -> None:
    for exporter in ("huggingface", "masks"):
        folder, _ = exported("head+channel", exporter)
        for name, content in contents(folder).items():
            assert str(folder.parent).encode() not in content, name


def test_a_learned_mask_is_exported_with_what_it_cost(tmp_path) -> None:
    run = prune(tmp_path / "new", "--estimator", "rloo", "--steps", 2, "--masks-per-step", 2, "--sparsity", 0.3)
    assert run.status == 0, run.err
    found = figures(tmp_path / "new")
    assert found["cost"]["forward_tokens"] == 4 * 32 + 2 * 2 * 2 * 32  # wanda, then steps, masks, sequences, tokens
    assert found["reloaded"]["nll"] == pytest.approx(found["in_memory"]["nll"], rel=1e-3)


# From masks


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_at_their_own_sparsity_give_the_model_that_pruning_gave(exported, tmp_path, granularity) -> None:
    masks, _ = exported(granularity, "masks")
    direct, _ = exported(granularity, "huggingface")
    run = prune(tmp_path / "new", "--from-masks", masks, base=TEXT)
    assert run.status == 0, run.err
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()
    assert figures(tmp_path / "new")["reloaded"] == figures(direct)["reloaded"]
    assert figures(tmp_path / "new")["cost"]["forward_tokens"] == 0


@pytest.mark.parametrize("sparsity", [0.1, 0.6])
def test_masks_at_another_sparsity_give_the_model_that_pruning_there_gives(exported, tmp_path, sparsity) -> None:
    masks, _ = exported("head+channel", "masks")
    assert prune(tmp_path / "again", "--from-masks", masks, "--sparsity", sparsity, base=TEXT).status == 0
    recipe = json.loads((masks / "masks.json").read_text("utf-8"))["recipe"]
    pooling = ("--scope", recipe["scope"], "--scale", recipe["scale"])
    assert prune(tmp_path / "direct", "--sparsity", sparsity, *pooling).status == 0
    again, direct = tmp_path / "again", tmp_path / "direct"
    assert (again / "model.safetensors").read_bytes() == (direct / "model.safetensors").read_bytes()
    for name in ("sparsity", "in_memory", "reloaded"):
        assert figures(again)[name] == figures(direct)[name]
    assert json.loads((again / "config.json").read_text("utf-8"))["polyprune"]["sparsity"]["asked"] == sparsity


def test_masks_of_whole_sublayers_may_go_beyond_what_heads_and_channels_allow(exported, tmp_path) -> None:
    masks, _ = exported("mlp", "masks")
    run = prune(tmp_path / "new", "--from-masks", masks, "--sparsity", 0.8, base=TEXT)
    assert run.status == 0, run.err


def test_a_setting_that_masks_make_void_is_refused_or_warned_of(exported, tmp_path) -> None:
    masks, _ = exported("mlp", "masks")
    run = prune(tmp_path / "new", "--from-masks", masks, "--granularity", "layer", "--initializer", "random", base=TEXT)
    assert "granularity" in run.err


def test_masks_of_another_model_are_refused(exported, tmp_path) -> None:
    masks, _ = exported("head+channel", "masks")
    other, _ = exported("head+channel", "huggingface")
    refused(prune(tmp_path / "new", "--from-masks", masks, "-m", other, "--trust-remote-code", base=TEXT), "masks")
    assert not (tmp_path / "new").exists()


# Whole or not at all


def failing(method: str, error: BaseException, after: bool) -> Any:
    """Makes the exporter's export or load raise, `after` all files are there."""
    real = getattr(HuggingFace, method)

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        if after:
            real(self, *arguments, **options)
        if isinstance(error, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # as the user does
        raise error

    return mock.patch.object(HuggingFace, method, fail)


def written_before(folder: Path) -> None:
    """A folder as an earlier run would have left it."""
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "old").write_text("old")
    write_record(folder, {"report": {"files": {}}})


@pytest.mark.parametrize("overwrite", [False, True], ids=["a new folder", "in place of another"])
@pytest.mark.parametrize(
    ("method", "after", "error", "status"),
    [
        ("export", True, ModelError("no more"), 2),
        ("export", False, ModelError("no more"), 2),
        ("load", False, ModelError("no more"), 2),
        ("export", True, KeyboardInterrupt(), 130),
    ],
    ids=["after writing", "before writing", "reading back", "interrupted"],
)
def test_a_fault_midway_leaves_everything_as_it_was(tmp_path, method, after, error, status, overwrite) -> None:
    if overwrite:
        written_before(tmp_path / "out")
    before = contents(tmp_path)
    with failing(method, error, after):
        run = prune(tmp_path / "out", *["--overwrite"][: int(overwrite)])
    assert run.status == status
    assert run.out == ""
    assert run.err.splitlines()[-1].startswith("polyprune: ")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * overwrite


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), OSError(28, "No space left on device")], ids=["a bug", "full"]
)
def test_an_ordinary_exception_of_an_exporter_is_told_and_leaves_nothing(tmp_path, error) -> None:
    with failing("export", error, after=True):
        run = prune(tmp_path / "out")
    refused(run, "huggingface", str(error).splitlines()[0])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "mine").write_text("kept")
    before = contents(tmp_path)
    refused(prune(tmp_path / "out"), tmp_path / "out", "--overwrite")
    assert contents(tmp_path) == before


def test_with_overwrite_the_folder_is_replaced_and_nothing_of_the_old_one_stays(exported, tmp_path) -> None:
    written_before(tmp_path / "out")
    (tmp_path / "beside").write_text("not ours")
    assert prune(tmp_path / "out", "--overwrite", "--sparsity", 0.3).status == 0
    folder, _ = exported("head+channel", "huggingface")
    assert contents(tmp_path / "out").keys() == contents(folder).keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside", "out"]


def test_overwrite_leaves_a_folder_alone_that_is_not_ours(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    run = prune(tmp_path / "out", "--overwrite")
    assert run.status == 2
    assert "not ours to replace" in run.err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled_and_missing_ones_above_are_made(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "empty", tmp_path / "some" / "new" / "folder"):
        assert prune(output, "--exporter", "masks").status == 0
        assert {"masks.json", "masks.safetensors", "polyprune.json"} <= contents(output).keys()
        assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []


def test_a_file_as_output_is_refused_and_left_alone(tmp_path) -> None:
    (tmp_path / "out").write_text("mine")
    refused(prune(tmp_path / "out", "--overwrite"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_below_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(prune(tmp_path / "file" / "out"), tmp_path / "file" / "out", "--output")


def test_an_output_that_cannot_be_made_is_refused_before_the_model_loads(tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with mock.patch("polyprune_core.runs.opening.load_model", side_effect=AssertionError("the model was loaded")):
        refused(prune(tmp_path / "file" / "out"))


def test_a_link_to_an_empty_folder_is_filled(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert prune(tmp_path / "link", "--exporter", "masks").status == 0
    assert (tmp_path / "link" / "masks.json").is_file()


def test_the_current_folder_is_filled_when_it_is_empty(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ("--calibration", "builtin:pydocs", "--evaluation", "builtin:pydocs")
    assert prune(".", "--exporter", "masks", *texts).status == 0
    assert (tmp_path / "masks.json").is_file()


# Who may read it


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_everybody_may_read_what_was_written_whatever_the_umask(tmp_path) -> None:
    before = os.umask(0o077)
    try:
        assert prune(tmp_path / "out").status == 0
    finally:
        os.umask(before)
    found = modes(tmp_path / "out")
    assert found.pop("out") == 0o755
    assert set(found.values()) == {0o644}
    assert "model.safetensors" in found


class InFolders(HuggingFace):
    """Writes one more file, in a folder of its own."""

    def export(self, pruned: Any, out_dir: Path) -> Any:
        (out_dir / "onnx").mkdir()
        (out_dir / "onnx" / "graph").write_text("nodes")
        return super().export(pruned, out_dir)


def test_folders_inside_can_be_entered_too(tmp_path, monkeypatch) -> None:
    known = load_registry().all()
    item = Registered("exporter", Provider("in-folders", "made for a test", InFolders), Source("test", "1"))
    monkeypatch.setattr("polyprune_core.plugins.registry.load_registry", lambda: Registry([*known, item], ()))
    assert prune(tmp_path / "out", "--exporter", "in-folders").status == 0
    assert modes(tmp_path / "out")["onnx"] == 0o755


# What the help promises


def test_none_is_no_estimator(tmp_path) -> None:
    assert prune(tmp_path / "out", "--estimator", "none", "--exporter", "masks").status == 0


def test_the_figures_have_the_perplexities_that_are_printed(exported) -> None:
    folder, run = exported("head+channel", "huggingface")
    assert f"{figures(folder)['reloaded']['perplexity']:.4f} read back" in run.out


def test_a_pruned_folder_is_not_replaced_by_what_is_made_of_it(exported, tmp_path) -> None:
    folder, _ = exported("head+channel", "huggingface")
    before = contents(folder)
    run = prune(folder, "--overwrite", "-m", folder, base=TEXT)
    refused(run, f"{folder} is the model {folder}, which is read")
    assert contents(folder) == before


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_in_the_midst_of_writing_leaves_nothing(tmp_path, name) -> None:
    number = signal.Signals[name]

    def kill(self: Any, *arguments: Any) -> None:
        (arguments[1] / "half").write_text("a model")
        os.kill(os.getpid(), number)

    with mock.patch.object(HuggingFace, "export", kill):
        run = prune(tmp_path / "out")
    assert run.status == 128 + number
    assert run.err.splitlines()[-1] == f"polyprune: stopped by {name}."
    assert list(tmp_path.iterdir()) == []


def test_verbose_shows_where_in_a_plugin_a_fault_was_and_all_that_it_said(tmp_path) -> None:
    with failing("export", RuntimeError("long " * 100 + "end"), after=False):
        quiet, verbose = prune(tmp_path / "out"), prune(tmp_path / "out", "-v")
    assert "Traceback" not in quiet.err
    assert "… (503 characters in all)" in quiet.err
    assert "in fail" in verbose.err
    assert "long end" in verbose.err
    assert verbose.err.splitlines()[-1] == quiet.err.splitlines()[-1]


def test_the_command_s_own_options_come_from_a_file_or_the_environment_too(tmp_path, monkeypatch) -> None:
    (tmp_path / "set.toml").write_text(f'output = "{tmp_path}/file"\nexporter = "masks"\nquiet = true\n')
    run = polyprune("prune", *TINY, "-C", tmp_path / "set.toml")
    assert (run.status, run.err) == (0, "")
    assert (tmp_path / "file" / "masks.json").is_file()
    monkeypatch.setenv("POLYPRUNE_PRUNE_OUTPUT", str(tmp_path / "environment"))
    assert polyprune("prune", *TINY, "-C", tmp_path / "set.toml").status == 0
    assert (tmp_path / "environment" / "masks.json").is_file()
    assert prune(tmp_path / "said", "-C", tmp_path / "set.toml").status == 0
    assert (tmp_path / "said" / "masks.json").is_file()


def test_every_path_may_start_at_home(short_texts, tmp_path, monkeypatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(short_texts, home)
    monkeypatch.setenv("HOME", str(home))
    (home / "set.toml").write_text('calibration = "~/learn.txt"\nevaluation = "~/test.txt"\n')
    sizes = ("-m", "tiny", "--limit", "2", "--seq-len", "32", "--eval-seq-len", "32", "--calibration-samples", "4")
    masks = polyprune("prune", *sizes, "-C", "~/set.toml", "--exporter", "masks", "-o", "~/masks")
    assert masks.status == 0, masks.err
    again = polyprune("prune", *sizes[2:], "-C", "~/set.toml", "--from-masks", "~/masks", "-o", "~/again")
    assert again.status == 0, again.err
    assert polyprune("export", "~/masks", "-o", "~/exported").status == 0
    assert {"masks", "again", "exported"} <= set(os.listdir(home))
    assert not (Path.cwd() / "~").exists()
