"""A rung held against the reference: measured once, and judged by whatever limits it is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from parity.compare.generation import Generation, compare_generation
from parity.compare.limits import Limit
from parity.compare.situations import measure_situations, with_situations
from parity.compare.verdict import Edge, Output, judge, measure, naming_the_weight, with_generation
from parity.inputs import Inputs
from parity.trace import Trace

if TYPE_CHECKING:
    from parity.golden import Reference

#: The limits on each output.
Limits = Callable[[Output], tuple[Limit, ...]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far the rung ``name`` is from the reference, by output, and by situation among the ``given`` prompts.

    ``inputs`` are all that there are. ``rounding`` is what was read off a quantized file of its weights: the worst
    figures, and the weights that they are of.
    """

    reference: str
    name: str
    inputs: Inputs
    given: Inputs
    metrics: Mapping[Output, Mapping[str, Any]]
    situations: Mapping[str, Mapping[Output, Mapping[str, Any]]]
    generation: Generation
    rounding: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        trace: Trace,
        reference: Reference,
        inputs: Inputs,
        *,
        given: Inputs | None = None,
        sampled: bool = False,
        rounding: Mapping[str, tuple[float, str]] | None = None,
    ) -> Self:
        """Measure. ``given`` are those of the ``inputs`` that the rung was given, if not all.

        ``sampled`` takes the prompts for a sample, which must be large enough for the limits.
        """
        given = given or inputs
        expected = reference.trace.of(given)
        metrics = measure(expected, trace, reference.floor, given, sampled=sampled)
        metrics["logits"] |= {f"weight_{name}": figure for name, (figure, _) in (rounding or {}).items()}
        return cls(
            reference=reference.name,
            name=name,
            inputs=inputs,
            given=given,
            metrics=metrics,
            situations=measure_situations(expected, trace, reference.floor, given),
            generation=compare_generation(name, expected, trace, metrics["logits"]["max_abs"]),
            rounding=rounding or {},
        )

    def judged(self, limits: Limits) -> list[Edge]:
        """The edges, one for each output that is compared; the last has the logits."""
        edges = []
        for output, metrics in self.metrics.items():
            edge = judge(self.reference, self.name, metrics, limits(output), output)
            edges.append(with_situations(edge, self.situations, limits(output), self.inputs, self.given))
        edges[-1] = naming_the_weight(with_generation(edges[-1], self.generation), self.rounding)
        return edges

    def broken(self, limits: Limits) -> set[str]:
        """The metrics that are outside of their limits, over all prompts."""
        held = [(limit, self.metrics[output].get(limit.metric)) for output in self.metrics for limit in limits(output)]
        return {limit.metric for limit, figure in held if figure is not None and not limit.holds(figure)}
