"""Everything of ours on a GPU: the same numbers as on the CPU, up to how the two round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from polyprune_core import compare, prune
from polyprune_core.cli import cli
from polyprune_core.plugins.registry import load_registry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
ONE: dict[str, Any] = {
    "model": "tiny",
    "dtype": "float32",
    "sparsity": 0.3,
    "limit": 12,
    "calibration_samples": 24,
    "repair_samples": 24,
    "seq_len": 64,
    "eval_seq_len": 64,
    "quiet": True,
}
# How a plugin is asked where its name alone asks for too much, or for another kind of model.
METRICS = {"bonsai": "bonsai:masks=16"}
OF_LAYERS = {"angular-distance", "block-influence", "sleb"}
OF_EXPERTS = {"frequency", "reap", "expert"}
REPAIRS = {"distil": "distil:tokens=512"}
SEARCH = {"initializers": "wanda", "steps": 3, "batch_size": 2}


def names(kind: str) -> list[str]:
    there = (each.provider.name for each in load_registry().all(kind))
    return [name for name in there if name not in OF_EXPERTS]


def require_alike(within: float = 0.02, **asked: Any) -> None:
    cpu, gpu = (compare(**ONE | asked, device=device).rows for device in ("cpu", "cuda"))
    assert [row.error for row in gpu] == [None] * len(gpu)
    for one, other in zip(cpu, gpu, strict=True):
        assert other.perplexity == pytest.approx(one.perplexity, rel=within)
        assert other.sparsity_achieved == pytest.approx(one.sparsity_achieved, abs=1e-3)


@pytest.mark.parametrize("metric", names("initializer"))
def test_a_metric(metric: str) -> None:
    granularity = "layer" if metric in OF_LAYERS else "head+channel"
    require_alike(baselines=METRICS.get(metric, metric), granularity=granularity)


@pytest.mark.parametrize("repair", names("repair"))
def test_a_repair(repair: str) -> None:
    require_alike(baselines="wanda", repair=REPAIRS.get(repair, repair), calibration="builtin:mix")


@pytest.mark.parametrize("granularity", names("granularity"))
def test_a_granularity(granularity: str) -> None:
    require_alike(baselines="magnitude", granularity=granularity)


@pytest.mark.parametrize("estimator", names("estimator"))
def test_an_estimator(estimator: str) -> None:
    policy = "gaussian" if estimator in ("antithetic", "reinforce", "rloo") else "probabilities"
    require_alike(0.2, baselines=[], estimators=estimator, policy=policy, **SEARCH)


@pytest.mark.parametrize("policy", names("policy"))
def test_a_policy(policy: str) -> None:
    require_alike(0.2, baselines=[], estimators="rloo", policy=policy, **SEARCH)


def test_the_objective_of_kl() -> None:
    require_alike(0.2, baselines=[], estimators="rloo", objective="kl", **SEARCH)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype(dtype: str) -> None:
    require_alike(0.05, baselines=["wanda", "thinet"], repair="least-squares", dtype=dtype)


@pytest.mark.parametrize("exporter", ["huggingface", "huggingface:pad=64", "masked", "masks", "gguf:type=f16"])
def test_an_exporter(exporter: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = {key: value for key, value in ONE.items() if key not in ("quiet", "sparsity")}
    prune(**one, sparsity=0.3, initializer="wanda", device="cuda", output=str(out), exporter=exporter, quiet=True)
    what = out / "model.gguf" if exporter.startswith("gguf") else out
    found = CliRunner().invoke(cli, ["evaluate", str(what), "--device", "cuda", "--limit", "4", "--eval-seq-len", "64"])
    assert exporter == "masks" or found.exit_code == 0, found.output


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    asked = ONE | SEARCH | {"estimators": "rloo", "baselines": [], "device": "cuda"}
    whole = compare(**asked).rows[-1]
    kept = compare(**asked, output=str(tmp_path / "store")).rows[-1]
    assert kept.perplexity == pytest.approx(whole.perplexity, rel=1e-4)
