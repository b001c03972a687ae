"""Verdicts: nothing is green by default, every broken limit is named, and figures are what they say."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare.limits import UNIT_ROUNDOFF, Limit
from parity.compare.metrics import compare_positions, concatenate, rel_l2, summarize, worst_position_rel_l2
from parity.compare.verdict import NoiseFloor, Verdict, compare_phases, judge, measure, naming_the_weight, worst
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PHASES, PromptTrace, Trace

LAWS = settings(deadline=None, max_examples=60)
VOCABULARY = 11
LEAST = dict.fromkeys(PHASES, UNIT_ROUNDOFF)
INPUTS = Inputs("set", "set", "0", "0", (TokenizedPrompt("p", (1, 2, 3), (4, 5)), TokenizedPrompt("q", (6,), (7, 8))))


def trace(seed: int = 0, noise: float = 0.0) -> Trace:
    """Logits for ``INPUTS``; the noise has its own seed and any size."""
    rng, disturbance = np.random.default_rng(0), np.random.default_rng(seed + 1)

    def logits(count: int) -> np.ndarray:
        return rng.standard_normal((count, VOCABULARY)) + noise * disturbance.standard_normal((count, VOCABULARY))

    return Trace({p.id: PromptTrace(logits(len(p.prompt)), logits(len(p.continuation))) for p in INPUTS.prompts})


def limit(metric: str = "loss", least: float = -math.inf, most: float = math.inf) -> Limit:
    return Limit(metric=metric, reason="a test", least=least, most=most)


# -- worst


def test_nothing_is_an_error() -> None:
    """No verdicts at all are never a PASS."""
    assert worst([]) is Verdict.ERROR
    assert worst(iter(())) is Verdict.ERROR


@pytest.mark.parametrize("verdicts", [v for n in (1, 2, 3) for v in product(Verdict, repeat=n)])
def test_error_outranks_fail_outranks_pass(verdicts: tuple[Verdict, ...]) -> None:
    """One ERROR makes an ERROR, without one a FAIL makes a FAIL, and PASS takes all."""
    rank = [Verdict.PASS, Verdict.FAIL, Verdict.ERROR]
    assert worst(verdicts) is max(verdicts, key=rank.index)
    assert worst(iter(verdicts)) is worst(verdicts)


# -- judge


def test_no_limits_are_an_error() -> None:
    """Figures that are held to nothing prove nothing."""
    edge = judge("original64", "engine", {"loss": 0.0}, [])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause is not None
    assert "engine" in edge.cause
    assert edge.metrics == {"loss": 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "absent"])
@pytest.mark.parametrize("bounds", [{"most": 1.0}, {"least": 1.0}, {}, {"most": math.inf}])
def test_figures_that_are_none_are_errors(value: float | str | None, bounds: dict[str, float]) -> None:
    """NaN, infinity, None, or not there: ERROR that names the figure, even within a limit that anything would meet."""
    metrics = {"good": 0.0} if value == "absent" else {"good": 0.0, "loss": value}
    edge = judge("original64", "float", metrics, [limit("good", most=1.0), limit(**bounds)])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause is not None
    assert "loss" in edge.cause
    assert "good" not in edge.cause


def test_an_unusable_figure_outranks_a_broken_limit() -> None:
    """What could not be computed is not made a FAIL by something else that could."""
    edge = judge("a", "b", {"x": 2.0, "y": math.nan}, [limit("x", most=1.0), limit("y", most=1.0)])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause is not None
    assert "y" in edge.cause


@LAWS
@given(value=st.floats(allow_nan=False, allow_infinity=False), bounds=st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
def test_inside_passes_outside_fails(value: float, bounds: tuple[float, float]) -> None:
    """Bounds belong to the inside; a FAIL names metric and bound, a PASS has no cause."""
    least, most = min(bounds), max(bounds)
    edge = judge("original64", "float", {"loss": value}, [limit(least=least, most=most)])
    assert (edge.reference, edge.candidate) == ("original64", "float")
    if least <= value <= most:
        assert (edge.verdict, edge.cause) == (Verdict.PASS, None)
    else:
        assert edge.verdict is Verdict.FAIL
        assert edge.cause is not None
        assert "loss" in edge.cause
        assert str([least, most]) in edge.cause
    assert edge.limits == {"loss": [least, most]}


@pytest.mark.parametrize(
    ("loss", "steps", "stage", "named"),
    [(0.0, 0.5, None, False), (2.0, 0.5, None, False), (0.0, 0.6, "block_3", True), (2.0, 0.6, "block_3", True)],
)
def test_a_weight_is_named_where_its_own_figure_is_outside(
    loss: float, steps: float, stage: str | None, named: bool
) -> None:
    """With its stage, beside whatever else is wrong; a file that fails for other reasons blames no weight."""
    limits = [limit("loss", most=1.0), limit("weight_steps", most=0.51), limit("weight_coarseness", most=1.01)]
    metrics = {"loss": loss, "weight_steps": steps, "weight_coarseness": 1.0}
    edge = judge("a", "dynamic_int8", metrics, limits)
    found = naming_the_weight(edge, {"coarseness": (1.0, "x"), "steps": (steps, "blocks.3.mlp.up_proj.weight")})
    assert found.verdict is edge.verdict
    assert found.first_divergent_stage == stage
    assert (found.cause or "") == (edge.cause or "") + ("; furthest off is blocks.3.mlp.up_proj.weight" * named)


def test_every_broken_limit_is_named() -> None:
    """Two of three are broken: both are in the cause with value and bound, the third is not."""
    limits = [limit("low", least=0.9), limit("fine", most=1.0), limit("high", most=8.0)]
    edge = judge("a", "b", {"low": 0.5, "fine": 0.5, "high": 12.25}, limits)
    assert edge.verdict is Verdict.FAIL
    assert edge.cause == "low 0.5, limit 0.9; high 12.25, limit 8.0"
    assert edge.limits == {"low": 0.9, "fine": 1.0, "high": 8.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_limits_never_hold_nan(value: float) -> None:
    """A limit by itself refuses NaN too, and infinity beyond its bounds."""
    assert not limit(least=-1.0, most=1.0).holds(value)
    assert limit().holds(value) is not math.isnan(value)


# -- noise floor and figures


def test_floor_is_never_below_the_least() -> None:
    """An original that rounds to the oracle's very bits says nothing of what others may lose."""
    least = {"prefill": 3e-7, "decode": 2e-7}
    floor = NoiseFloor.measure(trace(), trace(), least)
    assert floor.rel_l2 == floor.worst_position == least


