"""What a few noisy gradients say of their expectation: variance, bias and direction, the noise itself taken out.

N estimates of P numbers each come from numbered steps; estimates of one step share a batch of text. A product of two
expectations is estimated by products of estimates from different steps: no noise is ever multiplied with itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Series:
    """Estimates `values` (N, P) of one gradient, the step of each (N,), and the forward passes that one cost."""

    values: Tensor
    step: Tensor
    passes: float = 1.0

    def at(self, columns: Tensor) -> Series:
        """Returns the same estimates of some of their numbers."""
        return Series(self.values[:, columns], self.step, self.passes)

    def summed(self, labels: Tensor, count: int) -> Series:
        """Returns (N, count): the sums over the numbers of each label (P,)."""
        sums = torch.zeros(len(self.values), count, dtype=self.values.dtype).index_add_(1, labels, self.values)
        return Series(sums, self.step, self.passes)

    def variance(self) -> tuple[float, float]:
        """Returns the trace of the covariance of one estimate, and its standard error."""
        count = len(self.values)
        squares = (self.values - self.values.mean(dim=0)).square().sum(dim=1) * count / (count - 1)
        return float(squares.mean()), float(squares.std() / math.sqrt(count))


def exactly(gradient: Tensor) -> Series:
    """Returns a gradient (P,) that is known, as a series without noise, of steps that no other series has."""
    return Series(torch.stack([gradient, gradient]), torch.tensor([-1, -2]))


def inner(a: Series, b: Series) -> float:
    """Returns the inner product of two expectations, without bias: the mean over pairs from different steps."""
    ours, theirs, _, pairs = _by_step(a, b)
    return float(((ours.sum(dim=0) @ theirs.sum(dim=0)) - (ours * theirs).sum()) / pairs.sum())


def inner_error(a: Series, b: Series) -> float:
    """Returns the standard error of `inner(a, b)`: the jackknife over steps."""
    ours, theirs, counts, _ = _by_step(a, b)
    same = (ours * theirs).sum(dim=1)
    rest = ((ours.sum(dim=0) - ours) * (theirs.sum(dim=0) - theirs)).sum(dim=1) - (same.sum() - same)
    left = counts.sum(dim=1, keepdim=True) - counts
    values = rest / (left[0] * left[1] - (counts.prod(dim=0).sum() - counts.prod(dim=0)))
    return float(((values - values.mean()).square().sum() * (len(values) - 1) / len(values)).sqrt())


def _by_step(a: Series, b: Series) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the sums of each by step (S, P), of how many estimates (2, S), and the pairs with other steps (S,)."""
    place = torch.unique(torch.cat([a.step, b.step]), return_inverse=True)[1]
    sums, counts = [], []
    for series, where in zip((a, b), place.split([len(a.step), len(b.step)]), strict=True):
        empty = torch.zeros(int(place.max()) + 1, series.values.shape[1], dtype=torch.float64)
        sums.append(empty.index_add_(0, where, series.values.double()))
        counts.append(torch.bincount(where, minlength=len(empty)))
    return sums[0], sums[1], torch.stack(counts), counts[0] * (len(b.step) - counts[1])


def split_half_cosine(series: Series) -> float:
    """Returns the cosine between the means over the even and over the odd steps: how well a reference is known."""
    even = series.step % 2 == 0
    first, second = series.values[even].mean(dim=0), series.values[~even].mean(dim=0)
    return float(torch.cosine_similarity(first, second, dim=0))


def compare(estimates: Series, reference: Series, passes: int) -> dict[str, Any]:
    """Returns how estimates of a gradient differ from it.

    `variance_per_pass`: trace of the covariance times the forward passes of one estimate; divided by F it is that of
    the mean over F passes. `bias` is the length of (expectation - gradient) over that of the gradient, `direction` the
    cosine between the two expectations, `cosine` that between the gradient and the mean over `passes` forward passes.
    Where the gradient itself is not known from zero (its squared length is less than two standard errors), or a square
    comes out negative, what depends on it is None. `cosine_error` is the standard error of `cosine`.
    """
    variance, error = estimates.variance()
    size, own, cross = inner(reference, reference), inner(estimates, estimates), inner(estimates, reference)
    if size <= 2 * inner_error(reference, reference):
        size = math.nan
    averaged = own + variance * estimates.passes / passes
    return {
        "variance_per_pass": variance * estimates.passes,
        "variance_error": error * estimates.passes,
        "bias": _root((own - 2 * cross + size) / size),
        "direction": _over_root(cross, own, size),
        "cosine": _over_root(cross, averaged, size),
        "cosine_error": _over_root(inner_error(estimates, reference), averaged, size),
    }


def _root(square: float) -> float | None:
    return math.sqrt(square) if square >= 0 else None


def _over_root(value: float, first: float, second: float) -> float | None:
    return value / math.sqrt(first * second) if first > 0 and second > 0 else None


def components(losses: Tensor) -> dict[str, float]:
    """Returns the variances that make up losses (M masks, W windows): of masks, of windows, and of both together.

    Method of moments for two crossed random effects, one observation a cell; a negative estimate is 0.
    """
    masks, windows = losses.shape
    centred = losses.double() - losses.double().mean()
    rows, columns = centred.mean(dim=1), centred.mean(dim=0)
    rest = (centred - rows[:, None] - columns).square().sum() / ((masks - 1) * (windows - 1))
    return {
        "masks": max(0.0, float(rows.var() - rest / windows)),
        "windows": max(0.0, float(columns.var() - rest / masks)),
        "both": float(rest),
    }


def spread(parts: dict[str, float], windows: int) -> dict[str, float]:
    """Returns the standard deviations of the mean loss of a batch of windows: over masks, over batches, over both."""
    masks, batches = parts["masks"] + parts["both"] / windows, (parts["windows"] + parts["both"]) / windows
    return {
        "over_masks": math.sqrt(masks),
        "over_batches": math.sqrt(batches),
        "over_both": math.sqrt(parts["masks"] + batches),
    }
