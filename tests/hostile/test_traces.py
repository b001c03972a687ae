"""Runners that lie: whatever a rung hands in instead of its numbers, the check never passes and never breaks off.

The whole of ``check`` runs, but every rung is answered from memory: by what it honestly gave once, or by a lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from models import registry
from parity import isolated, ladder, pipeline
from parity.artifacts.making import Artifacts, Made, Making
from parity.compare import verdict
from parity.compare.limits import RECIPE_LIMITS
from parity.compare.verdict import Verdict
from parity.convert.float_file import FloatFile
from parity.convert.quantize import WeightPrecision
from parity.convert.recipes import Recipe
from parity.convert.rounding import Rounding
from parity.inputs import Inputs
from parity.pipeline import Request, check
from parity.progress import Reporter
from parity.report import figures
from parity.report.recheck import contradictions
from parity.report.record import Report
from parity.runners.base import Recorded, Runner, record
from parity.trace import PHASES, PromptTrace, Steps, Trace

Lie = Callable[[Mapping[str, Trace], Trace], Trace]
QUIET = Reporter(Console(stderr=True), quiet=True)
MODEL = registry.get("smollm-135m")


@dataclass(frozen=True)
class Honest:
    """What every default rung really gives, by rung, on which inputs."""

    inputs: Inputs
    recorded: Mapping[str, Recorded]


@pytest.fixture(scope="module")
def honest() -> Honest:
    """One run of the whole ladder."""
    inputs: list[Inputs] = []
    given: dict[str, Recorded] = {}

    def remember(runner: Runner, asked: Inputs, *arguments: Any, **options: Any) -> Recorded:
        inputs.append(asked)
        given[runner.name] = record(runner, asked, *arguments, **options)
        return given[runner.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "record", remember)
        assert check(Request(model=MODEL), QUIET).verdict is Verdict.PASS
    return Honest(inputs[0], given)


INT8 = WeightPrecision("head", "int8 channelwise", rounding=Rounding(0.5, 1.0))


def checked(
    monkeypatch: pytest.MonkeyPatch,
    honest: Honest,
    lies: Mapping[str, Lie],
    stored: WeightPrecision = INT8,
    **request: Any,
) -> Report:
    """The report of a run in which some rungs lie. Nothing is tokenized, converted or quantized again."""
    traces = {name: recorded.trace for name, recorded in honest.recorded.items()}

    def answer(runner: Runner, _inputs: Inputs, _folder: Path, *, generate: int, **_: Any) -> Recorded:
        # The recipe by itself is what the honest file gives, whatever the file of this run hands in.
        recorded = honest.recorded[runner.name.removesuffix(" in PyTorch")]
        lie = lies.get(runner.name)
        recorded = replace(recorded, trace=lie(traces, recorded.trace)) if lie else recorded
        return recorded if generate else replace(recorded, trace=silent(recorded.trace))

    def converted(_: Artifacts, *arguments: Any) -> Making[FloatFile]:
        *_, export, path = arguments
        path.write_text("float")
        return Making(Made(FloatFile(path, export, ("decode",), ("head",)), 1.0, 1.0, cached=False), _nothing)

    def quantized(_: Artifacts, _source: FloatFile, recipe: Recipe, path: Path) -> Making[list[WeightPrecision]]:
        path.write_text(recipe.name)
        return Making(Made([stored], 1.0, 1.0, cached=False), _nothing)

    monkeypatch.setattr(pipeline, "_read", lambda *_: honest.inputs)
    monkeypatch.setattr(ladder, "record", answer)
    monkeypatch.setattr(Artifacts, "float_file", converted)
    monkeypatch.setattr(Artifacts, "quantized_file", quantized)
    return check(Request(model=MODEL, **request), QUIET)


def silent(trace: Trace) -> Trace:
    """Without what was generated."""
    return Trace({name: replace(prompt, steps=Steps()) for name, prompt in trace.prompts.items()})


def _nothing(_: isolated.Finished[Any]) -> None:
    """No job has ended."""


def everywhere(change: Callable[[np.ndarray], np.ndarray], phases: tuple[str, ...] = PHASES) -> Lie:
    """The change made to the logits of every prompt."""

    def lie(_: Mapping[str, Trace], own: Trace) -> Trace:
        return Trace({name: changed(prompt, change, phases) for name, prompt in own.prompts.items()})

    return lie


def once(change: Callable[[np.ndarray], np.ndarray], phase: str = "decode") -> Lie:
    """The change made to one phase of the last prompt."""

    def lie(_: Mapping[str, Trace], own: Trace) -> Trace:
        name = list(own.prompts)[-1]
        return Trace({**own.prompts, name: changed(own.prompts[name], change, (phase,))})

    return lie


def changed(prompt: PromptTrace, change: Callable[[np.ndarray], np.ndarray], phases: tuple[str, ...]) -> PromptTrace:
    with np.errstate(over="ignore"):
        return replace(prompt, **{phase: change(getattr(prompt, phase).copy()) for phase in phases})


def put(value: float, at: Any = (-1, -1)) -> Callable[[np.ndarray], np.ndarray]:
    def change(logits: np.ndarray) -> np.ndarray:
        logits[at] = value
        return logits

    return change


def of(rung: str, dtype: type = np.float32) -> Lie:
    """The trace of another rung."""
    return lambda traces, _: everywhere(lambda logits: logits.astype(dtype))({}, traces[rung])


def prompts(change: Callable[[dict[str, PromptTrace]], dict[str, PromptTrace]]) -> Lie:
    return lambda _, own: Trace(change(dict(own.prompts)))


#: Every lie of a rung alone, and what its edge then is.
LIES: dict[str, tuple[Lie, str, str]] = {
    "one NaN": (once(put(np.nan)), "ERROR", "NaN or infinity"),
    "one infinity": (once(put(np.inf)), "ERROR", "NaN or infinity"),
    "one minus infinity": (once(put(-np.inf), "prefill"), "ERROR", "NaN or infinity"),
    "all NaN": (everywhere(lambda logits: logits * np.nan), "ERROR", "NaN or infinity"),
    "float16 overflow": (everywhere(lambda logits: (logits * 1e5).astype(np.float16)), "ERROR", "NaN or infinity"),
    "one constant row": (once(put(3.5, -1)), "ERROR", "every value is the same"),
    "all equal": (everywhere(lambda logits: np.full_like(logits, -1.0)), "ERROR", "every value is the same"),
    "all zero": (everywhere(np.zeros_like), "ERROR", "every value is the same"),
    "last position gone": (once(lambda logits: logits[:-1]), "ERROR", "logits of shape"),
    "first position gone": (everywhere(lambda logits: logits[1:]), "ERROR", "logits of shape"),
    "a position too many": (once(lambda logits: np.concatenate([logits, logits[-1:]])), "ERROR", "logits of shape"),
    "vocabulary too short": (everywhere(lambda logits: logits[:, :-1]), "ERROR", "logits of shape"),
    "vocabulary too long": (
        everywhere(lambda logits: np.concatenate([logits, logits[:, :1]], axis=1)),
        "ERROR",
        "logits of shape",
    ),
    "no positions": (everywhere(lambda logits: logits[:0]), "ERROR", "logits of shape"),
    "no vocabulary": (everywhere(lambda logits: logits[:, :0]), "ERROR", "logits of shape"),
    "no prompts": (prompts(lambda _: {}), "ERROR", "gave no answer to prompt"),
    "last prompt gone": (prompts(lambda own: dict(list(own.items())[:-1])), "ERROR", "gave no answer to prompt"),
    "a prompt too many": (prompts(lambda own: {**own, "x": next(iter(own.values()))}), "ERROR", "not in short"),
    "integers": (everywhere(lambda logits: logits.astype(np.int32)), "ERROR", "expected floating point"),
    "no free tokens": (
        prompts(lambda own: {name: replace(p, steps=Steps()) for name, p in own.items()}),
        "ERROR",
        "generated",
    ),
    "too few free tokens": (
        prompts(
            lambda own: {
                name: replace(p, steps=Steps(p.steps.ids[:-1], p.steps.margins[:-1], p.steps.ends[:-1]))
                for name, p in own.items()
            }
        ),
        "ERROR",
        "generated",
    ),
    "float16": (everywhere(lambda logits: logits.astype(np.float16)), "FAIL", "floor_ratio"),
    "denormals": (everywhere(lambda logits: (logits * 1e-42).astype(np.float32)), "FAIL", "floor_ratio"),
    "smallest denormals": (
        everywhere(lambda logits: np.where(logits > 0, np.float32(1e-45), np.float32(0))),
        "FAIL",
        "floor_ratio",
    ),
    "enormous": (everywhere(lambda logits: (np.sign(logits) * 3e38).astype(np.float32)), "FAIL", "floor_ratio"),
    "enormous float64": (
        everywhere(lambda logits: logits.astype(np.float64) * 1e200),
        "ERROR",
        "could not be computed",
    ),
    "one value off": (once(put(9.0)), "FAIL", "worst_position_ratio"),
    "shifted by a position": (everywhere(lambda logits: np.roll(logits, 1, axis=0)), "FAIL", "floor_ratio"),
    "shifted by a token": (everywhere(lambda logits: np.roll(logits, 1, axis=1)), "FAIL", "floor_ratio"),
    "other sign": (everywhere(np.negative), "FAIL", "floor_ratio"),
    "forced tokens unlikely": (everywhere(lambda logits: logits * -1e6), "FAIL", "floor_ratio"),
    "the reference's own": (of("original64"), "ERROR", "gave the reference's own numbers"),
    "the reference's own in float64": (of("original64", np.float64), "ERROR", "gave the reference's own numbers"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_rung_that_lies_never_passes(monkeypatch: pytest.MonkeyPatch, honest: Honest, name: str) -> None:
    """ERROR or FAIL with its cause, in a report that is whole; the original beside it is judged as ever."""
    lie, verdict, words = LIES[name]
    report = checked(monkeypatch, honest, {"reauthored": lie}, rungs=("reauthored",))
    edges = {edge.candidate: edge for edge in report.edges}
    assert edges["original"].verdict is Verdict.PASS
    assert edges["reauthored"].verdict == report.verdict == verdict, edges["reauthored"].cause
    assert words in str(edges["reauthored"].cause)
    assert "harness" not in str(edges["reauthored"].cause)
    assert report.cause is None
    assert report.to_json()["verdict"] == verdict


@pytest.mark.parametrize(
    ("lies", "caught"),
    [
        ({"float": of("original")}, {"float": "the very numbers of original"}),
        ({"float": of("reauthored")}, {"float": "the very numbers of reauthored"}),
        ({"float": of("original64")}, {"float": "the reference's own numbers"}),
        ({"dynamic_int8": of("float")}, {"dynamic_int8": "the very numbers of float"}),
        ({"dynamic_int8": of("original")}, {"dynamic_int8": "the very numbers of original"}),
        (
            {"float": of("reauthored"), "dynamic_int8": of("reauthored")},
            dict.fromkeys(("float", "dynamic_int8"), "the very numbers of reauthored"),
        ),
        ({"reauthored": of("original")}, {}),
    ],
    ids=["float original", "float reauthored", "float oracle", "int8 float", "int8 original", "both", "PyTorch"],
)
def test_a_file_that_copies_is_an_error(
    monkeypatch: pytest.MonkeyPatch, honest: Honest, lies: Mapping[str, Lie], caught: Mapping[str, str]
) -> None:
    """However good its figures are; the rungs that computed pass."""
    report = checked(monkeypatch, honest, lies)
    assert {edge.candidate for edge in report.edges} == {"original", "reauthored", "float", "dynamic_int8"}
    for edge in report.edges:
        assert (edge.verdict is Verdict.ERROR) == (edge.candidate in caught), edge
        assert caught.get(edge.candidate, "None") in str(edge.cause)
    assert report.verdict is (Verdict.ERROR if caught else Verdict.PASS)


@pytest.mark.parametrize("rung", ["original64", "original"])
@pytest.mark.parametrize("name", ["one NaN", "one constant row", "last position gone", "no prompts"])
def test_an_original_that_lies_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, honest: Honest, rung: str, name: str
) -> None:
    """Nothing can be compared to it: every rung asked for is an ERROR with the reason."""
    lie, _, words = LIES[name]
    report = checked(monkeypatch, honest, {rung: lie}, rungs=("reauthored",))
    (edge,) = report.edges
    assert (edge.candidate, edge.verdict) == ("reauthored", Verdict.ERROR)
    assert report.verdict is Verdict.ERROR
    assert rung in str(edge.cause)
    assert words in str(edge.cause)


def test_an_original_in_double_precision_leaves_the_least_floor(
    monkeypatch: pytest.MonkeyPatch, honest: Honest
) -> None:
    """An original that ran in float64 too has no noise: the least there is counts, and a rung off by it fails."""
    exact = {"original": of("original64", np.float64)}
    assert checked(monkeypatch, honest, exact, rungs=("reauthored",)).verdict is Verdict.PASS
    off = {**exact, "reauthored": everywhere(lambda logits: logits * np.float32(1 + 1e-5))}
    assert checked(monkeypatch, honest, off, rungs=("reauthored",)).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "request_", [{"rungs": ("float", "float")}, {"rungs": ("float",), "recipes": ("dynamic_int8", "dynamic_int8")}]
)
def test_a_rung_asked_for_twice_is_run_once(
    monkeypatch: pytest.MonkeyPatch, honest: Honest, request_: dict[str, Any]
) -> None:
    """One edge a rung, however often it is named."""
    report = checked(monkeypatch, honest, {}, **request_)
    names = [edge.candidate for edge in report.edges]
    assert len(names) == len(set(names))
    assert {"float"} <= set(names)
    assert report.verdict is Verdict.PASS


def rounding(size: float, seed: int) -> Lie:
    """As much noise on every logit: a KL of about half its square."""
    noise = np.random.default_rng(seed)
    return everywhere(lambda logits: (logits + noise.normal(0, size, logits.shape)).astype(np.float32))


IN_PYTORCH = "dynamic_int8 in PyTorch"


def test_what_a_recipe_loses_by_itself_is_allowed(monkeypatch: pytest.MonkeyPatch, honest: Honest) -> None:
    """A file outside the table's limits that loses as much as the same rounding in PyTorch; the report says so."""
    lies = {"dynamic_int8": rounding(0.35, 1), IN_PYTORCH: rounding(0.35, 2)}
    report = checked(monkeypatch, honest, lies)
    edge = report.edges[-1]
    assert (edge.verdict, edge.cause) == (Verdict.PASS, None), edge.cause
    assert edge.metrics["kl_mean"] > next(each.most for each in RECIPE_LIMITS["dynamic_int8"])
    assert edge.limits["kl_mean"] == pytest.approx(1.5 * edge.own_loss["kl_mean"], rel=0.01)
    assert (
        "dynamic_int8 is held to what its recipe loses in PyTorch: KL mean" in dict(figures.remarks(report))["own loss"]
    )
    reason = next(at.reason for at in figures.limits_shown([report]) if at.metric == "kl_mean")
    assert "a file may lose 1.5 times as much" in reason
    assert not list(contradictions(Report.from_json(report.to_json())))


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (rounding(0.1, 2), "kl_mean"),
        (everywhere(lambda logits: logits), "kl_mean"),
        (everywhere(lambda logits: logits * np.nan), "could not be found out: dynamic_int8 in PyTorch"),
    ],
    ids=["loses less", "loses nothing", "gives no numbers"],
)
def test_a_file_that_loses_more_than_its_recipe_fails(
    monkeypatch: pytest.MonkeyPatch, honest: Honest, own: Lie, words: str
) -> None:
    report = checked(monkeypatch, honest, {"dynamic_int8": rounding(0.35, 1), IN_PYTORCH: own})
    edge = report.edges[-1]
    assert (edge.candidate, edge.verdict) == ("dynamic_int8", Verdict.FAIL)
    assert words in str(edge.cause)