@LAWS
@given(noise=st.floats(1e-12, 1e-3), seed=st.integers(0, 2**31))
def test_floor_is_the_originals_own_distance(noise: float, seed: int) -> None:
    """Above the roundoff it is what was measured, phase by phase, over all prompts."""
    oracle, original = trace(), trace(seed, noise)
    floor = NoiseFloor.measure(oracle, original, LEAST)
    for phase in PHASES:
        pairs = [(getattr(oracle.prompts[name], phase), getattr(original.prompts[name], phase)) for name in ("p", "q")]
        together = compare_positions(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
        # The same rows put together before or after they are measured: sums in another order.
        assert floor.rel_l2[phase] == pytest.approx(max(rel_l2(together), UNIT_ROUNDOFF), rel=1e-12)
        assert floor.worst_position[phase] == pytest.approx(
            max(worst_position_rel_l2(together), UNIT_ROUNDOFF), rel=1e-12
        )


def test_figures_in_units_of_the_floor() -> None:
    """The original itself has ratios of 1 in each phase; twice its error has twice the ratio, in the worse phase."""
    oracle, original = trace(), trace(1, 1e-4)
    floor = NoiseFloor.measure(oracle, original, LEAST)
    same = measure(oracle, original, floor, INPUTS)["logits"]
    assert same["floor_ratio"] == same["worst_position_ratio"] == 1.0
    prompts = {
        name: PromptTrace(
            prompt.prefill + 2 * (original.prompts[name].prefill - prompt.prefill), original.prompts[name].decode
        )
        for name, prompt in oracle.prompts.items()
    }
    figures = measure(oracle, Trace(prompts), floor, INPUTS)["logits"]
    # Doubling an error of 1e-4 on values around 1 rounds it to 1e-12 of itself.
    for ratio in ("floor_ratio", "worst_position_ratio"):
        assert figures["prefill"][ratio] == pytest.approx(2.0, rel=1e-10)
        assert figures["decode"][ratio] == 1.0
        assert figures[ratio] == figures["prefill"][ratio]


def test_figures_cover_all_prompts_and_phases() -> None:
    """The overall figures are over every position there is, those of a phase over its own."""
    oracle, candidate = trace(), trace(3, 0.1)
    figures = measure(oracle, candidate, NoiseFloor.measure(oracle, trace(1, 1e-4), LEAST), INPUTS)["logits"]
    errors = compare_phases(oracle, candidate)
    assert figures["positions"] == INPUTS.positions == 8
    assert (figures["prefill"]["positions"], figures["decode"]["positions"]) == (4, 4)
    for name, value in summarize(concatenate(errors.values())).items():
        assert figures[name] == value
    for phase in PHASES:
        assert {name: figures[phase][name] for name in summarize(errors[phase])} == summarize(errors[phase])


def test_perplexity_ratio() -> None:
    """exp of the mean cost per continuation token, candidate over reference; its first token follows the prompt."""
    oracle, candidate = trace(), trace(3, 0.5)

    def cost(recorded: Trace) -> float:
        nats = []
        for prompt in INPUTS.prompts:
            logits = recorded.prompts[prompt.id]
            rows = [logits.prefill[-1], *logits.decode[:-1]]
            for row, token in zip(rows, prompt.continuation, strict=True):
                nats.append(math.log(math.fsum(math.exp(x) for x in row)) - row[token])
        return math.fsum(nats) / len(nats)

    floor = NoiseFloor.measure(oracle, oracle, LEAST)
    figures = measure(oracle, candidate, floor, INPUTS)["logits"]
    assert figures["perplexity_ratio"] == pytest.approx(math.exp(cost(candidate) - cost(oracle)), rel=1e-12)
    assert measure(oracle, oracle, floor, INPUTS)["logits"]["perplexity_ratio"] == 1.0


@pytest.mark.parametrize("phase", PHASES)
def test_one_wrong_position_is_seen(phase: str) -> None:
    """A single position exchanged in one phase of one prompt shows in the worst-position ratio of that phase."""
    oracle = trace()
    floor = NoiseFloor.measure(oracle, trace(1, 1e-4), LEAST)
    spoilt = {part: getattr(oracle.prompts["q"], part).copy() for part in PHASES}
    spoilt[phase][-1] = spoilt[phase][-1][::-1]
    figures = measure(oracle, Trace({**oracle.prompts, "q": PromptTrace(**spoilt)}), floor, INPUTS)["logits"]
    other = next(part for part in PHASES if part != phase)
    assert figures["worst_position_ratio"] == figures[phase]["worst_position_ratio"] > 1000
    assert figures[other]["worst_position_ratio"] == 0.0
