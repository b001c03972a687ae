"""A saved run that says something else than its own figures is refused, however it came to say so."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_reports import INT8, costs, faithful, floors, held, priced, trained_report
from typer.testing import CliRunner

from parity.cli import app
from parity.compare.verdict import Edge, Verdict, over_budget
from parity.errors import UsageError
from parity.report.recheck import read_rechecked
from parity.report.record import Report, RungRecord, write_json

RUNGS = ("original", "reauthored64", "reauthored", "float", "dynamic_int8")
Document = dict[str, Any]
Tampering = Callable[[Document], object]
# tmp_path is shared by the examples of a test; each writes the same file anew.
FILES = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def report(*, tier: str, situations: bool = False) -> Report:
    """A run in which every rung passes, if the tier is one that the quantized one's cost is within."""
    cost = priced("dynamic_int8", tier, costs(INT8, 0.05), 0.0383)
    figures = {"prompts": 2, "positions": 9, "floor_ratio": 0.6, "worst_position_ratio": 1.9, "rel_l2": 1e-6}
    edges = [
        held("original", "rounding", floors(0.6, 1.9, 1.2e-5)),
        held("reauthored64", "port", floors(0.3, 1.4, 2.1e-15)),
        held("reauthored", "rounding", floors(0.6, 1.7, 1.3e-5)),
        held("float", "rounding", floors(0.7, 2.1, 7.6e-5)),
        faithful("dynamic_int8"),
    ]
    if situations:
        edges = [replace(edge, situations={"window": {**figures, "verdict": "PASS", "cause": None}}) for edge in edges]
    return trained_report(
        rungs=[RungRecord(name=name, seconds=1.0) for name in ("original64", *RUNGS)],
        edges=[*edges, over_budget(cost, Verdict.PASS)],
        generation=[{"rung": name, "matches": 56, "of": 56, "first_difference": None} for name in RUNGS],
        environment={},
        # One prompt's positions are as good as seven's, and a file of which every value is edited is smaller.
        conditioning={},
        prompts_said={},
        texts={},
    )


def without_positions(source: Report) -> Report:
    """The run with the rows of two prompts only, and those short."""
    keep = ("kl", "ratio")
    return replace(
        source,
        edges=[
            replace(
                edge,
                prompts={
                    name: {key: value[:2] if key in keep else value for key, value in row.items()}
                    for name, row in list(edge.prompts.items())[:2]
                },
            )
            for edge in source.edges
        ],
    )


PASSING, FAILING = report(tier="good"), report(tier="lossless")
SITUATED = report(tier="good", situations=True)
ERROR = Edge(reference="original64", candidate="engine", verdict=Verdict.ERROR, cause="not reached")


def written(path: Path, source: Report, *tampering: Tampering) -> Path:
    """The file of a run after somebody has been at it."""
    write_json([source], path)
    document = json.loads(path.read_text())
    for change in tampering:
        change(document)
    path.write_text(json.dumps(document))
    return path


def edge(candidate: str, question: str = "", /, **values: Any) -> Tampering:
    return lambda document: found(document, candidate, question).update(values)


def figure(candidate: str, question: str = "", /, **values: Any) -> Tampering:
    return lambda document: found(document, candidate, question)["metrics"].update(values)


def situation(candidate: str, **values: Any) -> Tampering:
    return lambda document: found(document, candidate, "")["situations"]["window"].update(values)


def found(document: Document, candidate: str, question: str) -> Document:
    """The edge of a rung; of a quantized one that of a question."""
    edges: list[Document] = document["edges"]
    return next(e for e in edges if e["candidate"] == candidate and question in ("", e["question"]))


def unanswered(candidate: str, question: str) -> Tampering:
    return lambda document: document["edges"].remove(found(document, candidate, question))


def verdict(said: object) -> Tampering:
    return lambda document: document.update(verdict=said)


def without(part: str, name: str) -> Tampering:
    key = {"edges": "candidate", "rungs": "name"}[part]
    return lambda document: document.update({part: [x for x in document[part] if x[key] != name]})


def again(part: str) -> Tampering:
    return lambda document: document[part].append(document[part][-1])


def defect(document: Document) -> None:
    document["generation"][3]["first_difference"] = {"at": 1, "kind": "defect", "prompt": "p", "margin": 3.0}


