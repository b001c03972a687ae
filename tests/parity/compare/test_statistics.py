"""Intervals over prompts: what is known of them holds, and they cover what they claim to cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare.statistics import quantile, ratio, share_interval

LAWS = settings(deadline=None, max_examples=40)
values = st.lists(st.floats(0, 10), min_size=2, max_size=12)


@LAWS
@given(values=values, positions=st.integers(1, 50))
def test_of_equally_long_prompts_it_is_the_usual_interval(values: list[float], positions: int) -> None:
    """The mean of their means, with Student's interval: scipy says the same."""
    from scipy import stats

    means = np.asarray(values)
    found = ratio(means * positions, np.full(len(means), float(positions)))
    error = means.std(ddof=1) / math.sqrt(len(means))
    assert found.value == pytest.approx(means.mean(), rel=1e-12, abs=1e-12)
    # Means that differ by less than rounding have a spread that is rounding too.
    assert found.standard_error == pytest.approx(error, rel=1e-6, abs=1e-12)
    if error > 1e-9:
        assert found.interval == pytest.approx(stats.t.interval(0.95, len(means) - 1, means.mean(), error), rel=1e-5)


@LAWS
@given(values=values, times=st.integers(2, 6))
def test_more_prompts_narrow_the_interval(values: list[float], times: int) -> None:
    """The same prompts again and again: the figure stays, the error shrinks about with the root of their number."""
    ones = np.ones(len(values))
    few, many = (ratio(np.tile(values, n), np.tile(ones, n)) for n in (1, times))
    assert many.value == pytest.approx(few.value)
    if few.standard_error > 1e-9:
        assert many.standard_error < few.standard_error
        assert many.interval[0] > few.interval[0]


@pytest.mark.parametrize("count", [2, 7])
def test_identical_prompts_have_no_width(count: int) -> None:
    """Nothing varies between them, in a ratio of any form and in a quantile."""
    positions = np.linspace(0.1, 3, 30)
    found = [
        ratio(np.full(count, 0.3), np.full(count, 7.0)),
        ratio(np.full(count, 0.3), np.full(count, 7.0), np.sqrt),
        quantile([positions] * count, 0.99),
    ]
    for estimate in found:
        assert estimate.standard_error == pytest.approx(0, abs=1e-15)
        assert estimate.prompts == count
    assert found[2].value == np.quantile(np.tile(positions, count), 0.99)


def test_one_prompt_says_nothing_about_others() -> None:
    """The figure is there; its interval is everything."""
    for found in (ratio(np.ones(1), np.ones(1)), quantile([np.ones(9)], 0.99)):
        assert found.value == 1
        assert found.interval == (-math.inf, math.inf)


def test_prompts_without_a_denominator_do_not_count() -> None:
    """One that has no clear position says nothing about agreement there."""
    found = ratio(np.asarray([3.0, 0.0, 4.0]), np.asarray([4.0, 0.0, 4.0]))
    assert (found.value, found.prompts) == (7 / 8, 2)
    assert math.isnan(ratio(np.zeros(2), np.zeros(2)).value)


def test_long_prompts_weigh_more() -> None:
    """Every position counts alike: a ratio of sums, not a mean of means."""
    assert ratio(np.asarray([10.0, 0.0]), np.asarray([90.0, 10.0])).value == 0.1


@pytest.mark.parametrize("statistic", ["mean", "quantile"])
def test_intervals_cover_the_truth(statistic: str) -> None:
    """Seven prompts of thirty correlated positions, many times over: most intervals hold the true figure.

    About 95 in 100 for a mean, fewer for a quantile; not half of those that take the positions for independent.
    """
    rng = np.random.default_rng(1)
    samples = rng.lognormal(0, 0.3, (120, 7, 1)) * rng.lognormal(0, 0.3, (120, 7, 30))
    if statistic == "mean":
        true = math.exp(0.3**2)
        found = [ratio(sample.sum(axis=1), np.full(7, 30.0)) for sample in samples]
        naive = [ratio(sample.ravel(), np.ones(210)).interval for sample in samples]
        assert np.mean([least <= true <= most for least, most in naive]) < 0.5
    else:
        true = math.exp(1.2816 * 0.3 * math.sqrt(2))
        found = [quantile(list(sample), 0.9) for sample in samples]
    covered = np.mean([least <= true <= most for least, most in (each.interval for each in found)])
    # Three standard deviations of 120 draws below 0.95, and below the 0.885 that 400 others gave for the quantile.
    assert covered > (0.89 if statistic == "mean" else 0.8)


@pytest.mark.parametrize(("agreeing", "of"), [(0, 5), (5, 5), (97, 100), (210, 210), (1, 1)])
def test_the_exact_interval_of_a_share(agreeing: int, of: int) -> None:
    """scipy's own binomial test says the same."""
    from scipy import stats

    expected = stats.binomtest(agreeing, of).proportion_ci(0.95, "exact")
    assert share_interval(agreeing, of) == pytest.approx((expected.low, expected.high))