def test_a_recipe_that_ruins_the_model_fails_however_faithful_its_file(
    monkeypatch: pytest.MonkeyPatch, honest: Honest
) -> None:
    """Nobody may lose more than the next coarser recipe."""
    lies = {"dynamic_int8": rounding(2.0, 1), IN_PYTORCH: rounding(2.0, 2)}
    edge = checked(monkeypatch, honest, lies).edges[-1]
    assert edge.verdict is Verdict.FAIL
    coarser = {limit.metric: limit.bound for limit in RECIPE_LIMITS["dynamic_int4_block32"]}
    assert {name: edge.limits[name] for name in coarser} == coarser


@pytest.mark.parametrize(
    ("lies", "stored"),
    [
        ({}, INT8),
        ({"float": everywhere(np.negative), "dynamic_int8": rounding(0.35, 1)}, INT8),
        ({"dynamic_int8": rounding(0.35, 1)}, replace(INT8, precision="int4 block 32", asked="int8")),
        ({"dynamic_int8": rounding(0.35, 1)}, replace(INT8, rounding=None)),
    ],
    ids=["a sound file", "a float file that is off", "a weight with too few bits", "a weight moved on purpose"],
)
def test_a_recipe_is_not_asked_where_it_cannot_be_the_reason(
    monkeypatch: pytest.MonkeyPatch, honest: Honest, lies: Mapping[str, Lie], stored: WeightPrecision
) -> None:
    def asked(*_: Any) -> Recorded:
        raise AssertionError("the recipe was run")

    monkeypatch.setattr(ladder.Ladder, "rounded", asked)
    report = checked(monkeypatch, honest, lies, stored)
    assert report.edges[-1].verdict is (Verdict.FAIL if lies else Verdict.PASS)
    assert not report.edges[-1].own_loss


