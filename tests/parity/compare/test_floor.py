"""The noise floor: what its ratios are, how sure they are, and that no prompt decides for another."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare.floor import (
    CONFIDENCE,
    FIRST_DRAWS,
    ILL_CONDITIONED,
    IN_FLOAT64,
    MOST_DRAWS,
    NoiseFloor,
    PromptNoise,
    conditioning,
    decided,
    tie,
    typical_ratio,
)
from parity.compare.limits import UNIT_ROUNDOFF, Limit
from parity.compare.measuring import compare_prompts
from parity.compare.metrics import FAINT, compare_positions
from parity.trace import PHASES, PromptTrace, Trace
from tests.made_floors import LEAST, floor_of, level_floor

LAWS = settings(deadline=None, max_examples=60)
VOCABULARY = 40
ROOMY = Limit(metric="floor_ratio", most=3.0, reason="a test")


def trace(noise: float = 0.0, seed: int = 0, sizes: dict[str, float] | None = None) -> Trace:
    """Logits of two prompts, disturbed by ``noise`` times the prompt's own size."""
    rng, disturbance = np.random.default_rng(0), np.random.default_rng(seed + 1)
    prompts = {}
    for name, lengths in (("p", (5, 3)), ("q", (2, 4))):
        by = noise * (sizes or {}).get(name, 1.0)
        parts = [3 * rng.standard_normal((count, VOCABULARY)) for count in lengths]
        prompts[name] = PromptTrace(*(part + by * disturbance.standard_normal(part.shape) for part in parts))
    return Trace(prompts)


def draws(count: int, noise: float, sizes: dict[str, float] | None = None) -> list[Trace]:
    return [trace(noise, 100 + number, sizes) for number in range(count)]


@LAWS
@given(noise=st.floats(1e-12, 1e-3), count=st.integers(1, 9))
def test_a_floor_is_the_root_mean_square_of_its_draws_at_each_position(noise: float, count: int) -> None:
    """By hand, for each prompt and phase."""
    oracle, made = trace(), draws(count, noise)
    floor = floor_of(oracle, *made, least=dict.fromkeys(PHASES, 0.0))
    assert floor.draws == count
    for phase, prompts in compare_prompts(oracle, made[0]).items():
        for name, errors in prompts.items():
            distances = [
                np.linalg.norm(getattr(each.prompts[name], phase) - getattr(oracle.prompts[name], phase), axis=1)
                for each in made
            ]
            expected = np.sqrt(np.mean(np.square(distances), axis=0))
            np.testing.assert_allclose(floor.of(name, phase, errors), expected, rtol=1e-12)
            np.testing.assert_allclose(floor.ratios(name, phase, errors), distances[0] / expected, rtol=1e-9)


@LAWS
@given(times=st.floats(1e-3, 1e3))
def test_ratios_are_as_many_times_the_floor_as_the_error_is(times: float) -> None:
    """At every position, whatever the floor there."""
    oracle = trace()
    floor = level_floor(oracle, {"p": 1e-6, "q": 1e-4})
    for name, size in (("p", 1e-6), ("q", 1e-4)):
        for phase in PHASES:
            logits = getattr(oracle.prompts[name], phase)
            error = np.zeros_like(logits)
            error[:, 0] = times * size * np.linalg.norm(logits, axis=1)
            ratios = floor.ratios(name, phase, compare_positions(logits, logits + error))
            np.testing.assert_allclose(ratios, times, rtol=1e-5)


def test_a_floor_is_never_below_the_least() -> None:
    """Draws that are exact say nothing of what others may lose; what is above the least counts as it was measured."""
    oracle = trace()
    least = {"prefill": 3e-7, "decode": 2e-7}
    found = compare_prompts(oracle, oracle)
    exact = floor_of(oracle, oracle, oracle, least=least)
    noisy = level_floor(oracle, 1e-6, least=least)
    for phase, prompts in found.items():
        for name, errors in prompts.items():
            size = np.sqrt(errors.squared_reference)
            np.testing.assert_allclose(exact.of(name, phase, errors), least[phase] * size)
            np.testing.assert_allclose(noisy.of(name, phase, errors), 1e-6 * size)


def test_the_least_of_a_faint_position_is_of_the_typical_one() -> None:
    """Where nearly all cancels, rounding is as large as what was added, not as what is left."""
    logits = np.ones((10, VOCABULARY))
    logits[3] *= 1e-6
    one = Trace({"p": PromptTrace(logits, logits)})
    errors = compare_positions(logits, logits)
    found = floor_of(one, one).of("p", "prefill", errors)
    assert found[3] == pytest.approx(found[0] * FAINT, rel=0.1)


