"""Faults are planted in one run alone, through the real command line, and judged by what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from models import registry
from parity.compare.limits import EXACT, Question, question_of
from parity.compare.verdict import BORROWED
from parity.faults.catalogue import faults
from parity.faults.catalogue.situations import FAULTS as OF_SITUATIONS
from parity.faults.fault import Fault, Subject
from parity.faults.matrix import to_markdown
from parity.faults.planting import Rewrite, plant, planted
from parity.faults.run import Finding, Outcome, judge, run, run_all
from parity.faults.template import Template

KNOWN = {fault.name: fault for fault in faults()}
LLAMA = Subject(registry.get("smollm-135m"))

#: Of every group, of every rung that can be to blame, of every kind of model. `parity faults run` plants them all.
SLICE = (
    ("q and k swapped", "phi-2"),
    ("gain without its one", "gemma-2-2b"),
    ("position off by one in decode", "openelm-270m"),
    ("axes of positions swapped", "qwen2.5-vl-3b"),
    ("cache slot off by one", "qwen2.5-0.5b"),
    ("final soft-cap dropped", "gemma-2-2b"),
    ("signature outputs swapped", "smollm-135m"),
    ("fused attention without its scale", "smollm-135m"),
    ("zero scale", "smollm-135m"),
    ("tokens of another tokenizer", "smollm-135m"),
    ("the reference's own numbers", "smollm-135m"),
    ("rung skipped", "smollm-135m"),
    # Those that hardly show.
    ("epsilon twice as large", "smollm-135m"),
    ("base of positions a millionth off", "smollm-135m"),
    ("scores a ten-thousandth off", "phi-2"),
    ("one stale cache slot", "smollm-135m"),
    ("one weight a millionth off", "smollm-135m"),
    ("one step a hundredth off", "smollm-135m"),
)


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    with Template() as started:
        yield started


@pytest.mark.parametrize(("name", "model"), SLICE, ids=[f"{name}, {model}" for name, model in SLICE])
def test_a_planted_fault_is_caught_and_placed(template: Template, name: str, model: str) -> None:
    """The right exit code, the right rung to blame, the right stage."""
    finding = run(KNOWN[name], Subject(registry.get(model)), template)
    assert finding.outcome is Outcome.CAUGHT, finding


def test_a_fault_in_what_is_stored_is_bisected_though_little_comes_of_it(template: Template, tmp_path) -> None:
    """One step for a whole matrix costs a stage less than the recipe may; that it is no rounding is certain."""
    fault = KNOWN["one step for a whole matrix"]
    plant(fault.rewrites, tmp_path)
    report = tmp_path / "bisection.json"
    asked = ["bisect", "openelm-270m", "--recipe", "dynamic_int8", "--no-cache", "--json", str(report)]
    assert template.run(tmp_path, asked, 600) == 1
    *_, found = json.loads(report.read_text())["rungs"]
    assert found["first"] == fault.at(Subject(registry.get("openelm-270m")))
    assert "is not stored as rounding would have it" in found["remark"]


@pytest.mark.parametrize("fault", OF_SITUATIONS, ids=lambda fault: fault.name)
def test_a_situation_shows_what_plain_prompts_do_not(template: Template, fault: Fault) -> None:
    """Caught in its situation, missed without: which is why there are situations."""
    names = ("llama-3.2-1b", "gemma-2-2b")
    subject = next(subject for subject in map(Subject, map(registry.get, names)) if fault.at(subject) is not None)
    finding = run(fault, subject, template)
    assert finding.caught, finding
    plain = run(replace(fault, arguments=()), subject, template)
    assert plain.outcome is Outcome.MISSED, plain


def test_a_sound_run_that_is_forked_passes(template: Template, tmp_path) -> None:
    """Nothing planted, nothing caught; the same with the command started by itself is what `test_contract` runs."""
    plant([], tmp_path)
    arguments = ["check", "smollm-135m", "--rung", "reauthored", "--json", str(tmp_path / "report.json")]
    assert template.run(tmp_path, arguments, 300) == 0
    assert "PASS smollm-135m" in (tmp_path / "stdout").read_text()
    assert template.run(tmp_path, ["check", "nonsense"], 300) == 2


def test_a_run_that_hangs_is_ended(template: Template, tmp_path) -> None:
    """With its jobs, and the next run is carried out."""
    sleeping = Rewrite("parity.cli", "def main(", "import time; time.sleep(60)\n\n\ndef main(")
    plant([sleeping], tmp_path)
    assert template.run(tmp_path, ["--help"], 2.0) is None
    plant([], tmp_path)
    assert template.run(tmp_path, ["--help"], 300) == 0


def test_planting_changes_one_run_and_nothing_else(tmp_path) -> None:
    """The process that has the folder in front of its path computes something else; the next one does not."""
    rewrite = Rewrite("models.layers.mask", "visible, 0.0, BLOCKED)[None, None]", "visible, 1.0, BLOCKED)[None, None]")
    plant([rewrite], tmp_path)
    program = (
        "import torch; from models.layers.mask import causal_mask; print(causal_mask(torch.arange(1), 1).tolist())"
    )

    def printed(*path: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *sys.path])}
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()

    assert planted(tmp_path) == set()
    assert printed(str(tmp_path)) == "[[[[1.0]]]]"
    assert planted(tmp_path) == {"models.layers.mask"}
    assert printed() == "[[[[0.0]]]]"


def test_a_fault_that_no_longer_fits_stops_everything() -> None:
    """It would be counted as missed, or worse, as caught."""
    from parity.errors import ParityError

    stale = replace(KNOWN["final norm missing"], rewrites=(Rewrite("models.layers.mask", "not there", "nor this"),))
    with pytest.raises(ParityError, match="no longer has once"):
        run_all([(stale, LLAMA)], 1, lambda _: pytest.fail("nothing may be run"))


def edge(
    candidate: str,
    verdict: str = "PASS",
    stage: str | None = None,
    cause: str | None = None,
    question: Question | None = None,
) -> dict[str, Any]:
    return {
        "candidate": candidate,
        "question": question or question_of(candidate),
        "verdict": verdict,
        "first_divergent_stage": stage,
        "cause": cause,
        "limits": {"floor_ratio": 8.0},
        "metrics": {"floor_ratio": 1.0 if verdict == "PASS" else 8000.0},
    }


FAILING, LYING = KNOWN["epsilon ten times as large"], KNOWN["NaN in one position"]
STORING, INT8 = KNOWN["one step a hundredth off"], "dynamic_int8"
PHI, T5 = Subject(registry.get("phi-2")), Subject(registry.get("t5-small"))


@pytest.mark.parametrize(
    ("fault", "code", "edges", "outcome"),
    [
        (FAILING, 1, [edge(EXACT, "FAIL", "block_0")], Outcome.CAUGHT),
        (FAILING, 1, [edge(EXACT, "FAIL", "block_1")], Outcome.MISPLACED),
        (FAILING, 1, [edge(EXACT, "FAIL")], Outcome.MISPLACED),
        (FAILING, 0, [edge(EXACT)], Outcome.MISSED),
        (FAILING, 0, [edge(EXACT, "FAIL", "block_0")], Outcome.MISSED),
        (FAILING, 1, [edge(EXACT), edge("reauthored", "FAIL", "block_0")], Outcome.MISSED),
        (FAILING, 1, [edge("original", "FAIL"), edge(EXACT, "FAIL", "block_0")], Outcome.MISSED),
        (FAILING, 1, [edge("original", "FAIL", cause=BORROWED), edge(EXACT, "FAIL", "block_0")], Outcome.CAUGHT),
        (FAILING, 3, [edge(EXACT, "ERROR", cause="a crash")], Outcome.CRASHED),
        (FAILING, 3, [edge(EXACT, "FAIL", "block_0")], Outcome.CRASHED),
        (LYING, 3, [edge(EXACT), edge("float", "ERROR", cause="NaN or infinity at 1 of 3")], Outcome.CAUGHT),
        (LYING, 3, [edge(EXACT), edge("float", "ERROR", cause="killed by SIGSEGV")], Outcome.CRASHED),
        (LYING, 1, [edge(EXACT), edge("float", "FAIL", cause="NaN or infinity")], Outcome.MISSED),
        (STORING, 1, [edge(INT8, "FAIL", "block_1", question="fidelity")], Outcome.CAUGHT),
        (
            STORING,
            1,
            [edge(INT8, question="fidelity"), edge(INT8, "FAIL", "block_1", question="quality")],
            Outcome.MISSED,
        ),
    ],
)
def test_only_the_right_blame_counts(fault: Fault, code: int, edges: list[dict[str, Any]], outcome: Outcome) -> None:
    """A crash is not a catch, and neither is red in the wrong place."""
    assert judge(fault, PHI, code, {"edges": edges, "cause": None}).outcome is outcome


def test_the_matrix_tells_what_was_missed_and_what_was_misplaced() -> None:
    """Nothing that went wrong is only a cell among hundreds."""
    right = judge(FAILING, PHI, 1, {"edges": [edge(EXACT, "FAIL", "block_0")], "cause": None})
    other = judge(FAILING, PHI, 1, {"edges": [edge(EXACT, "FAIL", "head")], "cause": None})
    missed = replace(right, model="smollm-135m", outcome=Outcome.MISSED, exit_code=0)
    everywhere = [PHI, LLAMA, T5, Subject(T5.model, "sample")]
    page = to_markdown([FAILING], [right, missed], everywhere)
    assert "| fault | phi-2 | smollm-135m | t5-small | t5-small sample |" in page
    assert "| epsilon ten times as large | ✓ 3 | **missed** | ? | ? |" in page
    assert "caught: 1 of 2" in page
    assert "not run: 2 of 4" in page
    assert "- epsilon ten times as large in smollm-135m: missed, exit code 0." in page
    page = to_markdown([FAILING], [other], [PHI])
    assert "| epsilon ten times as large | ✓* 3 |" in page
    assert "- epsilon ten times as large: head instead of block_0 (1 model)" in page
    assert "the right stage named: 0 of 1 (0.0 %)" in page


def test_findings_survive_an_interruption(tmp_path, monkeypatch) -> None:
    """What a file of findings has is not run again."""
    from rich.console import Console

    from parity.faults import commands
    from parity.faults.run import save

    found = Finding(fault=FAILING.name, model="phi-2", outcome=Outcome.CAUGHT, exit_code=1)
    save([found], tmp_path / "findings")
    asked: list[Any] = []
    monkeypatch.setattr(commands, "run_all", lambda wanted, *_: asked.extend(wanted))
    there = [PHI, T5, Subject(PHI.model, "sample")]
    again = commands.carry_out([FAILING], there, tmp_path / "findings", Console(stderr=True))
    assert again == [found]
    assert [subject.name for _, subject in asked] == ["t5-small", "phi-2 sample"]
