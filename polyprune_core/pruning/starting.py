"""Where a policy comes from: scores turned into keep probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyprune_core.errors import ConfigError, unknown_name
from polyprune_core.pruning.budget import SCOPES, SelectionRule
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
    """Where a search policy starts: the units, a metric's scores of them, and what a selection has to meet."""

    space: MaskSpace
    scores: Scores
    rule: SelectionRule

    def keep_prob(self, how: str = "sigmoid-norm") -> Tensor:
        """Returns (U,): the keep probabilities that the metric starts, within the budget.

        `sigmoid-norm` (arXiv 2406.10576): sigmoid of the z-score within each layer and kind, shifted so that its mean
        is the keep rate. `sigmoid-norm-released`: the same with a variance that divides by n - 1, as in the released
        initialiser. `min-max-norm`: min-max instead of the sigmoid. `const`: 0.9 for the units that the metric would
        keep in that layer, 0.1 for the others. `uniform`: the keep rate everywhere; the metric is unused. For scores
        that are comparable across layers it is the same within each pool of the scope.

        Raises:
            ConfigError: there is no such way.
        """
        if how not in PROBABILITIES:
            raise ConfigError(unknown_name("way from scores to keep probabilities", how, PROBABILITIES))
        labels = SCOPES[self.rule.scope](self.space) if self.scores.comparable else self.space.peers
        return self.rule.project(PROBABILITIES[how](self.scores.values, labels, 1 - self.rule.sparsity), self.space)

    def scaled(self, how: str) -> Tensor:
        """Returns (U,): the scores made comparable across layers, `raw`, `zscore` or `per-parameter`.

        Scores that are comparable already stay as they are.

        Raises:
            ConfigError: there is no such scale.
        """
        if how not in SCALES:
            raise ConfigError(unknown_name("scale", how, SCALES))
        return scale(self.scores.values, self.space, "raw" if self.scores.comparable else how)