@pytest.mark.parametrize("error", [0.0, 1e-30])
def test_a_reference_of_nothing_but_zeros_gives_no_number(error: float) -> None:
    """It was no answer: NaN or infinity, which no limit holds."""
    nothing = np.zeros((3, VOCABULARY))
    one = Trace({"p": PromptTrace(nothing, nothing)})
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = floor_of(one, one).ratios("p", "prefill", compare_positions(nothing, nothing + error))
    assert not np.isfinite(ratios).any()
    assert not any(ROOMY.holds(each) for each in ratios)


def test_float64_is_as_much_finer_as_its_roundoff_is() -> None:
    """The same amplification, 2^-29 of the noise, in ratios and in logits."""
    oracle = trace()
    floor = floor_of(oracle, *draws(4, 1e-6))
    assert np.finfo(np.float64).eps / np.finfo(np.float32).eps == IN_FLOAT64
    errors = compare_prompts(oracle, trace(1e-15, 7))["prefill"]["p"]
    np.testing.assert_allclose(
        floor.in_float64.ratios("p", "prefill", errors), floor.ratios("p", "prefill", errors) * 2.0**29
    )
    assert floor.in_float64.logit_noise("p") == pytest.approx(floor.logit_noise("p") * 2.0**-29)
    assert floor.in_float64.draws == floor.draws


def test_draws_add_up() -> None:
    """Two rounds are as good as one of all draws; none are lost or counted twice."""
    oracle, made = trace(), draws(6, 1e-6)
    whole, parts = floor_of(oracle, *made), floor_of(oracle, *made[:4]) + floor_of(oracle, *made[4:])
    assert (whole.draws, parts.draws) == (6, 6)
    for name, noise in whole.prompts.items():
        np.testing.assert_array_equal(noise.most, parts.prompts[name].most)
        for phase, rows in noise.squared.items():
            np.testing.assert_array_equal(rows, parts.prompts[name].squared[phase])


def test_draws_are_had_until_there_are_enough() -> None:
    """Doubling from the first round ends exactly at the most there are."""
    oracle = trace()
    counts = [FIRST_DRAWS]
    while not level_floor(oracle, 1e-6, draws=counts[-1]).exhausted:
        counts.append(counts[-1] * 2)
    assert counts[-1] == MOST_DRAWS
    assert NoiseFloor({}, LEAST).draws == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_draw_that_is_no_number_lets_nothing_pass(broken: float) -> None:
    """A floor that overflows would forgive everything."""
    oracle = trace()
    floor = level_floor(oracle, 1e-6)
    floor.prompts["q"].squared["decode"][1, 2] = broken
    errors = compare_prompts(oracle, trace(1e-7, 3))["decode"]["q"]
    assert not np.isfinite(floor.ratios("q", "decode", errors)[2])
    assert np.isfinite(np.delete(floor.ratios("q", "decode", errors), 2)).all()


# -- how sure


def chi_squared_bounds(count: int) -> tuple[float, float]:
    """Where the true floor lies in units of the measured one, from scipy's own distribution."""
    from scipy import stats

    return math.sqrt(count / stats.chi2.ppf(CONFIDENCE, count)), math.sqrt(
        count / stats.chi2.ppf(1 - CONFIDENCE, count)
    )


@pytest.mark.parametrize("count", [4, 8, 16, 32])
def test_what_is_decided_is_what_the_interval_of_the_floor_says(count: int) -> None:
    """Keeping the limit below it, breaking it above it, open between the two, ends included where they are known."""
    below, above = chi_squared_bounds(count)
    assert below < 1 < above
    assert decided(0.999 * ROOMY.most * below, ROOMY, count)
    assert not decided(1.001 * ROOMY.most * below, ROOMY, count)
    assert not decided(ROOMY.most, ROOMY, count)
    assert not decided(0.999 * ROOMY.most * above, ROOMY, count)
    assert decided(1.001 * ROOMY.most * above, ROOMY, count)
    assert decided(0.0, ROOMY, count)


