"""Verdicts: nothing is green by default, every broken limit is named, and figures are what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare.comparison import Comparison, drawn
from parity.compare.floor import FIRST_DRAWS, MOST_DRAWS, NoiseFloor
from parity.compare.limits import (
    FIDELITY_LIMITS,
    PORT_LIMITS,
    ROUNDING_LIMITS,
    Limit,
    Question,
    limits_for,
    question_of,
)
from parity.compare.measuring import Measured, compare_prompts, measure
from parity.compare.metrics import concatenate, summarize
from parity.compare.verdict import Edge, Verdict, judge, naming_the_weight, over_budget, undecided, worst
from parity.inputs import Inputs, TokenizedPrompt
from parity.spelling import limit_spelled
from parity.trace import PHASES, PromptTrace, Trace
from tests.made_floors import floor_of, level_floor

LAWS = settings(deadline=None, max_examples=60)
VOCABULARY = 11
INPUTS = Inputs("set", "set", "0", "0", (TokenizedPrompt("p", (1, 2, 3), (4, 5)), TokenizedPrompt("q", (6,), (7, 8))))


def trace(seed: int = 0, noise: float = 0.0) -> Trace:
    """Logits for ``INPUTS``; the noise has its own seed and any size."""
    rng, disturbance = np.random.default_rng(0), np.random.default_rng(seed + 1)

    def logits(count: int) -> np.ndarray:
        return rng.standard_normal((count, VOCABULARY)) + noise * disturbance.standard_normal((count, VOCABULARY))

    return Trace({p.id: PromptTrace(logits(len(p.prompt)), logits(len(p.continuation))) for p in INPUTS.prompts})


def limit(metric: str = "loss", least: float = -math.inf, most: float = math.inf, *, optional: bool = False) -> Limit:
    return Limit(metric=metric, reason="a test", least=least, most=most, optional=optional)


def judged(metrics: Mapping[str, Any], limits: Sequence[Limit], candidate: str = "float") -> Edge:
    return judge("original64", candidate, "rounding", Measured(metrics), limits)


def figures_of(reference: Trace, candidate: Trace, floor: NoiseFloor) -> Mapping[str, Any]:
    return measure(reference, candidate, INPUTS, floor=floor)["logits"].metrics


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
    edge = judge("original64", "engine", "quality", Measured({"loss": 0.0}), [])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause is not None
    assert "engine" in edge.cause
    assert edge.metrics == {"loss": 0.0}
    assert edge.question == "quality"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "absent"])
@pytest.mark.parametrize("bounds", [{"most": 1.0}, {"least": 1.0}, {}, {"most": math.inf}])
def test_figures_that_are_none_are_errors(value: float | str | None, bounds: dict[str, float]) -> None:
    """NaN, infinity, None, or not there: ERROR that names the figure, even within a limit that anything would meet."""
    metrics = {"good": 0.0} if value == "absent" else {"good": 0.0, "loss": value}
    edge = judged(metrics, [limit("good", most=1.0), limit(**bounds)])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause is not None
    assert "loss" in edge.cause
    assert "good" not in edge.cause


@pytest.mark.parametrize("bound", [math.nan, math.inf, None, [0.0, math.nan], [math.nan, 0.0]])
def test_a_bound_that_is_none_is_an_error_whatever_the_figure(bound: Any) -> None:
    """What is held against the limit is the bound."""
    edge = judged({"loss": 0.0, "bound": {"loss": bound}}, [limit(most=1.0)])
    assert (edge.verdict, edge.cause) == (Verdict.ERROR, "loss could not be computed")


def test_an_unusable_figure_outranks_a_broken_limit() -> None:
    """What could not be computed is not made a FAIL by something else that could."""
    edge = judged({"x": 2.0, "y": math.nan}, [limit("x", most=1.0), limit("y", most=1.0)])
    assert edge.verdict is Verdict.ERROR
    assert edge.cause is not None
    assert "y" in edge.cause


@LAWS
@given(value=st.floats(allow_nan=False, allow_infinity=False), bounds=st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
def test_inside_passes_outside_fails(value: float, bounds: tuple[float, float]) -> None:
    """Bounds belong to the inside; a FAIL names metric and bound, a PASS has no cause."""
    least, most = min(bounds), max(bounds)
    edge = judged({"loss": value}, [limit(least=least, most=most)])
    assert (edge.reference, edge.candidate) == ("original64", "float")
    if least <= value <= most:
        assert (edge.verdict, edge.cause) == (Verdict.PASS, None)
    else:
        assert edge.verdict is Verdict.FAIL
        assert edge.cause is not None
        assert "loss" in edge.cause
        assert limit_spelled("loss", [least, most]) in edge.cause
    assert edge.limits == {"loss": [least, most]}


@LAWS
@given(
    value=st.floats(-9, 9), ends=st.lists(st.floats(-9, 9), min_size=2, max_size=2).map(sorted), most=st.floats(-9, 9)
)
def test_the_bound_is_judged_not_the_figure(value: float, ends: list[float], most: float) -> None:
    """One end where one matters, both where both do; the figure itself decides nothing then."""
    one = judged({"loss": value, "bound": {"loss": ends[1]}}, [limit(most=most)])
    both = judged({"loss": value, "bound": {"loss": ends}}, [limit(least=-most, most=most)])
    assert (one.verdict is Verdict.PASS) == (ends[1] <= most)
    assert (both.verdict is Verdict.PASS) == (-most <= ends[0] and ends[1] <= most)
    assert {one.verdict, both.verdict} <= {Verdict.PASS, Verdict.FAIL}


def test_what_was_judged_is_said() -> None:
    """The figure with its bound, or with both; a figure without one by itself."""
    bounds = {"kl_typical": 0.612, "top1_agreement": 0.8, "perplexity_ratio": [0.5, 2.0]}
    found = {"kl_typical": 0.05, "top1_agreement": 0.97, "perplexity_ratio": 1.0, "bound": bounds}
    limits = [
        limit("kl_typical", most=0.1),
        limit("top1_agreement", least=0.9),
        limit("perplexity_ratio", least=0.8, most=1.25),
    ]
    assert judged(found, limits).cause == (
        "kl_typical 0.0500 (0.612 at most), limit ≤ 0.1; top1_agreement 97.0% (80.0% at least), limit ≥ 90%; "
        "perplexity_ratio 1.0000 (0.5000 to 2.0000 at most), limit 0.8 to 1.25"
    )


def test_every_broken_limit_is_named() -> None:
    """Two of three are broken: both are in the cause with value and bound, the third is not."""
    limits = [limit("cosine", least=0.9), limit("fine", most=1.0), limit("high", most=8.0)]
    edge = judged({"cosine": 0.5, "fine": 0.5, "high": 12.25}, limits)
    assert edge.verdict is Verdict.FAIL
    assert edge.cause == "cosine 0.500, limit ≥ 0.9; high 12.2, limit ≤ 8"
    assert edge.limits == {"cosine": 0.9, "fine": 1.0, "high": 8.0}


def test_the_worst_position_is_named() -> None:
    place = {"prompt": "p", "phase": "decode", "position": 3}
    edge = judged({"worst_position_ratio": 9.0, "worst_position": place}, [limit("worst_position_ratio", most=8.0)])
    assert edge.cause == "worst_position_ratio 9.00 at position 3 of p (decode), limit ≤ 8"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_limits_never_hold_nan(value: float) -> None:
    """A limit by itself refuses NaN too, and infinity beyond its bounds."""
    assert not limit(least=-1.0, most=1.0).holds(value)
    assert limit().holds(value) is not math.isnan(value)


# -- figures without a meaning, and few prompts


@pytest.mark.parametrize(("loss", "verdict"), [(0.5, Verdict.PASS), (1.5, Verdict.FAIL)])
def test_a_figure_without_meaning_leaves_it_to_the_others(loss: float, verdict: Verdict) -> None:
    """It is no limit of the edge then, and the edge says so."""
    limits = [limit("loss", most=1.0), limit("flips", most=0.1, optional=True)]
    for metrics in ({"loss": loss, "flips": None}, {"loss": loss}):
        edge = judged(metrics, limits)
        assert edge.verdict is verdict
        assert edge.limits == {"loss": 1.0}
        assert edge.remark == "flips has no meaning on these prompts"
    assert judged({"loss": loss, "flips": 0.0}, limits).remark is None
    assert judged({"loss": loss, "flips": 0.2}, limits).verdict is Verdict.FAIL


@pytest.mark.parametrize(("at_best", "said"), [(0.05, False), (0.1, False), (0.11, True), (1.0, True)])
def test_a_share_of_too_few_positions_has_no_meaning(at_best: float, said: bool) -> None:
    """Where not even none of them flipped would keep the limit; the others decide."""
    limits = [limit("loss", most=1.0), limit("flips", most=0.1, optional=True)]
    metrics = {"flips": 0.0, "bound": {"flips": max(at_best, 0.01)}, "at_best": {"flips": at_best}}
    for loss in (0.5, 1.5):
        edge = judged({"loss": loss, **metrics}, limits)
        assert edge.verdict is (Verdict.PASS if loss < 1 else Verdict.FAIL)
        assert edge.remark == ("flips has no meaning on these prompts" if said else None)
    # A limit that was asked for is held to.
    assert judged(metrics, [limit("flips", most=0.01)]).verdict is Verdict.FAIL


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_optional_figure_that_is_no_number_is_an_error(value: float) -> None:
    """Only what is said to have no meaning has none."""
    edge = judged({"loss": 0.0, "flips": value}, [limit("loss", most=1.0), limit("flips", most=0.1, optional=True)])
    assert (edge.verdict, edge.cause) == (Verdict.ERROR, "flips could not be computed")


def test_nothing_but_figures_without_meaning_is_an_error() -> None:
    assert judged({"flips": None}, [limit("flips", most=0.1, optional=True)]).verdict is Verdict.ERROR


@pytest.mark.parametrize(("prompts", "verdict"), [(1, Verdict.ERROR), (2, Verdict.PASS), (7, Verdict.PASS)])
def test_one_prompt_says_nothing_about_others(prompts: int, verdict: Verdict) -> None:
    """However small its figures are."""
    edge = judged({"loss": 0.0, "prompts": prompts}, [limit(most=1.0)])
    assert edge.verdict is verdict
    assert (edge.cause == "one prompt says nothing about others; give four, better seven") is (prompts == 1)


# -- what an edge says of a quantized file


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
    edge = judged(metrics, limits, "dynamic_int8")
    found = naming_the_weight(edge, {"coarseness": (1.0, "x"), "steps": (steps, "blocks.3.mlp.up_proj.weight")})
    assert found.verdict is edge.verdict
    assert found.first_divergent_stage == stage
    assert (found.cause or "") == (edge.cause or "") + ("; furthest off is blocks.3.mlp.up_proj.weight" * named)


def test_over_budget_says_whose_loss_it_is() -> None:
    """The recipe's own where the file does what it says; else the file's; and nothing of an edge that keeps to it."""
    edge = judged({"kl_typical": 0.32, "bound": {"kl_typical": 0.5}}, [limit("kl_typical", most=0.1)], "dynamic_int8")
    edge = replace(edge, question="quality", budget="good", own_loss={"kl_typical": 0.31})
    said = "over budget good: kl_typical 0.320 (0.500 at most), limit ≤ 0.1"
    unknown = f"{said}; whether that is the recipe's loss or the file's is not known"
    assert over_budget(edge, Verdict.PASS).cause == (
        f"{said}; the recipe itself loses 0.310 of 0.320; the file does what it says"
    )
    assert over_budget(edge, Verdict.FAIL).cause == f"{said}; the file does not do what it says, see its fidelity"
    # Of what is not known nothing is claimed.
    assert over_budget(edge, Verdict.ERROR).cause == unknown
    assert over_budget(replace(edge, own_loss={}), Verdict.PASS).cause == unknown
    encoder = judged({"rel_l2": 0.3}, [limit("rel_l2", most=0.1)], "fp16")
    assert over_budget(replace(encoder, own_loss={"rel_l2": 0.25}), Verdict.PASS).cause == (
        "rel_l2 0.300, limit ≤ 0.1; the recipe itself loses 0.250 of 0.300; the file does what it says"
    )
    for verdict in (Verdict.PASS, Verdict.ERROR):
        other = replace(edge, verdict=verdict, cause="why")
        assert {over_budget(other, fidelity) == other for fidelity in Verdict} == {True}


# -- the floor, and figures in its units


def test_figures_in_units_of_the_floor() -> None:
    """What is at the floor has ratios of 1; what is twice as far off in one phase has 2 there, and overall."""
    oracle, draw = trace(), trace(1, 1e-4)
    floor = floor_of(oracle, draw)
    same = figures_of(oracle, draw, floor)
    assert same["floor_ratio"] == same["worst_position_ratio"] == pytest.approx(1.0)
    for twice in PHASES:
        prompts = {}
        for name, prompt in oracle.prompts.items():
            parts = {phase: getattr(draw.prompts[name], phase) for phase in PHASES}
            parts[twice] = getattr(prompt, twice) + 2 * (parts[twice] - getattr(prompt, twice))
            prompts[name] = PromptTrace(**parts)
        figures = figures_of(oracle, Trace(prompts), floor)
        other = next(phase for phase in PHASES if phase != twice)
        # Doubling an error of 1e-4 on values around 1 rounds it to 1e-12 of itself.
        for ratio in ("floor_ratio", "worst_position_ratio"):
            assert figures[twice][ratio] == pytest.approx(2.0, rel=1e-10)
            assert figures[other][ratio] == pytest.approx(1.0, rel=1e-10)
            assert figures[ratio] == figures[twice][ratio]


def test_figures_cover_all_prompts_and_phases() -> None:
    """The overall figures are over every position there is, those of a phase over its own."""
    oracle, candidate = trace(), trace(3, 0.1)
    figures = figures_of(oracle, candidate, floor_of(oracle, trace(1, 1e-4)))
    errors = {phase: concatenate(prompts.values()) for phase, prompts in compare_prompts(oracle, candidate).items()}
    assert figures["positions"] == INPUTS.positions == 8
    assert (figures["prefill"]["positions"], figures["decode"]["positions"]) == (4, 4)
    for name, value in summarize(concatenate(errors.values())).items():
        assert figures[name] == value
    for phase in PHASES:
        assert {name: figures[phase][name] for name in summarize(errors[phase])} == summarize(errors[phase])


def test_every_prompt_has_its_row() -> None:
    """Its figures over its own positions, and its KL and its ratio position by position."""
    oracle, candidate = trace(), trace(3, 1e-3)
    floor = floor_of(oracle, trace(1, 1e-4), trace(2, 1e-4))
    found = measure(oracle, candidate, INPUTS, floor=floor)["logits"]
    assert list(found.prompts) == ["p", "q"]
    for prompt in INPUTS.prompts:
        row = found.prompts[prompt.id]
        assert len(row["kl"]) == len(row["ratio"]) == row["positions"] == prompt.positions
        assert row["worst_position_ratio"] == pytest.approx(max(row["ratio"]), rel=1e-2)
        assert row["kl_max"] == pytest.approx(max(row["kl"]), rel=1e-2)
    assert found.metrics["worst_position_ratio"] == max(row["worst_position_ratio"] for row in found.prompts.values())


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

    floor = level_floor(oracle, 1e-6)
    figures = figures_of(oracle, candidate, floor)
    assert figures["perplexity_ratio"] == pytest.approx(math.exp(cost(candidate) - cost(oracle)), rel=1e-12)
    assert figures_of(oracle, oracle, floor)["perplexity_ratio"] == 1.0


@pytest.mark.parametrize("phase", PHASES)
def test_one_wrong_position_is_seen(phase: str) -> None:
    """A single position exchanged in one phase of one prompt shows in the worst-position ratio of that phase."""
    oracle = trace()
    floor = level_floor(oracle, 1e-4)
    spoilt = {part: getattr(oracle.prompts["q"], part).copy() for part in PHASES}
    spoilt[phase][-1] = spoilt[phase][-1][::-1]
    figures = figures_of(oracle, Trace({**oracle.prompts, "q": PromptTrace(**spoilt)}), floor)
    other = next(part for part in PHASES if part != phase)
    assert figures["worst_position_ratio"] == figures[phase]["worst_position_ratio"] > 1000
    assert figures[other]["worst_position_ratio"] == 0.0
    assert figures["worst_position"] == {"prompt": "q", "phase": phase, "position": len(spoilt[phase]) - 1}
    assert judged(figures, ROUNDING_LIMITS).verdict is Verdict.FAIL


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["p", "q"])
def test_a_ratio_that_is_no_number_is_never_lost(name: str, phase: str) -> None:
    """Wherever it is: in the first prompt or the last, in either phase, before or after what is large."""
    oracle = trace()
    floor = level_floor(oracle, 1e-6)
    floor.prompts[name].squared[phase][0, 0] = math.nan
    figures = figures_of(oracle, trace(3, 1e-6), floor)
    assert math.isnan(figures["floor_ratio"])
    assert math.isnan(figures["worst_position_ratio"])
    assert figures["worst_position"] == {"prompt": name, "phase": phase, "position": 0}
    for limits in (ROUNDING_LIMITS, FIDELITY_LIMITS, PORT_LIMITS):
        assert judged(figures, limits).verdict is Verdict.ERROR


# -- one chaotic prompt

#: As measured on trained SmolLM2-135M: the floors of seven prompts, of which one amplifies rounding sixty times more.
FLOORS = {
    "english": 1.2e-6,
    "code": 7.5e-7,
    "script": 7.6e-7,
    "repeated": 2.8e-5,
    "single": 1.2e-6,
    "numbers": 8.1e-7,
    "question": 8.8e-7,
}
SEVEN = Inputs("seven", "", "0", "0", tuple(TokenizedPrompt(name, (1,) * 10, (2,) * 16) for name in FLOORS))
WIDE = 200


def chaos(times: Mapping[str, float] | float, seed: int = 0, *, along: bool = False) -> Trace:
    """Logits that are so many floors off, prompt by prompt; ``along`` one direction, as amplified rounding is."""
    rng, disturbance = np.random.default_rng(0), np.random.default_rng(seed + 1)
    prompts = {}
    for prompt in SEVEN.prompts:
        by = FLOORS[prompt.id] * (times if isinstance(times, float) else times.get(prompt.id, 1.0))
        parts = []
        for count in (10, 16):
            logits = 3 * rng.standard_normal((count, WIDE))
            one = disturbance.standard_normal((1, WIDE)) if along and prompt.id == "repeated" else 0.0
            off = (
                disturbance.standard_normal((count, 1)) * one
                if along and prompt.id == "repeated"
                else (disturbance.standard_normal((count, WIDE)))
            )
            off = off * np.linalg.norm(logits, axis=1, keepdims=True) / math.sqrt(WIDE)
            parts.append(logits + by * off)
        prompts[prompt.id] = PromptTrace(*parts)
    return Trace(prompts)


ORACLE = chaos(0.0)
FLOOR = floor_of(ORACLE, *(chaos(1.0, 50 + number, along=True) for number in range(FIRST_DRAWS)))


def held(candidate: Trace, question: Question = "rounding", floor: NoiseFloor = FLOOR) -> Edge:
    figures = measure(ORACLE, candidate, SEVEN, floor=floor)["logits"]
    return judge("original64", "float", question, figures, limits_for(question))


@pytest.mark.parametrize("seed", range(5))
def test_a_chaotic_prompt_does_not_fail_a_sound_file(seed: int) -> None:
    """It is as far off as its own floor says: sixty times the others', in the pool twelve times all of them."""
    candidate = chaos(1.0, seed)
    assert held(candidate).verdict is Verdict.PASS
    pooled = {
        name: concatenate(phase[name] for phase in compare_prompts(ORACLE, candidate).values()) for name in FLOORS
    }
    calm = summarize(concatenate(each for name, each in pooled.items() if name != "repeated"))["rel_l2"]
    assert summarize(concatenate(pooled.values()))["rel_l2"] > 8 * calm


