"""The sparsity budget: the rules of a selection, and the exact selection under them.

Here `sparsity` is the fraction of the price of all units that is removed. The price is the number of parameters, unless
the space is priced in another currency, such as bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyprune_core.config.protect import NOTHING, Protect
from polyprune_core.errors import BudgetError
from polyprune_core.pruning.pools import SCOPES, distinct, keep_rates, pool_labels, protected
from polyprune_core.pruning.projection import project, shift_logits
from polyprune_core.pruning.shapes import ANY_SHAPE, least_counts, legal_counts, legal_masks, refilled
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import LegalShapes, Selection


@dataclass(frozen=True)
class SelectionRule:
    """The rules that a selection has to meet: how much is removed, which units share a budget, and which must stay.

    Attributes:
        sparsity: the fraction of the price of each pool to remove, from 0 to 1.
        scope: which units are one pool: "kind", "global" or "layer".
        min_keep: the fewest units that stay in each group, that is, in each layer for each kind. It does not hold for a
            unit that is alone in its group, such as a whole layer.
        shapes: the numbers of units that may stay.
        protect: the layers of which every unit stays.
    """

    sparsity: float
    scope: str = "kind"
    min_keep: int = 1
    shapes: LegalShapes = ANY_SHAPE
    protect: Protect = NOTHING

    def select(self, scores: Tensor, space: MaskSpace) -> Selection:
        """Returns the best units by scores (U,) that fit the budget; never more than that, also for equal scores.

        Units are taken by descending score as long as they fit; units with equal scores are taken in their own order.

        Raises:
            BudgetError: the units that must stay cost more than the budget, or a group has no allowed number of units.
        """
        return select(scores, space, self.sparsity, self.scope, self.min_keep, self.shapes, self.protect)

    def project(self, values: Tensor, space: MaskSpace) -> Tensor:
        """Returns the keep probabilities (U,) within the budget that are nearest to `values` (U,).

        It is the Euclidean projection onto the constraint set of arXiv 2406.10576, eq. 4.
        """
        return project(values, space, self.sparsity, self.scope, protect=self.protect)

    def shift_logits(self, logits: Tensor, space: MaskSpace) -> Tensor:
        """Returns (U,): what to subtract from each logit (U,) so that the sigmoids of the logits meet the budget.

        Within a pool the shift is proportional to the price of a unit. It is 0 if the budget is met already.
        """
        return shift_logits(logits, space, self.sparsity, self.scope, protect=self.protect)

    def whole(self, space: MaskSpace) -> Tensor:
        """Returns (U,) bool: the units of protected layers, which stay whatever their scores."""
        return protected(space, self.protect)

    def least(self, space: MaskSpace) -> list[int]:
        """Returns for every group the fewest of its units that have to stay."""
        return _least(space, self.min_keep, self.protect)

    def legal(self, masks: Tensor, ranking: Tensor, space: MaskSpace) -> Tensor:
        """Returns masks (K, U) bool changed so that every group keeps an allowed number of units, the nearest one.

        Units with the highest `ranking` (U,) are added first, and those with the lowest are removed first.
        """
        return masks if self.shapes == ANY_SHAPE else legal_masks(masks, ranking, space, self.shapes)

    def at(self, sparsity: float) -> SelectionRule:
        """Returns the same rules at another sparsity."""
        return replace(self, sparsity=sparsity)

    def pool_labels(self, space: MaskSpace) -> Tensor:
        """Returns (U,) int64: the number is equal for units of one kind that share a budget."""
        return pool_labels(space, self.scope)


def select(
    scores: Tensor,
    space: MaskSpace,
    sparsity: float,
    scope: str,
    min_keep: int = 1,
    shapes: LegalShapes = ANY_SHAPE,
    protect: Protect = NOTHING,
) -> Selection:
    """Returns the best units that fit the budget; never more than that, also for equal scores.

    Each group of more than one unit first keeps its best `min_keep` units, and a protected layer keeps all. Further
    units are taken by descending score (U,) as long as they fit; units with equal scores are taken in their own order.
    In scope `layer` every pool first gets the whole number of units that its share pays for. The rest of the budget
    goes to the best of the units that are left over, at most one more for each pool before any pool gets a second. The
    number of units of each group is then rounded down to a number that `shapes` allows. What this frees of the budget
    pays for further allowed steps.

    Raises:
        BudgetError: the units that must stay cost more than the budget, or a group has no allowed number of units.
    """
    order = torch.argsort(scores.double(), descending=True, stable=True)
    floor = _floor(order, space, min_keep, shapes, protect)
    keep = floor.clone()
    labels = SCOPES["kind" if scope == "layer" else scope](space)
    prices = torch.bincount(labels, space.price).tolist()
    held = torch.bincount(labels, space.price * floor).tolist()
    waiting = order[~floor[order]]
    for label in distinct(labels):
        budget = (1 - sparsity) * prices[label] * (1 + 1e-12)
        if held[label] > budget:
            raise BudgetError(_floor_message(space, sparsity, min_keep, shapes, protect, _held(space, floor, labels)))
        own = waiting[labels[waiting] == label]
        if scope == "layer":
            own = _layers_first(own, floor, space, keep_rates(space, sparsity, scope, protect))
        keep[_fitting(own, space.price, budget - held[label])] = True
    if shapes != ANY_SHAPE:
        counts = [int(keep[units].sum()) for units in space.slices()]
        counts = legal_counts(counts, space, shapes, _least(space, 0, protect))
        spent = torch.bincount(labels, space.price * _best(order, space, counts))
        room = (1 - sparsity) * torch.tensor(prices) * (1 + 1e-12) - spent
        keep = _best(order, space, refilled(counts, scores, labels, room, space, shapes))
    return Selection(keep, int(space.cost[keep].sum()), space.total_cost)


def _floor(order: Tensor, space: MaskSpace, min_keep: int, shapes: LegalShapes, protect: Protect) -> Tensor:
    return _best(order, space, least_counts(_least(space, min_keep, protect), space, shapes))


def _least(space: MaskSpace, min_keep: int, protect: Protect) -> list[int]:
    layers = space.layout.num_layers
    return [
        group.count
        if protect.covers(group.layer, layers)
        else max(floor, min(min_keep, group.count))
        if group.count > 1
        else 0
        for group, floor in zip(space.groups, space.floors, strict=True)
    ]


def _best(order: Tensor, space: MaskSpace, counts: Sequence[int]) -> Tensor:
    """Returns (U,) bool: as many units of each group as its count says, the first in `order`."""
    best = torch.zeros(len(space), dtype=torch.bool)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    for units, count in zip(space.slices(), counts, strict=True):
        if count:
            best[units.start + place[units].topk(count, largest=False).indices] = True
    return best


def _layers_first(waiting: Tensor, floor: Tensor, space: MaskSpace, rates: Tensor) -> Tensor:
    """Reorders units so that each layer's own whole share comes first, then one more of each layer by score."""
    groups = zip(space.groups, rates[space.offsets].tolist(), strict=True)
    share = torch.tensor([math.floor(group.count * rate + 1e-9) for group, rate in groups])
    held = torch.bincount(space.group[floor], minlength=len(space.groups))
    group = space.group[waiting]
    beyond = (_rank_within(group) + held[group] - share[group] + 1).clamp(min=0)
    return waiting[torch.argsort(beyond, stable=True)]


