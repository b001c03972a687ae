"""A quantized rung is judged only by prompts that could have noticed what its limits forbid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare.limits import ENCODER_LIMITS, RECIPE_LIMITS, Limit
from parity.compare.metrics import compare_positions, kl_divergence, log_softmax
from parity.compare.sampling import of_encoder, of_logits
from parity.compare.verdict import NoiseFloor, Verdict, judge, measure
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PHASES, PromptTrace, Trace

LAWS = settings(deadline=None, max_examples=60)
VOCABULARY = 11
FLOOR = NoiseFloor(dict.fromkeys(PHASES, 1e-7), dict.fromkeys(PHASES, 1e-7))
ROOMY = Limit(metric="kl_mean", reason="a test", most=1.0)


def traces(noises: Sequence[float]) -> tuple[Trace, Trace, Inputs]:
    """A reference, a candidate that is as noisy as said at each prompt, and their inputs."""
    rng = np.random.default_rng(0)
    prompts = tuple(TokenizedPrompt(f"p{i}", (1, 2, 3, 4), tuple(range(8))) for i in range(len(noises)))
    reference, candidate = {}, {}
    for prompt, noise in zip(prompts, noises, strict=True):
        parts = [3 * rng.standard_normal((count, VOCABULARY)) for count in (4, 8)]
        reference[prompt.id] = PromptTrace(*parts)
        candidate[prompt.id] = PromptTrace(*(part + noise * rng.standard_normal(part.shape) for part in parts))
    return Trace(reference), Trace(candidate), Inputs("set", "set", "0", "0", prompts)


def sampled(noises: Sequence[float]) -> dict[str, Any]:
    reference, candidate, inputs = traces(noises)
    return measure(reference, candidate, FLOOR, inputs, sampled=True)["logits"]


def test_every_metric_with_a_limit_is_sampled() -> None:
    """Each has an interval around its figure, and a change that would be noticed."""
    metrics = sampled([0.1] * 6)
    judged = {limit.metric for limits in RECIPE_LIMITS.values() for limit in limits}
    assert judged == set(metrics["interval"]) == set(metrics["detectable"])
    for name in judged:
        least, most = metrics["interval"][name]
        assert least <= metrics[name] <= most
        assert 0 < metrics["detectable"][name] < math.inf
    assert metrics["prompts"] == 6
    rows = [compare_positions(np.eye(5), np.eye(5) + noise) for noise in (0.1, 0.2, 0.15)]
    assert set(of_encoder(rows)["detectable"]) == {limit.metric for each in ENCODER_LIMITS.values() for limit in each}


def test_float_rungs_are_not_sampled() -> None:
    """They are judged by the noise floor at all positions."""
    reference, candidate, inputs = traces([1e-7] * 3)
    assert not {"interval", "detectable", "prompts"} & set(measure(reference, candidate, FLOOR, inputs)["logits"])


@LAWS
@given(seed=st.integers(0, 2**31), push=st.floats(0, 30))
def test_another_best_token_costs_at_least_so_much(seed: int, push: float) -> None:
    """Whatever distribution has another best token, its KL is no smaller; one at the bound has two best ones."""
    rng = np.random.default_rng(seed)
    reference = 3 * rng.standard_normal((1, VOCABULARY))
    candidate = reference + rng.standard_normal((1, VOCABULARY))
    candidate[0, rng.integers(VOCABULARY)] += push
    least = compare_positions(reference, reference).another_best[0]
    if candidate.argmax() != reference.argmax():
        assert kl_divergence(reference, candidate)[0] >= least * (1 - 1e-12)
    nearest = log_softmax(reference)
    second, best = np.argsort(nearest[0])[-2:]
    nearest[0, [second, best]] = np.logaddexp(nearest[0, second], nearest[0, best]) - math.log(2)
    assert kl_divergence(reference, nearest)[0] == pytest.approx(least, rel=1e-6, abs=1e-14)


def test_agreement_of_all_is_not_certain() -> None:
    """Nothing varies where all agree; still a disagreement too rare for so many positions would not be noticed."""
    reference, _, _ = traces([0.0] * 4)
    errors = [compare_positions(prompt.decode, prompt.decode) for prompt in reference.prompts.values()]
    coarse = [compare_positions(prompt.decode, 1.5 * prompt.decode) for prompt in reference.prompts.values()]
    found = of_logits(coarse, [np.zeros(8)] * 4)
    positions = sum(int((each.margin >= 0.1).sum()) for each in errors)
    assert found["interval"]["top1_agreement_clear"] == pytest.approx([0.025 ** (1 / positions), 1.0])
    assert found["detectable"]["top1_agreement_clear"] == pytest.approx(1 - 0.2 ** (1 / positions))
    # A rung whose KL is known to be nothing has no other best token either.
    assert of_logits(errors, [np.zeros(8)] * 4)["detectable"]["top1_agreement_clear"] == 0


def test_one_prompt_is_an_error() -> None:
    """However small its figures are."""
    edge = judge("original64", "fp16", sampled([1e-9]), [ROOMY])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause == "one prompt says nothing about others; give two at least, better seven"


def test_too_few_prompts_are_an_error_that_says_how_many() -> None:
    """Prompts that differ so much that twice the limit would not be noticed; enough of them would do."""
    noises = [0.05, 0.5, 0.02, 0.9]
    metrics = sampled(noises)
    room = metrics["detectable"]["kl_mean"] / 2
    limit = Limit(metric="kl_mean", reason="a test", most=room)
    edge = judge("original64", "fp16", {**metrics, "kl_mean": room / 2}, [ROOMY, limit])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause is not None
    assert "4 prompts are too few for the limit of kl_mean" in edge.cause
    assert "about 16 prompts would do" in edge.cause
    assert judge("original64", "fp16", sampled(noises * 8), [limit]).verdict is not Verdict.ERROR


@pytest.mark.parametrize(("positions", "verdict"), [(99, Verdict.ERROR), (100, Verdict.PASS)])
def test_too_few_positions_are_an_error_that_says_how_many(positions: int, verdict: Verdict) -> None:
    """A worst one in a hundred takes a hundred, whatever the prompts say as a sample."""
    metrics = {"kl_p99": 0.1, "positions": positions, "prompts": 7, "interval": {}, "detectable": {}}
    tail = next(limit for limit in RECIPE_LIMITS["dynamic_int8"] if limit.metric == "kl_p99")
    edge = judge("original64", "dynamic_int8", metrics, [tail])
    assert edge.verdict is verdict
    said = "99 positions are too few for the limit of kl_p99; give prompts of 100 at least"
    assert edge.cause == (said if verdict is Verdict.ERROR else None)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [([1.5, 2.5], Verdict.FAIL), ([0.5, 3.5], Verdict.ERROR)],
)
def test_what_is_outside_beyond_doubt_fails(interval: list[float], verdict: Verdict) -> None:
    """A figure whose whole interval is outside needs no further prompts; one that might be inside does."""
    metrics = {"kl_mean": 2.0, "prompts": 3, "interval": {"kl_mean": interval}, "detectable": {"kl_mean": 4.0}}
    edge = judge("original64", "fp16", metrics, [ROOMY])
    assert edge.verdict is verdict
    assert edge.cause is not None
    assert "kl_mean 2, limit 1" in edge.cause if verdict is Verdict.FAIL else "too few" in edge.cause


@pytest.mark.parametrize("noticed", [None, math.nan, math.inf])
def test_a_change_that_is_not_known_is_an_error(noticed: float | None) -> None:
    """A limit on a figure that was not sampled, or could not be."""
    metrics = {"kl_mean": 0.5, "prompts": 3, "interval": {}, "detectable": {"kl_mean": noticed}}
    edge = judge("original64", "fp16", metrics, [ROOMY])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause is not None
    assert "give more" in edge.cause


@pytest.mark.parametrize(
    ("bounds", "room"),
    [
        ({"most": 0.3}, 0.3),
        ({"least": 0.94}, 0.06),
        ({"least": 0.8, "most": 1.5}, 0.25),
        ({"least": 0.5, "most": 1.1}, 0.1),
    ],
)
def test_room_is_from_no_loss_to_the_nearer_bound(bounds: dict[str, float], room: float) -> None:
    """Of a ratio on a logarithmic scale: 0.8 is as far from 1 as 1.25."""
    assert Limit(metric="any", reason="a test", **bounds).room == pytest.approx(room)
