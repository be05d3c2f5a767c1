"""Two folders of masks of the same units side by side: what both keep by layer, and how alike their scores are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scipy.stats import kendalltau
from torch import Tensor

from polyprune_core.errors import ConfigError
from polyprune_core.pruning.mask_file import MaskFile
from polyprune_core.pruning.types import UnitGroup


@dataclass(frozen=True)
class GroupDiff:
    """One layer and kind: how many units each keeps, and both; `tau` is Kendall's rank correlation of the scores.

    `overlap` is the units that both keep as a fraction of those that either keeps (Jaccard). `tau` is None where there
    is one unit, or all scores are equal.
    """

    kind: str
    layer: int
    units: int
    first: int
    second: int
    both: int
    tau: float | None

    @property
    def overlap(self) -> float:
        """Of the units that either keeps, the fraction that both keep; 1 where neither keeps any."""
        either = self.first + self.second - self.both
        return self.both / either if either else 1.0


def diff(first: Path, second: Path) -> list[GroupDiff]:
    """Compares masks group by group.

    Raises:
        ModelError: a folder holds no masks.
        ConfigError: they are masks of different units or models.
    """
    ours, theirs = MaskFile.read(first), MaskFile.read(second)
    if ours.base.sha256 != theirs.base.sha256 or ours.groups != theirs.groups:
        raise ConfigError(
            f"{first} has masks of {ours.granularity} in {ours.base.name}, {second} of {theirs.granularity} in "
            f"{theirs.base.name}: only masks of one model and one granularity can be compared. Give two such folders."
        )
    found, start = [], 0
    for group in ours.groups:
        units = slice(start, start + group.count)
        start += group.count
        kept = ours.keep[units], theirs.keep[units]
        found.append(_compared(group, *kept, _tau(ours.scores.values[units], theirs.scores.values[units])))
    return found


def table(groups: list[GroupDiff]) -> list[str]:
    """Returns the comparison for people, with a line for all units."""
    lines = [
        f"{'layer':>5}  {'kind':<10} {'units':>7} {'first':>7} {'second':>7} {'both':>7} {'overlap':>8} {'tau':>7}"
    ]
    for group in groups:
        tau = "" if group.tau is None else f"{group.tau:.3f}"
        lines.append(
            f"{group.layer:>5}  {group.kind:<10} {group.units:>7} {group.first:>7} {group.second:>7} "
            f"{group.both:>7} {group.overlap:>8.1%} {tau:>7}"
        )
    first, second, both = (sum(getattr(group, name) for group in groups) for name in ("first", "second", "both"))
    units, either = sum(group.units for group in groups), first + second - both
    share = both / either if either else 1.0
    return [*lines, f"{'all':>5}  {'':<10} {units:>7} {first:>7} {second:>7} {both:>7} {share:>8.1%}"]


def _compared(group: UnitGroup, first: Tensor, second: Tensor, tau: float | None) -> GroupDiff:
    kept = (int(first.sum()), int(second.sum()), int((first & second).sum()))
    return GroupDiff(group.kind, group.layer, group.count, *kept, tau)


def _tau(first: Tensor, second: Tensor) -> float | None:
    tau = float(kendalltau(first.numpy(), second.numpy()).statistic) if len(first) > 1 else float("nan")
    return None if tau != tau else tau
