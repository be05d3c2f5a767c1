"""`polyprune recover`: four rows under one training, the trained model on disk, and a second run after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import polyprune

import polyprune_core
from polyprune_core import load_model
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.pydocs import calibration_text, evaluation_text
from polyprune_core.runs import recover as runs
from polyprune_core.runs.decision import Decider
from polyprune_core.search import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:repair recover")
SMALL = {"tokens": 1024, "limit": 2, "quiet": True}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Masks of the bundled model, and the same decision as a folder."""
    folder = tmp_path_factory.mktemp("recover")
    found = polyprune_core.prune(
        model="tiny",
        initializer="magnitude",
        sparsity=0.3,
        scope="global",
        scale="raw",
        calibration_samples=4,
        limit=2,
        quiet=True,
    )
    for exporter in ("masks", "huggingface"):
        found.export(exporter, folder / exporter)
    for name, text in {
        "learn": calibration_text(),
        "test": evaluation_text(),
        "other": calibration_text()[40_000:],
    }.items():
        (folder / f"{name}.txt").write_text(text[:9_000], "utf-8")
    return {path.stem: path for path in folder.iterdir()}


def texts(places: dict[str, Path]) -> dict[str, Any]:
    """Returns what is trained on, and two texts that are evaluated on."""
    return {"calibration": places["learn"], "evaluation": [str(places["test"]), str(places["other"])]}


@pytest.fixture(scope="module")
def recovered(places, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "trained"
    return polyprune_core.recover(places["masks"], output=output, **texts(places), **SMALL), output


def test_the_four_models_stand_in_one_table_and_training_helps_the_pruned_one(recovered, places) -> None:
    found = recovered[0]
    dense, dense_trained, pruned, trained = (row.evaluations for row in found.rows)
    assert [row.name for row in found.rows] == ["dense", "dense, trained", "pruned", "pruned, trained"]
    assert [row.forward_tokens for row in found.rows] == [0, 1024, 0, 1024]
    assert dense[0].nll < trained[0].nll < pruned[0].nll
    assert dense_trained[0].nll != dense[0].nll
    assert len({row.parameters for row in found.rows[:2]}) == len({row.parameters for row in found.rows[2:]}) == 1
    assert [each.text for each in trained] == [places["test"].name, places["other"].name]
    assert "nats over the dense model before" in repr(found)


def test_what_is_written_is_the_trained_model_and_says_how_it_came_to_be(recovered, places) -> None:
    found, output = recovered
    record = json.loads((output / "polyprune.json").read_text("utf-8"))
    assert record["recovery"]["rows"][3]["evaluations"][0]["nll"] == found.rows[3].evaluations[0].nll
    again = polyprune_core.evaluate(output, evaluation=[str(places["test"])], limit=2, reference="none", quiet=True)
    assert again.model.evaluations[0].nll == pytest.approx(found.rows[3].evaluations[0].nll, rel=2e-3)
    assert load_model(str(output)).model.num_parameters() == found.rows[3].parameters
    assert not list(output.parent.glob(".*"))


def test_a_folder_is_trained_as_its_masks_are(recovered, places, tmp_path) -> None:
    found = polyprune_core.recover(places["huggingface"], **texts(places), **SMALL)
    for ours, theirs in zip(found.rows, recovered[0].rows, strict=True):
        assert ours.evaluations[0].nll == pytest.approx(theirs.evaluations[0].nll, rel=1e-3)


def test_after_a_kill_it_goes_on_and_leaves_nothing_that_looks_finished(
    recovered, places, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE_OF_TIME", 1e9)
    output = tmp_path / "trained"

    class Killed(BaseException):
        pass

    def kill(self: Decider, *_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Decider, "trained", kill)
        with pytest.raises(Killed):
            polyprune_core.recover(places["masks"], output=output, **texts(places), **SMALL)
    assert not output.exists()
    (kept,) = tmp_path.glob(".*")
    assert kept.name == ".trained.recovery"
    assert len(list(kept.iterdir())) == 1
    told: list[str] = []
    monkeypatch.setattr(runs.Checkpoint, "read", _telling(runs.Checkpoint.read, told))
    found = polyprune_core.recover(places["masks"], output=output, **texts(places), **SMALL)
    assert told == ["goes on", "starts"]
    assert [row.evaluations for row in found.rows] == [row.evaluations for row in recovered[0].rows]
    assert not list(tmp_path.glob(".*"))


def _telling(read, told):
    def telling(self, parse):
        state = read(self, parse)
        told.append("starts" if state is None else "goes on")
        return state

    return telling


def test_what_trains_nothing_or_names_no_dense_model_is_refused(places, tmp_path) -> None:
    with pytest.raises(ConfigError, match="least-squares trains nothing; give recover"):
        polyprune_core.recover(places["masks"], repair="least-squares", tokens=8, quiet=True)
    with pytest.raises(ConfigError, match=r"--tokens 8 and --repair recover:tokens=5 both say.*one of them"):
        polyprune_core.recover(places["masks"], repair="recover:tokens=5", tokens=8, quiet=True)
    with pytest.raises(ConfigError, match="does not say which dense model"):
        polyprune_core.recover("tiny", **texts(places), **SMALL)
    done = polyprune("recover", places["masks"], "--tokens", "8", "--cell", "ab", "--output", tmp_path / "none")
    assert done.status == 2
    assert "leave it out" in done.err
    assert not (tmp_path / "none").exists()


def test_adapters_are_merged_before_they_are_written(places, tmp_path) -> None:
    output = tmp_path / "adapted"
    polyprune_core.recover(
        places["masks"], repair="recover:lora", output=output, **texts(places), **(SMALL | {"tokens": 256})
    )
    names = load_model(str(output)).model.state_dict()
    assert not any("lora" in name for name in names)
    before = load_model(str(places["huggingface"])).model.state_dict()
    assert names.keys() == before.keys()
    assert any(not torch.equal(names[name], before[name]) for name in names)


def test_training_goes_on_from_what_a_repair_has_made_of_the_decision(recovered, places, tmp_path) -> None:
    masks = tmp_path / "repaired"
    few = {"calibration_samples": 4, "repair_samples": 4, "limit": 2, "quiet": True}
    polyprune_core.prune(from_masks=places["masks"], repair="bias", exporter="masks", output=masks, **few)
    found = polyprune_core.recover(masks, repair="recover:lr=1e-9", **texts(places), **(SMALL | {"tokens": 256}))
    before, after = (row.evaluations[0].nll for row in found.rows[2:])
    assert after == pytest.approx(before, rel=1e-3)
    assert abs(before - recovered[0].rows[2].evaluations[0].nll) > 1e-2
