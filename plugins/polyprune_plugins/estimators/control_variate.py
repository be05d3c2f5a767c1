"""Control variate: leave-one-out comparison of what is left of each loss after a linear fit to past steps.

Units are put into buckets: a bucket has units of one layer and kind with similar keep probabilities at the start, that
is, with similar scores of the metric. A linear model predicts the loss from how many units of each bucket a mask keeps,
and from the metric's logit of the keep probability. It is fitted by ridge regression to the masks and losses of past
steps; the losses are centred within each step. With w_i the slope of unit i in this model, the gradient is

    g = 1/(K-1) sum_k (R_k - mean R) score_k + w,   R_k = L_k - w (m_k - s),

where L_k is the loss of mask m_k, score_k the gradient of log p(m_k), and s the keep probabilities. The part of the
loss that the model explains is taken out of the noisy first term, and its exact gradient w is added again. The fit does
not use the masks of the current step, so the estimate is unbiased. The fit is our own; control variates are standard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class ControlVariate:
    """Estimates the gradient with RLOO and a fitted control variate.

    Options:
        buckets: how many buckets the units of each layer and kind are put into.
        ridge: the weight of the ridge, which pulls the fit towards slopes of 0, in units of past masks.
        memory: the factor by which the weight of past steps shrinks at each step, from 0 to 1.
    """

    buckets: int = 4
    ridge: float = 10.0
    memory: float = 0.99

    min_masks = 2
    mask_multiple = 1
    unbiased = True
    precondition = None
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, rng)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        past = self._first(policy) if state is None else state
        slope = self._slopes(past).to(losses.dtype)
        centred = batch.masks.to(losses.dtype) - policy.keep_prob
        rest = losses - centred @ slope
        gradient = (rest - rest.mean()) @ policy.score_function(batch) / (len(losses) - 1) + slope
        return gradient, self._fitted(past, batch, losses)

    def _first(self, policy: Policy) -> dict[str, Any]:
        import torch

        s = policy.keep_prob
        group = torch.zeros(len(s), dtype=torch.long) if policy.group is None else policy.group
        order = torch.argsort(s, stable=True)
        order = order[torch.argsort(group[order], stable=True)]
        count = torch.bincount(group)
        place = torch.empty_like(group)
        place[order] = torch.arange(len(s)) - (count.cumsum(0) - count)[group[order]]
        bucket = group * self.buckets + place * self.buckets // count[group]
        features = int(bucket.max()) + 2
        return {
            "bucket": bucket,
            "metric": s.logit(),
            "gram": torch.zeros(features, features, dtype=torch.float64),
            "moment": torch.zeros(features, dtype=torch.float64),
        }

    def _slopes(self, past: Mapping[str, Any]) -> Tensor:
        """Returns (U,) float64: what the surrogate says of each unit."""
        import torch

        prior = torch.full_like(past["moment"], self.ridge)
        prior[-1] = self.ridge / 1000
        weight = torch.linalg.solve(past["gram"] + prior.diag(), past["moment"])
        slopes: Tensor = (weight[past["bucket"]] * _norm(past)[past["bucket"]]) + weight[-1] * _metric(past)
        return slopes

    def _fitted(self, past: Mapping[str, Any], batch: MaskBatch, losses: Tensor) -> dict[str, Any]:
        import torch

        masks = batch.masks.double() - batch.masks.double().mean(dim=0)
        kept = torch.zeros(len(masks), len(past["moment"]), dtype=torch.float64).index_add_(1, past["bucket"], masks)
        features = kept * _norm(past)
        features[:, -1] = masks @ _metric(past)
        gram = self.memory * past["gram"] + features.T @ features
        moment = self.memory * past["moment"] + features.T @ (losses - losses.mean()).double()
        return {**past, "gram": gram, "moment": moment}


def _norm(past: Mapping[str, Any]) -> Tensor:
    """Returns (features,): one over the root of the number of units of each bucket, so that all vary alike."""
    import torch

    count = torch.bincount(past["bucket"], minlength=len(past["moment"]))
    norm: Tensor = count.clamp(min=1).double().rsqrt()
    return norm


def _metric(past: Mapping[str, Any]) -> Tensor:
    metric: Tensor = past["metric"].double()
    unit: Tensor = metric / metric.norm().clamp(min=1e-12)
    return unit


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider(
        "control-variate",
        "leave-one-out beyond a linear fit of past losses",
        ControlVariate,
        reference="after Grathwohl et al. 2018, arXiv 1711.00123",
    )
