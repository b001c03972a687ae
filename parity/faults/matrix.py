"""The matrix of faults and models as Markdown: what was caught, how far off it was, and what was not named rightly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from parity.faults.fault import TINY, Fault, Subject
from parity.faults.run import Finding, Outcome, cells

#: Cells. The number beside a tick is by how many powers of ten the figure furthest out is over its limit.
_MARKS = {
    Outcome.CAUGHT: "✓",
    Outcome.MISPLACED: "✓*",
    Outcome.MISSED: "**missed**",
    Outcome.CRASHED: "**crashed**",
    Outcome.NOT_PLANTED: "**not planted**",
}
_NOT_APPLICABLE = "·"
_NOT_RUN = "?"
_HEADER = """\
# What is caught

Written by `parity faults run --weights tiny --weights sample -o FINDINGS --markdown docs/fault_matrix.md`, which goes
on where FINDINGS ends (`parity faults page FINDINGS --markdown docs/fault_matrix.md` writes the page without running
anything). Every fault is a real porting bug, put into the sources of this project one at a time; every cell is a run of
`parity check` in a fresh process, on the tiny twin of the model, or on trained weights where the column says `sample`.
A fault counts as caught when the exit code is the right one and the first rung that does not pass is the rung to blame:
`reauthored64` for what is wrong in a port, `float` for a conversion, a recipe's fidelity for what is stored, or run, in
another way than the recipe says.

✓ caught, and the stage that it starts in named rightly; ✓* caught, another stage named; · the model cannot have it;
? not run since the verdict or the fault was changed. The number is how many powers of ten the figure furthest out lies
over its limit; a tick without one is an ERROR, where nothing can be compared.
"""


def to_markdown(faults: Sequence[Fault], findings: Iterable[Finding], subjects: Sequence[Subject]) -> str:
    """The page: what it means, the counts, a table a group, what was not caught or not placed, what each fault is."""
    found = {(finding.fault, finding.subject): finding for finding in findings}
    wanted = {(fault.name, subject.name) for fault, subject in cells(faults, subjects)}
    found = {place: finding for place, finding in found.items() if place in wanted}
    lines = [_HEADER, *_counts(list(found.values()), len(wanted)), ""]
    for group, members in groupby(faults, key=lambda fault: fault.group):
        lines += [f"## {group.capitalize()}", "", *_table(list(members), found, wanted, subjects), ""]
    lines += [*_exceptions(list(found.values())), "## The faults", ""]
    lines += ["| fault | to blame | what it is |", "|---|---|---|"]
    lines += [f"| {fault.name} | {fault.edge}, {fault.outcome} | {_what(fault)} |" for fault in faults]
    return "\n".join(lines) + "\n"


def _what(fault: Fault) -> str:
    return f"{fault.what} Tiny models only: {fault.tiny_only}." if fault.tiny_only else fault.what


def _counts(findings: Sequence[Finding], wanted: int) -> Iterator[str]:
    caught = [finding for finding in findings if finding.caught]
    placed = [finding for finding in caught if finding.expected_stage]
    right = sum(finding.outcome is Outcome.CAUGHT for finding in placed)
    share = 100 * right / len(placed) if placed else 0.0
    yield f"- faults: {len({finding.fault for finding in findings})}, planted {len(findings)} times"
    if len(findings) < wanted:
        yield f"- **not run: {wanted - len(findings)} of {wanted}**"
    yield f"- caught: {len(caught)} of {len(findings)}"
    for kind in dict.fromkeys(finding.weights for finding in findings):
        if kind != TINY:
            here = [finding for finding in findings if finding.weights == kind]
            yield f"- of these on {kind} weights: {sum(finding.caught for finding in here)} of {len(here)}"
    yield f"- the right stage named: {right} of {len(placed)} ({share:.1f} %)"


def _table(
    faults: Sequence[Fault],
    found: Mapping[tuple[str, str], Finding],
    wanted: Collection[tuple[str, str]],
    subjects: Sequence[Subject],
) -> Iterator[str]:
    yield f"| fault | {' | '.join(subject.name for subject in subjects)} |"
    yield f"|---|{'---|' * len(subjects)}"
    for fault in faults:
        places = [(fault.name, subject.name) for subject in subjects]
        row = (_cell(found.get(place)) if place in wanted else _NOT_APPLICABLE for place in places)
        yield f"| {fault.name} | {' | '.join(row)} |"


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return _NOT_RUN
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
            yield f"- {finding.fault} in {finding.subject}: {what}"
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
