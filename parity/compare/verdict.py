"""From two traces to an edge of the report: figures, limits, verdict, cause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import numpy as np

from models.authoring.stage import stage_of
from parity.compare import sampling
from parity.compare.generation import Generation
from parity.compare.limits import FLOAT_RUNGS, Limit
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
from parity.compare.statistics import Array, prompts_needed
from parity.inputs import Inputs, TokenizedPrompt
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

    ``metrics`` are over all prompts, those under ``situations`` over the prompts of one each. ``own_loss`` are the
    figures of the candidate's recipe in PyTorch, where limits follow from those.
    """

    reference: str
    candidate: str
    output: Output = "logits"
    verdict: Verdict
    metrics: Mapping[str, Any] = field(default_factory=dict)
    situations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    own_loss: Mapping[str, Any] = field(default_factory=dict)
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
    def of(cls, oracle: Trace, original: Trace, inputs: Inputs, least: Mapping[str, float]) -> NoiseFloor:
        """The floor on all inputs and on those of each situation; ``least`` as in ``measure``."""
        parts = {
            name: cls.measure(oracle.of(part), original.of(part), least) for name, part in inputs.situations.items()
        }
        return replace(cls.measure(oracle, original, least), situations=parts)

    @classmethod
    @np.errstate(over="ignore", divide="ignore", invalid="ignore")
    def measure(cls, oracle: Trace, original: Trace, least: Mapping[str, float]) -> NoiseFloor:
        """The floor on these prompts, which is never taken to be below ``least`` of the phase (``least_floors``).

        An original that is exact, or nearly, on some inputs says nothing of what other float32 evaluations may lose.
        """
        errors = compare_phases(oracle, original)
        return cls(
            {phase: max(rel_l2(found), least[phase]) for phase, found in errors.items()},
            {phase: max(worst_position_rel_l2(found), least[phase]) for phase, found in errors.items()},
        )


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


def furthest_off(reference: Trace, candidate: Trace, output: Output) -> str:
    """The prompt whose ``output`` is furthest off, by id."""

    def error(name: str) -> float:
        expected, got = reference.prompts[name], candidate.prompts[name]
        if output == ENCODER:
            if expected.encoded is None or got.encoded is None:
                return -math.inf  # a prompt without anything to encode
            return rel_l2(compare_positions(expected.encoded, got.encoded))
        pairs = [(getattr(expected, phase), getattr(got, phase)) for phase in PHASES]
        return rel_l2(concatenate(compare_positions(a, b) for a, b in pairs if len(a)))

    return max(reference.prompts, key=error)


def compare_phases(reference: Trace, candidate: Trace) -> dict[str, PositionErrors]:
    """Position errors of all prompts together, by phase; the rows of the encoder, where there are any, are one."""
    return {phase: concatenate(found) for phase, found in compare_prompts(reference, candidate).items()}


def compare_prompts(reference: Trace, candidate: Trace) -> dict[str, list[PositionErrors]]:
    """Position errors by phase, prompt by prompt; the encoder's are of prompts that give it anything to do."""
    found = {
        phase: [
            compare_positions(getattr(prompt, phase), getattr(candidate.prompts[name], phase))
            for name, prompt in reference.prompts.items()
        ]
        for phase in PHASES
    }
    encoded = [
        compare_positions(prompt.encoded, made)
        for name, prompt in reference.prompts.items()
        if prompt.encoded is not None and (made := candidate.prompts[name].encoded) is not None
    ]
    return {**found, ENCODER: encoded} if encoded else found


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is no number then is judged as none
def measure(
    reference: Trace, candidate: Trace, floor: NoiseFloor, inputs: Inputs, *, sampled: bool = False
) -> dict[Output, dict[str, Any]]:
    """Every figure of every output that is compared: ``encoder`` where there is one, then ``logits``.

    Those of the logits are over all positions, and under ``prefill`` and ``decode`` for each phase alone. ``sampled``
    adds what the prompts say as a sample: an ``interval`` for each figure, the change of it that is ``detectable``, and
    how many ``prompts`` there are.
    """
    by_prompt = compare_prompts(reference, candidate)
    errors = {phase: concatenate(found) for phase, found in by_prompt.items()}
    ratios = {phase: _ratios(found, floor, phase) for phase, found in errors.items()}
    metrics = summarize(concatenate(errors[phase] for phase in PHASES))
    for phase in PHASES:
        metrics[phase] = {**summarize(errors[phase]), **ratios[phase]}
    for ratio in ("floor_ratio", "worst_position_ratio"):
        metrics[ratio] = max(metrics[phase][ratio] for phase in PHASES)
    extra_cost = _extra_cost(reference, candidate, inputs)
    metrics["perplexity_ratio"] = float(np.exp(np.concatenate(extra_cost).mean()))
    if sampled:
        whole = [concatenate(phases) for phases in zip(*(by_prompt[phase] for phase in PHASES), strict=True)]
        metrics |= sampling.of_logits(whole, extra_cost)
    if ENCODER not in errors:
        return {"logits": metrics}
    made = {**distances(errors[ENCODER]), **ratios[ENCODER]}
    return {ENCODER: {**made, **(sampling.of_encoder(by_prompt[ENCODER]) if sampled else {})}, "logits": metrics}


