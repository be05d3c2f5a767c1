"""Numbers of units that a format or a runtime can hold in a layer: multiples, equal widths, no empty sublayer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyprune_core.errors import BudgetError
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import LegalShapes, UnitGroup

ANY_SHAPE = LegalShapes()


def least_counts(counts: Sequence[int], space: MaskSpace, shapes: LegalShapes) -> list[int]:
    """Returns for every group the smallest allowed number of units that is not below its count.

    Raises:
        BudgetError: a group has no such number.
    """
    found = []
    for count, group in zip(counts, space.groups, strict=True):
        step = shapes.multiple_of.get(group.kind, 1)
        must = 0 if shapes.empty_sublayers or _is_layer(group) else 1
        least = -(-max(count, must) // step) * step
        if least > group.count:
            raise BudgetError(
                f"layer {group.layer} has {group.count} units of kind {group.kind}, where at least {least}, a multiple "
                f"of {step}, have to stay; choose another --exporter, --target, --multiple-of or --granularity."
            )
        found.append(least)
    return found


def legal_counts(
    counts: Sequence[int], space: MaskSpace, shapes: LegalShapes, least: Sequence[int] | None = None
) -> list[int]:
    """Returns for every group the largest allowed number of units that is not above its count, but what it has to keep.

    Groups of a kind whose widths have to be equal keep as many as they do in the mean. None keeps less than `least`.
    Whole layers are gone or not: they have no width.

    Raises:
        BudgetError: widths have to be equal and some groups have to keep more than others.
    """
    least = least or [0] * len(space.groups)
    if shapes.equal_widths:
        if _differ(least, space):
            raise BudgetError(
                "layers have to be of equal widths, and --protect leaves some of them whole; choose another --exporter "
                "or --target, or protect nothing."
            )
        by_kind: dict[str, list[int]] = {}
        for count, group in zip(counts, space.groups, strict=True):
            by_kind.setdefault(group.kind, []).append(count)
        counts = [
            count if _is_layer(group) else sum(by_kind[group.kind]) // len(by_kind[group.kind])
            for count, group in zip(counts, space.groups, strict=True)
        ]
    steps = _steps(space, shapes)
    floors = least_counts(least, space, shapes)
    return [max(count // step * step, floor) for count, step, floor in zip(counts, steps, floors, strict=True)]


def _differ(least: Sequence[int], space: MaskSpace) -> bool:
    """Whether groups of one kind have to keep different numbers of units."""
    pairs = {(group.kind, count) for group, count in zip(space.groups, least, strict=True) if not _is_layer(group)}
    return len(pairs) > len({kind for kind, _ in pairs})


def refilled(
    counts: Sequence[int], scores: Tensor, labels: Tensor, room: Tensor, space: MaskSpace, shapes: LegalShapes
) -> list[int]:
    """Returns legal counts with as many legal steps more as the budgets leave room for.

    The step whose units score best in the mean comes first, and every group gets one before any gets a second. Groups
    that have to be equally wide step together. `labels` (U,) say which budget a unit is paid from, and `room` what is
    left of each.
    """
    counts, left, steps = list(counts), room.tolist(), _steps(space, shapes)
    ranked = [units.start + scores[units].double().argsort(descending=True, stable=True) for units in space.slices()]
    together: dict[object, list[int]] = {}
    for index, group in enumerate(space.groups):
        together.setdefault(group.kind if shapes.equal_widths and not _is_layer(group) else index, []).append(index)
    taken = dict.fromkeys(together, 0)
    while True:
        best: tuple[tuple[int, float], object, int, float] | None = None
        for name, groups in together.items():
            if any(counts[index] + steps[index] > space.groups[index].count for index in groups):
                continue
            units = torch.cat([ranked[index][counts[index] : counts[index] + steps[index]] for index in groups])
            price, label = float(space.price[units].sum()), int(labels[units[0]])
            order = (-taken[name], float(scores[units].double().mean()))
            if price <= left[label] and (best is None or order > best[0]):
                best = order, name, label, price
        if best is None:
            return counts
        _, name, label, price = best
        left[label] -= price
        taken[name] += 1
        for index in together[name]:
            counts[index] += steps[index]


def legal_masks(masks: Tensor, ranking: Tensor, space: MaskSpace, shapes: LegalShapes) -> Tensor:
    """Returns (K, U) bool: masks with the nearest allowed number of units in every group.

    Units that come in are those with the highest `ranking` (U,) of those that were out, and the other way round.
    """
    legal, floors = masks.clone(), least_counts([0] * len(space.groups), space, shapes)
    counts = torch.stack([masks[:, units].sum(1) for units in space.slices()]).double()
    if shapes.equal_widths:
        for kind in space.kinds:
            alike = [i for i, group in enumerate(space.groups) if group.kind == kind and not _is_layer(group)]
            counts[alike] = counts[alike].mean(0)
    parts = zip(space.slices(), space.groups, counts, _steps(space, shapes), floors, strict=True)
    for units, group, count, step, floor in parts:
        wanted = ((count / step + 0.5).floor() * step).clamp(floor, group.count // step * step)
        place = ranking[units].argsort(stable=True).argsort()
        order = (masks[:, units] * group.count + place).argsort(dim=1, descending=True)
        legal[:, units] = order.argsort(dim=1) < wanted[:, None]
    return legal


def _steps(space: MaskSpace, shapes: LegalShapes) -> list[int]:
    return [shapes.multiple_of.get(group.kind, 1) for group in space.groups]


def _is_layer(group: UnitGroup) -> bool:
    return group.count == 1 and len(group.spans) > 1
