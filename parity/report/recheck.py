"""A saved run is believed only as far as its own figures bear it out: anyone can edit the verdict in a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.compare.limits import FLOAT_RUNGS, UNQUANTIZED, question_of
from parity.compare.verdict import Edge, Verdict
from parity.errors import UsageError
from parity.report.figures import edge_name, full_name, holds, within
from parity.report.record import Report, overall, read_json
from parity.spelling import number

#: Figures that are judged by what they are at worst where the prompts are a sample.
SAMPLED = frozenset({"kl_typical", "kl_mean", "kl_p99", "flips", "top1_agreement_clear", "perplexity_ratio"})


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
    asked = [f"{edge_name(edge)} {edge.question}" for edge in report.edges]
    yield from (f"{name} has two edges" for name in _twice(asked))
    yield from (f"{name} was run twice" for name in _twice([rung.name for rung in report.rungs]))
    ran, judged = {rung.name for rung in report.rungs}, {edge.candidate for edge in report.edges}
    yield from (f"{name} was run and has no edge" for name in sorted(ran - judged - {"original64"}))
    yield from _unasked(report.edges)
    for edge in report.edges:
        name = full_name(edge)
        if edge.verdict is Verdict.PASS and edge.candidate not in ran:
            yield f"{name} passes and was not run"
        if edge.verdict is Verdict.PASS and not _count(report.prompt_set.get("positions")):
            yield f"{name} passes on no positions"
        if (edge.verdict is Verdict.PASS) == bool(edge.cause):
            yield f"{name} is {edge.verdict} with{'' if edge.cause else 'out'} a cause"
        yield from (f"{name} {found}" for found in _situations(edge))
        # A stage can be off by itself where a prompt amplifies rounding so much that the whole does not show it.
        off = bool(edge.first_divergent_stage) or any(_wrong(edge, report.generation))
        makes = Verdict.FAIL if off else Verdict.PASS
        # An ERROR says why in its cause; figures that are all in order do not undo it.
        if edge.verdict is not Verdict.ERROR and (edge.verdict is not makes or not edge.limits):
            yield f"{name} is {edge.verdict}, its figures and limits make {makes if edge.limits else 'none'}"


def _unasked(edges: Sequence[Edge]) -> Iterator[str]:
    """Questions that are not asked of a rung, and those that are and have no answer.

    Whether a quantized file does what it says and what its recipe costs are asked of the same rungs, always.
    """
    concluded = [edge for edge in edges if edge.verdict is not Verdict.ERROR]
    asked = {(edge.candidate, edge.output, edge.question) for edge in edges}
    for edge in concluded:
        other = (edge.candidate, edge.output, "quality") if edge.question == "fidelity" else None
        # Only a budget tells an edge of today from one of a file that is older than the question.
        if edge.question == "quality" and edge.budget:
            other = (edge.candidate, edge.output, "fidelity")
        if other and other not in asked:
            yield f"{full_name(edge)} is answered, {other[2]} is not"
        if edge.candidate in UNQUANTIZED and edge.question != question_of(edge.candidate):
            yield f"{edge_name(edge)} is asked about {edge.question}"


def _situations(edge: Edge) -> Iterator[str]:
    """Verdicts in situations that their figures, or the edge's own verdict, deny."""
    limits = {metric: bound for metric, bound in edge.limits.items() if not metric.startswith("weight_")}
    for name, found in edge.situations.items() if isinstance(edge.situations, Mapping) else ():
        said = found.get("verdict") if isinstance(found, Mapping) else None
        if said == Verdict.ERROR and edge.verdict is not Verdict.ERROR:
            yield f"is {edge.verdict}, in {name} it is {said}"
        elif said in (Verdict.PASS, Verdict.FAIL):
            held = all(holds(metric, [number(found.get(metric))], bound) for metric, bound in limits.items())
            if held != (said == Verdict.PASS):
                yield f"in {name} is {said}, its figures and limits make {Verdict.PASS if held else Verdict.FAIL}"


def _wrong(edge: Edge, generation: Sequence[Mapping[str, Any]]) -> Iterator[bool]:
    """Whether each figure is outside its limit, also in a situation, and whether the rung generates a defect."""
    yield from (not within(edge, metric) for metric in edge.limits)
    if edge.budget and edge.output == "logits":
        bounds = edge.metrics.get("bound")
        bounds = bounds if isinstance(bounds, Mapping) else {}
        yield from (metric not in bounds for metric in edge.limits if metric in SAMPLED)
    situations = edge.situations.values() if isinstance(edge.situations, Mapping) else ()
    yield from (isinstance(found, Mapping) and found.get("verdict") == Verdict.FAIL for found in situations)
    if edge.candidate in FLOAT_RUNGS and edge.output == "logits":
        for found in generation:
            difference = found.get("first_difference")
            if found.get("rung") == edge.candidate and isinstance(difference, Mapping):
                yield difference.get("kind") == "defect"


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
