"""Intervals and tests against values from tables, and against counting by hand."""

import math

import numpy as np
import pytest

from llava.eval.intervals import (
    bootstrap_interval,
    holm,
    mcnemar,
    paired_t_test,
    permutation_test,
    ratio_interval,
    t_interval,
    t_quantile,
    t_tail,
    welch_t_test,
)


@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),
    [(0.95, 1, 12.7062), (0.95, 2, 4.30265), (0.95, 4, 2.77645), (0.99, 10, 3.16927), (0.9, 30, 1.69726)],
)
def test_t_quantiles_are_those_of_the_tables(confidence: float, freedom: int, expected: float) -> None:
    assert t_quantile(confidence, freedom) == pytest.approx(expected, abs=1e-4)
    assert t_tail(t_quantile(confidence, freedom), freedom) == pytest.approx(1 - confidence, abs=1e-9)


def test_one_degree_of_freedom_is_cauchy() -> None:
    for statistic in (0.1, 1.0, 7.0):
        assert t_tail(statistic, 1) == pytest.approx(1 - 2 * math.atan(statistic) / math.pi, abs=1e-12)


def test_an_interval_over_seeds_is_students() -> None:
    """60, 62, 64: mean 62, deviation 2, 4.30265 * 2 / sqrt 3 = 4.9683."""
    low, high = t_interval([60, 62, 64])
    assert (low, high) == (pytest.approx(62 - 4.9683, abs=1e-3), pytest.approx(62 + 4.9683, abs=1e-3))
    assert all(math.isnan(end) for end in t_interval([60]))


def test_questions_that_repeat_within_a_picture_add_no_certainty() -> None:
    values = [1, 0, 1, 1]
    repeated = [value for value in values for _ in range(5)]
    clusters = [f"picture {index // 5}" for index in range(20)]
    assert bootstrap_interval(repeated, clusters) == bootstrap_interval(values)
    assert bootstrap_interval(repeated).low > bootstrap_interval(values).low


def test_the_bootstrap_interval_of_many_questions_is_the_normal_one() -> None:
    values = np.random.default_rng(0).random(400) < 0.6
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)
    assert bootstrap_interval(values) == (low, high), "seeded"
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)


def test_the_bootstrap_resamples_whole_pictures_of_different_sizes() -> None:
    """Two pictures, one with 3 questions all right, one with 1 wrong: resamples have mean 1, 3/4 or 0."""
    low, high = bootstrap_interval([1, 1, 1, 0], ["a", "a", "a", "b"], confidence=0.4)
    assert (low, high) == (0.75, 0.75)
    assert bootstrap_interval([1, 1, 1, 0], ["a", "a", "a", "b"], confidence=0.6) == (0.0, 1.0)


def test_at_the_ends_of_a_ratio_the_difference_is_just_told_from_nothing() -> None:
    parts, wholes = np.array([9.3, 17.9, 12.6, 13.4, 15.3]), np.array([15.0, 17.2, 14.1, 19.5, 15.8])
    low, high = ratio_interval(parts, wholes)
    assert low < parts.mean() / wholes.mean() < high
    assert [paired_t_test(parts - end * wholes) for end in (low, high)] == [pytest.approx(0.05)] * 2
    assert all(np.isnan(ratio_interval(parts, wholes - 16))), "the wholes may be nothing"
    assert all(np.isnan(ratio_interval([1.0], [2.0]))), "one run"


def test_mcnemar_is_the_exact_binomial_test_of_discordant_questions() -> None:
    """10 against 2 of 12: 2 * (1 + 12 + 66) / 4096."""
    first = [1] * 10 + [0] * 2 + [1] * 20
    second = [0] * 10 + [1] * 2 + [1] * 20
    assert mcnemar(first, second) == (10, 2, pytest.approx(2 * 79 / 4096))
    assert mcnemar(first, first) == (0, 0, 1.0)
    assert mcnemar([1, 0], [0, 1]).p == 1.0
    with pytest.raises(ValueError, match="scores of 0 and 1"):
        mcnemar([0.5], [1])
    with pytest.raises(ValueError, match="2 and 1 questions"):
        mcnemar([1, 0], [1])


def test_a_permutation_test_of_few_questions_tries_every_sign() -> None:
    """Five times +1: two of 32 patterns are as far out. +3 +1: all but the two small sums; 1 of 2."""
    assert permutation_test([1, 1, 1, 1, 1]) == 2 / 32
    assert permutation_test([3, 1, 0, 0]) == 0.5
    assert permutation_test([0, 0]) == 1.0


def test_signs_are_flipped_for_whole_pictures() -> None:
    assert permutation_test([1] * 6, ["a", "a", "a", "b", "b", "b"]) == 0.5
    assert permutation_test([1, -1, 1, -1], ["a", "a", "b", "b"]) == 1.0


def test_a_sampled_permutation_test_agrees_with_mcnemar() -> None:
    differences = np.array([1.0] * 25 + [-1.0] * 10 + [0.0] * 60)
    exact = mcnemar((differences > 0), (differences < 0)).p
    assert permutation_test(differences) == pytest.approx(exact, abs=0.006)


def test_a_paired_t_test_of_seeds() -> None:
    """1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641 at 2 degrees of freedom: p = 1 - t / sqrt(t * t + 2) = 0.0742."""
    assert paired_t_test([1, 2, 3]) == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-9)
    assert (paired_t_test([1, 1]), paired_t_test([0, 0])) == (0.0, 1.0)
    assert math.isnan(paired_t_test([1]))


def test_a_welch_test_of_equal_variances_and_sizes_is_the_two_sample_test() -> None:
    """Means 2 and 4, variances 1, sizes 3: t = -2 / sqrt(2 / 3) = -2.4495 at 4 degrees of freedom."""
    assert welch_t_test([1, 2, 3], [3, 4, 5]) == pytest.approx(t_tail(math.sqrt(6), 4))
    assert t_tail(math.sqrt(6), 4) == pytest.approx(0.0705, abs=1e-4)
    assert math.isnan(welch_t_test([1], [1, 2]))


def test_holm_adjusts_in_order_and_skips_what_was_not_tested() -> None:
    adjusted = holm([0.01, math.nan, 0.04, 0.03])
    assert math.isnan(adjusted[1])
    assert [adjusted[index] for index in (0, 2, 3)] == pytest.approx([0.03, 0.06, 0.06])


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one number"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="3 scores, but 2 cluster names"):
        bootstrap_interval([1, 0, 1], ["a", "b"])