@pytest.mark.parametrize("source", [PASSING, FAILING, SITUATED], ids=["passing", "failing", "situated"])
def test_a_run_as_it_was_written_is_believed(tmp_path: Path, source: Report) -> None:
    """Alone and beside another, with an ERROR among its edges, and after an ERROR that ended it."""
    assert read_rechecked(written(tmp_path / "one.json", source)) == [source]
    write_json([source, PASSING], tmp_path / "two.json")
    assert read_rechecked(tmp_path / "two.json") == [source, PASSING]
    stopped = Report(**{**vars(source), "edges": [*source.edges, ERROR], "cause": "disk full"})
    assert read_rechecked(written(tmp_path / "stopped.json", stopped)) == [stopped]
    assert read_rechecked(written(tmp_path / "defect.json", PASSING, defect, *GENERATION_FAILED))
    broken = (situation("float", worst_position_ratio=9.0, verdict="FAIL", cause="x"), *GENERATION_FAILED)
    assert read_rechecked(written(tmp_path / "situation.json", SITUATED, *broken))


def test_a_file_that_is_older_than_questions_is_believed(tmp_path: Path) -> None:
    """Its quantized rungs have one edge, with no budget that would ask for another."""

    def older(document: Document) -> None:
        document["edges"] = [edge for edge in document["edges"] if edge["question"] != "fidelity"]
        for edge in document["edges"]:
            for key in ("question", "budget", "prompts", "remark"):
                del edge[key]

    assert read_rechecked(written(tmp_path / "run.json", FAILING, older))


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
    "edge": (
        FAILING,
        (edge("dynamic_int8", "quality", verdict="PASS"), verdict("PASS")),
        "dynamic_int8 quality is PASS with a cause",
    ),
    "edge and cause": (
        FAILING,
        (edge("dynamic_int8", "quality", verdict="PASS", cause=None), verdict("PASS")),
        "dynamic_int8 quality is PASS, its figures and limits make FAIL",
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
    "edge twice": (PASSING, (again("edges"),), "dynamic_int8 quality has two edges"),
    "bound": (
        PASSING,
        (figure("dynamic_int8", "quality", bound={"kl_typical": 0.2, "flips": 0.1}),),
        "dynamic_int8 quality is PASS, its figures and limits make FAIL",
    ),
    "bound is null": (PASSING, (figure("dynamic_int8", "quality", bound={"kl_typical": None}),), "quality is PASS"),
    "no bound": (PASSING, (figure("dynamic_int8", "quality", bound={}),), "quality is PASS"),
    "bound better than its figure": (
        FAILING,
        (
            figure("dynamic_int8", "quality", bound={"kl_typical": 1e-4, "flips": 0.0}),
            edge("dynamic_int8", "quality", verdict="PASS", cause=None),
            verdict("PASS"),
        ),
        "dynamic_int8 quality is PASS, its figures and limits make FAIL",
    ),
    "quality gone": (
        FAILING,
        (unanswered("dynamic_int8", "quality"), verdict("PASS")),
        "dynamic_int8 fidelity is answered, quality is not",
    ),
    "fidelity gone": (
        PASSING,
        (unanswered("dynamic_int8", "fidelity"),),
        "dynamic_int8 quality is answered, fidelity is not",
    ),
    "another question": (PASSING, (edge("reauthored64", question="rounding"),), "reauthored64 is asked about rounding"),
    "another question of a file": (
        PASSING,
        (edge("dynamic_int8", "fidelity", question="quality"),),
        "dynamic_int8 quality has two edges",
    ),
    "situation": (
        SITUATED,
        (situation("float", floor_ratio=3.5),),
        "float in window is PASS, its figures and limits make FAIL",
    ),
    "situation fails": (
        SITUATED,
        (situation("float", worst_position_ratio=9.0, verdict="FAIL", cause="x"),),
        "float is PASS, its figures and limits make FAIL",
    ),
    "situation is an error": (SITUATED, (situation("float", verdict="ERROR"),), "float is PASS, in window it is ERROR"),
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
    path = written(tmp_path / "run.json", without_positions(replace(FAILING, rungs=rungs)))
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
