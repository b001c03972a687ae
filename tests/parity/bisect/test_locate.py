"""What a check does about a failing rung: which are bisected, what the others inherit, and what stands in the way."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from parity.bisect.bisector import Found
from parity.bisect.locate import Locator
from parity.compare.bisect import Bisection, StageErrors
from parity.compare.floor import Conditioning
from parity.compare.limits import Question
from parity.compare.measuring import measure
from parity.compare.verdict import Edge, Verdict
from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.ladder import Rung
from parity.runners.base import Recorded
from parity.trace import PromptTrace, Trace
from tests.made_floors import level_floor

INPUTS = Inputs("two", "two", "0", "0", tuple(TokenizedPrompt(name, (1, 2), (0, 1)) for name in ("one", "two")))


def trace(**errors: float) -> Trace:
    """Two prompts, each off by so much."""
    rows = np.ones((2, 3))
    return Trace({name: PromptTrace(rows + errors.get(name, 0.0), rows) for name in ("one", "two")})


class Log(Locator):
    """Finds what it is told to, and keeps which rungs were bisected on which prompt."""

    def __init__(self, found: Found | Exception, *, original: bool = True, streamed: bool = False) -> None:
        super().__init__("phi-2", original=original)
        self.found = found
        self.ladder = SimpleNamespace(streaming=streamed or None)
        self.bisected: list[tuple[str, str]] = []

    def _bisect(self, name: str, prompt: str, ladder: Any) -> Found:  # noqa: ARG002
        self.bisected.append((name, prompt))
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def judge(
        self,
        name: str,
        *verdicts: Verdict,
        outputs: tuple[str, ...] = ("logits",),
        questions: tuple[Question, ...] = (),
    ) -> list[Edge]:
        usual: Question = "rounding" if name in ("reauthored", "float") else "fidelity"
        edges = [
            Edge(
                reference="original64",
                candidate=name,
                question=question,
                output=cast("Any", output),
                verdict=verdict,
                prompts={"one": {"worst_position_ratio": 10.0}, "two": {"worst_position_ratio": 20.0}},
                cause="off",
            )
            for output, verdict, question in zip(outputs, verdicts, questions or [usual] * len(verdicts), strict=True)
        ]
        recorded = None if Verdict.ERROR in verdicts else Recorded(INPUTS, trace(one=0.1, two=0.2), 0.0, 0.0, "")
        return self.locate(Rung(name, recorded), edges, cast("Any", self.ladder))


def found(*bad: tuple[str, str]) -> Found:
    figures = {"entering": 0.0, "own": 1.0, "leaving": 1.0, "floor": 1.0, "limit": 8.0}
    rows = tuple(StageErrors(stage=stage, phase=cast("Any", phase), bad=True, **figures) for phase, stage in bad)
    return Found(Bisection(rung="", reference="", prompts=(), stages=rows, remark="look there"))


PASS, FAIL, ERROR = Verdict.PASS, Verdict.FAIL, Verdict.ERROR
BLOCK = found(("prefill", "block_1"))


def test_the_worst_prompt_is_taken() -> None:
    """The one that is furthest beyond its own floor, not the one that is furthest off."""
    log = Log(BLOCK)
    (edge,) = log.judge("reauthored", FAIL)
    assert log.bisected == [("reauthored", "two")]
    assert (edge.first_divergent_stage, edge.verdict) == ("block_1", FAIL)
    assert edge.cause == "off; look there (on prompt two)"


def test_the_worst_prompt_is_in_units_of_its_own_floor() -> None:
    """A prompt that amplifies rounding is further off, and shows no mistake."""
    oracle = trace()
    floor = level_floor(oracle, {"one": 1e-2, "two": 1e-6})
    figures = measure(oracle, trace(one=0.05, two=1e-4), INPUTS, floor=floor)["logits"]
    assert figures.prompts["one"]["rel_l2"] > figures.prompts["two"]["rel_l2"]
    edge = Edge(reference="a", candidate="float", verdict=FAIL, prompts=figures.prompts)
    log = Log(BLOCK)
    log.locate(Rung("float", Recorded(INPUTS, trace(), 0.0, 0.0, "")), [edge], cast("Any", log.ladder))
    assert log.bisected == [("float", "two")]


def test_the_worst_prompt_of_an_encoder_is_one_that_has_something_to_encode() -> None:
    """Text that is further off, because pictures are, does not show where a tower breaks."""
    rows = np.ones((2, 3))
    expected = Trace({**trace().prompts, "seen": PromptTrace(rows, rows, encoded=rows)})
    got = Trace({**trace(one=5.0).prompts, "seen": PromptTrace(rows, rows, encoded=rows + 0.1)})
    inputs = Inputs("three", "", "0", "0", (*INPUTS.prompts, TokenizedPrompt("seen", (1, 2), (0, 1))))
    found = measure(expected, got, inputs, floor=level_floor(expected, 1e-6))
    for output, prompt in (("logits", "one"), ("encoder", "seen")):
        log, figures = Log(BLOCK), found[cast("Any", output)]
        edge = Edge(reference="a", candidate="float", output=cast("Any", output), verdict=FAIL, prompts=figures.prompts)
        log.locate(Rung("float", Recorded(inputs, got, 0.0, 0.0, "")), [edge], cast("Any", log.ladder))
        assert log.bisected == [("float", prompt)]


@pytest.mark.parametrize("name", ["dynamic_int8", "fp16"])
def test_what_a_recipe_costs_has_no_stage(name: str) -> None:
    """A file that does what it says, and is over budget, is not bisected, nor is what follows it any less."""
    log = Log(BLOCK)
    faithful, cost = log.judge(name, PASS, FAIL, outputs=("logits", "logits"), questions=("fidelity", "quality"))
    assert log.bisected == []
    assert (faithful.cause, cost.first_divergent_stage, cost.cause) == ("off", None, "off")
    faithful, cost = log.judge(name, FAIL, FAIL, outputs=("logits", "logits"), questions=("fidelity", "quality"))
    assert log.bisected == [(name, "two")]
    assert (faithful.first_divergent_stage, cost.first_divergent_stage) == ("block_1", None)
    assert cost.cause == "off"


def test_the_exact_port_comes_before_all_others() -> None:
    """What it gets wrong, every rung inherits; it is bisected in float64 against the original."""
    log = Log(BLOCK)
    stages = [
        log.judge(name, FAIL)[0].first_divergent_stage for name in ("reauthored64", "reauthored", "float", "fp16")
    ]
    assert stages == ["block_1"] * 4
    assert log.bisected == [("reauthored64", "two")]
    log = Log(BLOCK)
    log.judge("reauthored64", PASS)
    log.judge("float", FAIL)
    assert log.bisected == [("float", "two")]


def test_what_passes_is_left_alone() -> None:
    log = Log(BLOCK)
    (edge,) = log.judge("reauthored", PASS)
    assert log.bisected == []
    assert (edge.first_divergent_stage, edge.cause) == (None, "off")


def test_a_rung_is_bisected_only_if_the_one_before_it_passed() -> None:
    """Otherwise it inherits the stage: all that follow, from the first that is off."""
    log = Log(BLOCK)
    stages = [log.judge(name, FAIL)[0].first_divergent_stage for name in ("reauthored", "float", "fp16")]
    assert stages == ["block_1"] * 3
    assert log.bisected == [("reauthored", "two")]


@pytest.mark.parametrize(
    "before", [[], [("reauthored", PASS)], [("reauthored", PASS), ("float", PASS)], [("float", PASS)]]
)
def test_a_recipe_is_bisected_where_all_before_it_are_sound_or_not_run(before) -> None:
    log = Log(BLOCK)
    for name, verdict in before:
        log.judge(name, verdict)
    assert log.judge("fp16", FAIL)[0].first_divergent_stage == "block_1"
    assert log.bisected == [("fp16", "two")]


def test_nothing_is_known_behind_a_rung_that_could_not_be_run() -> None:
    log = Log(BLOCK)
    log.judge("reauthored", ERROR)
    (edge,) = log.judge("float", FAIL)
    assert edge.first_divergent_stage is None
    assert "reauthored could not be run" in str(edge.cause)
    assert log.bisected == []


@pytest.mark.parametrize("error", [RungError("it crashed"), ValueError("a bug")])
def test_what_keeps_the_stage_from_being_found_is_said_and_changes_no_verdict(error) -> None:
    (edge,) = Log(error).judge("float", FAIL)
    assert (edge.verdict, edge.first_divergent_stage) == (FAIL, None)
    assert edge.cause == f"off; the stage could not be found: {error}"


def test_without_the_original_only_files_are_bisected() -> None:
    log = Log(BLOCK, original=False)
    (edge,) = log.judge("reauthored", FAIL)
    assert edge.first_divergent_stage is None
    assert edge.cause == 'off; run "parity bisect phi-2" with the original to find the stage'
    assert log.bisected == []
    log = Log(BLOCK, original=False)
    log.judge("reauthored", PASS)
    assert log.judge("float", FAIL)[0].first_divergent_stage == "block_1"


def test_a_model_that_goes_by_stages_is_not_bisected() -> None:
    """That takes the whole model; the cause says how to go on."""
    log = Log(BLOCK, streamed=True)
    (edge,) = log.judge("reauthored", FAIL)
    assert edge.first_divergent_stage is None
    assert edge.cause == 'off; run "parity bisect phi-2" where the whole model fits into memory to find the stage'
    assert log.bisected == []


def test_an_encoder_is_blamed_on_its_own_stages_only() -> None:
    """What the decoder does later cannot have been the encoder's fault; the other way round it can."""
    outputs = ("encoder", "logits")
    edges = Log(found(("encode", "vision_1"), ("prefill", "block_0"))).judge("float", FAIL, FAIL, outputs=outputs)
    assert [edge.first_divergent_stage for edge in edges] == ["vision_1", "vision_1"]
    edges = Log(BLOCK).judge("float", FAIL, FAIL, outputs=outputs)
    assert [edge.first_divergent_stage for edge in edges] == [None, "block_1"]
    edges = Log(BLOCK).judge("float", PASS, FAIL, outputs=outputs)
    assert [edge.first_divergent_stage for edge in edges] == [None, "block_1"]


