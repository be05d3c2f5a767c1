"""What a target means for a space: each unit's price in the target's currency, and how much of it has to go.

Parameters, bytes and KV cache add up over units, so a target is a price vector and a sparsity for the projection and
the selection. Latency does not: its sparsity, of parameters, is found by timing smaller models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.protect import NOTHING, Protect
from polyprune_core.errors import BudgetError
from polyprune_core.models.layout import ModelLayout
from polyprune_core.pruning.budget import floors, lower, reachable, select
from polyprune_core.pruning.shapes import ANY_SHAPE
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import LegalShapes, Selection

LATENCY_STEP = 0.01


class Sizes(Protocol):
    """Bytes of a model's numbers."""

    @property
    def itemsize(self) -> int:
        """Bytes of one number that the model computes with, as in its KV cache."""

    @property
    def stored_itemsize(self) -> int:
        """Bytes of one number in the files of the weights."""


class Gauge(Sizes, Protocol):
    """What only the loaded model can tell."""

    def latency(self, space: MaskSpace, selection: Selection) -> float:
        """The smaller model's time as a fraction of the dense model's, measured on this device."""


@dataclass(frozen=True)
class PricedBudget:
    """A target on one space and scope: remove `sparsity` of the prices in `space`.

    `selected` says what a selection comes to, in the target's own terms (a fraction or an amount), `each` what one
    parameter does that a repair adds.
    """

    target: BudgetSpec
    space: MaskSpace
    sparsity: float
    selected: Callable[[Selection], float]
    each: float = 0.0

    def spent(self, selection: Selection, added: int = 0) -> float:
        """Returns what a selection and `added` new parameters come to."""
        return self.selected(selection) + added * self.each


@dataclass(frozen=True)
class Price:
    """A currency that adds up: each unit's price (U,), and the price of the whole dense model.

    `of_prunable`: a fraction is one of what can be pruned, not of the whole model. `stored`: its numbers are those of
    the weights' files, otherwise those that the model computes with. `each`: the price of one parameter that is added.
    """

    price: Callable[[MaskSpace, int], Tensor]
    whole: Callable[[ModelLayout, int], float]
    of_prunable: bool = False
    stored: bool = False
    each: Callable[[int], float] = lambda itemsize: 0.0


ADDITIVE = {
    "parameters": Price(
        lambda space, _: space.cost,
        lambda layout, _: layout.total_parameters,
        of_prunable=True,
        each=lambda _: 1.0,
    ),
    "bytes": Price(
        lambda space, itemsize: space.cost * itemsize,
        lambda layout, itemsize: layout.total_parameters * itemsize,
        stored=True,
        each=float,
    ),
    "kv-cache": Price(
        lambda space, itemsize: space.cached_values() * itemsize,
        lambda layout, itemsize: layout.cached_values * itemsize,
    ),
}


def price_budget(
    target: BudgetSpec,
    space: MaskSpace,
    scope: str,
    min_keep: int,
    gauge: Gauge,
    protect: Protect = NOTHING,
    shapes: LegalShapes = ANY_SHAPE,
) -> PricedBudget:
    """Returns what `target` means for `space`, every group of units keeping `min_keep`, protected layers all.

    `shapes`: what widths every selection has to have.

    Raises:
        BudgetError: the model already meets it, or nothing that may be removed can.
    """
    if target.currency in ADDITIVE:
        return price_sum(target, space, scope, min_keep, gauge, protect, shapes)
    return _timed(target, space, scope, min_keep, gauge, protect, shapes)


def price_sum(
    target: BudgetSpec,
    space: MaskSpace,
    scope: str,
    min_keep: int,
    sizes: Sizes,
    protect: Protect = NOTHING,
    shapes: LegalShapes = ANY_SHAPE,
) -> PricedBudget:
    """Returns what `price_budget` does, of a currency in `ADDITIVE`, for which nothing has to be measured."""
    currency = ADDITIVE[target.currency]
    itemsize = sizes.stored_itemsize if currency.stored else sizes.itemsize
    return _priced(target, currency, space, scope, min_keep, itemsize, protect, shapes)


def _priced(
    target: BudgetSpec,
    currency: Price,
    space: MaskSpace,
    scope: str,
    min_keep: int,
    itemsize: int,
    protect: Protect,
    shapes: LegalShapes,
) -> PricedBudget:
    price = currency.price(space, itemsize).double()
    priced, prunable, whole = space.priced(price), float(price.sum()), float(currency.whole(space.layout, itemsize))
    base = prunable if currency.of_prunable and target.relative else whole
    unit = base if target.relative else 1.0

    def left(sparsity: float) -> float:
        return (base - sparsity * prunable) / unit if unit else 0.0

    if not prunable:
        raise BudgetError(
            f"budget {target} cannot be met: units of {space.name or 'this granularity'} hold none of it; use another "
            "--granularity."
        )
    if target.amount >= left(0.0):
        raise BudgetError(f"budget {target} removes nothing: the dense model has {target.words(left(0.0))}. Give less.")
    most = reachable(priced, scope, min_keep, protect, shapes)
    if target.sparsity is not None:
        sparsity = target.sparsity
    elif target.amount < left(most) * (1 - 1e-12):
        raise _out_of_reach(target, left(most), space, min_keep, protect, shapes)
    else:
        sparsity = min(most, (base - target.amount * unit) / prunable)
    select(torch.zeros(len(space)), priced, sparsity, scope, min_keep, shapes, protect)

    def selected(selection: Selection) -> float:
        return (base - float(price[~selection.keep].sum())) / unit

    return PricedBudget(target, priced, sparsity, selected, currency.each(itemsize) / unit)


def _timed(
    target: BudgetSpec,
    space: MaskSpace,
    scope: str,
    min_keep: int,
    gauge: Gauge,
    protect: Protect,
    shapes: LegalShapes,
) -> PricedBudget:
    """Finds the least sparsity, in steps of one percent, at which a model cut evenly in every layer is fast enough.

    All criteria share what was found, so that their rows stay comparable; each row's own time is measured again.
    """

    def fraction(steps: int) -> float:
        evenly = select(torch.zeros(len(space)), space, steps * LATENCY_STEP, "layer", min_keep, shapes, protect)
        return gauge.latency(space, evenly)

    most = min(reachable(space, each, min_keep, protect, shapes) for each in (scope, "layer"))
    enough = int(most / LATENCY_STEP)
    fastest = fraction(enough) if enough else 1.0
    if fastest > target.amount:
        raise _out_of_reach(target, fastest, space, min_keep, protect, shapes)
    too_slow = 0
    while enough - too_slow > 1:
        middle = (too_slow + enough) // 2
        if fraction(middle) > target.amount:
            too_slow = middle
        else:
            enough = middle
    return PricedBudget(target, space, enough * LATENCY_STEP, lambda selection: gauge.latency(space, selection))


def _out_of_reach(
    target: BudgetSpec, least: float, space: MaskSpace, min_keep: int, protect: Protect, shapes: LegalShapes
) -> BudgetError:
    advice = "" if target.relative and least > 0.999 else f"{target.at_least(least)} or more, "
    return BudgetError(
        f"budget {target} cannot be met: with {floors(space, min_keep, protect, shapes)}, {target.words(least)} is "
        f"left at least. Use {advice}another --granularity or {lower(protect, shapes)}."
    )
