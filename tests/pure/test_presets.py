"""Published protocols as presets: they can be asked for, and set what their papers set."""

from __future__ import annotations

from typing import get_args

import pytest

from polyprune_core.config.grid import cells
from polyprune_core.config.parsing import parse
from polyprune_core.config.presets import PRESETS, Preset
from polyprune_core.config.settings import Comparison, Pruning

ALONE = ("llm-pruner-paper", "flap-paper", "wanda-sp", "shortgpt-paper")


def test_every_name_is_a_preset() -> None:
    assert set(get_args(Preset)) == set(PRESETS)


@pytest.mark.parametrize("preset", ALONE)
def test_a_protocol_is_one_metric_in_one_pooling_for_either_command(preset) -> None:
    dense, metric = cells(parse(Comparison, {"preset": preset}))
    assert (metric.kind, "auto" in (metric.scope, metric.scale)) == ("baseline", False)
    pruning = parse(Pruning, {"preset": preset, "budget": "parameters=0.8"}).as_comparison()
    assert cells(pruning) == [dense, metric]


def test_they_set_what_the_papers_say_and_what_is_given_wins() -> None:
    pruner = parse(Comparison, {"preset": "llm-pruner-paper", "seq_len": 128})
    assert (pruner.calibration_samples, pruner.seq_len, str(pruner.protected)) == (10, 128, "first=4,last=2")
    flap = parse(Comparison, {"preset": "flap-paper"})
    assert (flap.calibration_samples, flap.seq_len, flap.repair, flap.scope) == (1024, 128, ("bias",), ("global",))
    assert parse(Comparison, {"preset": "wanda-sp"}).scope == ("layer",)
    assert parse(Comparison, {"preset": "shortgpt-paper"}).granularity == ("layer",)


def test_a_quick_look_is_part_of_what_is_taken_unless_told() -> None:
    quick, usual = parse(Comparison, {"preset": "quick"}), Comparison()
    assert quick.steps < usual.steps
    assert {str(metric) for metric in quick.baselines} < {str(metric) for metric in usual.baselines}
    assert parse(Pruning, {"preset": "quick"}).as_comparison().steps == quick.steps