# -- prompts that amplify rounding

ILL = {"one": Conditioning(1e3, 1e5, 40.0), "two": Conditioning(2e3, 1e5, 90.0)}


def by_stage(log: Log, *verdicts: Verdict, ill: dict[str, Conditioning] = ILL) -> list[Edge]:
    outputs = ("encoder", "logits")[-len(verdicts) :]
    edges = [
        Edge(reference="a", candidate="float", output=cast("Any", output), verdict=verdict, cause=None)
        for output, verdict in zip(outputs, verdicts, strict=True)
    ]
    return log.by_stage(Rung("float", Recorded(INPUTS, trace(), 0.0, 0.0, "")), edges, cast("Any", log.ladder), ill)


def test_a_file_that_passes_on_an_ill_conditioned_prompt_is_held_stage_by_stage() -> None:
    """On the prompt that amplifies most; right stages leave the PASS, and it is said that they were looked at."""
    log = Log(found())
    (edge,) = by_stage(log, PASS)
    assert log.bisected == [("float", "two")]
    assert (edge.verdict, edge.cause) == (PASS, None)
    assert edge.remark == (
        "prompt two amplifies rounding 90 times as much as the typical one; each of its stages by itself is right"
    )


def test_chaos_excuses_no_stage() -> None:
    """A mistake that hides below a floor that high is found in its stage, and every edge fails."""
    sound = found(("prefill", "block_1"))
    log = Log(replace(sound, bisection=replace(sound.bisection, first="block_1")))
    for edge in by_stage(log, PASS, PASS):
        assert (edge.verdict, edge.first_divergent_stage) == (FAIL, "block_1")
        assert edge.cause is not None
        assert "amplifies rounding 90 times" in edge.cause
        assert "look there" in edge.cause


def test_stages_that_cannot_be_looked_at_are_no_pass() -> None:
    """What hides below such a floor is not known then. Of a model that runs by stages it is said."""
    (edge,) = by_stage(Log(RungError("it crashed")), PASS)
    assert edge.verdict is ERROR
    assert str(edge.cause).endswith("its stages could not be looked at by themselves: it crashed")
    (edge,) = by_stage(Log(BLOCK, streamed=True), PASS)
    assert edge.verdict is PASS
    assert "its stages were not looked at" in str(edge.remark)


@pytest.mark.parametrize(("verdict", "ill"), [(PASS, {}), (FAIL, ILL), (ERROR, ILL)])
def test_nothing_is_looked_at_twice(verdict: Verdict, ill: dict[str, Conditioning]) -> None:
    """Where no prompt is ill-conditioned, or the verdict is known already."""
    log = Log(BLOCK)
    (edge,) = by_stage(log, verdict, ill=ill)
    assert log.bisected == []
    assert (edge.verdict, edge.remark) == (verdict, None)
