"""What holds of every metric: the kit holds each to its laws as it is by default; here are other options, and heads."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from all_metrics import metrics, scores, unit_weights

from polyprune_core.plugins.options import parse_spec
from polyprune_core.plugins.registry import load_registry
from polyprune_core.testing import run_checks
from polyprune_core.testing.tiny import FAMILIES
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head

OTHER_OPTIONS = [
    "magnitude:power=1",
    "llm-pruner:taylor=vector",
    "llm-pruner:taylor=element2",
    "llm-pruner:taylor=mix",
    "flap:metric=ifv",
    "knapsack:norm=output",
]


@pytest.mark.parametrize("spec", OTHER_OPTIONS)
def test_a_metric_keeps_to_the_laws_of_the_kit_with_other_options_too(spec) -> None:
    name, options = parse_spec(spec)
    item = load_registry().get("initializer", name)
    found = run_checks([replace(item, provider=replace(item.provider, quick=options))])
    assert [result for result in found if result.status == "failed"] == []
    assert sum(result.status == "passed" for result in found) >= 15


@metrics
def test_scores_are_float32_on_the_cpu_and_belong_to_no_graph(llama, space_of, ids, metric) -> None:
    found = scores(metric, llama, space_of(llama, Head(), Channel()), ids)
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    assert not found.requires_grad
    assert not found.is_inference()


@metrics
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_writes_nothing_and_reads_nothing_ranks_last(tiny, space_of, ids, metric, family) -> None:
    changed = copy.deepcopy(tiny(family))
    space = space_of(changed, Head())
    for name, dim, span in unit_weights(space, 4):
        changed.get_parameter(name).data.transpose(0, dim)[span] = 0
    layer = scores(metric, changed, space, ids)[space.slices()[1]]
    assert layer[1] == 0
    assert (layer[[0, 2]] > 0).all()
