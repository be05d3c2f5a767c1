"""A pruned model in memory: everything an exporter needs to write it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyprune_core.models.layout import ModelLayout
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Policy, Scores, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core.models.sources import LoadedModel


@dataclass(frozen=True)
class PrunedModel:
    """The dense model together with the decision of what stays.

    Attributes:
        base: the untouched model, its tokenizer, name and weights hash.
        scores: what `selection` ranked: the metric's scores, or the learned keep probabilities.
        policy: the learned policy; None for a metric alone.
        recipe: JSON-able record of how it was made (granularity, initializer, estimator, sparsity, scope, seed, …).
    """

    base: LoadedModel
    space: MaskSpace
    selection: Selection
    scores: Scores
    policy: Policy | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> ModelLayout:
        """The dense model's layout."""
        return self.space.layout

    def axis_keep(self) -> dict[str, Tensor]:
        """Kept entries by axis name, as `surgery.compact_state_dict` takes them."""
        return self.space.axis_keep(self.selection.keep)
