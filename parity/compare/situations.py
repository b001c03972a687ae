"""What an edge is in each situation: its figures there, and whether they keep the limits that hold there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parity.compare.floor import NoiseFloor
from parity.compare.limits import Limit
from parity.compare.measuring import Measured, Output, measure
from parity.compare.verdict import Edge, judge, worst
from parity.inputs import Inputs
from parity.trace import Trace

#: The figures of a situation that a report has.
SHOWN = (
    "positions",
    "floor_ratio",
    "worst_position_ratio",
    "rel_l2",
    "max_abs",
    "kl_mean",
    "kl_p99",
    "kl_max",
    "top1_agreement",
    "top1_agreement_clear",
)


def measure_situations(
    reference: Trace, candidate: Trace, inputs: Inputs, floor: NoiseFloor
) -> dict[str, dict[Output, Measured]]:
    """The figures of ``measure`` for the prompts of each situation."""
    return {
        name: measure(reference.of(part), candidate.of(part), part, floor=floor)
        for name, part in inputs.situations.items()
    }


def with_situations(
    edge: Edge,
    measured: Mapping[str, Mapping[Output, Measured]],
    limits: Sequence[Limit],
    inputs: Inputs,
    given: Inputs,
) -> Edge:
    """The edge with its figures in each situation of ``inputs``, as bad as the worst of those that it is held to.

    What a budget is about is not asked of a situation: its few prompts are no sample. A situation that was not
    ``given`` to the rung does not apply to it, which is said and is no PASS.
    """
    if edge.question == "quality":
        return edge
    limits = [limit for limit in limits if not limit.metric.startswith("weight_")]
    parts = {name: part for name, part in given.situations.items() if edge.output in measured[name]}
    judged = {
        name: judge(edge.reference, edge.candidate, edge.question, measured[name][edge.output], limits, edge.output)
        for name in parts
    }
    found: dict[str, dict[str, Any]] = {}
    for name in inputs.situations:
        if name in parts:
            figures, result = measured[name][edge.output].metrics, judged[name]
            found[name] = {
                "prompts": len(parts[name].prompts),
                **{key: figures[key] for key in SHOWN if key in figures},
                "verdict": result.verdict,
                "cause": result.cause,
            }
        elif name not in given.situations:
            found[name] = {"verdict": None, "cause": "an exported file takes one row"}
    causes = [edge.cause, *(f"in {name}: {result.cause}" for name, result in judged.items() if result.cause)]
    return replace(
        edge,
        situations=found,
        verdict=worst([edge.verdict, *(result.verdict for result in judged.values())]),
        cause="; ".join(filter(None, causes)) or None,
    )
