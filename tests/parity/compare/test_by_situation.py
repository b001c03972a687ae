"""Situations are measured and held to limits one by one: what is wrong in one cannot hide among the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity.compare.budgets import TIERS
from parity.compare.comparison import Comparison
from parity.compare.floor import NoiseFloor
from parity.compare.limits import ROUNDING_LIMITS, limits_for
from parity.compare.measuring import measure
from parity.compare.situations import measure_situations, with_situations
from parity.compare.verdict import Edge, Verdict
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PromptTrace, Trace
from tests.made_floors import floor_of

VOCABULARY = 50


def asked(situation: str, count: int) -> TokenizedPrompt:
    name = f"{situation}/{count}"
    return TokenizedPrompt(name, (1,) * count, (2, 3, 4), situation=situation, turn=(5, 6), reply=(7,), generates=False)


BATCH = replace(asked("batch", 4), beside=(1,) * 7)
INPUTS = Inputs("all", "all", "0", "0", (asked("long", 3000), asked("window", 4), asked("turns", 5), BATCH))


def trace(noise: float, more: dict[str, float] | None = None, inputs: Inputs = INPUTS) -> Trace:
    """Logits for the inputs, disturbed by ``noise``, and by ``more`` in some situations."""
    rng, disturbance = np.random.default_rng(0), np.random.default_rng(int(noise * 1e9) + len(more or {}))
    prompts = {}
    for prompt in INPUTS.prompts:
        by = noise + (more or {}).get(prompt.situation, 0.0)
        phases = [rng.standard_normal((count, VOCABULARY)) for count in (prompt.prefilled, prompt.decoded)]
        prompts[prompt.id] = PromptTrace(*(phase + by * disturbance.standard_normal(phase.shape) for phase in phases))
    return Trace(prompts).of(inputs)


ORACLE = trace(0.0)


def drawn(noise: float, more: dict[str, float] | None = None) -> NoiseFloor:
    return floor_of(ORACLE, *(trace(noise * (1.01 + 0.01 * number), more) for number in range(4)))


FLOOR = drawn(1e-6)


def compared(rung: str, candidate: Trace, given: Inputs = INPUTS) -> Comparison:
    return Comparison(
        reference="original64",
        candidate=rung,
        question="rounding",
        expected=ORACLE,
        trace=candidate,
        inputs=INPUTS,
        given=given,
    )


def edge_of(rung: str, candidate: Trace, given: Inputs = INPUTS, floor: NoiseFloor = FLOOR) -> Edge:
    return compared(rung, candidate, given).judged(lambda _: ROUNDING_LIMITS, floor)[-1]


def test_every_situation_has_its_own_floor() -> None:
    """A model that amplifies rounding in one situation is forgiven there, and nowhere else."""
    floor = drawn(1e-6, {"turns": 1e-4})
    for situation, verdict in (("turns", Verdict.PASS), ("window", Verdict.FAIL)):
        edge = edge_of("float", trace(1e-6, {situation: 1e-4}), floor=floor)
        assert edge.verdict is edge.situations[situation]["verdict"] is verdict
    assert measure_situations(ORACLE, trace(1e-6), replace(INPUTS, prompts=()), FLOOR) == {}


def test_a_sound_rung_passes_everywhere() -> None:
    """Each situation has its figures over its own positions."""
    edge = edge_of("float", trace(2e-6))
    assert (edge.verdict, edge.cause) == (Verdict.PASS, None)
    assert list(edge.situations) == ["long", "window", "turns", "batch"]
    for name, figures in edge.situations.items():
        assert figures["verdict"] is Verdict.PASS
        assert 1 < figures["floor_ratio"] < 3
        assert figures["worst_position_ratio"] < 8
        assert figures["positions"] == INPUTS.situations[name].positions
        assert figures["prompts"] == 1


def test_one_bad_situation_fails_the_edge_that_names_it() -> None:
    """Ten positions that are five times as far off vanish among three thousand; by themselves they do not."""
    edge = edge_of("float", trace(1e-6, {"window": 4e-6}))
    for metric in ("floor_ratio", "worst_position_ratio"):
        assert edge.metrics[metric] < edge.limits[metric]
    assert edge.verdict is Verdict.FAIL
    assert edge.cause is not None
    assert "in window: floor_ratio" in edge.cause
    assert {name: figures["verdict"] for name, figures in edge.situations.items()} == {
        "long": Verdict.PASS,
        "window": Verdict.FAIL,
        "turns": Verdict.PASS,
        "batch": Verdict.PASS,
    }


def test_fidelity_is_asked_in_every_situation() -> None:
    """A file that does not do what it says in one situation does not do what it says; weights are of no situation."""
    limits = limits_for("fidelity", stored=True)
    comparison = replace(
        compared("dynamic_int8", trace(1e-6, {"window": 4e-6})),
        question="fidelity",
        rounding={"steps": (0.5, "embed.tokens"), "coarseness": (1.0, "embed.tokens")},
    )
    edge = comparison.judged(lambda _: limits, FLOOR)[-1]
    assert edge.verdict is edge.situations["window"]["verdict"] is Verdict.FAIL
    assert edge.situations["turns"]["verdict"] is Verdict.PASS
    assert edge.cause is not None
    assert "weight" not in edge.cause


def test_a_budget_is_held_over_everything_only() -> None:
    """A situation's few prompts are no sample: nothing is claimed of one, good or bad."""

    def affords(candidate: Trace) -> Edge:
        comparison = replace(compared("dynamic_int8", candidate), question="quality")
        return comparison.judged(lambda _: TIERS["good"].limits)[-1]

    one_bad = affords(trace(1e-3, {"window": 0.1}))
    assert (one_bad.verdict, one_bad.situations) == (Verdict.PASS, {})
    assert list(one_bad.metrics["outliers"]) == ["window/4"]
    assert affords(trace(1e-3, dict.fromkeys(INPUTS.situations, 1.0))).verdict is Verdict.FAIL


