"""What prompts say as a sample: the typical one with its bound, shares with theirs, and no prompt that owns a mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare.budgets import TIERS
from parity.compare.limits import ENCODER_LIMITS, Limit
from parity.compare.measuring import Measured, measure
from parity.compare.metrics import NEAR_TIE, compare_positions
from parity.compare.sampling import OUTLIER, TYPICAL_CONFIDENCE, of_encoder, of_logits, typical_of
from parity.compare.statistics import share_interval
from parity.compare.verdict import Edge, Verdict, judge
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PromptTrace, Trace
from tests.made_floors import level_floor

LAWS = settings(deadline=None, max_examples=60)
VOCABULARY = 11
#: Whole KL per prompt of trained SmolLM2-135M in dynamic_int8, as measured; the fourth is ``no no no ...``.
MEASURED = (0.040, 0.041, 0.049, 2.07, 0.038, 0.031, 0.035)


def traces(noises: Sequence[float], size: float = 3.0) -> tuple[Trace, Trace, Inputs]:
    """A reference, a candidate that is as noisy as said at each prompt, and their inputs."""
    rng = np.random.default_rng(0)
    prompts = tuple(TokenizedPrompt(f"p{i}", (1, 2, 3, 4), tuple(range(8))) for i in range(len(noises)))
    reference, candidate = {}, {}
    for prompt, noise in zip(prompts, noises, strict=True):
        parts = [size * rng.standard_normal((count, VOCABULARY)) for count in (4, 8)]
        reference[prompt.id] = PromptTrace(*parts)
        candidate[prompt.id] = PromptTrace(*(part + noise * rng.standard_normal(part.shape) for part in parts))
    return Trace(reference), Trace(candidate), Inputs("set", "set", "0", "0", prompts)


def sampled(noises: Sequence[float], size: float = 3.0) -> Mapping[str, Any]:
    reference, candidate, inputs = traces(noises, size)
    return measure(reference, candidate, inputs, sampled=True)["logits"].metrics


def held(metrics: Mapping[str, Any], limits: Sequence[Limit] = TIERS["good"].limits) -> Edge:
    return judge("original64", "dynamic_int8", "quality", Measured(metrics), limits)


def test_every_metric_of_a_tier_is_sampled() -> None:
    """Each has an interval around its figure, and the worse end of that is what a budget is held against."""
    metrics = sampled([0.3] * 6)
    for tier in TIERS.values():
        assert {limit.metric for limit in tier.limits} <= metrics["bound"].keys()
    for name, (least, most) in metrics["interval"].items():
        assert least <= metrics[name] <= most
        assert metrics["bound"][name] == ([least, most] if name == "perplexity_ratio" else most)
    assert metrics["bound"]["top1_agreement_clear"] == pytest.approx(1 - metrics["interval"]["flips"][1])
    assert metrics["flips"] == pytest.approx(1 - metrics["top1_agreement_clear"])
    assert metrics["prompts"] == 6


def test_what_has_a_floor_is_not_sampled() -> None:
    """It is judged at all positions, in units of what is known of each."""
    reference, candidate, inputs = traces([1e-7] * 3)
    found = measure(reference, candidate, inputs, floor=level_floor(reference, 1e-7))["logits"].metrics
    assert not {"interval", "bound", "prompts"} & set(found)


# -- the typical prompt


@pytest.mark.parametrize(("count", "place"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 5), (7, 6), (20, 13)])
def test_the_bound_is_an_order_statistic(count: int, place: int) -> None:
    """The least that is sure enough; six and seven prompts have one to spare."""
    from scipy import stats

    losses = np.arange(1.0, count + 1)
    typical, most, sure = typical_of(list(losses))
    assert (typical, most) == (np.median(losses), place)
    assert sure == pytest.approx(stats.binom.cdf(place - 1, count, 0.5))
    assert (sure >= TYPICAL_CONFIDENCE) is (count > 2)
    if place > 1 and count > 2:
        assert stats.binom.cdf(place - 2, count, 0.5) < TYPICAL_CONFIDENCE


@LAWS
@given(losses=st.lists(st.floats(0, 1e3), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_the_order_of_prompts_does_not_matter(losses: list[float], seed: int) -> None:
    """And the bound is one of the prompts, no better than the typical one."""
    typical, most, sure = typical_of(losses)
    assert typical_of(np.random.default_rng(seed).permutation(losses).tolist()) == (typical, most, sure)
    assert most in losses
    assert most >= typical or len(losses) == 1
    assert 0 <= sure <= 1


@pytest.mark.parametrize("count", [3, 5, 7, 12, 30])
def test_the_bound_is_above_the_median_of_all_prompts_as_often_as_it_says(count: int) -> None:
    """Of a distribution with a very long tail, whose mean no sample knows."""
    rng = np.random.default_rng(0)
    samples = np.exp(3 * rng.standard_normal((4000, count)))  # median 1
    found = [typical_of(list(sample)) for sample in samples]
    share = np.mean([most >= 1 for _, most, _ in found])
    assert share == pytest.approx(found[0][2], abs=0.025)
    assert share > TYPICAL_CONFIDENCE - 0.02


def test_one_chaotic_prompt_does_not_decide() -> None:
    """Seven as measured on trained weights: the mean is no use, the typical prompt and its bound are."""
    typical, most, _ = typical_of(MEASURED)
    assert (typical, most) == (0.040, 0.049)
    calm = sampled([0.3] * 7)
    wild = sampled([0.3] * 3 + [6.0] + [0.3] * 3)
    assert wild["kl_mean"] > 5 * calm["kl_mean"]
    assert wild["bound"]["kl_typical"] < 2 * calm["bound"]["kl_typical"]
    assert list(wild["outliers"]) == ["p3"]
    assert wild["outliers"]["p3"] > OUTLIER * wild["kl_typical"]
    assert calm["outliers"] == {}
    typical_only = [limit for limit in TIERS["good"].limits if limit.metric == "kl_typical"]
    assert held(calm, typical_only).verdict is held(wild, typical_only).verdict is Verdict.PASS


@pytest.mark.parametrize("bad", [2, 3, 4, 7])
def test_a_lossy_file_does_not_pass_for_its_outliers(bad: int) -> None:
    """Two of seven that are off are no single outlier any more: the bound is one of them."""
    edge = held(sampled([6.0] * bad + [0.3] * (7 - bad)))
    assert edge.verdict is Verdict.FAIL
    assert "kl_typical" in (edge.cause or "")


def test_the_bound_decides_not_the_point() -> None:
    """Within the budget as measured, beyond it as far as is known."""
    metrics = sampled([0.3, 0.35, 0.4, 0.5, 0.9, 1.0, 1.1])
    between = (metrics["kl_typical"] + metrics["bound"]["kl_typical"]) / 2
    assert metrics["kl_typical"] < between < metrics["bound"]["kl_typical"]
    edge = held(metrics, [Limit(metric="kl_typical", reason="a test", most=between)])
    assert edge.verdict is Verdict.FAIL
    assert "at most" in (edge.cause or "")


# -- few prompts, few clear positions


def test_one_prompt_is_an_error() -> None:
    """However small its figures are."""
    edge = held(sampled([1e-9]))
    assert edge.verdict is Verdict.ERROR
    assert edge.cause == "one prompt says nothing about others; give four, better seven"


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_prompts_are_judged_by_their_worst(count: int) -> None:
    """They are no ERROR: their bound is the largest of them, and its confidence is said."""
    metrics = sampled([0.1] * (count - 1) + [6.0])
    assert metrics["bound"]["kl_typical"] == max(metrics["interval"]["kl_typical"])
    assert metrics["typical_confidence"] == pytest.approx(1 - 0.5**count)
    assert held(metrics).verdict is Verdict.FAIL
    assert held(sampled([1e-3] * count)).verdict is Verdict.PASS


def test_nearly_flat_logits_are_judged_by_what_has_a_meaning() -> None:
    """No position is clear: which token is best says nothing, the distribution does, and the edge says so."""
    metrics = sampled([1e-3] * 7, size=NEAR_TIE / 1000)
    assert metrics["flips"] is None
    assert metrics["top1_agreement_clear"] is None
    assert "flips" not in metrics["interval"]
    edge = held(metrics)
    assert (edge.verdict, edge.cause) == (Verdict.PASS, None)
    assert edge.remark == "flips has no meaning on these prompts"
    assert edge.limits.keys() == {"kl_typical"}
    assert held(sampled([3.0] * 7, size=NEAR_TIE / 1000)).verdict is Verdict.FAIL


def test_a_limit_that_was_asked_for_is_no_option() -> None:
    """A budget of one's own on agreement cannot be kept by prompts that say nothing of it."""
    limit = Limit(metric="top1_agreement_clear", reason="a test", least=0.9)
    edge = held(sampled([1e-3] * 7, size=NEAR_TIE / 1000), [limit])
    assert (edge.verdict, edge.cause) == (Verdict.ERROR, "top1_agreement_clear could not be computed")


