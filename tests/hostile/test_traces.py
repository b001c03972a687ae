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
from parity.bisect.locate import Locator
from parity.compare.budgets import TIERS
from parity.compare.floor import NoiseFloor
from parity.compare.limits import EXACT
from parity.compare.verdict import Edge, Verdict
from parity.convert.float_file import FloatFile
from parity.convert.quantize import WeightPrecision
from parity.convert.recipes import Recipe
from parity.convert.rounding import Rounding
from parity.errors import RungError
from parity.inputs import Inputs
from parity.pipeline import Request, check
from parity.progress import Reporter
from parity.report.recheck import contradictions
from parity.report.record import Report
from parity.runners.base import Recorded, Runner, record
from parity.runners.reauthored import Reauthored
from parity.trace import PHASES, PromptTrace, Steps, Trace

Lie = Callable[[Mapping[str, Trace], Trace], Trace]
QUIET = Reporter(Console(stderr=True), quiet=True)
MODEL = registry.get("smollm-135m")


@dataclass(frozen=True)
class Honest:
    """What every default rung really gives, by rung, on which inputs; and the noise floors, by what was drawn."""

    inputs: Inputs
    recorded: Mapping[str, Recorded]
    floors: Mapping[str, NoiseFloor]


@pytest.fixture(scope="module")
def honest() -> Honest:
    """One run of the whole ladder."""
    inputs: list[Inputs] = []
    given: dict[str, Recorded] = {}
    floors: dict[str, NoiseFloor] = {}
    draw = ladder.Ladder.drawn

    def drawn(self: ladder.Ladder, known: NoiseFloor | None, rounds: int, runner: Reauthored, *rest: Any) -> NoiseFloor:
        floors[runner.name] = draw(self, known, rounds, runner, *rest)
        return floors[runner.name]

    def remember(runner: Runner, asked: Inputs, *arguments: Any, **options: Any) -> Recorded:
        inputs.append(asked)
        given[runner.name] = record(runner, asked, *arguments, **options)
        return given[runner.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "record", remember)
        patch.setattr(ladder.Ladder, "drawn", drawn)
        assert check(Request(model=MODEL), QUIET).verdict is Verdict.PASS
    return Honest(inputs[0], given, floors)


INT8 = WeightPrecision("head", "int8 channelwise", dynamic=True, rounding=Rounding(0.5, 1.0))


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
        recorded = honest.recorded[runner.name]
        lie = lies.get(runner.name)
        recorded = replace(recorded, trace=lie(traces, recorded.trace)) if lie else recorded
        return recorded if generate else replace(recorded, trace=silent(recorded.trace))

    def drawn(_: Any, known: NoiseFloor | None, rounds: int, runner: Reauthored, *__: Any) -> NoiseFloor:
        # Draws that nobody needed were not made: the same ones again.
        floor = known or honest.floors.get(runner.name) or honest.floors[runner.name.replace("dithered", "noise")]
        while floor.draws < 4 * 2**rounds:
            floor = floor + floor
        return floor

    def unlocated(*_: Any) -> Any:
        raise RungError("nothing is run here")

    def converted(_: Artifacts, *arguments: Any) -> Making[FloatFile]:
        *_, export, path = arguments
        path.write_text("float")
        return Making(Made(FloatFile(path, export, ("decode",), ("head",)), 1.0, 1.0, cached=False), _nothing)

    def quantized(_: Artifacts, _source: FloatFile, recipe: Recipe, path: Path) -> Making[list[WeightPrecision]]:
        path.write_text(recipe.name)
        return Making(Made([stored], 1.0, 1.0, cached=False), _nothing)

    monkeypatch.setattr(pipeline, "_read", lambda *_: honest.inputs)
    monkeypatch.setattr(ladder, "record", answer)
    monkeypatch.setattr(ladder.Ladder, "drawn", drawn)
    monkeypatch.setattr(ladder.Ladder, "_misstored", lambda *_: None)  # there are no files to look at
    monkeypatch.setattr(Locator, "_bisect", unlocated)
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


