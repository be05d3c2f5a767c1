"""Means, intervals and paired ratios over seeds, against values worked out by hand."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyprune_core.statistics import MIN_SEEDS_FOR_P, paired, sample

LOG_PERPLEXITIES = st.lists(st.floats(0.1, 12), min_size=2, max_size=8)


def test_a_sample_has_the_mean_the_spread_and_the_t_interval_of_the_textbook() -> None:
    found = sample([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.sd) == (3, 2.0, 1.0)
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)  # of t with two degrees of freedom, at 97.5 %
    half = quantile / math.sqrt(3)
    assert found.ci95 == pytest.approx((2 - half, 2 + half), rel=1e-9)


def test_one_value_has_a_mean_and_no_spread() -> None:
    found = sample([43.875])
    assert (found.n, found.mean, found.sd, found.ci95) == (1, 43.875, None, None)


def test_an_infinite_value_leaves_an_infinite_mean_and_no_spread() -> None:
    found = sample([40.0, math.inf])
    assert (found.n, found.mean, found.sd, found.ci95) == (2, math.inf, None, None)


def test_equal_values_have_no_width() -> None:
    assert sample([5.0, 5.0, 5.0]).ci95 == (5.0, 5.0)


def test_a_pair_of_rows_is_the_ratio_of_their_perplexities() -> None:
    found = paired([math.log(30.0)], [math.log(40.0)])
    assert found.ratio == pytest.approx(0.75, rel=1e-12)
    assert (found.n, found.ci95, found.p, found.verdict) == (1, None, None, "no difference shown")


def test_the_ratio_over_seeds_is_geometric() -> None:
    found = paired([math.log(10.0), math.log(90.0)], [math.log(20.0), math.log(45.0)])
    assert found.ratio == pytest.approx(1.0, rel=1e-12)  # one half and two


@pytest.mark.parametrize(
    ("difference", "verdict"), [(-0.5, "better"), (0.5, "worse"), (0.0, "no difference shown")], ids=str
)
def test_the_verdict_follows_the_interval(difference: float, verdict: str) -> None:
    reference = [3.0, 4.0, 5.0, 6.0]
    noise = [0.01, -0.01, 0.02, -0.02]
    moved = [value + difference + extra for value, extra in zip(reference, noise, strict=True)]
    assert paired(moved, reference).verdict == verdict


def test_the_same_rows_show_no_difference_and_an_interval_of_no_width() -> None:
    found = paired([3.0, 4.0], [3.0, 4.0])
    assert (found.ratio, found.ci95, found.verdict) == (1.0, (1.0, 1.0), "no difference shown")


@given(LOG_PERPLEXITIES, st.randoms())
def test_pairing_takes_away_what_seeds_have_in_common(reference: list[float], rng) -> None:
    gains = [rng.uniform(-0.1, 0.1) for _ in reference]
    near = paired([value + gain for value, gain in zip(reference, gains, strict=True)], reference)
    far = paired([10 * value + gain for value, gain in zip(reference, gains, strict=True)], [10 * v for v in reference])
    # The differences are the same up to rounding of numbers as large as 120.
    assert far.ratio == pytest.approx(near.ratio, abs=1e-9)
    assert far.ci95 == pytest.approx(near.ci95, rel=1e-6, abs=1e-9)


@given(LOG_PERPLEXITIES)
def test_swapping_the_rows_inverts_the_ratio_and_the_interval(values: list[float]) -> None:
    other = [value * 1.01 for value in reversed(values)]
    there, back = paired(values, other), paired(other, values)
    assert there.ratio * back.ratio == pytest.approx(1.0, rel=1e-9)
    assert there.ci95 is not None
    assert back.ci95 is not None
    assert 1 / there.ci95[0] == pytest.approx(back.ci95[1], rel=1e-9)
    opposite = {"better": "worse", "worse": "better"}
    assert back.verdict == opposite.get(there.verdict, there.verdict)


def test_fewer_seeds_than_can_reach_five_per_cent_have_no_p_value() -> None:
    count = MIN_SEEDS_FOR_P - 1
    assert paired([1.0] * count, [2.0] * count).p is None
    assert 2 * 0.5**count > 0.05
    assert 2 * 0.5**MIN_SEEDS_FOR_P <= 0.05


def test_the_p_value_is_the_share_of_sign_flips_that_are_as_far_from_zero() -> None:
    differences = [-0.3, -0.2, -0.25, -0.1, 0.05, -0.4]
    found = paired([3 + d for d in differences], [3.0] * len(differences))
    observed = abs(sum(differences))
    flips = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    expected = sum(abs(total) >= observed - 1e-9 for total in flips) / len(flips)
    assert found.p == pytest.approx(expected, abs=1e-12)


def test_six_seeds_that_all_agree_have_the_smallest_p_value_there_is() -> None:
    assert paired([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], [2.0] * 6).p == pytest.approx(2 / 2**6, abs=1e-12)


@pytest.mark.parametrize("values", [[800.0], [5.0, 130.0]], ids=["a ratio", "an interval"])
def test_a_ratio_too_large_for_a_float_is_infinite(values: list[float]) -> None:
    found = paired(values, [1.0] * len(values))
    assert math.inf in (found.ratio, *(found.ci95 or ()))
