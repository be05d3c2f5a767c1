"""Models as people have them, through whole commands: with code of their own, in other number formats, with YaRN."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Run, polyprune, refused
from safetensors.torch import load_file

from polyprune_core.models.catalogue import catalogue
from polyprune_core.models.sources import load_model

TEXT = ("--limit", "2", "--eval-seq-len", "32", "--evaluation", "test.txt")
SMALL = (*TEXT, "--seq-len", "32", "--calibration-samples", "4", "--batch-size", "2", "--calibration", "learn.txt")
OWN_CODE = """
from transformers import LlamaForCausalLM


class MyLlama(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output
"""
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}

pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(autouse=True, scope="module")
def _contained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A private copy of the bundled model, to change."""
    return Path(shutil.copytree(catalogue()["tiny"].folder or "", tmp_path / "model"))


def configure(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.fixture
def custom(tiny_folder: Path) -> Path:
    (tiny_folder / "modeling_x.py").write_text(OWN_CODE)
    auto_map = {"AutoModelForCausalLM": "modeling_x.MyLlama"}
    return configure(tiny_folder, architectures=["MyLlama"], auto_map=auto_map)


def in_float32(folder: Path) -> Path:
    load_model(str(folder), dtype="float32", device="cpu").model.save_pretrained(folder)
    return folder


def prune(model: Path, output: Path, *more: object) -> Run:
    return polyprune("prune", "-m", model, *SMALL, "--initializer", "magnitude", "-o", output, *more, "-q")


def evaluated(target: Path, *more: object) -> dict[str, Any]:
    run = polyprune("evaluate", target, *TEXT, *more, "--format", "json", "-q")
    assert run.status == 0, run.err
    return json.loads(run.out)


def test_code_of_its_own_runs_only_when_trusted_and_what_would_lose_it_is_refused(custom, tmp_path) -> None:
    new = tmp_path / "new"
    refused(prune(custom, new), "--trust-remote-code")
    refused(prune(custom, new, "--trust-remote-code"), "MyLlama", "would be lost", "--exporter masks")
    assert not new.exists()


def test_a_refusal_comes_before_the_search(custom, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("polyprune_core.runs.decision.Decider.decide", pytest.fail)
    refused(prune(custom, tmp_path / "new", "--trust-remote-code"), "would be lost")


def test_masks_of_a_model_with_code_are_read_back_with_the_trust_that_was_given(custom, tmp_path) -> None:
    masks = tmp_path / "masks"
    run = prune(custom, masks, "--exporter", "masks", "--trust-remote-code")
    assert run.status == 0, run.err
    record = json.loads((masks / "polyprune.json").read_text("utf-8"))
    assert record["reloaded"]["nll"] == pytest.approx(record["in_memory"]["nll"], rel=1e-3)
    found = evaluated(masks, "--trust-remote-code", "--eval-seq-len", 32)
    assert found["model"]["evaluations"][0]["nll"] == pytest.approx(record["reloaded"]["nll"], rel=1e-6)
    refused(polyprune("evaluate", masks, *TEXT, "-q"), f"polyprune: {custom} is a MyLlama", "--trust-remote-code")


def test_its_own_logits_are_those_that_are_evaluated(custom, tmp_path) -> None:
    found = evaluated(custom, "--trust-remote-code", "--reference", "tiny")
    assert found["model"]["evaluations"][0]["top1_agreement"] > 0.99
    assert found["model"]["evaluations"][0]["nll"] > found["reference"]["evaluations"][0]["nll"] + 0.3


def test_no_message_names_the_temporary_folder(custom, tmp_path, monkeypatch) -> None:
    def broken(folder: Path) -> None:
        from polyprune_core.errors import ModelError

        raise ModelError(f"no masks in {folder}")

    monkeypatch.setattr("polyprune_core.pruning.mask_file.MaskFile.read", broken)
    run = prune(custom, tmp_path / "masks", "--exporter", "masks", "--trust-remote-code")
    refused(run, f"no masks in {tmp_path / 'masks'}")
    assert str(tmp_path / ".masks") not in run.err


def formats_of(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("computed", ["auto", "bfloat16"])
def test_a_float32_model_stays_one_whatever_it_is_computed_in(tiny_folder, tmp_path, computed) -> None:
    in_float32(tiny_folder)
    run = prune(tiny_folder, tmp_path / "new", "--dtype", computed)
    assert run.status == 0, run.err
    assert "the dense weights are 5.4 MB" in run.out
    dense, pruned = (load_file(folder / "model.safetensors") for folder in (tiny_folder, tmp_path / "new"))
    assert torch.equal(pruned["model.embed_tokens.weight"], dense["model.embed_tokens.weight"])
    assert formats_of(tmp_path / "new") == {torch.float32}
    card = (tmp_path / "new" / "README.md").read_text("utf-8")
    assert "| weights | float32 (of the base: float32) |" in card
    assert f"| decided in | {'float32' if computed == 'auto' else computed} |" in card
    record = json.loads((tmp_path / "new" / "polyprune.json").read_text("utf-8"))
    assert record["reloaded"]["nll"] == pytest.approx(record["in_memory"]["nll"], rel=1e-3)


@pytest.mark.usefixtures("runtime_here")
def test_another_number_format_is_written_where_it_is_asked_for(tiny_folder, tmp_path) -> None:
    in_float32(tiny_folder)
    masks, half = tmp_path / "masks", tmp_path / "half"
    assert prune(tiny_folder, masks, "--exporter", "masks").status == 0
    run = polyprune("export", masks, "--exporter", "huggingface:dtype=bfloat16", "-o", half, "--verify", "-q")
    assert run.status == 0, run.err
    assert formats_of(half) == {torch.bfloat16}
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    assert "| weights | bfloat16 (of the base: float32) |" in (half / "README.md").read_text("utf-8")


def test_a_budget_in_bytes_counts_those_of_the_files(tiny_folder, tmp_path) -> None:
    in_float32(tiny_folder)
    run = prune(tiny_folder, tmp_path / "new", "--dtype", "bfloat16", "--budget", "bytes=4.5MB")
    assert run.status == 0, run.err
    assert 4_000_000 < (tmp_path / "new" / "model.safetensors").stat().st_size <= 4_510_000


def test_a_reference_of_another_number_format_is_computed_in_that_of_the_model(tiny_folder) -> None:
    found = evaluated(in_float32(tiny_folder), "--reference", "tiny")
    assert found["conditions"]["dtype"] == "float32"
    assert found["model"]["evaluations"][0]["kl_to_dense"] == pytest.approx(0, abs=1e-6)


def test_a_pruned_folder_is_evaluated_without_trust_and_without_its_code(tiny_folder, tmp_path) -> None:
    pruned = tmp_path / "pruned"
    assert prune(configure(tiny_folder, rope_parameters=YARN), pruned).status == 0
    record = json.loads((pruned / "polyprune.json").read_text("utf-8"))
    (pruned / "modeling_polyprune.py").write_text("raise SystemExit('ran')\n")
    for found in (evaluated(pruned), evaluated(tiny_folder, "--reference", pruned)):
        side = "model" if found["model"]["name"] == str(pruned) else "reference"
        assert found[side]["evaluations"][0]["nll"] == pytest.approx(record["reloaded"]["nll"], rel=1e-6)


def test_a_folder_without_a_model_is_refused_without_a_look_around(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "rglob", pytest.fail)
    (tmp_path / "below").mkdir()
    refused(polyprune("evaluate", tmp_path, *TEXT, "-q"), f"{tmp_path} has no config.json")