@pytest.mark.parametrize("along", [True, False])
def test_a_chaotic_prompt_hides_no_mistake_in_the_others(along: bool) -> None:
    """1e-5 in the six other prompts, less than half of what the chaotic one's floor is, and small beside a pool."""
    wrong = {name: 1e-5 / size for name, size in FLOORS.items() if name != "repeated"}
    edge = held(chaos(wrong, 3, along=along))
    assert edge.verdict is Verdict.FAIL
    assert "floor_ratio" in (edge.cause or "")
    assert edge.metrics["rel_l2"] < 3 * FLOORS["repeated"]


@pytest.mark.parametrize("name", sorted(set(FLOORS) - {"repeated"}))
def test_a_mistake_in_one_calm_prompt_is_seen(name: str) -> None:
    """1e-5 in one of seven: the median does not move, the worst position does, and the cause names the prompt."""
    edge = held(chaos({name: 1e-5 / FLOORS[name]}, 4))
    assert edge.verdict is Verdict.FAIL
    assert edge.metrics["floor_ratio"] < 3
    assert f"of {name}" in (edge.cause or "")


def test_chaos_excuses_no_mistake_of_its_own() -> None:
    """A prompt that amplifies rounding is still held to what rounding does to it."""
    edge = held(chaos({"repeated": 30.0}, 5))
    assert edge.verdict is Verdict.FAIL
    assert "of repeated" in (edge.cause or "")


