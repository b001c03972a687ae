"""What a check finds, from the weights to the last rung; becomes its report whenever it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from models.errors import ModelError, UnknownModelError
from parity import environment
from parity.bisect.locate import Locator
from parity.compare.comparison import Comparison, Limits
from parity.compare.copies import Numbers, copied, denouncing
from parity.compare.limits import FLOAT_RUNGS, OWN_LOSSES, UNQUANTIZED, Limit, following, limits_for, own_loss_of
from parity.compare.roundings import least_floors
from parity.compare.verdict import ENCODER, Edge, Output, Verdict, measure
from parity.convert.recipes import Recipe, weight_bits
from parity.errors import ParityError, UsageError
from parity.golden import Reference
from parity.inputs import Inputs
from parity.ladder import Ladder, Rung
from parity.memory import Streaming
from parity.report.record import Report, RungRecord
from parity.runners.base import Recorded
from parity.trace import Trace
from parity.weights import Weights, kind_of

if TYPE_CHECKING:
    from parity.pipeline import Request


class Findings:
    """What a check has found so far; becomes its report whenever it ends."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.began = time.perf_counter()
        self.reference = "golden" if request.golden else "original64"
        self.weights: dict[str, Any] = {"kind": kind_of(request.weights), "sha256": None, "revision": None}
        self.prompt_set: dict[str, Any] = {"name": request.prompt_set, "sha256": None, "prompts": 0, "positions": 0}
        self.rungs: list[RungRecord] = []
        self.edges: list[Edge] = []
        self.numbers: list[Numbers] = []
        self.generation: list[dict[str, Any]] = []
        self.cause: str | None = None
        self.streaming: Streaming | None = None
        self.locator = Locator(request.name, original=not request.golden)
        # Known once there is a reference, see ``referred``: what copies are told by.
        self.shared: Inputs
        self.digest: str
        self.least: Mapping[str, float]

    @contextmanager
    def failing_closed(self) -> Iterator[None]:
        """What stops the whole run is the run's ERROR; wrong use stays the caller's business."""
        try:
            yield
        except (UsageError, UnknownModelError):
            raise
        except (ParityError, ModelError) as error:
            self.cause = str(error)
        except OSError as error:
            self.cause = f"{error}; nothing more could be run"
        except Exception as error:  # noqa: BLE001  (fail closed: the report is written whatever happened)
            said = " ".join(str(error).split())[:300]
            self.cause = f"{type(error).__name__}: {said}; this is a bug of the harness, report it"

    def weighed(self, weights: Weights) -> Weights:
        """Note the weights."""
        self.weights = {"kind": weights.kind, "sha256": weights.sha256, "revision": weights.revision}
        if weights.kind == "path":
            self.weights["path"] = weights.label
        self.weights |= weights.origin
        return weights

    def read(self, inputs: Inputs) -> Inputs:
        """Note the inputs."""
        self.prompt_set = {
            "name": inputs.name,
            "sha256": inputs.sha256,
            "prompts": len(inputs.prompts),
            "positions": inputs.positions,
        }
        if situations := inputs.situations:
            self.prompt_set["situations"] = {
                name: {"prompts": len(part.prompts), "positions": part.positions} for name, part in situations.items()
            }
            self.prompt_set["left_out"] = dict(inputs.left_out)
        return inputs

    def referred(self, reference: Reference, originals: tuple[Recorded, Recorded] | None, ladder: Ladder) -> Reference:
        """Note the reference and the originals. The original's own edge shows the noise floor."""
        alone = ladder.inputs.one_row
        self.shared = alone if alone.prompts else ladder.inputs
        self.digest = reference.trace.of(self.shared).digest
        self.least = least_floors(ladder.config)
        if originals:
            oracle, original = originals
            self.rungs.append(_rung_record(Rung("original64", oracle)))
            self._compare(Rung("original", original), original, reference, ladder.inputs, ladder)
        return reference

    def judge(self, rung: Rung, reference: Reference, inputs: Inputs, ladder: Ladder) -> None:
        """Hold a rung against the reference, and find the stage if it fails; a rung without a trace is an ERROR."""
        if rung.recorded:
            judged = len(self.edges)
            self._compare(rung, rung.recorded, reference, inputs, ladder)
            self.edges[judged:] = self.locator.locate(rung, self.edges[judged:], reference.trace, ladder)
        else:
            self.rungs.append(_rung_record(rung))
            self._error(rung.name, rung.cause)
            self.locator.locate(rung, self.edges[-1:], reference.trace, ladder)

    def _compare(self, rung: Rung, recorded: Recorded, reference: Reference, inputs: Inputs, ladder: Ladder) -> None:
        self.rungs.append(_rung_record(rung))
        comparison = Comparison.of(
            rung.name,
            recorded.trace,
            reference,
            inputs,
            given=recorded.inputs,
            sampled=rung.name not in UNQUANTIZED,
            rounding=rung.artifact.get("rounding"),
        )
        limits = partial(self._limits, rung.name, stored=bool(comparison.rounding))
        edges = comparison.judged(limits)
        if rung.stored and self._may_be_the_recipes(rung, edges, comparison.broken(limits)):
            above = {edge.verdict for edge in self.edges if edge.candidate in FLOAT_RUNGS}
            if above == {Verdict.PASS}:
                edges = self._held_to_the_recipe(rung, comparison, limits, reference, ladder)
            elif not above:  # nobody has seen that the port is sound, which is what the recipe would be run with
                edges = _saying(edges, "with --rung reauthored as well it is held to what its recipe loses by itself")
        numbers = self._numbers(rung, recorded.trace.of(self.shared))
        cause = copied(numbers, self.digest, self.numbers, reference.floor, self.least)
        self.numbers.append(numbers)
        self.edges += denouncing(edges, cause)
        if comparison.generation.of:  # prompts made for situations are not generated from
            self.generation.append(asdict(comparison.generation))

    def _may_be_the_recipes(self, rung: Rung, edges: Sequence[Edge], broken: set[str]) -> bool:
        """Whether a quantized rung fails in nothing but what a recipe loses.

        Not if its file has fewer bits than the recipe wanted, or if nobody knows how its weights should be rounded.
        """
        failed = Verdict.ERROR not in {edge.verdict for edge in edges} and bool(broken) and broken <= OWN_LOSSES
        known = all(weight.rounding or weight.precision == "float32" for weight in rung.stored)
        return failed and known and not any(weight.coarser for weight in rung.stored)

    def _held_to_the_recipe(
        self, rung: Rung, comparison: Comparison, limits: Limits, reference: Reference, ladder: Ladder
    ) -> list[Edge]:
        """The edges of a quantized rung that loses more than its recipe should, judged by what the recipe does lose."""
        try:
            recorded = ladder.rounded(rung)
        except (ParityError, ModelError) as error:
            return _saying(comparison.judged(limits), f"what the recipe itself loses could not be found out: {error}")
        expected = reference.trace.of(recorded.inputs)
        measured = measure(expected, recorded.trace, reference.floor, recorded.inputs, sampled=True)
        own = {output: own_loss_of(metrics, limits(output)) for output, metrics in measured.items()}

        def wider(output: Output) -> tuple[Limit, ...]:
            recipe = self._recipe_of(rung.name, output)
            assert recipe is not None, "a rung with stored weights has a recipe"
            return following(limits(output), own[output], recipe.name, weight_bits(recipe), output)

        return [replace(edge, own_loss=own[edge.output]) for edge in comparison.judged(wider)]

    def _numbers(self, rung: Rung, trace: Trace) -> Numbers:
        recipe = self.request.plan.recipe(rung.name)
        bits = weight_bits(recipe) if recipe else 32
        return Numbers(rung.name, trace.digest, rung.artifact.get("sha256"), bits)

    def _limits(self, rung: str, output: Output, *, stored: bool) -> tuple[Limit, ...]:
        by = self._recipe_of(rung, output)
        if by is None:
            return limits_for(rung, output=output)
        return limits_for(by.name, weight_bits(by), output, stored=stored and output != ENCODER)

    def _recipe_of(self, rung: str, output: Output) -> Recipe | None:
        """A quantized rung's recipe, or the one that its encoder has instead."""
        recipe = self.request.plan.recipe(rung)
        return recipe.encoder if recipe and recipe.encoder and output == ENCODER else recipe

    def _error(self, name: str, cause: str | None) -> None:
        self.edges.append(Edge(reference=self.reference, candidate=name, verdict=Verdict.ERROR, cause=cause))

    def report(self) -> Report:
        """The record of whatever was reached. Rungs that were asked for and not reached are ERRORs."""
        reached = {edge.candidate for edge in self.edges}
        for name in self.request.plan.rungs:
            if name not in reached:
                self._error(name, self.cause or "not reached")
        return Report(
            model=self.request.name,
            family=self.request.model.family.name,
            weights=self.weights,
            prompt_set=self.prompt_set,
            rungs=self.rungs,
            edges=self.edges,
            generation=self.generation,
            environment=environment.describe(),
            seconds=time.perf_counter() - self.began,
            cause=self.cause,
            streamed=self.streaming.to_json() if self.streaming else None,
        )


def _saying(edges: Sequence[Edge], said: str) -> list[Edge]:
    """The edges, those that have a cause with something more in it."""
    return [replace(edge, cause=f"{edge.cause}; {said}") if edge.cause else edge for edge in edges]


def _rung_record(rung: Rung) -> RungRecord:
    cost = rung.recorded
    return RungRecord(
        name=rung.name,
        seconds=cost.seconds if cost else None,
        peak_rss_mb=cost.peak_rss_mb if cost else None,
        artifact={
            **rung.artifact,
            **({"note": cost.note} if cost and cost.note else {}),
            **({"cached": True} if cost and cost.cached else {}),
        },
    )
