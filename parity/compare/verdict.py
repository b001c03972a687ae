"""From two traces to an edge of the report: figures, limits, verdict, cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from models.authoring.stage import stage_of
from parity.compare.floor import decided
from parity.compare.generation import Generation
from parity.compare.limits import FLOAT_RUNGS, Limit, Question
from parity.compare.measuring import Measured, Output
from parity.spelling import limit_spelled, spelled


class Verdict(StrEnum):
    """PASS: within every limit. FAIL: outside one. ERROR: nothing could be concluded."""

    PASS = "PASS"  # noqa: S105  (not a password)
    FAIL = "FAIL"
    ERROR = "ERROR"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """ERROR outranks FAIL outranks PASS; nothing at all is an ERROR, never a PASS."""
    found = set(verdicts)
    if not found or Verdict.ERROR in found:
        return Verdict.ERROR
    return Verdict.FAIL if Verdict.FAIL in found else Verdict.PASS


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A reference/candidate pair of rungs, judged by their logits or by what their encoders made.

    ``question`` is what is asked of the candidate. ``metrics`` are over all prompts, those under ``situations`` over
    the prompts of one each, those under ``prompts`` of one prompt each. ``own_loss`` are the figures of the candidate's
    recipe in PyTorch, ``budget`` what names the limits of a quality edge.
    """

    reference: str
    candidate: str
    question: Question = "rounding"
    output: Output = "logits"
    verdict: Verdict
    metrics: Mapping[str, Any] = field(default_factory=dict)
    situations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    own_loss: Mapping[str, Any] = field(default_factory=dict)
    budget: str | None = None
    first_divergent_stage: str | None = None
    cause: str | None = None
    remark: str | None = None


def with_generation(edge: Edge, generation: Generation) -> Edge:
    """The edge, failed if its rung chooses something else for no reason that its logits would explain."""
    difference = generation.first_difference
    if edge.candidate not in FLOAT_RUNGS or not difference or difference["kind"] != "defect":
        return edge
    defect = f"greedy generation, token {difference['at']} of {difference['prompt']}: {difference['cause']}"
    cause = f"{edge.cause}; {defect}" if edge.cause else defect
    return replace(edge, verdict=worst([edge.verdict, Verdict.FAIL]), cause=cause)


def naming_the_weight(edge: Edge, rounding: Mapping[str, tuple[float, str]]) -> Edge:
    """The edge; where a weight of its file is not what rounding would have made of it, that weight and its stage.

    ``rounding`` has the figure and the weight for each ``weight_`` metric, of which the edge's limits say the most.
    """
    broken = [
        name for metric, (figure, name) in rounding.items() if figure > edge.limits.get(f"weight_{metric}", math.inf)
    ]
    if edge.verdict is not Verdict.FAIL or not broken:
        return edge
    return replace(edge, first_divergent_stage=stage_of(broken[0]), cause=f"{edge.cause}; furthest off is {broken[0]}")


def judge(
    reference: str,
    candidate: str,
    question: Question,
    measured: Measured,
    limits: Sequence[Limit],
    output: Output = "logits",
) -> Edge:
    """Hold figures against limits. No limits, a figure that is missing or not finite, one prompt as a sample: ERROR."""
    metrics = measured.metrics
    meaningless = {limit.metric for limit in limits if limit.optional and _says_nothing(metrics, limit)}
    held = [limit for limit in limits if limit.metric not in meaningless]
    edge = Edge(
        reference=reference,
        candidate=candidate,
        question=question,
        output=output,
        verdict=Verdict.PASS,
        metrics=metrics,
        limits={limit.metric: limit.bound for limit in held},
        prompts=measured.prompts,
        remark=f"{', '.join(sorted(meaningless))} has no meaning on these prompts" if meaningless else None,
    )
    if not held:
        return replace(
            edge,
            verdict=Verdict.ERROR,
            cause=f"no limits are known for {candidate}; give some with --budget METRIC=VALUE",
        )
    if metrics.get("prompts") == 1:
        return replace(
            edge, verdict=Verdict.ERROR, cause="one prompt says nothing about others; give four, better seven"
        )
    for limit in held:
        if any(value is None or not math.isfinite(value) for value in bounds(metrics, limit.metric)):
            return replace(edge, verdict=Verdict.ERROR, cause=f"{limit.metric} could not be computed")
    broken = [limit for limit in held if not all(map(limit.holds, bounds(metrics, limit.metric)))]
    if not broken:
        return edge
    return replace(edge, verdict=Verdict.FAIL, cause="; ".join(_said(metrics, limit) for limit in broken))


def _says_nothing(metrics: Mapping[str, Any], limit: Limit) -> bool:
    """Whether a figure has no meaning on these prompts: there is none, or so little of it that no loss would do."""
    return metrics.get(limit.metric) is None or metrics.get("at_best", {}).get(limit.metric, 0.0) > limit.most


def bounds(metrics: Mapping[str, Any], metric: str) -> list[Any]:
    """What a limit is held against: the worse end of the figure's interval if it has one (or both), else the figure."""
    found = metrics.get("bound", {}).get(metric, metrics.get(metric))
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _said(metrics: Mapping[str, Any], limit: Limit) -> str:
    """A figure that is outside its limit: ``kl_typical 0.45, at most 0.61; limit 0.1``."""
    value, ends = metrics.get(limit.metric), bounds(metrics, limit.metric)
    said = f"{limit.metric} {spelled(limit.metric, value)}"
    if ends != [value]:
        between = " to ".join(spelled(limit.metric, end) for end in ends)
        said += f" ({between} at {'least' if limit.most == math.inf else 'most'})"
    place = metrics.get("worst_position") if limit.metric == "worst_position_ratio" else None
    if place:
        said += f" at position {place['position']} of {place['prompt']} ({place['phase']})"
    return f"{said}, limit {limit_spelled(limit.metric, limit.bound)}"


def over_budget(edge: Edge, fidelity: Verdict) -> Edge:
    """A quality edge that fails, saying whose loss it is: the recipe's own, or that of a file without ``fidelity``."""
    if edge.verdict is not Verdict.FAIL:
        return edge
    said = f"over budget {edge.budget}: {edge.cause}" if edge.budget else f"{edge.cause}"
    metric = "kl_typical" if "kl_typical" in edge.own_loss else "rel_l2"
    own, all_ = edge.own_loss.get(metric), edge.metrics.get(metric)
    if fidelity is Verdict.PASS and own is not None:
        said += f"; the recipe itself loses {spelled(metric, own)} of {spelled(metric, all_)}"
        said += "; the file does what it says"
    elif fidelity is Verdict.FAIL:
        said += "; the file does not do what it says, see its fidelity"
    else:
        said += "; whether that is the recipe's loss or the file's is not known"
    return replace(edge, cause=said)


def undecided(edges: Iterable[Edge], limits: Sequence[Limit]) -> bool:
    """Whether more draws of the floor could still change a verdict."""
    found = {limit.metric: limit for limit in limits if limit.metric in ("floor_ratio", "worst_position_ratio")}
    return any(
        not decided(edge.metrics[metric], limit, edge.metrics["draws"], discrete=edge.metrics.get("discrete", False))
        for edge in edges
        for metric, limit in found.items()
        if "draws" in edge.metrics and edge.verdict is not Verdict.ERROR
    )
