"""The main jobs on the real SmolLM2-135M, at the smallest settings that still show them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from polyprune_core.evaluation.losses import Objective, token_losses
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.utils.rng import generator

pytestmark = pytest.mark.real

RELOAD = """
import json, math, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
windows = torch.tensor(json.loads(sys.argv[2]))
with torch.no_grad():
    print(math.exp(model(windows, labels=windows).loss))
"""


@pytest.fixture(scope="module")
def loaded():
    return load_model("smollm2-135m", dtype="bfloat16")


@pytest.fixture(scope="module")
def space(loaded) -> MaskSpace:
    registry, layout = load_registry(), describe(loaded.model)
    parts = [registry.build("granularity", name).groups(layout) for name in ("head", "channel")]
    return MaskSpace(layout, [group for groups in parts for group in groups], "head+channel")


def test_units_and_prunable_parameters_are_those_of_the_published_shape(space) -> None:
    assert len(space) == 30 * (3 + 1536)
    assert space.total_cost == 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)


@torch.inference_mode()
def test_keeping_everything_gives_the_untouched_models_very_bits(loaded, space) -> None:
    ids = torch.randint(49152, (2, 64), generator=generator(0, "test tokens"))
    untouched = token_losses(loaded.model, ids)
    everything = space.axis_keep(torch.ones(len(space), dtype=torch.bool))
    with Compactor(loaded.model, space.layout) as compactor, compactor.applied(everything) as model:
        assert torch.equal(token_losses(model, ids), untouched)
    assert torch.equal(token_losses(loaded.model, ids), untouched)


@torch.inference_mode()
def test_the_smaller_model_has_the_gated_models_loss(loaded, space) -> None:
    ids = torch.randint(49152, (2, 64), generator=generator(0, "test tokens"))
    keep = torch.rand(len(space), generator=generator(0, "test mask")) < 0.7
    with Compactor(loaded.model, space.layout) as compactor:
        compact = Objective(compactor, space).losses(keep[None], ids)[0]
        with gated(loaded.model, space.layout, space.axis_keep(keep)):
            reference = token_losses(loaded.model, ids).mean()
    # bfloat16 keeps 8 bits; the two sum in another order through 30 layers.
    assert float(compact) == pytest.approx(float(reference), rel=0.01)


def test_a_pruned_folder_gives_its_perplexity_again_in_a_fresh_process(tmp_path, capsys, monkeypatch) -> None:
    from transformers import AutoTokenizer

    from polyprune_core.cli import main
    from polyprune_core.evaluation.text import load_text
    from polyprune_core.evaluation.windows import Cutter

    settings = ["--sparsity", "0.3", "--initializer", "wanda", "--scope", "layer", "--scale", "raw", "--limit", "2"]
    settings += ["--calibration", "builtin:prose", "--evaluation", "builtin:pydocs", "--calibration-samples", "2"]
    command = ["polyprune", "prune", "--model", "smollm2-135m", "--dtype", "float32", *settings]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "pruned")])
    main()
    assert "read back from disk" in capsys.readouterr().out
    record = json.loads((tmp_path / "pruned" / "polyprune.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pruned")
    windows = Cutter(tokenizer).windows(load_text("builtin:pydocs", "evaluation"), 128, 2)
    fresh = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path / "pruned"), json.dumps(windows.tolist())],
        capture_output=True,
        text=True,
        check=True,
    )
    reloaded = record["reloaded"]["nll"]
    assert record["sparsity"] == pytest.approx(0.3, abs=1e-6)
    assert torch.tensor(float(fresh.stdout)).log().item() == pytest.approx(reloaded, abs=1e-5)
    removed = 0.3 * record["dense_parameters"] * 106_168_320 / 134_515_008
    assert record["report"]["parameters"] == pytest.approx(record["dense_parameters"] - removed, abs=2000)
    assert record["report"]["bytes"] < 4 * record["report"]["parameters"] + 5_000_000