def test_a_port_is_held_to_float64() -> None:
    """Its rounding passes, one part in ten billion of a single calm prompt does not, nor do float32's own errors."""
    fine = chaos(2.0**-29, 6)
    floor = FLOOR.in_float64
    assert held(fine, "port", floor).verdict is Verdict.PASS
    assert held(
        chaos({name: 2.0**-29 * (1 if name != "code" else 2e5) for name in FLOORS}, 7), "port", floor
    ).verdict is (Verdict.FAIL)
    assert held(chaos(1.0, 8), "port", floor).verdict is Verdict.FAIL


def test_questions_of_rungs_with_published_weights() -> None:
    assert {rung: question_of(rung) for rung in ("reauthored64", "original", "reauthored", "float")} == {
        "reauthored64": "port",
        "original": "rounding",
        "reauthored": "rounding",
        "float": "rounding",
    }


# -- more draws


def with_ratio(ratio: float, draws: int, *, discrete: bool = False) -> Edge:
    metrics = {"floor_ratio": ratio, "worst_position_ratio": ratio, "draws": draws, "discrete": discrete}
    return judged(metrics, ROUNDING_LIMITS)


@pytest.mark.parametrize(
    ("ratio", "draws", "open_"),
    [(0.5, 4, False), (2.0, 4, True), (4.0, 4, True), (100.0, 4, False), (2.0, 32, False), (3.1, 32, True)],
)
def test_an_edge_is_undecided_where_more_draws_could_change_it(ratio: float, draws: int, open_: bool) -> None:
    assert undecided([with_ratio(ratio, draws)], ROUNDING_LIMITS) is open_
    assert undecided([with_ratio(0.1, draws), with_ratio(ratio, draws)], ROUNDING_LIMITS) is open_


