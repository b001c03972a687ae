"""A saved run is believed only as far as its own figures bear it out: anyone can edit the verdict in a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.compare.limits import FLOAT_RUNGS
from parity.compare.verdict import Edge, Verdict
from parity.errors import UsageError
from parity.report.figures import edge_name, within
from parity.report.record import Report, overall, read_json


def read_rechecked(path: Path) -> list[Report]:
    """The reports of a file whose verdicts follow from the figures, limits and causes beside them.

    Raises:
        UsageError: it is not a report, or says something else than its own figures do.
    """
    reports = read_json(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    stored = [record.get("verdict") for record in document.get("models", [document])]
    for report, verdict in zip(reports, stored, strict=True):
        found = next(contradictions(report), None)
        if found is None and verdict != report.verdict:
            found = f"its verdict is {verdict}, its edges make {report.verdict}"
        if found:
            raise _contradiction(path, f"{report.model}: {found}")
    if document.get("verdict") != overall(reports):
        raise _contradiction(path, f"its verdict is {document.get('verdict')}, its models make {overall(reports)}")
    return reports


def _contradiction(path: Path, found: str) -> UsageError:
    return UsageError(f"{path} contradicts itself ({found}); it was edited or cut, run the check again")


def contradictions(report: Report) -> Iterator[str]:
    """What cannot be true of a report that a check wrote: edges twice or gone, verdicts that their figures deny."""
    yield from (f"{name} has two edges" for name in _twice([edge_name(edge) for edge in report.edges]))
    yield from (f"{name} was run twice" for name in _twice([rung.name for rung in report.rungs]))
    ran, judged = {rung.name for rung in report.rungs}, {edge.candidate for edge in report.edges}
    yield from (f"{name} was run and has no edge" for name in sorted(ran - judged - {"original64"}))
    for edge in report.edges:
        if edge.verdict is Verdict.PASS and edge.candidate not in ran:
            yield f"{edge_name(edge)} passes and was not run"
        if edge.verdict is Verdict.PASS and not _count(report.prompt_set.get("positions")):
            yield f"{edge_name(edge)} passes on no positions"
        if (edge.verdict is Verdict.PASS) == bool(edge.cause):
            yield f"{edge_name(edge)} is {edge.verdict} with{'' if edge.cause else 'out'} a cause"
        makes = Verdict.FAIL if any(_wrong(edge, report.generation)) else Verdict.PASS
        # An ERROR says why in its cause; figures that are all in order do not undo it.
        if edge.verdict is not Verdict.ERROR and (edge.verdict is not makes or not edge.limits):
            yield f"{edge_name(edge)} is {edge.verdict}, its figures and limits make {makes if edge.limits else 'none'}"


def _wrong(edge: Edge, generation: Sequence[Mapping[str, Any]]) -> Iterator[bool]:
    """Whether each figure is outside its limit, and whether the rung generates something else for no reason."""
    yield from (not within(edge, metric) for metric in edge.limits)
    if edge.candidate in FLOAT_RUNGS and edge.output == "logits":
        for found in generation:
            difference = found.get("first_difference")
            if found.get("rung") == edge.candidate and isinstance(difference, Mapping):
                yield difference.get("kind") == "defect"


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
