"""Masks of exactly k units follow the conditional law where only some of the units make up the size."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from polyprune_core import ExactSize

KEEP = torch.tensor([0.9, 0.2, 0.55, 0.7, 0.35, 0.05, 0.6, 0.45])
SIZE = 4
by_closing = pytest.mark.parametrize("closing", [5, 3])


def law() -> dict[tuple[int, ...], float]:
    """Every choice of SIZE units with its conditional probability."""
    weight = {}
    for kept in combinations(range(len(KEEP)), SIZE):
        chosen = torch.zeros(len(KEEP), dtype=torch.bool)
        chosen[list(kept)] = True
        weight[kept] = float(torch.where(chosen, KEEP, 1 - KEEP).double().prod())
    return {kept: value / sum(weight.values()) for kept, value in weight.items()}


@by_closing
def test_draws_follow_the_conditional_law(closing) -> None:
    masks = ExactSize(KEEP, SIZE, closing).sample(40_000, torch.Generator().manual_seed(0))
    assert (masks.sum(dim=1) == SIZE).all()
    drawn = [tuple(row.nonzero().flatten().tolist()) for row in masks]
    for kept, probability in law().items():
        assert drawn.count(kept) / len(drawn) == pytest.approx(probability, abs=0.006)


@pytest.mark.parametrize(("units", "error"), [(300, 3e-4), (4000, 3e-5)])
def test_the_limit_is_near_the_tree_and_nearer_with_more_units(units, error) -> None:
    keep = 0.05 + 0.9 * torch.rand(units, generator=torch.Generator().manual_seed(1))
    size = round(float(keep.sum()))
    by_tree = ExactSize(keep, size, closing=units).inclusion()
    by_limit = ExactSize(keep, size, closing=units // 8).inclusion()
    assert float((by_tree - by_limit).abs().max()) < error < float((by_tree - keep).abs().max()) * 10


def test_of_many_units_each_stays_as_often_as_its_inclusion_says() -> None:
    keep = 0.05 + 0.9 * torch.rand(400, generator=torch.Generator().manual_seed(2))
    made = ExactSize(keep, 210, closing=64)
    often = made.sample(4000, torch.Generator().manual_seed(3)).double().mean(dim=0)
    assert float((often - made.inclusion()).abs().max()) < 0.035