#: What the exact port does not do, and what is no lie of it: it is PyTorch in float64, as the oracle is.
NOT_OF_THE_PORT = ("no free tokens", "too few free tokens", "the reference's own in float64")


@pytest.mark.parametrize("name", sorted(set(LIES) - set(NOT_OF_THE_PORT)))
def test_an_exact_port_that_lies_never_passes(monkeypatch: pytest.MonkeyPatch, honest: Honest, name: str) -> None:
    """Nor does anything that rests on it: what it gives is what noise and files are measured around."""
    lie, verdict, words = LIES[name]
    verdict = "FAIL" if name == "the reference's own" else verdict  # in float32, which is no float64
    report = checked(monkeypatch, honest, {EXACT: lie}, rungs=(EXACT, "float"))
    edge = next(edge for edge in report.edges if edge.candidate == EXACT)
    assert edge.verdict == verdict, edge.cause
    assert report.verdict in (Verdict.FAIL, Verdict.ERROR)
    assert verdict == "FAIL" or words in str(edge.cause)
    assert "harness" not in str(edge.cause)
    report.to_json()


@pytest.mark.parametrize("size", [1e-12, 1e-11, 1e-9, 1e-6])
def test_a_port_is_held_to_float64(monkeypatch: pytest.MonkeyPatch, honest: Honest, size: float) -> None:
    """One part in a trillion on every logit is a mistake of the port; float rungs do not see it below their floor."""
    lie = everywhere(lambda logits: logits * (1 + size))
    report = checked(monkeypatch, honest, {EXACT: lie}, rungs=(EXACT, "reauthored", "float"))
    verdicts = {edge.candidate: edge.verdict for edge in report.edges}
    assert verdicts.pop(EXACT) is Verdict.FAIL
    assert set(verdicts.values()) == {Verdict.PASS}


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
    assert {edge.candidate for edge in report.edges} == {"original", EXACT, "reauthored", "float", "dynamic_int8"}
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


def test_an_original_in_double_precision_changes_nothing(monkeypatch: pytest.MonkeyPatch, honest: Honest) -> None:
    """An original that ran in float64 too has no noise: the floor is drawn from our model, and a rung off it fails."""
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
    names = [(edge.candidate, edge.question) for edge in report.edges]
    assert len(names) == len(set(names))
    assert ("float", "rounding") in names
    assert report.verdict is Verdict.PASS


def rounding(size: float, seed: int) -> Lie:
    """As much noise on every logit: a KL of about half its square."""
    noise = np.random.default_rng(seed)
    return everywhere(lambda logits: (logits + noise.normal(0, size, logits.shape)).astype(np.float32))


IN_PYTORCH = "dynamic_int8 in PyTorch"


def asked_of_int8(report: Report) -> tuple[Edge, Edge]:
    """Whether the file does what it says, and whether the model can afford that."""
    fidelity, quality = (edge for edge in report.edges if edge.candidate == "dynamic_int8")
    assert (fidelity.question, quality.question) == ("fidelity", "quality")
    assert (fidelity.reference, quality.reference) == (IN_PYTORCH, "original64")
    assert not list(contradictions(Report.from_json(report.to_json())))
    return fidelity, quality


def test_what_a_recipe_costs_is_over_budget_and_no_mistake(monkeypatch: pytest.MonkeyPatch, honest: Honest) -> None:
    """A faithful file of a recipe that ruins the model: both are said, and whose loss it is."""
    lies = {"dynamic_int8": rounding(2.0, 1), IN_PYTORCH: rounding(2.0, 1)}
    fidelity, quality = asked_of_int8(checked(monkeypatch, honest, lies))
    assert (fidelity.verdict, fidelity.cause) == (Verdict.PASS, None)
    assert (quality.verdict, quality.budget) == (Verdict.FAIL, "good")
    assert str(quality.cause).startswith("over budget good: kl_typical")
    assert str(quality.cause).endswith("; the file does what it says")
    assert quality.own_loss["kl_typical"] == pytest.approx(quality.metrics["kl_typical"], rel=0.2)
    assert quality.first_divergent_stage is None


