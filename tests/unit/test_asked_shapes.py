"""Widths that are asked for: how they are written, what they decide, and that every mask of a search has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyprune_core.config.cell import Metric, cell_from_json
from polyprune_core.config.grid import cell_id, cells
from polyprune_core.config.parsing import parse
from polyprune_core.config.settings import Comparison, Pruning
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.errors import BudgetError, ConfigError, PolypruneError
from polyprune_core.evaluation.losses import Objective
from polyprune_core.evaluation.pydocs import calibration_text
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.types import LegalShapes, MaskBatch, Policy
from polyprune_core.report.naming import told_apart
from polyprune_core.runs.asked_shapes import legal_shapes
from polyprune_core.runs.decision import Decider
from polyprune_core.runs.opening import open_harness
from polyprune_core.search.loop import SearchOptions, SearchState, Stepper
from polyprune_core.testing.tiny import tiny_model
from polyprune_core.utils.progress import Reporter

TEXTS = {"calibration": "builtin:pydocs", "evaluation": "builtin:pydocs"}
SMALL = {"calibration_samples": 2, "seq_len": 16, "eval_seq_len": 16, "limit": 2, "masks_per_step": 4, "steps": 3}


@pytest.mark.parametrize("text", ["channel=32", "channel=32,head=1", "vllm:tp=2", "channel=32,head=2 for gguf:q8_0"])
def test_what_is_asked_reads_back_as_it_was_written(text) -> None:
    assert str(ShapesSpec.parse(text)) == text


@pytest.mark.parametrize("text", ["channel", "channel=0", "head=2,head=4", "channel=-8", "32", "", "channel=3.5"])
def test_widths_that_cannot_be_read_are_refused_with_what_to_write(text) -> None:
    with pytest.raises(ConfigError, match=r"--multiple-of .*channel=32"):
        parse(Pruning, {"multiple_of": text})


def test_a_grid_has_a_cell_for_each_width_and_tells_them_apart() -> None:
    config = Comparison(baselines="wanda", multiple_of=("none", "channel=32"), target=("none", "gguf:q8_0"))
    shapes = [cell.shapes for cell in cells(config)[1:]]
    assert shapes == [None, "gguf:q8_0", "channel=32", "channel=32 for gguf:q8_0"]
    assert "shapes" in told_apart(cells(config))
    assert [cell_from_json(cell.model_dump(mode="json")) for cell in cells(config)] == cells(config)


def test_ids_change_with_the_widths_and_only_then() -> None:
    cell = Metric(granularity="head+channel", initializer="wanda", sparsity=0.2)
    assert cell_id(cell, Comparison(), {}) == "dcac4c21e78cff01"
    ids = {cell_id(cell.model_copy(update={"shapes": told}), Comparison(), {}) for told in (None, "channel=2", "vllm")}
    assert len(ids) == 3


def test_two_that_ask_are_both_obeyed() -> None:
    one, other = LegalShapes({"channel": 4, "head": 2}), LegalShapes({"channel": 6}, True, False)
    assert one.both(other) == other.both(one) == LegalShapes({"channel": 12, "head": 2}, True, False)


def test_a_target_is_what_its_exporter_holds() -> None:
    from polyprune_core.models.describe import describe

    layout, registry = describe(tiny_model()), load_registry()
    heads = min(axis.size for axis in layout.of_kind("attention"))
    assert legal_shapes(f"channel=3 for vllm:tp={heads}", layout, registry) == LegalShapes(
        {"channel": 3 * heads if heads % 3 else heads, "head": heads, "query-head": 1}, empty_sublayers=False
    )
    with pytest.raises(PolypruneError, match="tp=0"):
        legal_shapes("vllm:tp=0", layout, registry)


def test_masks_take_the_nearest_width_and_the_preferred_units(make_space) -> None:
    space = make_space(("channel", 0, 6, 1), ("head", 0, 2, 1))
    rule = SelectionRule(0.5, shapes=LegalShapes({"channel": 3}, empty_sublayers=False))
    ranking = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6])
    masks = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1]]).bool()
    assert rule.legal(masks, ranking, space).int().tolist() == [
        [0, 1, 0, 1, 1, 0, 0, 1],  # four channels are nearer to three, and unit 0 is the last of them
        [0, 1, 0, 1, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 1, 1, 1],  # no sublayer is empty
    ]


def test_a_search_estimates_from_the_masks_that_were_drawn(make_space) -> None:
    """The loss is one of the mask that was run instead; the score function is that of the draw."""
    seen: dict[str, Any] = {}

    class Recorder:
        precondition = None

        def sample(self, policy: Policy, num_masks: int, rng: Any) -> MaskBatch:
            return MaskBatch(torch.tensor([[True, False, True, False]] * num_masks))

        def gradient(self, policy: Policy, batch: MaskBatch, losses: Any, state: Any) -> Any:
            seen["estimated"] = batch.masks
            return torch.zeros(4), None

    class Fixed:
        def policy(self, parameters: torch.Tensor, sparsity: float, progress: float = 1.0) -> Policy:
            return Policy(parameters)

        def gradient(self, policy: Policy, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

        def fisher(self, policy: Policy) -> torch.Tensor:
            return torch.ones(4)

        def project(self, parameters: torch.Tensor, sparsity: float) -> torch.Tensor:
            return parameters

    class Loss:
        space = make_space(("channel", 0, 4, 1))

        def losses(self, masks: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            seen["run"] = masks
            return torch.zeros(len(masks))

    options = SearchOptions(1, 2, 0.1, 0.5, legal=lambda masks, ranking: torch.ones_like(masks))
    stepper = Stepper(Fixed(), Loss(), Recorder(), options)  # type: ignore[arg-type]
    stepper.advance(SearchState(torch.full((4,), 0.5), torch.Generator(), 1.0), torch.zeros(1, 4).long())
    assert seen["run"].all()
    assert seen["estimated"].tolist() == [[True, False, True, False]] * 2


@pytest.mark.parametrize("policy", ["gaussian", "probabilities", "logits", "hierarchical"])
def test_every_mask_of_a_search_has_the_widths(policy, monkeypatch, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(calibration_text()[:8000], "utf-8")
    run: list[torch.Tensor] = []
    losses, gradients = Objective.losses, Objective.gradients

    def spied(self: Any, masks: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        run.extend(masks)
        return losses(self, masks, ids)

    def spied_gates(self: Any, gates: torch.Tensor, ids: torch.Tensor) -> Any:
        run.extend(gates > 0.5)
        return gradients(self, gates, ids)

    monkeypatch.setattr(Objective, "losses", spied)
    monkeypatch.setattr(Objective, "gradients", spied_gates)
    searches = ("residual", *(("straight-through",) if policy == "probabilities" else ()))
    here = {"calibration": str(text), "evaluation": str(text)}
    told = {"multiple_of": "channel=40,head=2", "optimizer": "sgd", "learning_rate": 0.1, "policy": policy}
    config = Comparison(
        model="tiny", initializers="random", estimators=searches, baselines=(), sparsity=0.3, **told, **SMALL, **here
    )
    harness = open_harness(config, load_registry(), Reporter())
    with harness.compactor:
        space = harness.space("head+channel")
        steps = [40 if group.kind == "channel" else 2 for group in space.groups]
        for cell in cells(config)[2:]:
            selection = Decider(harness).decide(cell).selection
            assert selection.sparsity >= 0.3
            assert len(run) >= 3 * 4
            for mask in [*run, selection.keep]:
                assert all(
                    int(mask[units].sum()) % step == 0 for units, step in zip(space.slices(), steps, strict=True)
                )
            run.clear()


def test_what_the_model_or_the_units_have_no_place_for_is_refused_before_anything_is_scored() -> None:
    registry = load_registry()

    def asked(**more: Any) -> Comparison:
        return Comparison(model="tiny", baselines="wanda", granularity="channel", **SMALL, **TEXTS, **more)

    with pytest.raises(ConfigError, match=r"--multiple-of head=2: no unit of this kind .* channel"):
        open_harness(asked(multiple_of="head=2"), registry, Reporter())
    with pytest.raises(BudgetError, match=r"layer 0 has 344 units of kind channel.*--multiple-of"):
        open_harness(asked(multiple_of="channel=345"), registry, Reporter())
    with pytest.raises(BudgetError, match=r"other widths .*--multiple-of"):
        open_harness(asked(multiple_of="channel=172", sparsity=0.6), registry, Reporter())