@pytest.mark.parametrize("count", [4, 16])
@pytest.mark.parametrize("directions", [1, 5])
def test_a_decision_is_as_rarely_wrong_as_it_claims(count: int, directions: int) -> None:
    """Simulated: errors along one direction are the worst case, more directions are only surer."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((200_000, count, directions))
    floors = np.sqrt(np.square(drawn).sum(axis=2).mean(axis=1) / directions)  # the true floor is 1
    for true, wrong in ((1.001 * ROOMY.most, "kept"), (0.999 * ROOMY.most, "broken")):
        below, above = chi_squared_bounds(count)
        figures = true / floors
        mistaken = figures <= ROOMY.most * below if wrong == "kept" else figures > ROOMY.most * above
        assert mistaken.mean() <= 1.3 * (1 - CONFIDENCE)
        # The very decisions of the code, on a part of them.
        said = [decided(figure, ROOMY, count) for figure in figures[:2000]]
        kept, broke = figures[:2000] <= ROOMY.most * below, figures[:2000] > ROOMY.most * above
        np.testing.assert_array_equal(said, kept | broke)


@LAWS
@given(figure=st.floats(0, 1e6), count=st.sampled_from([4, 8, 16]))
def test_more_draws_never_open_a_decision_again(figure: float, count: int) -> None:
    """At the same figure: the interval only narrows."""
    if decided(figure, ROOMY, count):
        assert decided(figure, ROOMY, 2 * count)


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_what_is_no_number_is_decided(figure: float) -> None:
    """No draw would change it; the verdict is an ERROR anyway."""
    assert decided(figure, ROOMY, 4)
    assert decided(figure, ROOMY, 4, discrete=True)


def test_discrete_noise_is_not_bounded_by_few_draws() -> None:
    """However far beyond the limit: an integer may have been another one in no draw. What is within stays decided."""
    assert decided(1e9, ROOMY, 4)
    assert not decided(1e9, ROOMY, 4, discrete=True)
    assert decided(0.1, ROOMY, 4, discrete=True)


def test_the_worst_position_is_held_against_dithered_draws() -> None:
    """Where those are larger; the typical one, and positions that dither leaves alone, are not."""
    oracle = trace()
    floor = level_floor(oracle, 1e-6)
    floor.prompts["p"].squared["prefill"][:, 2] = 0.0  # seen by no draw
    dithered = level_floor(oracle, 1e-3)
    dithered.prompts["q"].squared["prefill"][:] = 0.0
    both = replace(floor, dithered=dithered, discrete=True)
    found = compare_prompts(oracle, trace(3e-5, 5))["prefill"]
    ratios, worst = (getattr(both, of)("p", "prefill", found["p"]) for of in ("ratios", "worst_ratios"))
    np.testing.assert_array_equal(ratios, floor.ratios("p", "prefill", found["p"]))
    assert ratios[2] > 100
    assert (worst < 0.1).all()
    np.testing.assert_allclose(worst * 1e3, np.delete(ratios, 2).mean() * np.ones(5), rtol=0.5)
    np.testing.assert_array_equal(
        both.worst_ratios("q", "prefill", found["q"]), floor.ratios("q", "prefill", found["q"])
    )
    np.testing.assert_array_equal(floor.worst_ratios("p", "prefill", found["p"]), ratios)


def test_the_typical_ratio_is_the_median_of_all_positions() -> None:
    """No single prompt decides for the others, however far off it is."""
    calm = [np.full(9, 1.0), np.full(11, 1.5)]
    assert typical_ratio([*calm, np.full(10, 1e9)]) == 1.5
    assert typical_ratio(iter(calm)) == 1.5
    assert math.isnan(typical_ratio([*calm, np.asarray([math.nan])]))


# -- what is made of it


def test_amplification_is_told_by_prompt() -> None:
    """A prompt whose floor is sixty times that of the others is ill-conditioned; they are not."""
    oracle = trace()
    rng = np.random.default_rng(0)
    for count in range(5):
        oracle.prompts[f"calm{count}"] = PromptTrace(*rng.standard_normal((2, 3, VOCABULARY)))  # type: ignore[index]
    sizes = dict.fromkeys(oracle.prompts, 3e-7) | {"q": 60 * 3e-7}
    found = conditioning(level_floor(oracle, sizes), compare_prompts(oracle, oracle))
    assert {name for name, each in found.items() if each.ill} == {"q"}
    assert found["q"].times == pytest.approx(60)
    assert found["p"].times == pytest.approx(1)
    assert found["p"].typical == pytest.approx(3e-7 / UNIT_ROUNDOFF)
    assert found["q"].worst == pytest.approx(60 * 3e-7 / UNIT_ROUNDOFF)


def test_one_position_is_named_as_the_worst_and_makes_no_prompt_ill() -> None:
    oracle = trace()
    floor = level_floor(oracle, 3e-7)
    floor.prompts["p"].squared["decode"][:, 1] *= 1e8
    found = conditioning(floor, compare_prompts(oracle, oracle))
    assert found["p"].worst == pytest.approx(1e4 * 3e-7 / UNIT_ROUNDOFF)
    assert not found["p"].ill
    assert ILL_CONDITIONED > 1


def test_a_tie_is_what_the_floor_can_bring_into_another_order() -> None:
    """As many times a prompt's own logit noise as its worst position may be off; never a candidate's error."""
    noise = {
        "calm": PromptNoise({}, np.asarray([1e-6, 1e-6, 1e-6, 1e-6])),
        "wild": PromptNoise({}, np.asarray([0.0, 0.0, 0.0, 2e-3])),
    }
    floor = NoiseFloor(noise, LEAST)
    assert floor.logit_noise("wild") == pytest.approx(1e-3)
    assert tie(floor, "calm") == pytest.approx(8 * 1e-6)
    assert tie(floor, "wild") == pytest.approx(8 * 1e-3)
