"""The matrix of faults and models as Markdown: what was caught, how far off it was, and what was not named rightly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from parity.faults.fault import Fault
from parity.faults.run import Finding, Outcome

#: Cells. The number beside a tick is by how many powers of ten the figure furthest out is over its limit.
_MARKS = {
    Outcome.CAUGHT: "✓",
    Outcome.MISPLACED: "✓*",
    Outcome.MISSED: "**missed**",
    Outcome.CRASHED: "**crashed**",
    Outcome.NOT_PLANTED: "**not planted**",
}
_NOT_APPLICABLE = "·"
_HEADER = """\
# What is caught

Written by `parity faults run --markdown docs/fault_matrix.md`. Every fault is a real porting bug, put into the sources
of this project one at a time; every cell is a run of `parity check` in a fresh process, on the tiny twin of the model.
A fault counts as caught when the exit code is the right one and the first rung that does not pass is the rung to blame.

✓ caught, and the stage that it starts in named rightly; ✓* caught, another stage named; · the model cannot have it. The
number is how many powers of ten the figure furthest out lies over its limit; a tick without one is an ERROR, where
nothing can be compared.
"""


def to_markdown(faults: Sequence[Fault], findings: Iterable[Finding], models: Sequence[str]) -> str:
    """The page: what it means, the counts, a table a group, what was not caught or not placed, what each fault is."""
    found = {(finding.fault, finding.model): finding for finding in findings}
    lines = [_HEADER, *_counts(list(found.values())), ""]
    for group, members in groupby(faults, key=lambda fault: fault.group):
        lines += [f"## {group.capitalize()}", "", *_table(list(members), found, models), ""]
    lines += [*_exceptions(list(found.values())), "## The faults", ""]
    lines += ["| fault | to blame | what it is |", "|---|---|---|"]
    lines += [f"| {fault.name} | {fault.edge}, {fault.outcome} | {fault.what} |" for fault in faults]
    return "\n".join(lines) + "\n"


def _counts(findings: Sequence[Finding]) -> Iterator[str]:
    caught = [finding for finding in findings if finding.caught]
    placed = [finding for finding in caught if finding.expected_stage]
    right = sum(finding.outcome is Outcome.CAUGHT for finding in placed)
    share = 100 * right / len(placed) if placed else 0.0
    yield f"- faults: {len({finding.fault for finding in findings})}, planted {len(findings)} times"
    yield f"- caught: {len(caught)} of {len(findings)}"
    yield f"- the right stage named: {right} of {len(placed)} ({share:.1f} %)"


def _table(faults: Sequence[Fault], found: dict[tuple[str, str], Finding], models: Sequence[str]) -> Iterator[str]:
    yield f"| fault | {' | '.join(models)} |"
    yield f"|---|{'---|' * len(models)}"
    for fault in faults:
        cells = (_cell(found.get((fault.name, model))) for model in models)
        yield f"| {fault.name} | {' | '.join(cells)} |"


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return _NOT_APPLICABLE
    mark = _MARKS[finding.outcome]
    return mark if not finding.caught or not finding.effect else f"{mark} {math.floor(math.log10(finding.effect))}"


def _exceptions(findings: Sequence[Finding]) -> Iterator[str]:
    """What was not caught, then what was not placed, that of several models together."""
    wrong = [finding for finding in findings if not finding.caught]
    if wrong:
        yield "## Not caught"
        yield ""
        for finding in wrong:
            what = f"{finding.outcome}, exit code {finding.exit_code}. {finding.said}"
            yield f"- {finding.fault} in {finding.model}: {what}"
        yield ""
    misplaced = Counter(
        (finding.fault, finding.expected_stage, finding.stage)
        for finding in findings
        if finding.outcome is Outcome.MISPLACED
    )
    if misplaced:
        yield "## Caught, another stage named"
        yield ""
        for (fault, expected, stage), count in misplaced.items():
            models = "model" if count == 1 else "models"
            yield f"- {fault}: {stage or 'no stage'} instead of {expected} ({count} {models})"
        yield ""