def test_what_cannot_be_changed_by_draws_is_decided() -> None:
    """An ERROR, an edge without a floor, limits of other figures."""
    assert not undecided([replace(with_ratio(3.1, 4), verdict=Verdict.ERROR)], ROUNDING_LIMITS)
    assert not undecided([judged({"kl_typical": 0.1}, [limit("kl_typical", most=0.1)])], ROUNDING_LIMITS)
    assert not undecided([with_ratio(3.1, 4)], [limit("kl_typical", most=0.1)])
    assert not undecided([], ROUNDING_LIMITS)


@pytest.mark.parametrize(("ratio", "rounds"), [(0.5, 1), (100.0, 1), (1.5, 2), (2.99, 4)])
def test_draws_are_made_until_it_is_decided_and_no_more(ratio: float, rounds: int) -> None:
    """A clear case costs the first; what not even all of them decide is judged as measured, and says so."""
    asked: list[int] = []

    def floor(number: int) -> NoiseFloor:
        asked.append(number)
        return level_floor(trace(), 1e-6, draws=FIRST_DRAWS * 2**number)

    (edge,) = drawn(lambda found: [with_ratio(ratio, found.draws)], lambda _: ROUNDING_LIMITS, floor)
    assert asked == list(range(rounds))
    assert edge.verdict is (Verdict.PASS if ratio <= 3 else Verdict.FAIL)
    assert (edge.remark is not None) is (ratio == 2.99)
    if edge.remark:
        assert f"undecided after {MOST_DRAWS} draws" in edge.remark


