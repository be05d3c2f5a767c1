"""Means, spreads and paired comparisons, with what few seeds cannot show left out.

Two kinds of noise are kept apart: that of seeds (another calibration sample, other masks, the same text) and that of
the evaluation (the same pruned models, other windows of text).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyprune_core.utils.numbers import exp

# A sign-flip test of n pairs cannot reach p = 0.05 below this n, whatever the data.
MIN_SEEDS_FOR_P = 6
# Up to 13 pairs every sign flip is counted; beyond, this many are drawn.
RESAMPLES = 2**13
LEVEL = 0.05
# Of fewer windows nothing can be said of how neighbours hang together; lags in a row that are to be insignificant.
MIN_WINDOWS_FOR_BLOCKS = 10
QUIET_LAGS = 5


@dataclass(frozen=True)
class Sample:
    """Mean and sample standard deviation of n values, with a 95 % t interval; None where n is 1."""

    n: int
    mean: float
    sd: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class EvaluationNoise:
    """The evaluation's own noise in a perplexity ratio: its 95 % interval over `windows` windows of text."""

    windows: int
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """A perplexity ratio from n paired differences of log-perplexity, one a seed.

    `ci95` is the t interval over seeds and `t_p` its p-value; `p` is that of sign flips, where n allows one; `q` is
    `t_p` corrected for all comparisons of a table; `evaluation` is there where the losses of the windows are known.
    """

    n: int
    ratio: float
    ci95: tuple[float, float] | None
    p: float | None
    t_p: float | None = None
    q: float | None = None
    evaluation: EvaluationNoise | None = None

    @property
    def verdict(self) -> str:
        """`better` or `worse` where neither noise explains the ratio; `… before correction` where only `q` says no.

        `no difference shown` in every other case.
        """
        intervals = [self.ci95, self.evaluation.ci95 if self.evaluation else self.ci95]
        if any(interval is None or interval[0] <= 1 <= interval[1] for interval in intervals):
            return "no difference shown"
        direction = "better" if self.ratio < 1 else "worse"
        return direction if self.q is None or self.q <= LEVEL else f"{direction} before correction"


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
    with np.errstate(invalid="ignore"):  # two infinite losses differ by nothing that has a number
        differences = np.asarray(log_perplexity, dtype=float) - np.asarray(reference, dtype=float)
    summary = sample(differences.tolist())
    p = None
    if len(differences) >= MIN_SEEDS_FOR_P:
        from scipy.stats import permutation_test

        test = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=0)
        p = float(test.pvalue)
    return Paired(summary.n, exp(summary.mean), _ratios(summary.ci95), p, _t_p(summary))


def evaluation_noise(window_nll: ArrayLike, reference: ArrayLike) -> EvaluationNoise | None:
    """Returns the interval of a perplexity ratio over windows of text, the models held fixed.

    Both arguments are (seeds, N) nats per token on the same N windows; a window's difference is averaged over seeds.
    Windows are in the order of the text, and neighbours may be alike: the standard error is that of a circular
    block bootstrap (Politis and Romano, 1992), whose blocks are as long as `block_length` says, in closed form; the
    interval is Student's t with one degree of freedom less than there are blocks. Blocks of single windows, which
    independent ones have, give the usual t interval. None for a single window.
    """
    differences = (np.asarray(window_nll, dtype=float) - np.asarray(reference, dtype=float)).mean(axis=0)
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    count, length, mean = len(differences), block_length(differences), float(differences.mean())
    around = np.concatenate([differences, differences[: length - 1]])
    blocks = np.lib.stride_tricks.sliding_window_view(around, length).mean(axis=1)
    # A resample has count / length blocks; blocks of a finite series spread less than those of the text, as one value
    # does around the mean of its sample.
    error = math.sqrt(float(((blocks - mean) ** 2).mean()) * length / (count - length))
    half = _t_quantile(count / length) * error
    return EvaluationNoise(count, (exp(mean - half), exp(mean + half)))


