"""From two traces to an edge of the report: figures, limits, verdict, cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from parity.compare.generation import Generation
from parity.compare.limits import FLOAT_RUNGS, UNIT_ROUNDOFF, Limit
from parity.compare.metrics import (
    PositionErrors,
    compare_positions,
    concatenate,
    negative_log_likelihood,
    rel_l2,
    summarize,
    worst_position_rel_l2,
)
from parity.inputs import Inputs
from parity.trace import PHASES, PromptTrace, Trace


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
    """A reference/candidate pair of rungs, judged."""

    reference: str
    candidate: str
    verdict: Verdict
    metrics: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    first_divergent_stage: str | None = None
    cause: str | None = None


@dataclass(frozen=True)
class NoiseFloor:
    """The original's own float32 distance to the oracle: relative L2 by phase, over all positions and at the worst."""

    rel_l2: Mapping[str, float]
    worst_position: Mapping[str, float]

    @classmethod
    def measure(cls, oracle: Trace, original: Trace) -> NoiseFloor:
        """The floor on these inputs. It is never taken to be below float32's unit roundoff."""
        errors = compare_phases(oracle, original)
        return cls(
            {phase: max(rel_l2(errors[phase]), UNIT_ROUNDOFF) for phase in PHASES},
            {phase: max(worst_position_rel_l2(errors[phase]), UNIT_ROUNDOFF) for phase in PHASES},
        )


def with_generation(edge: Edge, generation: Generation) -> Edge:
    """The edge, failed if its rung generates something else for no reason that its logits would explain."""
    difference = generation.first_difference
    if edge.candidate not in FLOAT_RUNGS or not difference or difference["kind"] != "defect":
        return edge
    where = f"token {difference['at']} of {difference['prompt']}"
    defect = f"greedy generation differs at {where}, where the reference's margin is {difference['margin']:.4g}"
    cause = f"{edge.cause}; {defect}" if edge.cause else defect
    return replace(edge, verdict=worst([edge.verdict, Verdict.FAIL]), cause=cause)


def compare_phases(reference: Trace, candidate: Trace) -> dict[str, PositionErrors]:
    """Position errors of all prompts together, by phase."""
    return {
        phase: concatenate(
            compare_positions(getattr(prompt, phase), getattr(candidate.prompts[name], phase))
            for name, prompt in reference.prompts.items()
        )
        for phase in PHASES
    }


def measure(reference: Trace, candidate: Trace, floor: NoiseFloor, inputs: Inputs) -> dict[str, Any]:
    """Every figure of an edge: over all positions, and under ``prefill`` and ``decode`` for each phase alone."""
    errors = compare_phases(reference, candidate)
    metrics = summarize(concatenate(errors.values()))
    for phase in PHASES:
        metrics[phase] = {
            **summarize(errors[phase]),
            "floor_ratio": rel_l2(errors[phase]) / floor.rel_l2[phase],
            "worst_position_ratio": worst_position_rel_l2(errors[phase]) / floor.worst_position[phase],
        }
    for ratio in ("floor_ratio", "worst_position_ratio"):
        metrics[ratio] = max(metrics[phase][ratio] for phase in PHASES)
    metrics["perplexity_ratio"] = math.exp(_continuation_nll(candidate, inputs) - _continuation_nll(reference, inputs))
    return metrics


def _continuation_nll(trace: Trace, inputs: Inputs) -> float:
    """Mean nats a token of the forced continuations costs; its first is predicted by the last prompt position."""
    costs = []
    for prompt in inputs.prompts:
        recorded: PromptTrace = trace.prompts[prompt.id]
        predicting = np.concatenate([recorded.prefill[-1:], recorded.decode[:-1]])
        costs.append(negative_log_likelihood(predicting, np.asarray(prompt.continuation)))
    return float(np.concatenate(costs).mean())


def judge(reference: str, candidate: str, metrics: Mapping[str, Any], limits: Sequence[Limit]) -> Edge:
    """Hold figures against limits. No limits, a figure that is missing or not finite: ERROR."""
    shown = {limit.metric: limit.bound for limit in limits}
    values = {limit.metric: metrics.get(limit.metric) for limit in limits}
    unusable = [name for name, value in values.items() if value is None or not math.isfinite(value)]
    verdict, cause = Verdict.PASS, None
    if not limits:
        verdict, cause = Verdict.ERROR, f"no limits are known for {candidate}; measure some and add them to the table"
    elif unusable:
        verdict, cause = Verdict.ERROR, f"{unusable[0]} could not be computed"
    elif broken := [limit for limit in limits if not limit.holds(metrics[limit.metric])]:
        verdict = Verdict.FAIL
        cause = "; ".join(f"{limit.metric} {values[limit.metric]:.4g}, limit {limit.bound}" for limit in broken)
    return Edge(reference=reference, candidate=candidate, verdict=verdict, metrics=metrics, limits=shown, cause=cause)