def test_discrete_noise_is_drawn_to_the_end_before_it_fails() -> None:
    """A ratio beyond its limit may be an activation that was rounded otherwise in no draw."""
    asked: list[int] = []

    def floor(number: int) -> NoiseFloor:
        asked.append(number)
        return level_floor(trace(), 1e-6, draws=FIRST_DRAWS * 2**number)

    (edge,) = drawn(lambda found: [with_ratio(50.0, found.draws, discrete=True)], lambda _: FIDELITY_LIMITS, floor)
    assert asked == [0, 1, 2, 3]
    assert edge.verdict is Verdict.FAIL


def test_a_comparison_is_drawn_from_its_own_floor() -> None:
    """The whole way from two traces: four draws where it is clear, all of them at the limit."""
    oracle = trace()
    comparison = Comparison(
        reference="original64",
        candidate="float",
        question="rounding",
        expected=oracle,
        trace=trace(3, 1e-5),
        inputs=INPUTS,
        given=INPUTS,
    )

    def floors(size: float) -> Any:
        return lambda rounds: level_floor(oracle, size, draws=FIRST_DRAWS * 2**rounds)

    found = {size: comparison.drawn(lambda _: ROUNDING_LIMITS, floors(size))[-1] for size in (5e-5, 1e-7, 3.4e-6)}
    assert [edge.verdict for edge in found.values()] == [Verdict.PASS, Verdict.FAIL, Verdict.FAIL]
    draws = [edge.metrics["draws"] for edge in found.values()]
    assert draws[:2] == [FIRST_DRAWS, FIRST_DRAWS]
    assert draws[2] > FIRST_DRAWS
