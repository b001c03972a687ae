"""What a check finds, from the weights to the last rung; becomes its report whenever it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from models.errors import ModelError, UnknownModelError
from parity import environment
from parity.bisect.locate import Locator
from parity.compare.budgets import Budget, default_budget
from parity.compare.comparison import Comparison, drawn
from parity.compare.copies import Numbers, copied, denouncing
from parity.compare.floor import Conditioning, Distances, NoiseFloor, conditioning, tie
from parity.compare.generation import compare_generation
from parity.compare.limits import (
    EXACT,
    UNQUANTIZED,
    Limit,
    Question,
    encoder_limits,
    limits_for,
    question_of,
)
from parity.compare.measuring import ENCODER, Output, compare_prompts, measure, measure_recorded
from parity.compare.verdict import Edge, Verdict, judge, over_budget, worst
from parity.convert.recipes import Recipe, weight_bits
from parity.errors import ParityError, UsageError
from parity.golden import Golden, Reference
from parity.inputs import Inputs
from parity.ladder import Ladder, Rung
from parity.memory import Streaming
from parity.report.record import Report, RungRecord
from parity.runners.base import Guide, Recorded
from parity.trace import Trace
from parity.weights import Weights, kind_of

if TYPE_CHECKING:
    from parity.pipeline import Request


class Findings:
    """What a check has found so far; becomes its report whenever it ends."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.began = time.perf_counter()
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        self.reference = EXACT if request.golden else "original64"
        self.weights: dict[str, Any] = {"kind": kind_of(request.weights), "sha256": None, "revision": None}
        self.prompt_set: dict[str, Any] = {"name": request.prompt_set, "sha256": None, "prompts": 0, "positions": 0}
        self.rungs: list[RungRecord] = []
        self.edges: list[Edge] = []
        self.numbers: list[Numbers] = []
        self.generation: list[dict[str, Any]] = []
        self.cause: str | None = None
        self.streaming: Streaming | None = None
        self.locator = Locator(request.name, original=not request.golden)
        self.conditioning: dict[str, Conditioning] = {}
        self.said: dict[str, list[int]] = {}
        self.texts: Mapping[str, Any] = {}
        # Known once there is a reference, see ``referred``: what rungs are held against, and what copies are told by.
        self.ladder: Ladder
        self.oracle: Reference
        self.shared: Inputs
        self.digest: str
        self.noisy: bool

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

    def referred(self, reference: Golden | tuple[Recorded, Recorded], ladder: Ladder) -> Guide:
        """Note what everything is compared to, and find out what rounding does to this model on these prompts.

        A recording is compared with the exact port, which then stands in for the original. Gives what was generated.
        """
        self.ladder = ladder
        exact, floor = ladder.exact(), ladder.floor()
        alone = ladder.inputs.one_row
        self.shared = alone if alone.prompts else ladder.inputs
        if isinstance(reference, Golden):
            steps = reference.steps
            said = {name: replace(prompt, steps=steps[name]) for name, prompt in exact.trace.prompts.items()}
            self.oracle = Reference(EXACT, Trace(said))
            sizes: Mapping[str, Mapping[str, Distances]] = reference.compare(exact.trace)
        else:
            oracle, original = reference
            self.oracle = Reference("original64", oracle.trace)
            sizes = compare_prompts(oracle.trace, exact.trace)
        self.digest = self.oracle.trace.of(self.shared).digest
        self.said = {name: list(ids) for name, ids in self.oracle.trace.said.items() if ids}
        # A model may be exact on its inputs, whatever the order of its sums: then its original is, too.
        self.noisy = isinstance(reference, Golden) or reference[1].trace.of(self.shared).digest != self.digest
        self.conditioning = conditioning(floor, sizes)
        if isinstance(reference, Golden):
            self.rungs.append(_rung_record(Rung(EXACT, exact)))
            self.edges += self._against_recording(reference, exact)
        else:
            self.rungs.append(_rung_record(Rung("original64", oracle)))
            self._compare(Rung("original", original), original)
        return self.oracle.trace.said

    def _against_recording(self, recording: Golden, exact: Recorded) -> list[Edge]:
        """The exact port held against the recording, whatever else is asked for: everything else rests on that."""
        errors, limits = recording.compare(exact.trace), limits_for("port")

        def judged(floor: NoiseFloor) -> list[Edge]:
            found = measure_recorded(errors, floor)
            return [judge("golden", EXACT, "port", each, limits, output) for output, each in found.items()]

        edges = drawn(judged, lambda _: limits, self._in_float64)
        return self.locator.locate(Rung(EXACT, exact), edges, self.ladder)

    def _in_float64(self, rounds: int) -> NoiseFloor:
        return self.ladder.floor(rounds).in_float64

    def judge(self, rung: Rung) -> None:
        """Hold a rung against what it is compared to, and find the stage if it fails; no trace is an ERROR."""
        judged = len(self.edges)
        if rung.name == EXACT and self.oracle.name == EXACT:
            return  # it stands in for the original, and was held against the recording
        if rung.recorded:
            self._compare(rung, rung.recorded)
        else:
            self.rungs.append(_rung_record(rung))
            self._error(rung.name, rung.cause)
        self.edges[judged:] = self.locator.locate(rung, self.edges[judged:], self.ladder)
        if rung.name == "float":
            ill = {name: found for name, found in self.conditioning.items() if found.ill}
            self.edges[judged:] = self.locator.by_stage(rung, self.edges[judged:], self.ladder, ill)

    def _compare(self, rung: Rung, recorded: Recorded) -> None:
        self.rungs.append(_rung_record(rung))
        quantized = rung.name not in UNQUANTIZED
        floor = self.ladder.floor()
        generation = None
        if rung.name != EXACT:
            noise = None if quantized else partial(tie, floor)
            generation = compare_generation(rung.name, self.oracle.trace.of(recorded.inputs), recorded.trace, noise)
            if generation.of:  # prompts made for situations are not generated from
                chosen = {name: list(ids) for name, ids in recorded.trace.said.items() if ids}
                self.generation.append({**asdict(generation), "chosen": chosen})
        comparison = Comparison(
            reference=self.oracle.name,
            candidate=rung.name,
            question=question_of(rung.name),
            expected=self.oracle.trace,
            trace=recorded.trace,
            inputs=self.ladder.inputs,
            given=recorded.inputs,
            generation=generation,
        )
        if quantized:
            edges = self._quantized(rung, comparison)
        else:
            scaled = self._in_float64 if rung.name == EXACT else self.ladder.floor
            limits = limits_for(comparison.question)
            edges = comparison.drawn(lambda _: limits, scaled)
        numbers = self._numbers(rung, recorded.trace.of(self.shared)) if rung.name != EXACT else None
        cause = copied(numbers, self.digest, self.numbers, noisy=self.noisy) if numbers else None
        self.numbers += [numbers] if numbers else []
        self.edges += denouncing(edges, cause)

    def _quantized(self, rung: Rung, comparison: Comparison) -> list[Edge]:
        """Two questions of a quantized rung: does the file do what it says, and can the model afford that?"""
        own: dict[Output, dict[str, Any]] = {}
        try:
            rounded = self.ladder.rounded(rung)
            stored = rung.artifact.get("rounding") or {}
            limits = limits_for("fidelity")
            with_stored = limits_for("fidelity", stored=bool(stored))
            faithful = replace(
                comparison,
                reference=rounded.name,
                question="fidelity",
                expected=rounded.trace,
                rounding=stored,
                generation=None,
            ).drawn(lambda output: limits if output == ENCODER else with_stored, rounded.floor)
            measured = measure(self.oracle.trace.of(rounded.inputs), rounded.trace, rounded.inputs, sampled=True)
            own = {output: _own_loss(found.metrics) for output, found in measured.items()}
        except (ParityError, ModelError) as error:
            cause = f"fidelity could not be judged: {error}"
            faithful = [self._edge(rung.name, "fidelity", f"{rung.name} in PyTorch", cause)]
        faith = worst(edge.verdict for edge in faithful)
        asked = replace(comparison, question="quality", generation=None).judged(partial(self._affords, rung.name))
        cost = [
            replace(edge, own_loss=own.get(edge.output, {}), budget=self._budget(rung.name, edge.output))
            for edge in asked
        ]
        return [*faithful, *(over_budget(edge, faith) for edge in cost)]

    def _affords(self, rung: str, output: Output) -> tuple[Limit, ...]:
        """What a quantized rung may cost."""
        recipe = self._recipe_of(rung, output)
        if output == ENCODER:
            return encoder_limits(recipe.name, weight_bits(recipe))
        return self._asked_budget(recipe).limits

    def _budget(self, rung: str, output: Output) -> str | None:
        return None if output == ENCODER else self._asked_budget(self._recipe_of(rung, output)).name

    def _asked_budget(self, recipe: Recipe) -> Budget:
        return self.request.budget or default_budget(weight_bits(recipe))

    def _numbers(self, rung: Rung, trace: Trace) -> Numbers:
        recipe = self.request.plan.recipe(rung.name)
        bits = weight_bits(recipe) if recipe else 32
        return Numbers(rung.name, trace.digest, rung.artifact.get("sha256"), bits)

    def _recipe_of(self, rung: str, output: Output) -> Recipe:
        """A quantized rung's recipe, or the one that its encoder has instead."""
        recipe = self.request.plan.recipe(rung)
        assert recipe is not None, f"{rung} is a quantized rung"
        return recipe.encoder if recipe.encoder and output == ENCODER else recipe

    def _error(self, name: str, cause: str | None) -> None:
        self.edges.append(
            self._edge(name, question_of(name) if name in UNQUANTIZED else "quality", self.reference, cause)
        )

    def _edge(self, name: str, question: Question, reference: str, cause: str | None) -> Edge:
        return Edge(reference=reference, candidate=name, question=question, verdict=Verdict.ERROR, cause=cause)

    def spelled(self, texts: Callable[[Collection[int]], Mapping[int, str]]) -> None:
        """Note what the ids of this run say, for whoever reads its report; ``texts`` spells them."""
        ids = {
            prompt.id: [*prompt.prompt, *prompt.continuation, *prompt.turn, *prompt.reply]
            for prompt in self.ladder.inputs.prompts
        }
        chosen = [ids_of for entry in self.generation for ids_of in entry["chosen"].values()]
        known = {each for some in (*ids.values(), *self.said.values(), *chosen) for each in some}
        self.texts = {"prompts": ids, "pieces": {str(each): piece for each, piece in texts(known).items()}}

    def report(self) -> Report:
        """The record of whatever was reached. Rungs that were asked for and not reached are ERRORs."""
        reached = {edge.candidate for edge in self.edges}
        held = (EXACT,) if self.request.golden else ()
        for name in dict.fromkeys((*held, *self.request.plan.rungs)):
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
            conditioning={name: {**asdict(found), "ill": found.ill} for name, found in self.conditioning.items()},
            streamed=self.streaming.to_json() if self.streaming else None,
            command=self.request.command,
            date=self.date,
            prompts_said=self.said,
            texts=self.texts,
        )


def _own_loss(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe loses by itself, in PyTorch."""
    kept = ("kl_typical", "kl_mean", "flips", "perplexity_ratio", "rel_l2")
    return {name: metrics[name] for name in kept if metrics.get(name) is not None}


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