def block_length(values: NDArray[np.float64]) -> int:
    """Returns how many neighbours of a series (N,) hang together: the block length of a circular block bootstrap.

    The rule of Politis and White (2004), as corrected by Patton, Politis and White (2009): from the autocovariances up
    to the lag where they become insignificant. 1 of fewer than 10 values, and where blocks would narrow the interval.
    """
    count = len(values)
    centred = values - values.mean()
    if count < MIN_WINDOWS_FOR_BLOCKS or not np.ptp(centred) > 0:
        return 1
    most = min(math.ceil(math.sqrt(count)) + QUIET_LAGS, count - 1)
    covariances = np.array([centred[: count - lag] @ centred[lag:] for lag in range(most + 1)]) / count
    significant = np.abs(covariances[1:] / covariances[0]) >= 2 * math.sqrt(math.log10(count) / count)
    last = max(1, next(lag for lag in range(most + 1) if not significant[lag : lag + QUIET_LAGS].any()))
    lags = np.arange(-min(2 * last, most), min(2 * last, most) + 1)
    taper = np.clip(2 * (1 - np.abs(lags) / lags[-1]), 0, 1) * covariances[np.abs(lags)]
    spread, slope = float(taper.sum()), float((np.abs(lags) * taper).sum())
    if spread <= covariances[0]:
        return 1
    longest = math.ceil(min(3 * math.sqrt(count), count / 3))
    return min(math.ceil(math.cbrt(1.5 * slope**2 / spread**2 * count)), longest)


def corrected(comparisons: Sequence[Paired | None]) -> list[Paired | None]:
    """Returns the comparisons of one table with `q`: the false discovery rate held over all of them.

    Benjamini and Hochberg's adjustment of the t tests. Sign flips are too coarse for it: six seeds that all agree give
    p = 0.03, and among several comparisons no adjustment of that can stay below 0.05.
    """
    p_values = {index: each.t_p for index, each in enumerate(comparisons) if each is not None and each.t_p is not None}
    if not p_values:
        return list(comparisons)
    from scipy.stats import false_discovery_control

    q = dict(zip(p_values, map(float, false_discovery_control(list(p_values.values()))), strict=True))
    return [each and dataclasses.replace(each, q=q.get(index)) for index, each in enumerate(comparisons)]


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """Returns which points no other one beats: none is as low in every coordinate and lower in one."""
    data: NDArray[np.float64] = np.asarray(points, dtype=float)
    if not len(data):
        return []
    no_higher = (data[:, None] <= data[None]).all(axis=2)
    lower = (data[:, None] < data[None]).any(axis=2)
    beaten: NDArray[np.bool_] = np.any(no_higher & lower, axis=0)
    return [not each for each in beaten]


def rank_agreement(scores: ArrayLike, others: ArrayLike) -> float | None:
    """Returns Kendall's tau-b of two (U,) scorings of the same units; None where all of one are equal."""
    from scipy.stats import kendalltau

    tau = float(kendalltau(scores, others).statistic)
    return None if math.isnan(tau) else tau


def overlap(keep: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Returns the Jaccard index of two (U,) choices: units in both by units in either; 1 if both are empty."""
    either = int((keep | other).sum())
    return int((keep & other).sum()) / either if either else 1.0


def chance_overlap(kept: float, other: float) -> float:
    """Returns the Jaccard index that independent choices of these fractions of many units have."""
    both = kept * other
    return both / (kept + other - both) if both else float(kept == other)


def _ratios(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (exp(interval[0]), exp(interval[1]))


def _t_quantile(n: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975))


def _t_p(differences: Sample) -> float | None:
    from scipy.special import stdtr

    if differences.sd is None:
        return None
    if differences.sd == 0:
        return float(differences.mean == 0)
    t = abs(differences.mean) / differences.sd * math.sqrt(differences.n)
    return 2 * float(stdtr(differences.n - 1, -t))