def test_a_situation_that_a_rung_was_not_given_is_no_pass() -> None:
    """It says why, and has no figures."""
    edge = edge_of("float", trace(1e-6, inputs=INPUTS.one_row), INPUTS.one_row)
    assert edge.situations["batch"] == {"verdict": None, "cause": "an exported file takes one row"}
    assert edge.situations["turns"]["verdict"] is Verdict.PASS
    assert edge.verdict is Verdict.PASS


def test_an_error_stays_one() -> None:
    """What could not be concluded over everything is not concluded from situations that pass."""
    situations = measure_situations(ORACLE, trace(1e-6), INPUTS, FLOOR)
    edge = Edge(reference="original64", candidate="float", verdict=Verdict.ERROR, cause="why")
    found = with_situations(edge, situations, ROUNDING_LIMITS, INPUTS, INPUTS)
    assert (found.verdict, found.cause) == (Verdict.ERROR, "why")


def test_a_second_turn_counts_in_the_perplexity() -> None:
    """The reply is predicted by the turn's last position, the continuation by the prompt's."""
    one = Inputs("set", "set", "0", "0", (asked("turns", 5),))
    name = one.prompts[0].id
    # Nothing but the positions that predict forced tokens differs from the uniform.
    prefill, decode = np.zeros((7, VOCABULARY)), np.zeros((4, VOCABULARY))
    decode[:, 0] = prefill[:, 0] = 1e-9
    reference = Trace({name: PromptTrace(prefill, decode)})
    surer = [array.copy() for array in (prefill, decode)]
    surer[0][4, 2] = surer[1][0, 3] = surer[1][1, 4] = surer[0][6, 7] = 50.0
    ratio = measure(reference, Trace({name: PromptTrace(*surer)}), one)["logits"].metrics["perplexity_ratio"]
    assert ratio == pytest.approx(1 / VOCABULARY)
