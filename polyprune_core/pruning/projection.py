"""What a search learns, brought within the budget: probabilities by projection, logits by a shift."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from scipy.optimize import brentq
from torch import Tensor

from polyprune_core.config.protect import NOTHING, Protect
from polyprune_core.pruning.pools import keep_rates, pools, protected
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import EPS


def project(
    values: Tensor, space: MaskSpace, sparsity: float, scope: str, eps: float = EPS, protect: Protect = NOTHING
) -> Tensor:
    """Returns the nearest keep probabilities within the budget.

    Euclidean projection of `values` (U,) onto {eps <= s <= 1 - eps, sum(price * s) <= (1 - sparsity) * sum(price)} in
    each pool (arXiv 2406.10576, the constraint set of eq. 4; algorithm of ProbMask, Zhou et al. 2021). It is
    s = clip(values - v * price, eps, 1 - eps) with the smallest v >= 0 that meets the budget. Probabilities stay off 0
    and 1, where the score function vanishes and a unit could never return. A unit without a price is kept, at 1 - eps,
    and so is one that is protected, whose price the others make up for.
    """
    projected = torch.full_like(values, 1 - eps, dtype=torch.float64)
    for pool, cost, budget in _priced_pools(space, sparsity, scope, protect):
        projected[pool] = _project_pool(values[pool].double(), cost, budget, eps)
    return projected.to(values.dtype)


def _priced_pools(
    space: MaskSpace, sparsity: float, scope: str, protect: Protect
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yields each pool's units that are in question, their prices relative to the mean, and what may be kept of those.

    Units without a price and protected ones are in no question.
    """
    whole, rate = protected(space, protect), keep_rates(space, sparsity, scope, protect)
    for pool in pools(space, scope):
        pool = pool[(space.price[pool] > 0) & ~whole[pool]]
        if len(pool):
            price = space.price[pool] / space.price[pool].mean()
            yield pool, price, float(rate[pool[0]]) * float(price.sum())


def _project_pool(values: Tensor, cost: Tensor, budget: float, eps: float) -> Tensor:
    def clipped(v: float) -> Tensor:
        return (values - v * cost).clamp(eps, 1 - eps)

    def excess(v: float) -> float:
        return float(cost @ clipped(v)) - budget

    if excess(0.0) <= 0:
        return clipped(0.0)
    if excess(math.inf) >= 0:
        return torch.full_like(values, eps)
    top = float(((values - eps) / cost).max())
    v = brentq(excess, 0.0, top * (1 + 1e-9) + 1e-9, xtol=1e-14, maxiter=1000)
    # The root of a piecewise linear function: one step on the piece that holds it makes it exact.
    free = ((values - v * cost) > eps) & ((values - v * cost) < 1 - eps)
    slope = float(cost[free] @ cost[free])
    return clipped(v + excess(v) / slope) if slope else clipped(v)


def shift_logits(
    logits: Tensor, space: MaskSpace, sparsity: float, scope: str, eps: float = EPS, protect: Protect = NOTHING
) -> Tensor:
    """Returns (U,): what to subtract from each logit so that the expected price of the kept units is within the budget.

    In each pool it is v * price, with prices relative to the pool's mean. v >= 0 is the smallest number that meets
    sum(price * s) <= (1 - sparsity) * sum(price), where s is the sigmoid of the shifted logits, clipped to
    [eps, 1 - eps]. The logits of protected units are raised to where s is 1 - eps.
    """
    shift = torch.zeros_like(logits, dtype=torch.float64)
    whole = protected(space, protect)
    shift[whole] = (logits[whole].double() + math.log(eps / (1 - eps))).clamp(max=0)
    for pool, price, budget in _priced_pools(space, sparsity, scope, protect):
        shift[pool] = _shift_of_pool(logits[pool].double(), price, budget, eps)
    return shift.to(logits.dtype)


def _shift_of_pool(logits: Tensor, price: Tensor, budget: float, eps: float) -> Tensor:
    def excess(v: float) -> float:
        return float(price @ torch.sigmoid(logits - v * price).clamp(eps, 1 - eps)) - budget

    if excess(0.0) <= 0:
        return torch.zeros_like(logits)
    top = float(((logits - math.log(eps / (1 - eps))) / price).max())
    return (brentq(excess, 0.0, top, xtol=1e-12) if excess(top) < 0 else top) * price
