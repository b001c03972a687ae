"""Situations are measured and held to limits one by one: what is wrong in one cannot hide among the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity.compare.limits import limits_for
from parity.compare.situations import measure_situations, with_situations
from parity.compare.verdict import Edge, NoiseFloor, Verdict, judge, measure
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PromptTrace, Trace

VOCABULARY = 50
#: No floor counts as less.
LEAST = dict.fromkeys(("prefill", "decode"), 2.0**-24)


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
FLOOR = NoiseFloor.of(ORACLE, trace(1e-6), INPUTS, LEAST)


def edge_of(rung: str, candidate: Trace, given: Inputs = INPUTS) -> Edge:
    expected = ORACLE.of(given)
    metrics = measure(expected, candidate, FLOOR, given)["logits"]
    edge = judge("original64", rung, metrics, limits_for(rung))
    situations = measure_situations(expected, candidate, FLOOR, given)
    return with_situations(edge, situations, limits_for(rung), INPUTS, given)


def test_every_situation_has_its_own_floor() -> None:
    """An original that is worse in one situation is forgiven there, and nowhere else."""
    floor = NoiseFloor.of(ORACLE, trace(1e-6, {"turns": 1e-4}), INPUTS, LEAST)
    assert floor.situations["turns"].rel_l2["prefill"] > 30 * floor.situations["window"].rel_l2["prefill"]
    assert NoiseFloor.of(ORACLE, trace(1e-6), replace(INPUTS, prompts=()), LEAST).situations == {}


def test_a_sound_rung_passes_everywhere() -> None:
    """Each situation has its figures over its own positions."""
    edge = edge_of("float", trace(2e-6))
    assert (edge.verdict, edge.cause) == (Verdict.PASS, None)
    assert list(edge.situations) == ["long", "window", "turns", "batch"]
    for name, figures in edge.situations.items():
        assert figures["verdict"] is Verdict.PASS
        assert 1 < figures["floor_ratio"] < 3
        assert figures["positions"] == INPUTS.situations[name].positions
        assert figures["prompts"] == 1


def test_one_bad_situation_fails_the_edge_that_names_it() -> None:
    """Ten positions that are twelve times as far off vanish among three thousand; by themselves they do not."""
    edge = edge_of("float", trace(1e-6, {"window": 1.1e-5}))
    assert edge.metrics["floor_ratio"] < edge.limits["floor_ratio"]
    assert edge.verdict is Verdict.FAIL
    assert edge.cause is not None
    assert "in window: floor_ratio" in edge.cause
    assert {name: figures["verdict"] for name, figures in edge.situations.items()} == {
        "long": Verdict.PASS,
        "window": Verdict.FAIL,
        "turns": Verdict.PASS,
        "batch": Verdict.PASS,
    }


def test_quantized_rungs_are_held_over_everything_only() -> None:
    """Their figures are shown in each situation; the verdict is of all positions together."""
    edge = edge_of("dynamic_int8", trace(1e-3, {"window": 1.0}))
    assert edge.situations["window"]["kl_mean"] > 0.1
    assert {figures["verdict"] for figures in edge.situations.values()} == {None}
    assert edge.verdict is Verdict.PASS
    assert edge_of("dynamic_int8", trace(1e-3, {"long": 1.0})).verdict is Verdict.FAIL


def test_a_situation_that_a_rung_was_not_given_is_no_pass() -> None:
    """It says why, and has no figures."""
    edge = edge_of("float", trace(1e-6, inputs=INPUTS.one_row), INPUTS.one_row)
    assert edge.situations["batch"] == {"verdict": None, "cause": "an exported file takes one row"}
    assert edge.situations["turns"]["verdict"] is Verdict.PASS
    assert edge.verdict is Verdict.PASS


def test_an_error_stays_one() -> None:
    """What could not be concluded over everything is not concluded from situations that pass."""
    situations = measure_situations(ORACLE, trace(1e-6), FLOOR, INPUTS)
    edge = Edge(reference="original64", candidate="float", verdict=Verdict.ERROR, cause="why")
    found = with_situations(edge, situations, limits_for("float"), INPUTS, INPUTS)
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
    floor = NoiseFloor.of(reference, reference, one, LEAST)
    ratio = measure(reference, Trace({name: PromptTrace(*surer)}), floor, one)["logits"]["perplexity_ratio"]
    assert ratio == pytest.approx(1 / VOCABULARY)
