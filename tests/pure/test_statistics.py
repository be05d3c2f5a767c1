"""Means, intervals and paired ratios over seeds and windows, against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyprune_core.results.statistics import (
    MIN_SEEDS_FOR_P,
    EvaluationNoise,
    Paired,
    block_length,
    chance_overlap,
    corrected,
    evaluation_noise,
    overlap,
    paired,
    pareto,
    rank_agreement,
    sample,
)

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


def noisy(difference: float, windows: int = 200, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of 3 seeds whose windows differ by `difference` on average, on texts that differ by far more."""
    rng = np.random.default_rng(3)
    reference = rng.normal(4, 1, (1, windows)).repeat(3, axis=0)
    return reference + difference + rng.normal(0, spread, (3, windows)), reference


def test_the_noise_of_the_evaluation_is_that_of_paired_windows() -> None:
    ours, theirs = noisy(-0.1)
    found = evaluation_noise(ours, theirs)
    assert found is not None
    assert found.windows == 200
    differences = (ours - theirs).mean(axis=0)
    error = differences.std(ddof=1) / math.sqrt(200)
    expected = [math.exp(differences.mean() + side * 1.96 * error) for side in (-1, 1)]
    assert found.ci95 == pytest.approx(expected, abs=0.3 * (expected[1] - expected[0]))
    assert found.ci95[1] < 1  # although texts differ by 1 nat and rows by a tenth of one


def test_more_windows_narrow_the_noise_of_the_evaluation_and_not_that_of_seeds() -> None:
    narrow, wide = (evaluation_noise(*noisy(0.0, windows)) for windows in (1600, 100))
    assert narrow is not None
    assert wide is not None
    assert (narrow.ci95[1] - narrow.ci95[0]) * 2 < wide.ci95[1] - wide.ci95[0]


def test_few_windows_have_the_t_interval() -> None:
    ours, theirs = noisy(0.2, windows=6)
    found = evaluation_noise(ours, theirs)
    assert found is not None
    interval = sample((ours - theirs).mean(axis=0).tolist()).ci95
    assert interval is not None
    assert found.ci95 == pytest.approx([math.exp(end) for end in interval])