def test_a_loss_of_the_right_size_is_no_fidelity(monkeypatch: pytest.MonkeyPatch, honest: Honest) -> None:
    """A file that loses just what its recipe does, at other places, does not do what it says, whatever it may cost."""
    lies = {"dynamic_int8": rounding(0.35, 1), IN_PYTORCH: rounding(0.35, 2)}
    fidelity, quality = asked_of_int8(checked(monkeypatch, honest, lies, budget=TIERS["compact"]))
    assert fidelity.verdict is Verdict.FAIL
    assert quality.verdict is Verdict.PASS
    assert quality.metrics["kl_typical"] == pytest.approx(quality.own_loss["kl_typical"], rel=0.5)


@pytest.mark.parametrize("own", [rounding(1.0, 2), everywhere(lambda logits: logits)], ids=["something", "nothing"])
def test_a_file_that_loses_more_than_its_recipe(monkeypatch: pytest.MonkeyPatch, honest: Honest, own: Lie) -> None:
    """It is over budget for what the file does, and that is what the cause says."""
    fidelity, quality = asked_of_int8(checked(monkeypatch, honest, {"dynamic_int8": rounding(2.0, 1), IN_PYTORCH: own}))
    assert fidelity.verdict is quality.verdict is Verdict.FAIL
    assert str(quality.cause).endswith("; the file does not do what it says, see its fidelity")


@pytest.mark.parametrize("name", ["one NaN", "last position gone", "no prompts", "one constant row"])
def test_pytorch_that_gives_no_numbers_is_an_error(monkeypatch: pytest.MonkeyPatch, honest: Honest, name: str) -> None:
    """Fidelity cannot be concluded then, and is never green; what the recipe costs is judged as ever."""
    lie, _, words = LIES[name]
    report = checked(monkeypatch, honest, {IN_PYTORCH: lie})
    fidelity, quality = asked_of_int8(report)
    assert fidelity.verdict is report.verdict is Verdict.ERROR
    assert str(fidelity.cause).startswith("fidelity could not be judged: dynamic_int8 in PyTorch")
    assert words in str(fidelity.cause)
    assert (quality.verdict, quality.own_loss) == (Verdict.PASS, {})


@pytest.mark.parametrize("rounded", [Rounding(0.9, 1.0), Rounding(0.5, 2.0)], ids=["another code", "a step too large"])
def test_a_weight_that_is_stored_wrongly_is_no_fidelity(
    monkeypatch: pytest.MonkeyPatch, honest: Honest, rounded: Rounding
) -> None:
    """However little comes of it: the numbers that are stored are not those that the recipe asks for."""
    report = checked(monkeypatch, honest, {}, replace(INT8, rounding=rounded))
    fidelity, quality = asked_of_int8(report)
    assert (fidelity.verdict, quality.verdict) == (Verdict.FAIL, Verdict.PASS)
    assert "furthest off is head" in str(fidelity.cause)


def test_a_recipe_alone_is_asked_both_questions(monkeypatch: pytest.MonkeyPatch, honest: Honest) -> None:
    """The exact port is run for it, whatever else was asked for."""
    fidelity, quality = asked_of_int8(checked(monkeypatch, honest, {}, rungs=("dynamic_int8",)))
    assert fidelity.verdict is quality.verdict is Verdict.PASS
    lies = {"dynamic_int8": rounding(0.35, 1)}
    fidelity, quality = asked_of_int8(checked(monkeypatch, honest, lies, rungs=("dynamic_int8",)))
    assert fidelity.verdict is Verdict.FAIL


def test_the_budget_that_was_asked_for_decides(monkeypatch: pytest.MonkeyPatch, honest: Honest) -> None:
    """A tier that is too narrow for eight bits fails a sound file, and says that the file does what it says."""
    report = checked(monkeypatch, honest, {}, budget=TIERS["lossless"])
    fidelity, quality = asked_of_int8(report)
    assert (fidelity.verdict, quality.verdict, report.verdict) == (Verdict.PASS, Verdict.FAIL, Verdict.FAIL)
    assert "over budget lossless" in str(quality.cause)


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