def test_few_clear_positions_are_no_error() -> None:
    """What so few say is wide, and judged as such: no number of prompts is asked for."""
    metrics = sampled([1e-4] * 7, size=0.07)
    positions = 7 * 12 - metrics["near_ties"]
    assert 0 < positions < 30
    assert metrics["flips"] == 0
    assert metrics["at_best"]["flips"] == share_interval(0, positions)[1] > 0
    assert metrics["bound"]["flips"] >= metrics["at_best"]["flips"]
    assert held(metrics).verdict is Verdict.PASS
    # Of a limit that so few could not keep even if none were flipped, nothing is said.
    lossless = held(metrics, TIERS["lossless"].limits)
    assert (lossless.verdict, lossless.remark) == (Verdict.PASS, "flips has no meaning on these prompts")


def test_agreement_of_all_is_not_certain() -> None:
    """Nothing varies where all agree; the bound is that of as many independent positions."""
    reference, _, inputs = traces([0.0] * 4)
    errors = {name: compare_positions(prompt.decode, prompt.decode * 1.5) for name, prompt in reference.prompts.items()}
    found = of_logits(errors, [np.zeros(8)] * len(inputs.prompts))
    positions = sum(int((each.margin >= NEAR_TIE).sum()) for each in errors.values())
    assert found["flips"] == 0
    assert found["interval"]["flips"] == pytest.approx([0.0, 1 - 0.025 ** (1 / positions)])


