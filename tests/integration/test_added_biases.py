"""A repair that adds biases and a format without a place for them are refused together, before anything is scored."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import polyprune, refused

import polyprune_core
from polyprune_core.errors import ConfigError
from polyprune_core.plugins.registry import load_registry
from polyprune_core.runs.harness import Harness

SMALL = {"model": "tiny", "initializer": "magnitude", "sparsity": 0.3, "scope": "global", "scale": "raw", "limit": 2}
SMALL |= {"calibration_samples": 4, "repair_samples": 4}
COMMAND = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
pytestmark = pytest.mark.filterwarnings("ignore:repair ")


@pytest.fixture(scope="module")
def repaired():
    """The bundled model with biases that a repair added."""
    return polyprune_core.prune(**SMALL, repair="bias", quiet=True)


@pytest.fixture(scope="module")
def masks(repaired, tmp_path_factory) -> Path:
    return repaired.export("masks", tmp_path_factory.mktemp("repaired") / "masks").path


@pytest.fixture
def nothing_scored(monkeypatch) -> None:
    """Fails where a metric is asked for scores."""
    monkeypatch.setattr(Harness, "measure", lambda *_: pytest.fail("something was scored"))


@pytest.mark.parametrize(
    ("spec", "adds"),
    [
        ("none", False),
        ("bias", True),
        ("least-squares", True),
        ("least-squares:bias=false", False),
        ("sequential:bias=false", False),
        ("recover", False),
        ("recover:start=bias", True),
        ("distil", True),
        ("distil:start=rotation", False),
    ],
)
def test_options_and_what_a_repair_starts_from_decide_whether_it_adds_biases(spec, adds) -> None:
    assert load_registry().adds_biases(spec) is adds


@pytest.mark.parametrize(
    ("repair", "exporter", "instead"),
    [
        ("sequential:0.2", "masked", "--repair sequential:ridge=0.2:bias=false (or none, "),
        ("bias", "huggingface:pad=widest", "--repair none (or "),
        ("distil:tokens=64", "masked", "--repair distil:tokens=64:start=none (or none, "),
    ],
)
def test_prune_refuses_the_two_and_says_what_goes_together(tmp_path, nothing_scored, repair, exporter, instead) -> None:
    out = tmp_path / "out"
    done = polyprune("prune", *COMMAND, "--repair", repair, "--exporter", exporter, "--output", out, "--quiet")
    refused(done, f"--repair {repair} adds biases", f"--exporter {exporter} has no place for them", instead)
    refused(done, "--exporter gguf, huggingface, masks, onnx, vllm.")
    assert not list(tmp_path.iterdir())


def test_compare_refuses_it_of_a_target(tmp_path, nothing_scored) -> None:
    grid = ["--model", "tiny", "--baselines", "magnitude", "--limit", "2", "--output", tmp_path / "store"]
    done = polyprune("compare", *grid, "--repair", "none,bias", "--target", "none,masked", "--quiet")
    refused(done, "--repair bias adds biases", "--target masked has no place for them")


@pytest.mark.usefixtures("runtime_here")
def test_what_was_decided_with_biases_is_refused_or_written_whole(repaired, masks, tmp_path) -> None:
    for exporter in ("masked", "huggingface:pad=widest"):
        done = polyprune("export", masks, "--exporter", exporter, "--output", tmp_path / "refused", "--quiet")
        refused(done, "the repair bias has added biases", f"--exporter {exporter} has no place for them")
        with pytest.raises(ConfigError, match="has added biases"):
            repaired.export(exporter, tmp_path / "refused")
    with pytest.raises(ConfigError, match=r"--repair none \(or"):
        polyprune_core.prune(from_masks=masks, exporter="masked", output=tmp_path / "refused", quiet=True)
    assert not list(tmp_path.iterdir())
    repaired.export("huggingface:pad=64", tmp_path / "padded", verify=True)


def test_recover_refuses_it_before_it_trains(masks, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        "polyprune_core.runs.decision.Decider.repaired", lambda *_: pytest.fail("something was trained")
    )
    small = {"tokens": 64, "limit": 2, "output": tmp_path / "out", "quiet": True}
    with pytest.raises(ConfigError, match="the repair bias has added biases"):
        polyprune_core.recover(masks, exporter="masked", **small)
    with pytest.raises(ConfigError, match="--repair recover:start=bias:tokens=64 adds biases"):
        polyprune_core.recover(masks, repair="recover:start=bias", exporter="masked", **small)
    assert not list(tmp_path.iterdir())