def drifting(windows: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """Differences around zero of which each holds on to so much of the one before, as neighbours in a text do."""
    steps = rng.normal(0, 0.05, windows + 50)
    found = np.zeros_like(steps)
    for index in range(1, len(steps)):
        found[index] = memory * found[index - 1] + steps[index]
    return found[50:]


@pytest.mark.parametrize("memory", [0.0, 0.41, 0.7])
def test_the_interval_holds_the_truth_although_neighbouring_windows_are_alike(memory: float) -> None:
    rng, windows = np.random.default_rng(0), 400
    held = independent = 0
    for _ in range(200):
        differences = drifting(windows, memory, rng)
        found, usual = evaluation_noise(differences[None], np.zeros((1, windows))), sample(differences.tolist()).ci95
        assert found is not None
        assert usual is not None
        held += found.ci95[0] <= 1 <= found.ci95[1]
        independent += usual[0] <= 0 <= usual[1]
    assert 0.89 < held / 200 <= 0.99
    assert independent / 200 < {0.0: 1.0, 0.41: 0.85, 0.7: 0.7}[memory]


def test_blocks_are_as_long_as_neighbours_are_alike() -> None:
    lengths = [block_length(drifting(1000, memory, np.random.default_rng(4))) for memory in (-0.4, 0.0, 0.4, 0.8)]
    assert lengths[0] == lengths[1] == 1
    assert 4 < lengths[2] < lengths[3] < 60
    assert block_length(np.ones(100)) == block_length(np.arange(9.0)) == 1


def test_the_interval_of_single_windows_is_student_s() -> None:
    ours, theirs = noisy(0.2)
    assert block_length((ours - theirs).mean(axis=0)) == 1
    found, usual = evaluation_noise(ours, theirs), sample((ours - theirs).mean(axis=0).tolist()).ci95
    assert found is not None
    assert usual is not None
    assert found.ci95 == pytest.approx([math.exp(end) for end in usual])


@pytest.mark.parametrize("windows", [1, 40])
def test_rows_that_are_alike_in_every_window_have_no_noise_or_no_interval(windows: int) -> None:
    same = np.ones((2, windows))
    found = evaluation_noise(same, same)
    assert found is None if windows == 1 else found.ci95 == (1.0, 1.0)


def test_an_infinite_window_leaves_no_interval() -> None:
    ours, theirs = noisy(0.0)
    ours[0, 3] = math.inf
    assert evaluation_noise(ours, theirs) is None


def test_the_t_test_and_its_interval_say_the_same() -> None:
    for difference in (-0.3, -0.1, -0.02, 0.0, 0.05):
        found = paired([3.01 + difference, 3.98 + difference, 5.03 + difference], [3.0, 4.0, 5.0])
        assert found.ci95 is not None
        assert found.t_p is not None
        assert (found.t_p < 0.05) == (not found.ci95[0] <= 1 <= found.ci95[1])


def test_a_difference_without_spread_is_certain_and_none_is_no_evidence() -> None:
    assert paired([2.0, 3.0], [3.0, 4.0]).t_p == 0.0
    assert paired([2.0, 3.0], [2.0, 3.0]).t_p == 1.0
    assert paired([2.0], [3.0]).t_p is None


def test_the_correction_holds_over_all_comparisons_of_a_table() -> None:
    p_values = [0.001, 0.02, 0.04, 0.5]
    found = corrected([None, *(Paired(3, 0.9, (0.8, 0.99), None, p) for p in p_values), Paired(1, 0.9, None, None)])
    assert found[0] is None
    assert [each.q for each in found[1:5] if each] == pytest.approx([0.004, 0.04, 0.04 * 4 / 3, 0.5])
    assert found[5] is not None
    assert found[5].q is None
    assert [each.verdict for each in found[1:4] if each] == ["better", "better", "better before correction"]


def test_tables_without_comparisons_need_no_correction() -> None:
    assert corrected([]) == []
    assert corrected([None]) == [None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_correction_never_makes_a_comparison_surer(p_values: list[float]) -> None:
    found = corrected([Paired(3, 0.9, (0.8, 0.99), None, p) for p in p_values])
    for p, each in zip(p_values, found, strict=True):
        assert each is not None
        assert each.q is not None
        assert p <= each.q + 1e-12 <= 1 + 1e-9


def test_a_verdict_needs_both_noises_to_be_excluded() -> None:
    sure = Paired(3, 0.9, (0.85, 0.95), None, 0.001)
    assert sure.verdict == "better"
    for interval, verdict in (((0.8, 0.97), "better"), ((0.8, 1.02), "no difference shown")):
        assert dataclasses.replace(sure, evaluation=EvaluationNoise(40, interval)).verdict == verdict
    one_seed = Paired(1, 0.9, None, None, evaluation=EvaluationNoise(40, (0.85, 0.95)))
    assert one_seed.verdict == "no difference shown"


POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


@given(POINTS)
def test_a_pareto_point_is_one_that_no_other_beats(points: list[tuple[int, int]]) -> None:
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    assert pareto(points) == [not any(beats(other, point) for other in points) for point in points]


def test_rank_agreement_knows_nothing_but_order() -> None:
    scores = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert rank_agreement(scores, [math.exp(score) for score in scores]) == pytest.approx(1.0)
    assert rank_agreement(scores, [-score for score in scores]) == pytest.approx(-1.0)
    assert rank_agreement(scores, [1.0] * 5) is None
    assert rank_agreement([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)


def test_overlap_is_what_both_keep_out_of_what_either_keeps() -> None:
    one, other = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)
    assert overlap(one, other) == 2 / 4
    assert overlap(one, one) == 1.0
    assert overlap(~one, one) == 0.0
    assert overlap(np.zeros(3, bool), np.zeros(3, bool)) == 1.0


def test_independent_choices_overlap_as_much_as_chance_says() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random(200_000) < 0.8, rng.random(200_000) < 0.5
    assert overlap(one, other) == pytest.approx(chance_overlap(0.8, 0.5), abs=0.005)
    assert (chance_overlap(1, 1), chance_overlap(0, 0), chance_overlap(0, 1)) == (1.0, 1.0, 0.0)