@LAWS
@given(seed=st.integers(0, 2**31), noises=st.lists(st.floats(0, 5), min_size=2, max_size=8))
def test_figures_are_finite_and_within_their_bounds(seed: int, noises: list[float]) -> None:
    """Whatever the prompts lose, nothing is negative, no share beyond one, and the bound is never better."""
    metrics = sampled([noise + seed * 1e-12 for noise in noises])
    for name, (least, most) in metrics["interval"].items():
        assert 0 <= least <= metrics[name] * (1 + 1e-9) + 1e-12
        assert metrics[name] <= most * (1 + 1e-9) + 1e-12
    if metrics["flips"] is not None:
        assert metrics["interval"]["flips"][1] <= 1
        assert 0 <= metrics["bound"]["top1_agreement_clear"] <= metrics["top1_agreement_clear"]


def test_what_overflows_is_judged_as_none() -> None:
    """A cost beyond what a float holds is infinite, and infinity keeps no limit."""
    reference, _, _ = traces([0.0] * 3)
    errors = {name: compare_positions(prompt.decode, prompt.decode) for name, prompt in reference.prompts.items()}
    found = of_logits(errors, [np.full(8, 1e4), np.zeros(8), np.zeros(8)])
    assert math.isinf(found["bound"]["perplexity_ratio"][1])
    limit = Limit(metric="perplexity_ratio", reason="a test", least=0.5, most=2.0)
    assert held({"perplexity_ratio": 1.0, **found}, [limit]).verdict is Verdict.ERROR


def test_the_rows_of_an_encoder_are_a_sample_too() -> None:
    """The typical prompt's distance; what their limits are about is over all of them."""
    rows = {str(noise): compare_positions(np.eye(5), np.eye(5) + noise) for noise in (0.1, 0.2, 0.15)}
    found = of_encoder(rows)
    assert found["prompts"] == 3
    assert found["rel_l2_typical"] == pytest.approx(0.15 * 5 / math.sqrt(5))
    assert found["interval"]["rel_l2_typical"] == pytest.approx([0.1 * math.sqrt(5), 0.2 * math.sqrt(5)])
    assert {limit.metric for each in ENCODER_LIMITS.values() for limit in each} == {"rel_l2"}