def test_a_recipe_is_no_reason_where_nobody_has_seen_that_the_port_is_sound(
    monkeypatch: pytest.MonkeyPatch, honest: Honest
) -> None:
    """The recipe is run with the port: what a wrong one loses, it would lose there, too."""
    lies = {"dynamic_int8": rounding(0.35, 1), IN_PYTORCH: rounding(0.35, 2)}
    alone = checked(monkeypatch, honest, lies, rungs=("dynamic_int8",)).edges[-1]
    assert (alone.candidate, alone.verdict, alone.own_loss) == ("dynamic_int8", Verdict.FAIL, {})
    assert "with --rung reauthored as well" in str(alone.cause)
    beside = checked(monkeypatch, honest, lies, rungs=("reauthored", "dynamic_int8")).edges[-1]
    assert (beside.candidate, beside.verdict) == ("dynamic_int8", Verdict.PASS)


def test_prompts_that_are_too_few_stay_too_few(monkeypatch: pytest.MonkeyPatch, honest: Honest) -> None:
    """A recipe excuses what a file loses, not that nobody can say what it loses."""
    lies = {"dynamic_int8": rounding(0.35, 1), IN_PYTORCH: rounding(0.35, 2)}
    monkeypatch.setattr(verdict, "_too_few_prompts", lambda *_: "too few")
    monkeypatch.setattr(verdict, "_beyond_doubt", lambda *_: False)
    edge = checked(monkeypatch, honest, lies).edges[-1]
    assert (edge.candidate, edge.verdict, edge.cause, edge.own_loss) == ("dynamic_int8", Verdict.ERROR, "too few", {})


def test_a_rung_that_is_skipped_is_an_error(monkeypatch: pytest.MonkeyPatch, honest: Honest) -> None:
    """A ladder that ends before a rung that was asked for does not pass on the rungs before it."""
    climb = ladder.Ladder.rungs
    monkeypatch.setattr(ladder.Ladder, "rungs", lambda *given: (r for r in climb(*given) if r.name != "float"))
    report = checked(monkeypatch, honest, {})
    skipped = next(edge for edge in report.edges if edge.candidate == "float")
    assert (report.verdict, skipped.verdict, skipped.cause) == (Verdict.ERROR, Verdict.ERROR, "not reached")


@pytest.mark.parametrize(
    "made",
    [
        {"rungs": ["original64"]},
        {"rungs": ["original64", "original"]},
    ],
)
def test_a_ladder_without_rungs_is_wrong_use(made: dict[str, Any]) -> None:
    """Nothing to compare is refused before anything runs."""
    with pytest.raises(Exception, match="compared to nothing"):
        Request(model=MODEL, **made)
