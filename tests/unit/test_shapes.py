"""Selections that a format can hold: legal in every layer, within the budget, and refused where there is none."""

from __future__ import annotations

import pytest
import torch

from polyprune_core.errors import BudgetError
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pools import SCOPES
from polyprune_core.pruning.types import LegalShapes
from polyprune_core.testing.tiny import tiny_model, tiny_space

scopes = pytest.mark.parametrize("scope", sorted(SCOPES))


@pytest.fixture(scope="module")
def space(make_space):
    return make_space(
        *[("channel", layer, 20, 6) for layer in range(4)], *[("head", layer, 4, 40) for layer in range(4)]
    )


def kept(space, scope, shapes, sparsity=0.4, min_keep=1, seed=0) -> list[int]:
    scores = torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) + 0.1 * space.layer
    selection = SelectionRule(sparsity, scope, min_keep, shapes).select(scores, space)
    assert selection.kept_cost <= (1 - sparsity) * space.total_cost + 1e-6
    for units, group in zip(space.slices(), space.groups, strict=True):
        own = selection.keep[units]
        assert own.any() == (scores[units][own].numel() > 0)
        if own.any() and not own.all():
            assert scores[units][own].min() >= scores[units][~own].max(), group
    return [int(selection.keep[units].sum()) for units in space.slices()]


STEPS = [8] * 4 + [2] * 4


@scopes
@pytest.mark.parametrize("seed", range(3))
def test_widths_are_multiples_and_no_further_step_would_fit(space, scope, seed) -> None:
    found = kept(space, scope, LegalShapes(multiple_of={"channel": 8, "head": 2}), seed=seed)
    assert all(count % step == 0 for count, step in zip(found, STEPS, strict=True))
    channels, heads = 6 * sum(found[:4]), 40 * sum(found[4:])
    left = 0.6 * 4 * (20 * 6 + 4 * 40) - channels - heads
    if scope == "global":
        assert left < 8 * 6 or all(count == 16 for count in found[:4])
    else:
        assert 0.6 * 480 - channels < 8 * 6 or all(count == 16 for count in found[:4])
        assert 0.6 * 640 - heads < 2 * 40 or all(count == 4 for count in found[4:])


@scopes
def test_equal_widths_are_equal_over_the_layers_of_a_kind_and_as_wide_as_fits(space, scope) -> None:
    found = kept(space, scope, LegalShapes(equal_widths=True))
    assert len(set(found[:4])) == len(set(found[4:])) == 1
    left = 0.6 * 4 * (20 * 6 + 4 * 40) - 6 * sum(found[:4]) - 40 * sum(found[4:])
    assert left < (4 * 6 if scope == "global" else 4 * 6 + 4 * 40)


def test_whole_layers_go_where_all_others_have_to_be_alike() -> None:
    layers = tiny_space(tiny_model(), "layer")
    rule = SelectionRule(0.3, "kind", shapes=LegalShapes(equal_widths=True, empty_sublayers=True))
    assert rule.select(torch.tensor([3.0, 1.0, 2.0]), layers).keep.tolist() == [True, False, True]


def test_no_sublayer_is_emptied_where_the_format_has_no_place_for_it(space) -> None:
    assert 0 in kept(space, "global", LegalShapes(), sparsity=0.8, min_keep=0)
    assert 0 not in kept(space, "global", LegalShapes(empty_sublayers=False), sparsity=0.8, min_keep=0)


def test_a_layer_that_has_no_legal_width_is_refused(space) -> None:
    with pytest.raises(BudgetError, match=r"layer 0 has 4 units of kind head, .* multiple of 8"):
        kept(space, "kind", LegalShapes(multiple_of={"head": 8}))
