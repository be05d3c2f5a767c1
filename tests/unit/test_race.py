"""The race of metrics: who is in it, how many runs it takes, and that the winner is what is selected."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.testing.tiny import tiny_calibration, tiny_model, tiny_space
from polyprune_plugins.initializers.race import SCALES, Race

RULE = SelectionRule(0.3, "global")


class Given:
    """Calibration whose other metrics and losses are made up; counts what is run."""

    def __init__(self, scores: dict[str, torch.Tensor], loss) -> None:
        self.scores, self.loss, self.budget = scores, loss, RULE
        self.held_back = torch.arange(16)[:, None].expand(-1, 8)
        self.runs: list[tuple[int, list[int]]] = []

    def score(self, metric, space, how="raw"):
        return self.scores[metric]

    def losses(self, space, masks, ids):
        self.runs.append((len(masks), ids[:, 0].tolist()))
        return torch.tensor([self.loss(mask) for mask in masks])


@pytest.fixture(scope="module")
def space():
    return tiny_space(tiny_model(), "channel")


def made_up(space, count: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(7)
    return {f"m{index}": torch.rand(len(space), generator=rng) for index in range(count)}


def test_the_field_is_halved_on_windows_that_all_of_it_sees_and_the_winner_is_what_is_selected(space) -> None:
    scores = made_up(space, 5)
    kept = {metric: RULE.select(values, space).keep for metric, values in scores.items()}
    order = {metric: place for place, metric in enumerate(["m3", "m0", "m4", "m1", "m2"])}

    def loss(mask):
        return float(next(order[metric] for metric, keep in kept.items() if torch.equal(keep, mask)))

    given = Given(scores, loss)
    found = Race("m0+m1+m2+m3+m4").score(None, space, given)
    assert given.runs == [(5, [0, 1, 2, 3]), (3, [4, 5, 6, 7]), (2, [8, 9, 10, 11, 12, 13, 14, 15])]
    assert torch.equal(RULE.select(found, space).keep, kept["m3"])


def test_selections_that_are_the_same_run_once_and_one_alone_not_at_all(space) -> None:
    scores = dict.fromkeys(["one", "other"], made_up(space, 1)["m0"])
    given = Given(scores, lambda mask: 1.0)
    found = Race("one+other").score(None, space, given)
    assert given.runs == []
    assert torch.equal(RULE.select(found, space).keep, RULE.select(scores["one"], space).keep)


def test_a_loss_that_is_no_number_loses(space) -> None:
    scores = made_up(space, 2)
    broken = RULE.select(scores["m0"], space).keep
    given = Given(scores, lambda mask: float("nan") if torch.equal(mask, broken) else 50.0)
    found = Race("m0+m1").score(None, space, given)
    assert torch.equal(RULE.select(found, space).keep, RULE.select(scores["m1"], space).keep)


def test_each_metric_is_in_every_scale_and_in_the_kinds_own_budgets_too() -> None:
    model = tiny_model()
    both = tiny_space(model, "head+channel")
    calibration = tiny_calibration(model, budget=RULE, held_back=True)
    expected = set()
    for how in SCALES:
        values = calibration.score("wanda", both, how)
        for scope in ("global", "kind"):
            expected.add(replace(RULE, scope=scope).select(values, both).keep.numpy().tobytes())
    assert set(Race("wanda").starters(both, calibration)) == expected


def test_the_metrics_pass_over_the_text_once_each() -> None:
    model = tiny_model()
    calibration = tiny_calibration(model, budget=RULE, held_back=True)
    Race("wanda").starters(tiny_space(model), calibration)
    assert calibration.forward_tokens == calibration.windows.numel()


@pytest.mark.parametrize("options", [{"of": ""}, {"of": "thinet+"}, {"windows": 0}])
def test_a_race_of_nothing_is_refused(options) -> None:
    with pytest.raises(ConfigError, match="race: "):
        Race(**options)


def test_a_metric_that_is_not_there_is_named() -> None:
    model = tiny_model()
    with pytest.raises(PluginError, match="no initializer named 'thenet'"):
        Race("thenet").score(model, tiny_space(model), tiny_calibration(model, budget=RULE, held_back=True))


def test_text_is_held_back_for_who_asks_for_it_alone() -> None:
    with pytest.raises(PluginError, match='put "held-back" into the needs'):
        _ = tiny_calibration(tiny_model()).held_back
    assert load_registry().holds_text_back("race")
    assert not load_registry().holds_text_back("thinet")