def _ratios(errors: PositionErrors, floor: NoiseFloor, phase: str) -> dict[str, float]:
    return {
        "floor_ratio": rel_l2(errors) / floor.rel_l2[phase],
        "worst_position_ratio": worst_position_rel_l2(errors) / floor.worst_position[phase],
    }


def _extra_cost(reference: Trace, candidate: Trace, inputs: Inputs) -> list[Array]:
    """Nats that each forced token costs more, by prompt."""
    return [_cost(candidate.prompts[p.id], p) - _cost(reference.prompts[p.id], p) for p in inputs.prompts]


def _cost(recorded: PromptTrace, prompt: TokenizedPrompt) -> Array:
    """Nats of each forced token; the first of those is predicted by the last position that was prefilled before."""
    begun = len(prompt.continuation)
    parts = (
        (recorded.prefill[: len(prompt.prompt)], recorded.decode[:begun], prompt.continuation),
        (recorded.prefill, recorded.decode[begun:], prompt.reply),
    )
    return np.concatenate(
        [
            negative_log_likelihood(np.concatenate([prefilled[-1:], decoded[:-1]]), np.asarray(forced))
            for prefilled, decoded, forced in parts
            if forced
        ]
    )


def judge(
    reference: str,
    candidate: str,
    metrics: Mapping[str, Any],
    limits: Sequence[Limit],
    output: Output = "logits",
) -> Edge:
    """Hold figures against limits. No limits, a figure that is missing or not finite: ERROR.

    So are prompts that are too few to notice what a limit forbids, unless a figure is outside its limit whatever other
    prompts like these would say.
    """
    shown = {limit.metric: limit.bound for limit in limits}
    values = {limit.metric: metrics.get(limit.metric) for limit in limits}
    unusable = [name for name, value in values.items() if value is None or not math.isfinite(value)]
    verdict, cause = Verdict.PASS, None
    if not limits:
        verdict, cause = Verdict.ERROR, f"no limits are known for {candidate}; measure some and add them to the table"
    elif unusable:
        verdict, cause = Verdict.ERROR, f"{unusable[0]} could not be computed"
    else:
        broken = [limit for limit in limits if not limit.holds(metrics[limit.metric])]
        too_few = _too_few_prompts(metrics, limits)
        if too_few and not any(_beyond_doubt(metrics, limit) for limit in broken):
            verdict, cause = Verdict.ERROR, too_few
        elif broken:
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


def _too_few_prompts(metrics: Mapping[str, Any], limits: Sequence[Limit]) -> str | None:
    """Why the prompts cannot tell whether a limit is kept, if they were taken as a sample and cannot."""
    if "detectable" not in metrics:
        return None
    prompts = metrics["prompts"]
    if prompts < 2:
        return "one prompt says nothing about others; give two at least, better seven"
    found = metrics.get("positions", 0)
    if tail := next((limit for limit in limits if found < limit.positions_needed), None):
        needed = f"give prompts of {tail.positions_needed} at least"
        return f"{found} positions are too few for the limit of {tail.metric}; {needed}"
    for limit in (limit for limit in limits if limit.sampled):
        noticed = metrics["detectable"].get(limit.metric)
        if noticed is None or not noticed <= limit.room:
            known = noticed is not None and math.isfinite(noticed)
            needed = f"about {prompts_needed(prompts, noticed, limit.room)} prompts would do" if known else "give more"
            return (
                f"{prompts} prompts are too few for the limit of {limit.metric}: they would notice a change of "
                f"{noticed if known else math.inf:.2g}, it allows {limit.room:.2g}; {needed}"
            )
    return None


def _beyond_doubt(metrics: Mapping[str, Any], limit: Limit) -> bool:
    """Whether the whole interval of a figure is outside its limit; a figure that is no estimate has none."""
    if not limit.sampled:
        return True
    least, most = metrics["interval"].get(limit.metric, (-math.inf, math.inf))
    return bool(least > limit.most or most < limit.least)
