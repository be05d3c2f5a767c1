"""How a search policy starts: the scores of a metric become keep probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyprune_core.errors import ConfigError, unknown_name
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pools import SCOPES
from polyprune_core.pruning.scaling import SCALES, scale, zscore
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Scores


def _sigmoid_norm(values: Tensor, labels: Tensor, keep: float) -> Tensor:
    return _shift_to_mean(torch.sigmoid(zscore(values, labels)), labels, keep)


def _sigmoid_norm_released(values: Tensor, labels: Tensor, keep: float) -> Tensor:
    return _shift_to_mean(torch.sigmoid(zscore(values, labels, less=1)), labels, keep)


def _min_max_norm(values: Tensor, labels: Tensor, keep: float) -> Tensor:
    probability = torch.empty_like(values)
    for label in labels.unique():
        where = labels == label
        low, high = values[where].min(), values[where].max()
        probability[where] = (values[where] - low) / (high - low).clamp(min=1e-37)
    return _shift_to_mean(probability, labels, keep)


def _const(values: Tensor, labels: Tensor, keep: float, confidence: float = 0.9) -> Tensor:
    probability = torch.empty_like(values)
    for label in labels.unique():
        where = (labels == label).nonzero().flatten()
        best = values[where].argsort(descending=True, stable=True)[: round(keep * len(where))]
        probability[where] = 1 - confidence
        probability[where[best]] = confidence
    return probability


def _uniform(values: Tensor, labels: Tensor, keep: float) -> Tensor:
    return torch.full_like(values, keep)


def _shift_to_mean(probability: Tensor, labels: Tensor, keep: float) -> Tensor:
    mean = torch.bincount(labels, probability.double()) / torch.bincount(labels).clamp(min=1)
    return (probability + (keep - mean[labels])).float()


PROBABILITIES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "sigmoid-norm": _sigmoid_norm,
    "sigmoid-norm-released": _sigmoid_norm_released,
    "min-max-norm": _min_max_norm,
    "const": _const,
    "uniform": _uniform,
}


@dataclass(frozen=True)
class PolicyStart:
    """What a search policy starts from.

    Attributes:
        space: the units.
        scores: a metric's scores of the units.
        rule: the sparsity, the scope and the other rules that a selection has to meet.
    """

    space: MaskSpace
    scores: Scores
    rule: SelectionRule

    def keep_prob(self, how: str = "sigmoid-norm") -> Tensor:
        """Returns keep probabilities (U,) float32 within the budget, made from the scores.

        Args:
            how: the conversion. `sigmoid-norm` (arXiv 2406.10576) is the sigmoid of the z-score within each layer and
                kind, shifted so that the mean is the fraction to keep. `sigmoid-norm-released` is the same, with a
                variance that divides by n - 1, as in the released code. `min-max-norm` scales the scores to [0, 1] in
                place of the sigmoid. `const` is 0.9 for the units that the metric would keep in that layer and 0.1 for
                the others. `uniform` is the fraction to keep for every unit, without regard to the scores. If the
                scores are comparable across layers, all of this is done within each pool of the scope in place of each
                layer.

        Raises:
            ConfigError: `how` is none of these names.
        """
        if how not in PROBABILITIES:
            raise ConfigError(unknown_name("way from scores to keep probabilities", how, PROBABILITIES))
        labels = SCOPES[self.rule.scope](self.space) if self.scores.comparable else self.space.peers
        return self.rule.project(PROBABILITIES[how](self.scores.values, labels, 1 - self.rule.sparsity), self.space)

    def scaled(self, how: str) -> Tensor:
        """Returns the scores (U,) made comparable across layers.

        Args:
            how: `raw` leaves the scores as they are, `zscore` standardises them within each layer, and `per-parameter`
                divides them by the cost of the unit. Scores that are comparable already always stay as they are.

        Raises:
            ConfigError: `how` is none of these names.
        """
        if how not in SCALES:
            raise ConfigError(unknown_name("scale", how, SCALES))
        return scale(self.scores.values, self.space, "raw" if self.scores.comparable else how)
