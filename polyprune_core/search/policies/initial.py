"""Where a policy comes from: scores turned into keep probabilities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyprune_core.pruning.budget import SCOPES, project
from polyprune_core.pruning.scaling import zscore
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Policy, Scores


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


def from_scores(scores: Scores, space: MaskSpace, sparsity: float, scope: str, how: str = "sigmoid-norm") -> Policy:
    """Returns the policy that a metric starts, projected onto the budget.

    `sigmoid-norm` (arXiv 2406.10576): sigmoid of the z-score within each layer and kind, shifted so that its mean is
    the keep rate. `sigmoid-norm-released`: the same with a variance that divides by n - 1, as in the released
    initialiser. `min-max-norm`: min-max instead of the sigmoid. `const`: 0.9 for the units that
    the metric would keep in that layer, 0.1 for the others. `uniform`: the keep rate everywhere; the metric is unused.
    For scores that are comparable across layers it is the same within each pool of `scope`.
    """
    labels = SCOPES[scope](space) if scores.comparable else space.peers
    return Policy(project(PROBABILITIES[how](scores.values, labels, 1 - sparsity), space, sparsity, scope))


def entropy(policy: Policy) -> float:
    """Mean entropy of a unit's mask, in bits."""
    s = policy.keep_prob.double()
    return float(-(s * s.log2() + (1 - s) * (1 - s).log2()).mean())


def expected_sparsity(policy: Policy, space: MaskSpace) -> float:
    """Expected fraction of prunable parameters removed."""
    return 1.0 - float(space.cost @ policy.keep_prob.double()) / space.total_cost
