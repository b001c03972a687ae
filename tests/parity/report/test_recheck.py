"""A saved run that says something else than its own figures is refused, however it came to say so."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from parity.cli import app
from parity.compare.limits import limits_for
from parity.compare.verdict import Edge, Verdict, judge
from parity.errors import UsageError
from parity.report.recheck import read_rechecked
from parity.report.record import Report, RungRecord, write_json

FIGURES = {
    "rel_l2": 1e-6,
    "floor_ratio": 1.5,
    "worst_position_ratio": 2.0,
    "kl_mean": 1e-3,
    "kl_p99": 1e-2,
    "top1_agreement_clear": 0.99,
    "perplexity_ratio": 1.001,
}
RUNGS = ("original", "reauthored", "float", "dynamic_int8")
Document = dict[str, Any]
Tampering = Callable[[Document], object]
# tmp_path is shared by the examples of a test; each writes the same file anew.
FILES = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def report(**worse: float) -> Report:
    """A run in which every rung passes, but for the figures of the quantized one that are made ``worse``."""
    edges = [
        judge("original64", name, FIGURES | (worse if name == "dynamic_int8" else {}), limits_for(name))
        for name in RUNGS
    ]
    return Report(
        model="smollm-135m",
        family="llama",
        weights={"kind": "tiny", "sha256": "0", "revision": None},
        prompt_set={"name": "short", "sha256": "0", "prompts": 7, "positions": 224},
        rungs=[RungRecord(name=name, seconds=1.0) for name in ("original64", *RUNGS)],
        edges=edges,
        generation=[{"rung": name, "matches": 56, "of": 56, "first_difference": None} for name in RUNGS],
        environment={},
        seconds=1.0,
    )


PASSING, FAILING = report(), report(kl_mean=2.0)
ERROR = Edge(reference="original64", candidate="engine", verdict=Verdict.ERROR, cause="not reached")


def written(path: Path, source: Report, *tampering: Tampering) -> Path:
    """The file of a run after somebody has been at it."""
    write_json([source], path)
    document = json.loads(path.read_text())
    for change in tampering:
        change(document)
    path.write_text(json.dumps(document))
    return path


def edge(candidate: str, **values: Any) -> Tampering:
    return lambda document: next(e for e in document["edges"] if e["candidate"] == candidate).update(values)


def figure(candidate: str, **values: Any) -> Tampering:
    return lambda document: next(e for e in document["edges"] if e["candidate"] == candidate)["metrics"].update(values)


def verdict(said: object) -> Tampering:
    return lambda document: document.update(verdict=said)


def without(part: str, name: str) -> Tampering:
    key = {"edges": "candidate", "rungs": "name"}[part]
    return lambda document: document.update({part: [x for x in document[part] if x[key] != name]})


def again(part: str) -> Tampering:
    return lambda document: document[part].append(document[part][-1])


def defect(document: Document) -> None:
    document["generation"][2]["first_difference"] = {"at": 1, "kind": "defect", "prompt": "p", "margin": 3.0}


@pytest.mark.parametrize("source", [PASSING, FAILING], ids=["passing", "failing"])
def test_a_run_as_it_was_written_is_believed(tmp_path: Path, source: Report) -> None:
    """Alone and beside another, with an ERROR among its edges, and after an ERROR that ended it."""
    assert read_rechecked(written(tmp_path / "one.json", source)) == [source]
    write_json([source, PASSING], tmp_path / "two.json")
    assert read_rechecked(tmp_path / "two.json") == [source, PASSING]
    stopped = Report(**{**vars(source), "edges": [*source.edges, ERROR], "cause": "disk full"})
    assert read_rechecked(written(tmp_path / "stopped.json", stopped)) == [stopped]
    assert read_rechecked(written(tmp_path / "defect.json", PASSING, defect, *GENERATION_FAILED))


GENERATION_FAILED = (
    edge("float", verdict="FAIL", cause="greedy generation differs at token 1 of p"),
    verdict("FAIL"),
)
#: Ways to make a failing run look better, or a run look other than it was, and what the refusal names.
TAMPERED: dict[str, tuple[Report, tuple[Tampering, ...], str]] = {
    "verdict": (FAILING, (verdict("PASS"),), "its verdict is PASS, its edges make FAIL"),
    "no verdict": (FAILING, (verdict(None),), "its verdict is None"),
    "unknown verdict": (FAILING, (verdict("pass"),), "its verdict is pass"),
    "worse verdict": (PASSING, (verdict("ERROR"),), "its verdict is ERROR"),
    "edge": (FAILING, (edge("dynamic_int8", verdict="PASS"), verdict("PASS")), "dynamic_int8 is PASS with a cause"),
    "edge and cause": (
        FAILING,
        (edge("dynamic_int8", verdict="PASS", cause=None), verdict("PASS")),
        "dynamic_int8 is PASS, its figures and limits make FAIL",
    ),
    "edge made worse": (PASSING, (edge("float", verdict="FAIL", cause="x"), verdict("FAIL")), "float is FAIL"),
    "error without cause": (PASSING, (edge("float", verdict="ERROR"), verdict("ERROR")), "float is ERROR without"),
    "figure": (PASSING, (figure("float", floor_ratio=9.0),), "float is PASS, its figures and limits make FAIL"),
    "figure is null": (PASSING, (figure("float", floor_ratio=None),), "float is PASS"),
    "figure is text": (PASSING, (figure("float", floor_ratio="1.5"),), "float is PASS"),
    "no figures": (PASSING, (edge("float", metrics={}),), "float is PASS"),
    "no limits": (PASSING, (edge("float", limits={}),), "float is PASS, its figures and limits make none"),
    "limit is null": (PASSING, (edge("float", limits={"floor_ratio": None}),), "float is PASS"),
    "edge gone": (
        FAILING,
        (without("edges", "dynamic_int8"), verdict("PASS")),
        "dynamic_int8 was run and has no edge",
    ),
    "edges gone": (FAILING, (lambda document: document.update(edges=[]), verdict("ERROR")), "has no edge"),
    "rung gone": (PASSING, (without("rungs", "float"),), "float passes and was not run"),
    "edge twice": (PASSING, (again("edges"),), "dynamic_int8 has two edges"),
    "rung twice": (PASSING, (again("rungs"),), "dynamic_int8 was run twice"),
    "no positions": (PASSING, (lambda document: document["prompt_set"].update(positions=0),), "passes on no positions"),
    "positions are true": (PASSING, (lambda d: d["prompt_set"].update(positions=True),), "passes on no positions"),
    "defect": (PASSING, (defect,), "float is PASS, its figures and limits make FAIL"),
    "cause of the run": (PASSING, (lambda document: document.update(cause="disk full"),), "its edges make ERROR"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_run_that_denies_its_own_figures_is_refused(tmp_path: Path, name: str) -> None:
    """Through the command: exit code 2, and nothing is rendered. The one line names the file and what is wrong."""
    source, tampering, words = TAMPERED[name]
    path = written(tmp_path / "run.json", source, *tampering)
    with pytest.raises(UsageError) as caught:
        read_rechecked(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "run the check again" in str(caught.value)
    page = tmp_path / "page.html"
    outcome = CliRunner().invoke(app, ["report", str(path), "--html", str(page)])
    assert isinstance(outcome.exception, UsageError)
    assert not page.exists()


@pytest.mark.parametrize("said", ["PASS", "ERROR", None])
def test_the_verdict_of_several_models_is_their_own(tmp_path: Path, said: str | None) -> None:
    """A file of two models, of which one fails, does not pass by saying so; nor does one of them alone."""
    write_json([PASSING, FAILING], tmp_path / "two.json")
    document = json.loads((tmp_path / "two.json").read_text())
    for where in (document, document["models"][1]):
        (tmp_path / "edited.json").write_text(json.dumps(document))
        assert read_rechecked(tmp_path / "edited.json")
        kept, where["verdict"] = where["verdict"], said
        (tmp_path / "edited.json").write_text(json.dumps(document))
        with pytest.raises(UsageError, match="contradicts itself"):
            read_rechecked(tmp_path / "edited.json")
        where["verdict"] = kept


@pytest.mark.parametrize(("source", "code"), [(PASSING, 0), (FAILING, 1)], ids=["passing", "failing"])
def test_rendering_ends_with_the_verdicts_code(tmp_path: Path, source: Report, code: int) -> None:
    """A failed run that is rendered again is still a failed run to the script that asked for it."""
    assert CliRunner().invoke(app, ["report", str(written(tmp_path / "run.json", source))]).exit_code == code


def test_rendering_an_error_ends_with_its_code(tmp_path: Path) -> None:
    """ERROR outranks FAIL here too."""
    stopped = Report(**{**vars(FAILING), "edges": [*FAILING.edges, ERROR]})
    assert CliRunner().invoke(app, ["report", str(written(tmp_path / "run.json", stopped))]).exit_code == 3


@FILES
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_run_cut_anywhere_is_refused(tmp_path: Path, share: float) -> None:
    """Half a file is no report, wherever it ends; only the line break at its end can go."""
    path = written(tmp_path / "run.json", FAILING)
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError):
        read_rechecked(path)


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document that holds anything: its container and its key there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from leaves(value[key])


@pytest.mark.parametrize("edit", ["PASS", None, 0, -1.0, 1e9, "", [], {}, True, [[]]], ids=repr)
def test_no_single_edit_makes_a_failed_run_pass(tmp_path: Path, edit: object) -> None:
    """Any one value of the file exchanged for another: still a FAIL, or refused, never a PASS and never a traceback."""
    exceptions = [{"weight": "head", "asked": "int8", "precision": "float32"}]
    artifact = {"bytes": 3, "weights": {"int8": 3}, "exceptions": exceptions, "note": "n"}
    rungs = [*FAILING.rungs[:-1], RungRecord(name="dynamic_int8", artifact=artifact)]
    path = written(tmp_path / "run.json", Report(**{**vars(FAILING), "rungs": rungs}))
    document = json.loads(path.read_text())
    page = tmp_path / "page.html"
    places = list(leaves(document))
    # A fifteenth of the places for each edit keeps this a matter of seconds; which ones is the edit's own draw.
    for holder, key in random.Random(repr(edit)).sample(places, len(places) // 15):
        kept, holder[key] = holder[key], edit
        path.write_text(json.dumps(document))
        outcome = CliRunner().invoke(app, ["report", str(path), "--html", str(page)])
        assert outcome.exit_code != 0, key
        assert isinstance(outcome.exception, (UsageError, SystemExit)), (key, outcome.exception)
        holder[key] = kept
