"""The values that are passed around in a run. Symbols in shapes: U units, K masks, P parameters of a policy.

`keep` is True for a unit that stays. A higher score means keep. `sparsity` is the fraction of the prunable parameters
that is removed.
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
    """All units of one kind in one layer.

    Attributes:
        kind: the name of the kind, such as "head".
        layer: the number of the decoder layer, counted from 0.
        count: the number of units.
        spans: pairs of an axis' name and what the units own of it. A number n says that unit i owns the entries
            [i * n, (i + 1) * n); the last unit owns fewer if n does not divide the size of the axis. Otherwise it is
            one tuple for each unit, with the numbers of its entries.
    """

    kind: str
    layer: int
    count: int
    spans: tuple[tuple[str, Span], ...]

    @classmethod
    def finest(cls, kind: str, axis: Axis) -> UnitGroup:
        """Returns the smallest units that an axis can be cut into.

        A unit is as many neighbouring entries as the `multiple` of the axis. If the entries are in blocks, a unit is
        one entry of every block instead.
        """
        if axis.blocks == 1:
            return cls(kind, axis.layer, -(-axis.size // axis.multiple), ((axis.name, axis.multiple),))
        share = axis.size // axis.blocks
        units = tuple(tuple(range(place, axis.size, share)) for place in range(share))
        return cls(kind, axis.layer, share, ((axis.name, units),))

    def owner(self, axis: str, size: int) -> Tensor:
        """Returns (size,) int64: the number of the unit that owns each entry of the axis, of `size` entries."""
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
    """The scores of all units.

    Attributes:
        values: (U,) float32, finite; a higher score means keep.
        source: the name of the criterion that made them.
        comparable: whether the scores are comparable across layers already, so that they must not be scaled.
    """

    values: Tensor
    source: str
    comparable: bool = False


@dataclass(frozen=True)
class Policy:
    """A distribution of masks; this one keeps each unit independently with its own probability.

    Attributes:
        keep_prob: (U,) float32, the probability that each unit is kept, strictly between 0 and 1.
        group: (U,) int64, equal for units of one layer and kind, or None if not known.
        pool: (U,) int64, equal for units of one kind that share a budget, or None if not known.
    """

    keep_prob: Tensor
    group: Tensor | None = None
    pool: Tensor | None = None

    @staticmethod
    def bounded(keep_prob: Tensor) -> Tensor:
        """Returns the probabilities (U,) clipped to a range just inside 0 and 1, so that every unit can change."""
        return keep_prob.clamp(EPS, 1 - EPS)

    @property
    def parameters(self) -> Tensor:
        """The parameters (P,) that gradients are taken by; here they are `keep_prob`."""
        return self.keep_prob

    def sample(self, num_masks: int, rng: Generator, *, antithetic: bool = False) -> MaskBatch:
        """Draws masks: unit i is kept if a uniform number u in [0, 1) is below keep_prob[i].

        Args:
            num_masks: K, how many masks; an even number if they are antithetic.
            rng: the generator to draw from.
            antithetic: whether mask 2j + 1 uses 1 - u in place of the u of mask 2j.

        Returns:
            The masks (K, U) bool, with u (K, U) as their `noise`.
        """
        import torch

        s = self.keep_prob
        if antithetic:
            half = torch.rand((num_masks // 2, len(s)), generator=rng)
            noise = torch.stack([half, 1 - half], dim=1).flatten(0, 1)
        else:
            noise = torch.rand((num_masks, len(s)), generator=rng)
        return MaskBatch(noise < s, noise)

    def score_function(self, batch: MaskBatch) -> Tensor:
        """Returns the gradient (K, P) of log p(mask) by the parameters; here (m - s) / (s (1 - s)), s = keep_prob."""
        s = self.keep_prob
        return (batch.masks.to(s.dtype) - s) / (s * (1 - s))

    def pair_score(self, batch: MaskBatch) -> Tensor:
        """Returns (K / 2, P): for each antithetic pair, the factor of its loss difference in an unbiased gradient.

        Here it is (m - m') / (2 min(s, 1 - s)) for the masks m and m' of a pair, with s = keep_prob. It is zero for
        units that are equal in both (DisARM, Dong et al. 2020, arXiv 2006.10680, eq. 9).
        """
        s = self.keep_prob
        first, second = batch.masks[0::2].to(s.dtype), batch.masks[1::2].to(s.dtype)
        return (first - second) / (2 * s.minimum(1 - s))


@dataclass(frozen=True)
class MaskBatch:
    """K masks that an estimator draws from a policy, and what the search adds if the estimator asks for it.

    Attributes:
        masks: (K, U) bool, True for a unit that stays.
        noise: random numbers that the policy or the estimator needs again for its gradient, or None.
        gates: (K, U) float32, numbers to multiply the units with in place of the masks, or None. An estimator sets them
            to ask for `gate_gradients`.
        reference: (U,) bool, one more mask to run on the same text, or None. An estimator sets it to ask for
            `reference_loss`.
        gate_gradients: (K, U) float32, the derivative of each loss by its gates. The search sets it.
        reference_loss: the loss under `reference`, in nats per token. The search sets it.
    """

    masks: Tensor
    noise: Tensor | None = None
    gates: Tensor | None = None
    reference: Tensor | None = None
    gate_gradients: Tensor | None = None
    reference_loss: float | None = None


@dataclass(frozen=True)
class Selection:
    """The final decision which units stay.

    Attributes:
        keep: (U,) bool, True for a unit that stays.
        kept_cost: the number of prunable parameters that stay.
        total_cost: the number of all prunable parameters.
    """

    keep: Tensor
    kept_cost: int
    total_cost: int

    @property
    def sparsity(self) -> float:
        """The fraction of the prunable parameters that is removed."""
        return 1.0 - self.kept_cost / self.total_cost


@dataclass(frozen=True)
class LegalShapes:
    """The shapes that a format or a runtime can hold. Every mask of a search and every selection fits them.

    Attributes:
        multiple_of: maps a kind of unit to a number. Every layer keeps a multiple of that number of units.
        equal_widths: whether all layers have to keep the same number of units of a kind.
        empty_sublayers: whether a layer may keep no unit of a kind.
        added_biases: whether a repair may add biases to linear modules that have none in the dense model.
    """

    multiple_of: Mapping[str, int] = field(default_factory=dict, hash=False)
    equal_widths: bool = False
    empty_sublayers: bool = True
    added_biases: bool = True

    def both(self, other: LegalShapes) -> LegalShapes:
        """Returns the shapes that fit both."""
        kinds = {**self.multiple_of, **other.multiple_of}
        return LegalShapes(
            {kind: math.lcm(self.multiple_of.get(kind, 1), other.multiple_of.get(kind, 1)) for kind in kinds},
            self.equal_widths or other.equal_widths,
            self.empty_sublayers and other.empty_sublayers,
            self.added_biases and other.added_biases,
        )


@dataclass(frozen=True)
class ExportReport:
    """A report on what an exporter wrote.

    Attributes:
        path: the folder that was written.
        format: a name for the format.
        files: maps the name of each file inside `path` to its SHA-256.
        reload: Python code that loads the model and leaves it in a variable `model`. The name DIR in it stands for the
            path of the folder.
        parameters: the number of parameters of the model on disk.
        bytes: the size of all files together.
        details: anything else that a user may want to know, as JSON values.
    """

    path: Path
    format: str
    files: dict[str, str]
    reload: str
    parameters: int
    bytes: int
    details: dict[str, Any] = field(default_factory=dict)

    def reload_at(self, folder: Path) -> str:
        """Returns the code in `reload` with the path of `folder` in place of DIR."""
        return re.sub(r"\bDIR\b", lambda _: repr(str(folder)), self.reload)
