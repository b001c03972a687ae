"""From two traces to an edge of the report: figures, limits, verdict, cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import numpy as np

from parity.compare.generation import Generation
from parity.compare.limits import FLOAT_RUNGS, UNIT_ROUNDOFF, Limit
from parity.compare.metrics import (
    PositionErrors,
    compare_positions,
    concatenate,
    distances,
    negative_log_likelihood,
    rel_l2,
    summarize,
    worst_position_rel_l2,
)
from parity.inputs import Inputs
from parity.trace import PHASES, PromptTrace, Trace

#: What is compared of a rung.
Output = Literal["encoder", "logits"]
#: The output that an encoder makes, and the phase in which it does.
ENCODER: Output = "encoder"


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

    ``metrics`` are over all prompts, those under ``situations`` over the prompts of one each.
    """

    reference: str
    candidate: str
    output: Output = "logits"
    verdict: Verdict
    metrics: Mapping[str, Any] = field(default_factory=dict)
    situations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    first_divergent_stage: str | None = None
    cause: str | None = None


@dataclass(frozen=True)
class NoiseFloor:
    """The original's own float32 distance to the oracle: relative L2 by phase, over all positions and at the worst.

    The encoder, where there is one, counts as a phase. Each of the ``situations`` has a floor of its own.
    """

    rel_l2: Mapping[str, float]
    worst_position: Mapping[str, float]
    situations: Mapping[str, NoiseFloor] = field(default_factory=dict)

    @classmethod
    def of(cls, oracle: Trace, original: Trace, inputs: Inputs) -> NoiseFloor:
        """The floor on all inputs and on those of each situation."""
        parts = {name: cls.measure(oracle.of(part), original.of(part)) for name, part in inputs.situations.items()}
        return replace(cls.measure(oracle, original), situations=parts)

    @classmethod
    def measure(cls, oracle: Trace, original: Trace) -> NoiseFloor:
        """The floor on these prompts. It is never taken to be below float32's unit roundoff."""
        errors = compare_phases(oracle, original)
        return cls(
            {phase: max(rel_l2(found), UNIT_ROUNDOFF) for phase, found in errors.items()},
            {phase: max(worst_position_rel_l2(found), UNIT_ROUNDOFF) for phase, found in errors.items()},
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


def blaming_the_encoder(edges: Sequence[Edge]) -> list[Edge]:
    """A rung's edges; where its encoder is off already, logits that are off too are said to diverge there."""
    off = {edge.output for edge in edges if edge.verdict is Verdict.FAIL}
    if off != {ENCODER, "logits"}:
        return list(edges)
    return [edge if edge.output == ENCODER else replace(edge, first_divergent_stage=ENCODER) for edge in edges]


def compare_phases(reference: Trace, candidate: Trace) -> dict[str, PositionErrors]:
    """Position errors of all prompts together, by phase; the rows of the encoder, where there are any, are one."""
    found = {
        phase: concatenate(
            compare_positions(getattr(prompt, phase), getattr(candidate.prompts[name], phase))
            for name, prompt in reference.prompts.items()
        )
        for phase in PHASES
    }
    encoded = [
        compare_positions(prompt.encoded, made)
        for name, prompt in reference.prompts.items()
        if prompt.encoded is not None and (made := candidate.prompts[name].encoded) is not None
    ]
    return {**found, ENCODER: concatenate(encoded)} if encoded else found


def measure(reference: Trace, candidate: Trace, floor: NoiseFloor, inputs: Inputs) -> dict[Output, dict[str, Any]]:
    """Every figure of every output that is compared: ``encoder`` where there is one, then ``logits``.

    Those of the logits are over all positions, and under ``prefill`` and ``decode`` for each phase alone.
    """
    errors = compare_phases(reference, candidate)
    ratios = {phase: _ratios(found, floor, phase) for phase, found in errors.items()}
    metrics = summarize(concatenate(errors[phase] for phase in PHASES))
    for phase in PHASES:
        metrics[phase] = {**summarize(errors[phase]), **ratios[phase]}
    for ratio in ("floor_ratio", "worst_position_ratio"):
        metrics[ratio] = max(metrics[phase][ratio] for phase in PHASES)
    metrics["perplexity_ratio"] = math.exp(_continuation_nll(candidate, inputs) - _continuation_nll(reference, inputs))
    if ENCODER not in errors:
        return {"logits": metrics}
    return {ENCODER: {**distances(errors[ENCODER]), **ratios[ENCODER]}, "logits": metrics}


def _ratios(errors: PositionErrors, floor: NoiseFloor, phase: str) -> dict[str, float]:
    return {
        "floor_ratio": rel_l2(errors) / floor.rel_l2[phase],
        "worst_position_ratio": worst_position_rel_l2(errors) / floor.worst_position[phase],
    }


def _continuation_nll(trace: Trace, inputs: Inputs) -> float:
    """Mean nats a forced token costs; the first of those is predicted by the last position prefilled before."""
    costs = []
    for prompt in inputs.prompts:
        recorded: PromptTrace = trace.prompts[prompt.id]
        begun = len(prompt.continuation)
        for prefilled, decoded, forced in (
            (recorded.prefill[: len(prompt.prompt)], recorded.decode[:begun], prompt.continuation),
            (recorded.prefill, recorded.decode[begun:], prompt.reply),
        ):
            if forced:
                predicting = np.concatenate([prefilled[-1:], decoded[:-1]])
                costs.append(negative_log_likelihood(predicting, np.asarray(forced)))
    return float(np.concatenate(costs).mean())


def judge(
    reference: str,
    candidate: str,
    metrics: Mapping[str, Any],
    limits: Sequence[Limit],
    output: Output = "logits",
) -> Edge:
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
    return Edge(
        reference=reference,
        candidate=candidate,
        output=output,
        verdict=verdict,
        metrics=metrics,
        limits=shown,
        cause=cause,
    )
