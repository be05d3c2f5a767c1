"""Layers that are left whole: in every selection, every projection and every mask of a search, at the same sparsity."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyprune_core.config.cell import Metric
from polyprune_core.config.grid import cell_id, cells
from polyprune_core.config.parsing import parse
from polyprune_core.config.protect import Protect
from polyprune_core.config.settings import Comparison
from polyprune_core.errors import BudgetError, ConfigError
from polyprune_core.evaluation.losses import Objective
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.budget import SelectionRule, reachable
from polyprune_core.pruning.pools import SCOPES
from polyprune_core.pruning.types import EPS, LegalShapes
from polyprune_core.runs.decision import Decider
from polyprune_core.runs.opening import open_harness
from polyprune_core.utils.progress import Reporter

scopes = pytest.mark.parametrize("scope", sorted(SCOPES))
FIRST = Protect(first=1)


@pytest.fixture
def space(make_space) -> Any:
    """Five layers of 4 heads that cost 30 each and 20 channels that cost 3 each."""
    return make_space(*((kind, layer, size, cost) for layer in range(5) for kind, size, cost in SIZES))


SIZES = (("head", 4, 30), ("channel", 20, 3))


def scores(space: Any, seed: int = 0) -> torch.Tensor:
    values = torch.rand(len(space), generator=torch.Generator().manual_seed(seed))
    return values - 5.0 * (space.layer == 0)  # what is protected is what every metric would remove first


@pytest.mark.parametrize(("text", "ends"), [("first=4,last=2", (4, 2)), ("last=1", (0, 1)), (None, (0, 0))])
def test_ends_are_read_and_written(text, ends) -> None:
    found = Protect.parse(text)
    assert (found.first, found.last) == ends
    assert str(found) == (text or "")


@pytest.mark.parametrize("text", ["", "4", "first", "first=-1", "first=1,first=2", "middle=3", "first=x"])
def test_anything_else_is_refused_with_an_example(text) -> None:
    with pytest.raises(ConfigError, match=r"--protect .*first=4,last=2"):
        parse(Comparison, {"protect": text})


@scopes
def test_a_protected_layer_stays_whole_and_the_others_make_up_for_it(space, scope) -> None:
    for sparsity in (0.1, 0.4, 0.55):
        selection = SelectionRule(sparsity, scope, protect=FIRST).select(scores(space), space)
        assert selection.keep[space.layer == 0].all()
        assert sparsity - 1e-9 <= selection.sparsity < sparsity + 30 * 2 / space.total_cost
    if scope == "layer":
        kept = torch.bincount(space.group[selection.keep])
        assert (
            len({int(kept[i]) for i, group in enumerate(space.groups) if group.kind == "channel" and group.layer}) <= 2
        )


@scopes
def test_probabilities_meet_the_same_budget_with_protected_ones_at_the_top(space, scope) -> None:
    rule, values = SelectionRule(0.4, scope, protect=FIRST), 0.5 + scores(space) / 2
    projected = rule.project(values, space)
    logits = 4 * values
    shifted = (logits - rule.shift_logits(logits, space)).sigmoid()
    for found in (projected, shifted):
        assert torch.allclose(found[space.layer == 0], torch.tensor(1 - EPS))
        held = torch.where(space.layer == 0, 1.0, found.clamp(EPS, 1 - EPS)) @ space.price.float()
        assert float(held) <= 0.6 * space.total_cost * (1 + 1e-4)
    assert float(projected @ space.price.float()) == pytest.approx(0.6 * space.total_cost, rel=0.01)


@scopes
def test_nothing_protected_changes_nothing(space, scope) -> None:
    plain, same = SelectionRule(0.4, scope), SelectionRule(0.4, scope, protect=Protect())
    assert torch.equal(plain.project(scores(space), space), same.project(scores(space), space))


@scopes
def test_what_cannot_be_met_is_told_with_the_most_that_can(space, scope) -> None:
    ends = Protect(2, 1)
    most = reachable(space, scope, 1, ends)
    by_hand = max((3 / 5 + 2 / 5 * least for least in (1 / 4, 1 / 20)), default=0.0)  # of heads; channels hold less
    if scope != "global":
        assert 1 - most == pytest.approx(by_hand)
    with pytest.raises(BudgetError, match=r"the layers that --protect first=2,last=1 leaves whole .*smaller --protect"):
        SelectionRule(most + 0.05, scope, protect=ends).select(scores(space), space)
    with pytest.raises(BudgetError):
        SelectionRule(0.1, scope, protect=Protect(first=9)).select(scores(space), space)


def test_a_format_keeps_protected_layers_whole_or_is_refused(space) -> None:
    fours = SelectionRule(0.4, "kind", shapes=LegalShapes(multiple_of={"channel": 4}), protect=FIRST)
    assert fours.select(scores(space), space).keep[space.layer == 0].all()
    for shapes in (LegalShapes(multiple_of={"channel": 8}), LegalShapes(equal_widths=True)):
        with pytest.raises(BudgetError, match="choose another --exporter"):
            SelectionRule(0.4, "kind", shapes=shapes, protect=FIRST).select(scores(space), space)


def test_ids_change_with_what_is_protected_and_only_then() -> None:
    cell = Metric(granularity="head+channel", initializer="wanda", sparsity=0.2)
    ids = [cell_id(cell, Comparison(protect=ends), {}) for ends in (None, "first=1", "last=1", "first=1,last=0")]
    assert ids[0] != ids[1] != ids[2]
    assert ids[1] == ids[3]
    assert cell_id(cell, Comparison(), {}) == "dcac4c21e78cff01"


@pytest.mark.parametrize("policy", ["gaussian", "probabilities", "logits", "hierarchical"])
def test_every_mask_of_a_search_keeps_protected_layers(policy, short_learn, monkeypatch) -> None:
    run: list[torch.Tensor] = []
    losses, gradients = Objective.losses, Objective.gradients

    def spied(self: Any, masks: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        run.extend(masks)
        return losses(self, masks, ids)

    def spied_gates(self: Any, gates: torch.Tensor, ids: torch.Tensor) -> Any:
        run.extend(gates == 1)
        return gradients(self, gates, ids)

    monkeypatch.setattr(Objective, "losses", spied)
    monkeypatch.setattr(Objective, "gradients", spied_gates)
    small = {"calibration_samples": 2, "seq_len": 16, "eval_seq_len": 16, "limit": 2, "masks_per_step": 4, "steps": 3}
    searches = ("rloo", "residual", *(("straight-through",) if policy == "probabilities" else ()))
    config = Comparison(
        model="tiny",
        policy=policy,
        optimizer="sgd",
        learning_rate=0.1,
        protect="first=1,last=1",
        estimators=searches,
        initializers="random",
        baselines=(),
        sparsity=0.3,
        **small,
        **short_learn,
    )
    harness = open_harness(config, load_registry(), Reporter())
    with harness.compactor:
        for cell in cells(config)[2:]:
            selection = Decider(harness).decide(cell).selection
            space = harness.space("head+channel")
            whole = config.protected
            ends = torch.tensor([whole.covers(int(layer), harness.layout.num_layers) for layer in space.layer])
            assert selection.keep[ends].all()
            assert selection.sparsity >= 0.3
            assert len(run) >= 3 * 4
            assert all(mask[ends].all() for mask in run)
            run.clear()


@pytest.fixture(scope="module")
def short_learn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from polyprune_core.evaluation.pydocs import calibration_text, evaluation_text

    folder = tmp_path_factory.mktemp("texts")
    (folder / "learn.txt").write_text(calibration_text()[:8000], "utf-8")
    (folder / "test.txt").write_text(evaluation_text()[:8000], "utf-8")
    return {"calibration": str(folder / "learn.txt"), "evaluation": str(folder / "test.txt")}
