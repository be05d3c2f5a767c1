"""The values that flow through a run. U units, K masks, B sequences, T tokens.

`keep` is True where a unit stays; a higher score means keep; `sparsity` is the fraction of prunable parameters removed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Generator, Tensor

    from polyprune_core.models.layout import Axis


SCOPE_NAMES = ("kind", "global", "layer")
# Keep probabilities stay this far off 0 and 1.
EPS = 1e-3
Span = int | tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class UnitGroup:
    """A run of `count` like units of one layer.

    `spans` are (axis name, which entries): a number n says that unit i owns entries [i * n, (i + 1) * n) of the axis,
    the last unit fewer where n does not divide them; otherwise the entries of each unit are listed, one tuple a unit.
    """

    kind: str
    layer: int
    count: int
    spans: tuple[tuple[str, Span], ...]

    @classmethod
    def finest(cls, kind: str, axis: Axis) -> UnitGroup:
        """Returns units of an axis as small as its entries can be cut.

        As many neighbouring entries as its `multiple`; where entries are in blocks, the r-th of every block.
        """
        if axis.blocks == 1:
            return cls(kind, axis.layer, -(-axis.size // axis.multiple), ((axis.name, axis.multiple),))
        share = axis.size // axis.blocks
        units = tuple(tuple(range(place, axis.size, share)) for place in range(share))
        return cls(kind, axis.layer, share, ((axis.name, units),))

    def owner(self, axis: str, size: int) -> Tensor:
        """Returns (size,) int64: which unit owns each entry of one of its axes."""
        import torch

        span = dict(self.spans)[axis]
        if isinstance(span, int):
            return torch.arange(size) // span
        owner = torch.empty(size, dtype=torch.long)
        for unit, entries in enumerate(span):
            owner[list(entries)] = unit
        return owner


@dataclass(frozen=True)
class Scores:
    """How much each unit matters: `values` (U,) float32, finite, higher = keep; `source` names the criterion.

    `comparable`: whether they already say how much each layer gives, so that no scaling may change that.
    """

    values: Tensor
    source: str
    comparable: bool = False


@dataclass(frozen=True)
class Policy:
    """Independent Bernoulli masks: `keep_prob` (U,) float32, strictly between 0 and 1.

    Where they are known, `group` (U,) int64 is equal for units of one layer and kind, and `pool` (U,) int64 for units
    of one kind that share a budget.
    """

    keep_prob: Tensor
    group: Tensor | None = None
    pool: Tensor | None = None

    @staticmethod
    def bounded(keep_prob: Tensor) -> Tensor:
        """Returns probabilities kept off 0 and 1, where the score function vanishes and a unit could never return."""
        return keep_prob.clamp(EPS, 1 - EPS)

    @property
    def parameters(self) -> Tensor:
        """What a gradient is taken with respect to: (P,), here keep_prob."""
        return self.keep_prob

    def sample(self, num_masks: int, rng: Generator, *, antithetic: bool = False) -> MaskBatch:
        """Draws masks [u < s] with u uniform; antithetic: mask 2j + 1 uses 1 - u of mask 2j. `noise` is u (K, U)."""
        import torch

        s = self.keep_prob
        if antithetic:
            half = torch.rand((num_masks // 2, len(s)), generator=rng)
            noise = torch.stack([half, 1 - half], dim=1).flatten(0, 1)
        else:
            noise = torch.rand((num_masks, len(s)), generator=rng)
        return MaskBatch(noise < s, noise)

    def score_function(self, batch: MaskBatch) -> Tensor:
        """Returns (K, P): d log p(mask) / d parameters, here (m - s) / (s (1 - s))."""
        s = self.keep_prob
        return (batch.masks.to(s.dtype) - s) / (s * (1 - s))

    def pair_score(self, batch: MaskBatch) -> Tensor:
        """Returns (K / 2, P): what the loss gap of each antithetic pair is multiplied with, for an unbiased gradient.

        Here (m - m') / (2 min(s, 1 - s)), zero where the two agree (DisARM, Dong et al. 2020, arXiv 2006.10680, eq. 9).
        """
        s = self.keep_prob
        first, second = batch.masks[0::2].to(s.dtype), batch.masks[1::2].to(s.dtype)
        return (first - second) / (2 * s.minimum(1 - s))


@dataclass(frozen=True)
class MaskBatch:
    """K masks drawn from a policy.

    `masks` (K, U) bool; `noise` is whatever the policy or the estimator needs to pair its draws. An estimator may ask
    for more: `gates` (K, U) float32, what units are multiplied with instead of the mask where gradients are taken;
    `reference` (U,) bool, one more mask to run on the same text. The search answers with `gate_gradients` (K, U)
    float32, the derivative of each loss with respect to its gates, and `reference_loss` in nats per token.
    """

    masks: Tensor
    noise: Tensor | None = None
    gates: Tensor | None = None
    reference: Tensor | None = None
    gate_gradients: Tensor | None = None
    reference_loss: float | None = None


@dataclass(frozen=True)
class Selection:
    """The hard decision: `keep` (U,) bool, with the parameters it keeps out of all prunable ones."""

    keep: Tensor
    kept_cost: int
    total_cost: int

    @property
    def sparsity(self) -> float:
        """Fraction of prunable parameters removed."""
        return 1.0 - self.kept_cost / self.total_cost


@dataclass(frozen=True)
class LegalShapes:
    """What a format or a runtime can hold, known before anything is selected; every selection and every mask obeys it.

    Attributes:
        multiple_of: kind of unit to the number that units of that kind are kept in multiples of in every layer.
        equal_widths: whether all layers have to keep as many units of a kind.
        empty_sublayers: whether a layer may keep none of a kind.
        added_biases: whether a repair may add biases to linear modules that have none in the dense model.
    """

    multiple_of: Mapping[str, int] = field(default_factory=dict, hash=False)
    equal_widths: bool = False
    empty_sublayers: bool = True
    added_biases: bool = True

    def both(self, other: LegalShapes) -> LegalShapes:
        """Returns what both hold."""
        kinds = {**self.multiple_of, **other.multiple_of}
        return LegalShapes(
            {kind: math.lcm(self.multiple_of.get(kind, 1), other.multiple_of.get(kind, 1)) for kind in kinds},
            self.equal_widths or other.equal_widths,
            self.empty_sublayers and other.empty_sublayers,
            self.added_biases and other.added_biases,
        )


@dataclass(frozen=True)
class ExportReport:
    """What an exporter wrote.

    Attributes:
        path: the folder.
        format: a name for what lies in it.
        files: names inside `path` to their SHA-256.
        reload: Python that loads it again and leaves the model in `model`; the name DIR stands for the folder's path.
        parameters: how many the model on disk has.
        bytes: size of all files.
        details: whatever else a user may want to know, JSON-able.
    """

    path: Path
    format: str
    files: dict[str, str]
    reload: str
    parameters: int
    bytes: int
    details: dict[str, Any] = field(default_factory=dict)

    def reload_at(self, folder: Path) -> str:
        """Returns `reload` with the path of a folder in place of DIR."""
        return re.sub(r"\bDIR\b", lambda _: repr(str(folder)), self.reload)