def _rank_within(labels: Tensor) -> Tensor:
    """Returns for each position how many earlier positions carry the same label."""
    by_label = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[by_label] = torch.arange(len(labels)) - starts[labels[by_label]]
    return rank


def _fitting(waiting: Tensor, cost: Tensor, budget: float) -> Tensor:
    """Returns the units of `waiting` that fit when taken in order, skipping those that do not."""
    taken = []
    while len(waiting):
        total = cost[waiting].cumsum(0)
        fits = int((total <= budget).sum())
        taken.append(waiting[:fits])
        budget -= float(total[fits - 1]) if fits else 0.0
        rest = waiting[fits + 1 :]
        waiting = rest[cost[rest] <= budget]
    return torch.cat(taken) if taken else waiting


def reachable(
    space: MaskSpace, scope: str, min_keep: int, protect: Protect = NOTHING, shapes: LegalShapes = ANY_SHAPE
) -> float:
    """Returns the largest sparsity that leaves every group its floor; 0 where no unit has a price."""
    labels = SCOPES["kind" if scope == "layer" else scope](space)
    return 1 - _held(space, _floor(torch.arange(len(space)), space, min_keep, shapes, protect), labels)


def _held(space: MaskSpace, floor: Tensor, labels: Tensor) -> float:
    """Returns the largest fraction of a pool's price that the floor holds."""
    parts = [(space.price[labels == label], floor[labels == label]) for label in labels.unique()]
    return max((float(price[kept].sum() / price.sum()) for price, kept in parts if price.any()), default=1.0)


def _floor_message(
    space: MaskSpace, sparsity: float, min_keep: int, shapes: LegalShapes, protect: Protect, held: float
) -> str:
    limit = math.floor((1 - held) * 1000) / 1000
    other = lower(protect, shapes)
    way_out = f"Use sparsity {limit:g} or less, or {other}." if limit > 0 else f"Use {other}."
    return (
        f"sparsity {sparsity:g} cannot be met: {floors(space, min_keep, protect, shapes)} already hold {held:.1%} of a "
        f"pool. {way_out}"
    )


def lower(protect: Protect, shapes: LegalShapes) -> str:
    """Returns what leaves less to stay, for an error to advise."""
    told = ["a lower --min-keep", *["a smaller --protect"] * bool(protect)]
    return " or ".join([*told, *["other widths (--exporter, --target, --multiple-of)"] * (shapes != ANY_SHAPE)])


def floors(space: MaskSpace, min_keep: int, protect: Protect, shapes: LegalShapes = ANY_SHAPE) -> str:
    """Returns what has to stay, for an error to tell."""
    told = f"{min_keep} unit(s) kept in every group of {space.name or 'this space'}"
    steps = [f"{shapes.multiple_of[kind]} of {kind}" for kind in space.kinds if shapes.multiple_of.get(kind, 1) > 1]
    told += f", rounded up to multiples of {' and '.join(steps)}," if steps else ""
    told += "" if shapes.empty_sublayers else ", none of them emptied,"
    return told + (f" and the layers that --protect {protect} leaves whole" if protect else "")
