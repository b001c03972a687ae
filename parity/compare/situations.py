"""What an edge is in each situation: its figures there, and whether they keep the limits that hold there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parity.compare.limits import UNQUANTIZED, Limit
from parity.compare.verdict import Edge, NoiseFloor, Output, judge, measure, worst
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
    reference: Trace, candidate: Trace, floor: NoiseFloor, inputs: Inputs
) -> dict[str, dict[Output, dict[str, Any]]]:
    """The figures of ``measure`` for the prompts of each situation, in units of the noise there."""
    return {
        name: measure(reference.of(part), candidate.of(part), floor.situations[name], part)
        for name, part in inputs.situations.items()
    }


def with_situations(
    edge: Edge,
    measured: Mapping[str, Mapping[Output, Mapping[str, Any]]],
    limits: Sequence[Limit],
    inputs: Inputs,
    given: Inputs,
) -> Edge:
    """The edge with its figures in each situation of ``inputs``, as bad as the worst of those that it is held to.

    Unquantized rungs are held to their limits in every situation by itself. The limits of quantized ones are of means
    over some hundred positions, which the few of a situation scatter around.
    A situation that was not ``given`` to the rung does not apply to it, which is said and is no PASS.
    """
    parts = {name: part for name, part in given.situations.items() if edge.output in measured[name]}
    judged = {
        name: judge(edge.reference, edge.candidate, measured[name][edge.output], limits, edge.output)
        for name in parts
        if edge.candidate in UNQUANTIZED
    }
    found: dict[str, dict[str, Any]] = {}
    for name in inputs.situations:
        if name in parts:
            figures = measured[name][edge.output]
            result = judged.get(name)
            found[name] = {
                "prompts": len(parts[name].prompts),
                **{key: figures[key] for key in SHOWN if key in figures},
                "verdict": result.verdict if result else None,
                "cause": result.cause if result else None,
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
