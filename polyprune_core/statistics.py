"""Means, spreads and paired comparisons over seeds, with what few seeds cannot show left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A sign-flip test of n pairs cannot reach p = 0.05 below this n, whatever the data.
MIN_SEEDS_FOR_P = 6
# Up to 13 pairs every sign flip is counted; beyond, this many are drawn.
RESAMPLES = 2**13


@dataclass(frozen=True)
class Sample:
    """Mean and sample standard deviation of n values, with a 95 % t interval; None where n is 1."""

    n: int
    mean: float
    sd: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Paired:
    """A perplexity ratio from paired differences of log-perplexity: 95 % t interval, sign-flip p where n allows one."""

    n: int
    ratio: float
    ci95: tuple[float, float] | None
    p: float | None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no difference shown` at this n."""
        if self.ci95 is None or self.ci95[0] <= 1 <= self.ci95[1]:
            return "no difference shown"
        return "better" if self.ratio < 1 else "worse"


def sample(values: Sequence[float]) -> Sample:
    """Summarises values of independent seeds."""
    data = np.asarray(values, dtype=float)
    mean = float(data.mean())
    if len(data) < 2 or not np.isfinite(data).all():
        return Sample(len(data), mean, None, None)
    sd = float(data.std(ddof=1))
    half = _t_quantile(len(data)) * sd / math.sqrt(len(data))
    return Sample(len(data), mean, sd, (mean - half, mean + half))


def paired(log_perplexity: Sequence[float], reference: Sequence[float]) -> Paired:
    """Compares two rows seed by seed; a ratio below 1 means that the first has the lower perplexity."""
    differences = np.asarray(log_perplexity, dtype=float) - np.asarray(reference, dtype=float)
    summary = sample(differences.tolist())
    interval = None if summary.ci95 is None else (exp(summary.ci95[0]), exp(summary.ci95[1]))
    p = None
    if len(differences) >= MIN_SEEDS_FOR_P:
        from scipy.stats import permutation_test

        test = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=0)
        p = float(test.pvalue)
    return Paired(summary.n, exp(summary.mean), interval, p)


def exp(value: float) -> float:
    """exp, infinite where that overflows."""
    return math.exp(value) if value < 709 else math.inf


def _t_quantile(n: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))
