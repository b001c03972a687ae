"""``parity faults list`` and ``parity faults run``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from models import registry
from models.registry import Model
from parity import environment
from parity.errors import UsageError
from parity.faults.catalogue import faults, subjects
from parity.faults.fault import TINY, Fault, Subject
from parity.faults.run import Finding, Outcome, cells, run_all, save
from parity.weights import resolve


def choose(names: Sequence[str]) -> list[Fault]:
    """The faults named, by their names or by their groups; all of them without names.

    Raises:
        UsageError: nothing is called so.
    """
    known = list(faults())
    if not names:
        return known
    called = {fault.name for fault in known} | {fault.group for fault in known}
    for name in names:
        if name not in called:
            near = difflib.get_close_matches(name, called, n=2)
            hint = f"did you mean {', '.join(near)}?" if near else "`parity faults list` lists them"
            raise UsageError(f"no fault is called {name!r}; {hint}")
    return [fault for fault in known if fault.name in names or fault.group in names]


def render_list(console: Console) -> None:
    """Every fault: its group, what it is, the rung to blame, and how many of the models can have it.

    What is planted in tiny models alone says why.
    """
    known = [Subject(model) for model in subjects()]
    table = Table()
    for heading in ("fault", "group", "to blame", "models", "what it is"):
        table.add_column(heading, overflow="fold")
    for fault in faults():
        count = sum(fault.at(subject) is not None for subject in known)
        what = f"{fault.what} (Tiny models only: {fault.tiny_only}.)" if fault.tiny_only else fault.what
        table.add_row(fault.name, fault.group, f"{fault.edge}, {fault.outcome}", str(count), what)
    console.print(table, markup=False)


def with_weights(models: Sequence[Model] | None, weights: str, say: Callable[[str], None]) -> list[Subject]:
    """The models to plant faults in, with ``weights``, which are fetched; without any, those that have such weights.

    Raises:
        UsageError, ParityError, ModelError: a model has none, or they cannot be had.
    """
    if weights == TINY:
        return [Subject(model) for model in models or subjects()]
    if models is None:
        if weights != "sample":
            raise UsageError(f"say with --model which model {weights} is")
        models = [model for model in registry.models() if model.preset.sample]
    return [Subject(model, weights, resolve(model, weights, say=say).folder) for model in models]


def carry_out(
    chosen: Sequence[Fault], planted: Sequence[Subject], done: Path | None, console: Console, workers: int | None = None
) -> list[Finding]:
    """Plant the faults, with progress; findings go to the file ``done`` as they come, and those in it are not repeated.

    Raises:
        UsageError: ``done`` is not a file of findings.
        ParityError: a fault no longer fits the sources.
    """
    findings = read_findings(done) if done and done.exists() else []
    known = {(finding.fault, finding.subject) for finding in findings}
    wanted = list(cells(chosen, planted))
    left = [(fault, subject) for fault, subject in wanted if (fault.name, subject.name) not in known]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("planting faults", total=len(wanted), completed=len(wanted) - len(left))

        def note(finding: Finding) -> None:
            findings.append(finding)
            progress.advance(task)
            if finding.outcome is not Outcome.CAUGHT:
                console.print(_line(finding), markup=False, highlight=False, soft_wrap=True)
            if done:
                save(findings, done)

        run_all(left, workers or environment.threads(), note)
    order = {(fault.name, subject.name): place for place, (fault, subject) in enumerate(wanted)}
    asked = [finding for finding in findings if (finding.fault, finding.subject) in order]
    return sorted(asked, key=lambda finding: order[finding.fault, finding.subject])


def _line(finding: Finding) -> str:
    named = f"named {finding.stage or 'no stage'}, not {finding.expected_stage}" if finding.caught else finding.said
    return f"{finding.outcome}  {finding.fault} in {finding.subject}, exit code {finding.exit_code}: {named}"


def read_findings(path: Path) -> list[Finding]:
    """What an earlier run has written.

    Raises:
        UsageError: it is not a file of findings.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Finding(**{**row, "outcome": Outcome(row["outcome"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} holds no findings ({error}); give another file") from None
