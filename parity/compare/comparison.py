"""A rung held against its reference, under one question: measured, and judged by the limits it is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from parity.compare.floor import NoiseFloor
from parity.compare.generation import Generation
from parity.compare.limits import Limit, Question
from parity.compare.measuring import Measured, Output, measure
from parity.compare.situations import measure_situations, with_situations
from parity.compare.verdict import Edge, judge, naming_the_weight, undecided, with_generation
from parity.inputs import Inputs
from parity.trace import Trace

#: The limits on each output.
Limits = Callable[[Output], tuple[Limit, ...]]
#: The noise floor after so many rounds of draws, each of which doubles them.
Floors = Callable[[int], NoiseFloor]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The rung ``candidate`` against ``reference``, on the ``given`` prompts of all the ``inputs`` there are.

    ``rounding`` is what was read off a quantized file of its weights: the worst figures, and the weights that they are
    of. ``generation`` is what the rung chose, where that decides.
    """

    reference: str
    candidate: str
    question: Question
    expected: Trace
    trace: Trace
    inputs: Inputs
    given: Inputs
    rounding: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    generation: Generation | None = None

    def judged(self, limits: Limits, floor: NoiseFloor | None = None) -> list[Edge]:
        """The edges, one for each output that is compared; the last has the logits.

        Without a ``floor`` the prompts are taken for a sample of others, as a budget needs.
        """
        expected = self.expected.of(self.given)
        measured = measure(expected, self.trace, self.given, floor=floor, sampled=floor is None)
        situations = measure_situations(expected, self.trace, self.given, floor) if floor else {}
        edges = []
        for output, found in measured.items():
            figures = found
            if output == "logits" and self.rounding:
                figures = Measured({**found.metrics, **_stored(self.rounding)}, found.prompts)
            edge = judge(self.reference, self.candidate, self.question, figures, limits(output), output)
            edges.append(with_situations(edge, situations, limits(output), self.inputs, self.given))
        last = naming_the_weight(edges[-1], self.rounding)
        edges[-1] = with_generation(last, self.generation) if self.generation else last
        return edges

    def drawn(self, limits: Limits, floor: Floors) -> list[Edge]:
        """The edges, judged by a floor of as many draws as it takes."""
        return drawn(lambda found: self.judged(limits, found), limits, floor)


def drawn(judged: Callable[[NoiseFloor], list[Edge]], limits: Limits, floor: Floors) -> list[Edge]:
    """What is ``judged`` by a floor, with more rounds of draws as long as those could still change a verdict."""
    rounds = 0
    while True:
        found = floor(rounds)
        edges = judged(found)
        still_open = any(undecided([edge], limits(edge.output)) for edge in edges)
        if not still_open or found.exhausted:
            return [_saying_the_draws(edge, limits(edge.output)) for edge in edges]
        rounds += 1


def _saying_the_draws(edge: Edge, limits: tuple[Limit, ...]) -> Edge:
    """An edge that not even all draws have decided says so: its verdict follows from the floor as it was measured."""
    if not undecided([edge], limits):
        return edge
    said = f"undecided after {edge.metrics['draws']} draws of the floor, judged by the floor as measured"
    return replace(edge, remark=f"{edge.remark}; {said}" if edge.remark else said)


def _stored(rounding: Mapping[str, tuple[float, str]]) -> dict[str, Any]:
    """What was read off a file of its weights, by the names that limits have for it."""
    return {f"weight_{name}": figure for name, (figure, _) in rounding.items()}
