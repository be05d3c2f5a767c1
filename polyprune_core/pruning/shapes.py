"""Numbers of units that a format or a runtime can hold in a layer: multiples, equal widths, no empty sublayer."""

from __future__ import annotations

from collections.abc import Sequence

from polyprune_core.errors import BudgetError
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import LegalShapes

ANY_SHAPE = LegalShapes()


def least_counts(counts: Sequence[int], space: MaskSpace, shapes: LegalShapes) -> list[int]:
    """Returns for every group the smallest allowed number of units that is not below its count.

    Raises:
        BudgetError: a group has no such number.
    """
    found = []
    for count, group in zip(counts, space.groups, strict=True):
        step = shapes.multiple_of.get(group.kind, 1)
        least = -(-max(count, 0 if shapes.empty_sublayers else 1) // step) * step
        if least > group.count:
            raise BudgetError(
                f"layer {group.layer} has {group.count} units of kind {group.kind}, and the format to write needs a "
                f"multiple of {step}; choose another --exporter, or another --granularity."
            )
        found.append(least)
    return found


def legal_counts(
    counts: Sequence[int], space: MaskSpace, shapes: LegalShapes, least: Sequence[int] | None = None
) -> list[int]:
    """Returns for every group the largest allowed number of units that is not above its count, but what it has to keep.

    Groups of a kind whose widths have to be equal keep as many as they do in the mean. None keeps less than `least`.

    Raises:
        BudgetError: widths have to be equal and some groups have to keep more than others.
    """
    least = least or [0] * len(space.groups)
    if shapes.equal_widths:
        if any(least):
            raise BudgetError(
                "the format to write needs layers of equal widths, and --protect leaves some of them whole; choose "
                "another --exporter, or protect nothing."
            )
        by_kind: dict[str, list[int]] = {}
        for count, group in zip(counts, space.groups, strict=True):
            by_kind.setdefault(group.kind, []).append(count)
        counts = [sum(by_kind[group.kind]) // len(by_kind[group.kind]) for group in space.groups]
    steps = [shapes.multiple_of.get(group.kind, 1) for group in space.groups]
    floors = least_counts(least, space, shapes)
    return [max(count // step * step, floor) for count, step, floor in zip(counts, steps, floors, strict=True)]
