"""Planting every fault in every model that can have it, each in a run of the real command line of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from queue import Queue
from typing import Any

from parity.compare.verdict import BORROWED
from parity.errors import ParityError
from parity.faults.fault import OUTSIDE, TINY, Fault, Subject
from parity.faults.planting import plant, planted
from parity.faults.template import Template
from parity.files import scratch_folder, write_whole

#: Seconds after which a run that has not ended is a hang; a sound one of a tiny model takes less than twenty, one of a
#: sample a few minutes.
PATIENCE = 900
EXIT_CODES = {"FAIL": 1, "ERROR": 3}


class Outcome(StrEnum):
    """What became of a fault. Only the first two count as caught; the last says that the catalogue is wrong."""

    CAUGHT = "caught"
    #: The right rung failed, and the stage that was named is not the one.
    MISPLACED = "misplaced"
    MISSED = "missed"
    #: Nothing could be concluded, or something else than was expected stopped the run.
    CRASHED = "crashed"
    NOT_PLANTED = "not planted"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault in one model: what the command line said. ``effect`` is in units of the limit that it broke."""

    fault: str
    model: str
    outcome: Outcome
    exit_code: int
    edge: str | None = None
    stage: str | None = None
    expected_stage: str | None = None
    effect: float | None = None
    said: str = ""
    weights: str = TINY

    @property
    def subject(self) -> str:
        """What the model is called where there are others; see ``Subject``."""
        return self.model if self.weights == TINY else f"{self.model} {self.weights}"

    @property
    def caught(self) -> bool:
        """Whether the right rung was blamed with the right exit code."""
        return self.outcome in (Outcome.CAUGHT, Outcome.MISPLACED)


def cells(faults: Iterable[Fault], subjects: Sequence[Subject]) -> Iterator[tuple[Fault, Subject]]:
    """Every fault with every model that can have it."""
    for fault in faults:
        for subject in subjects:
            if fault.stage(subject) is not None:
                yield fault, subject


def run_all(wanted: Sequence[tuple[Fault, Subject]], workers: int, on_finding: Callable[[Finding], None]) -> None:
    """Run the cells, several at a time; each finding is told as it comes.

    Raises:
        ParityError: a rewrite no longer fits the sources.
    """
    for fault in dict.fromkeys(fault for fault, _ in wanted):
        for rewrite in fault.rewrites:
            if rewrite.found() != 1:
                raise ParityError(
                    f"fault {fault.name!r} rewrites what {rewrite.module} no longer has once: "
                    f"{' '.join(rewrite.sound.split())!r}; write the fault as the code is now"
                )
    with ExitStack() as stack:
        free: Queue[Template] = Queue()
        for _ in range(min(workers, len(wanted))):
            free.put(stack.enter_context(Template()))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(pool.shutdown, cancel_futures=True)

        def run_one(fault: Fault, subject: Subject) -> Finding:
            template = free.get()
            try:
                return run(fault, subject, template)
            finally:
                free.put(template)

        for job in [pool.submit(run_one, fault, subject) for fault, subject in wanted]:
            on_finding(job.result())


def run(fault: Fault, subject: Subject, template: Template) -> Finding:
    """Plant a fault in a process of its own and hold what ``parity check`` says against what it should say."""
    with scratch_folder() as folder:
        plant(fault.rewrites, folder)
        report = folder / "report.json"
        weights = ["--weights", subject.weights]
        arguments = ["check", subject.model.name, *weights, *fault.options, "--json", str(report)]
        code = template.run(folder, arguments, PATIENCE)
        if code is None:
            return _finding(fault, subject, Outcome.CRASHED, -1, said=f"no end after {PATIENCE} s")
        said = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
        if planted(folder) != {rewrite.module for rewrite in fault.rewrites}:
            return _finding(fault, subject, Outcome.NOT_PLANTED, code, said=_last_line(said))
        if "Traceback" in said or not report.is_file():
            return _finding(fault, subject, Outcome.CRASHED, code, said=_last_line(said))
        record = json.loads(report.read_text(encoding="utf-8"))
    return judge(fault, subject, code, record)


def judge(fault: Fault, subject: Subject, exit_code: int, record: dict[str, Any]) -> Finding:
    """Whether a report blames the fault's edge, with its exit code and its stage."""
    # The original is held against the noise of the port, and says so where that is off.
    wrong = [edge for edge in record["edges"] if edge["verdict"] != "PASS" and BORROWED not in (edge["cause"] or "")]
    if exit_code == 0 or not (wrong or record["cause"]):
        return _finding(fault, subject, Outcome.MISSED, exit_code, effect=_effect(fault, record["edges"]))
    first = wrong[0] if wrong else {"candidate": None, "cause": record["cause"], "verdict": "ERROR"}
    stage = next((edge["first_divergent_stage"] for edge in wrong if edge["first_divergent_stage"]), None)
    expected = fault.stage(subject)
    blamed = first["candidate"] == fault.edge and first["verdict"] == fault.outcome
    blamed &= fault.outcome == "ERROR" or first["question"] == fault.question
    if not blamed or exit_code != EXIT_CODES[fault.outcome] or fault.says not in (first["cause"] or ""):
        outcome = Outcome.CRASHED if exit_code == EXIT_CODES["ERROR"] else Outcome.MISSED
    elif fault.outcome == "FAIL" and expected not in (OUTSIDE, stage):
        outcome = Outcome.MISPLACED
    else:
        outcome = Outcome.CAUGHT
    return _finding(
        fault,
        subject,
        outcome,
        exit_code,
        edge=first["candidate"],
        stage=stage,
        effect=_effect(fault, wrong),
        said=str(first["cause"] or ""),
    )


def _effect(fault: Fault, edges: Sequence[dict[str, Any]]) -> float | None:
    """How many times over its limit the figure furthest out is, on the edges of the fault's rung and question."""
    shares = []
    for edge in (edge for edge in edges if edge["candidate"] == fault.edge and edge["question"] == fault.question):
        for metric, bound in edge["limits"].items():
            value = edge["metrics"].get(metric)
            if isinstance(value, (int, float)) and isinstance(bound, (int, float)):
                shares.append(value / bound)
    return max(shares, default=None)


def _finding(fault: Fault, subject: Subject, outcome: Outcome, exit_code: int, **facts: Any) -> Finding:
    expected = fault.stage(subject) if fault.outcome == "FAIL" else None
    return Finding(
        fault=fault.name,
        model=subject.model.name,
        weights=subject.weights,
        outcome=outcome,
        exit_code=exit_code,
        expected_stage=expected or None,
        **facts,
    )


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def save(findings: Iterable[Finding], path: Path) -> None:
    """Write findings as JSON, one a line."""
    write_whole(path, "".join(json.dumps(asdict(each)) + "\n" for each in findings))
