"""A model's rungs kept open in one process, judged by the functions of the harness, draws of the floor included.

A check loads every rung anew, in a process of its own. Here they are loaded once, so that one may be changed a little
and run again, or be given one prompt after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from models.authoring.config import ModelConfig
from models.authoring.hf_config import HFConfig
from models.registry import Model
from parity import isolated
from parity.artifacts.cache import ArtifactCache
from parity.artifacts.making import Artifacts
from parity.compare.comparison import Comparison
from parity.compare.floor import FIRST_DRAWS, NoiseFloor, PromptNoise
from parity.compare.limits import Question, limits_for
from parity.compare.measuring import measure
from parity.compare.roundings import least_floors
from parity.compare.verdict import Edge
from parity.convert.float_file import Export, FloatFile
from parity.convert.quantize import WeightPrecision
from parity.convert.recipes import get_recipe
from parity.convert.stored import Numbers
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.base import Session, answer_each
from parity.runners.litert import LiteRT
from parity.runners.noise import Draws
from parity.runners.original import Original
from parity.runners.precision import computing_in, everything_float64
from parity.runners.reauthored import Reauthored
from parity.runners.rounded import Rounded
from parity.trace import PHASES, Trace
from parity.weights import Weights

#: Positions of draws that are run at once: a product of so many rows makes the best of a processor.
TOGETHER = 512
#: Memory that is a folder, where there is one: traces go through files, as they do between the harness's processes.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a place for a folder of our own)


def in_memory() -> Path | None:
    """Where scratch folders are best made."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else None


@dataclass(frozen=True)
class Quantized:
    """A quantized file and how its weights are stored."""

    recipe: str
    path: Path
    stored: tuple[WeightPrecision, ...]

    @property
    def dynamic(self) -> bool:
        """Whether activations are rounded as well."""
        return any(weight.dynamic for weight in self.stored)


class Kept:
    """A rung that was opened and stays so; it answers prompts in its own precision, in this thread."""

    def __init__(self, runner: Original | Reauthored | LiteRT) -> None:
        self.runner = runner
        with runner.open() as session:
            self.session: Session = session

    @property
    def model(self) -> Any:
        """The module behind a rung of PyTorch."""
        session: Any = self.session
        return session.model if isinstance(self.runner, Original) else session.program.model

    def answer(self, inputs: Inputs) -> Trace:
        """Teacher forcing over the prompts; nothing is generated."""
        with self._computing():
            return Trace(
                answer_each(
                    self.session, inputs.prompts, 0, None, lambda _done, _total: None, at_once=self.runner.at_once
                )
            )

    def drawn(self, prompt: TokenizedPrompt, draws: Draws, centre: Trace) -> PromptNoise:
        """As ``parity.runners.noise.measured`` of a rung that is noisy, but several draws at once, as rows of a batch.

        Every row has its own noise, so the draws are as many and as independent; they are not the same numbers.
        """
        rows = max(1, min(draws.count, TOGETHER // prompt.positions))
        found: list[list[Any]] = []
        for start in range(0, draws.count, rows):
            with self._computing():
                number = draws.first + start
                found.append(self._rows(prompt, draws.name(prompt.id, number), min(rows, draws.count - start)))
        squared, most = {}, np.zeros(draws.count)
        for place, phase in enumerate(PHASES):
            expected = getattr(centre.prompts[prompt.id], phase)
            errors = [row.numpy().astype(np.float64) - expected for part in found for row in part[place]]
            squared[phase] = np.asarray([np.square(error).sum(axis=1) for error in errors])
            most = np.maximum(most, [np.abs(error).max(initial=0.0) for error in errors])
        return PromptNoise(squared, most)

    def _rows(self, prompt: TokenizedPrompt, name: str, rows: int) -> list[Any]:
        """Logits ``[rows, T, V]`` of the prompt, and of its continuation on the filled cache."""
        import torch

        session: Any = self.session
        session.begin(replace(prompt, id=name), prompt.until(0))
        length = session.program.cache_length
        cache, position, logits = self.model.empty_cache(length, rows), 0, []
        for ids in (prompt.prompt, prompt.continuation):
            given = {
                "tokens": torch.tensor([ids] * rows, dtype=torch.int32),
                "input_pos": torch.arange(position, position + len(ids), dtype=torch.int32),
            }
            cache = dict(self.model.entry("prefill", length)({**given, **cache}))
            logits.append(cache.pop("logits"))
            position += len(ids)
        return logits

    @contextmanager
    def _computing(self) -> Iterator[None]:
        import torch

        with torch.inference_mode(), self._precisely():
            yield

    def _precisely(self) -> AbstractContextManager[Any]:
        match self.runner:
            case Original(precision="float64"):
                return everything_float64()
            case Reauthored():
                return computing_in(self.runner.precision)
        return computing_in("float32")


class Bench:
    """The rungs of one model, each loaded when it is first asked for, on the prompts ``inputs``.

    What was found on other prompts is forgotten with ``given``. Ours run on the shortest cache that holds a prompt, of
    those that are ``shorter`` and the export's; ``at_once`` is how the exact port goes through a continuation.
    Everything runs on one thread.
    """

    def __init__(
        self,
        model: Model,
        weights: Weights,
        inputs: Inputs,
        export: Export,
        scratch: Path,
        shorter: tuple[int, ...] = (),
        *,
        at_once: bool = False,
    ) -> None:
        self.model = model
        self.weights = weights
        self.inputs = inputs
        self.export = export
        self.cache_lengths = (*shorter, export.cache_length)
        self.scratch = scratch
        self.at_once = at_once
        self.artifacts = Artifacts(ArtifactCache.default(), lambda _: None)
        self._kept: dict[object, Kept] = {}
        self._traces: dict[object, Trace] = {}
        self._floors: dict[object, NoiseFloor] = {}

    def given(self, inputs: Inputs) -> None:
        """Go on with other prompts."""
        self.inputs = inputs
        self._traces.clear()
        self._floors.clear()

    @cached_property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.family.config_from(HFConfig.load(self.weights.folder))

    @cached_property
    def float_file(self) -> FloatFile:
        """The float file, as a check would make it."""
        path = self.scratch / "float.tflite"
        with self.artifacts.float_file(self.model, self.weights, self.export, path) as making:
            return making.result().value

    def quantized(self, recipe: str) -> Quantized:
        """The float file after a recipe, made once."""
        return self._quantized[recipe] if recipe in self._quantized else self._quantize(recipe)

    @cached_property
    def _quantized(self) -> dict[str, Quantized]:
        return {}

    def _quantize(self, recipe: str) -> Quantized:
        path = self.scratch / f"{recipe}.tflite"
        with self.artifacts.quantized_file(self.float_file, get_recipe(recipe), path) as making:
            self._quantized[recipe] = Quantized(recipe, path, tuple(making.result().value))
        return self._quantized[recipe]

    @property
    def oracle(self) -> Kept:
        """The original in float64."""
        return self._keep("oracle", partial(Original, self.weights.folder, "float64"))

    @property
    def original(self) -> Kept:
        """The original in float32."""
        return self._keep("original", partial(Original, self.weights.folder, "float32"))

    @property
    def exact(self) -> Kept:
        """Ours in float64, token by token unless everything is asked at once."""
        make = partial(Reauthored, *self._ours, name="exact", precision="float64", at_once=self.at_once)
        return self._keep("exact", make)

    @property
    def plain(self) -> Kept:
        """Ours in float32."""
        return self._keep("plain", partial(Reauthored, *self._ours, at_once=True))

    @property
    def noisy(self) -> Kept:
        """Ours in float32 with the noise of other sums."""
        return self._keep("noisy", partial(Reauthored, *self._ours, name="noise floor", at_once=True, noisy=True))

    def rounded(self, quantized: Quantized, **how: Any) -> Kept:
        """Ours with the numbers of a quantized file."""
        numbers = Numbers(quantized.path, self.float_file.path, self.float_file.names)
        make = partial(Rounded, *self._ours, at_once=True, stored=quantized.stored, numbers=numbers, **how)
        return self._keep((quantized.recipe, *sorted(how.items())), make)

    def file(self, name: str, path: Path) -> Kept:
        """An exported file, opened anew at each call."""
        return Kept(LiteRT(name, (path,), self.config, 1))

    @property
    def _ours(self) -> tuple[str, Path, tuple[int, ...], int]:
        return self.model.family.name, self.weights.folder, self.cache_lengths, 1

    def _keep(self, key: object, make: Any) -> Kept:
        if key not in self._kept:
            self._kept[key] = Kept(make())
        return self._kept[key]

    def trace(self, kept: Kept) -> Trace:
        """What a rung that nobody has changed answers to the prompts; asked once."""
        if kept not in self._traces:
            self._traces[kept] = kept.answer(self.inputs)
        return self._traces[kept]

    def floor(self, rounds: int = 0) -> NoiseFloor:
        """As ``parity.ladder.Ladder.floor``."""
        return self._drawn("float", self.exact, self.noisy, rounds)

    def floor_in_float64(self, rounds: int = 0) -> NoiseFloor:
        """The floor of the exact port."""
        return self.floor(rounds).in_float64

    def floor_of(self, quantized: Quantized, rounds: int = 0) -> NoiseFloor:
        """As ``parity.fidelity.RoundedRung.floor``."""
        if not quantized.dynamic:
            return self.floor(rounds)
        centre = self.rounded(quantized, precision="float64")
        noisy = self.rounded(quantized, noisy=True)
        drawn = self._drawn(quantized.recipe, centre, noisy, rounds)
        dithered = None
        if rounds or ("dithered", quantized.recipe) in self._floors:
            dithering = self.rounded(quantized, noisy=True, dither=True)
            dithered = self._drawn(("dithered", quantized.recipe), centre, dithering, 0)
        return replace(drawn, discrete=True, dithered=dithered)

    def _drawn(self, key: object, centre: Kept, noisy: Kept, rounds: int) -> NoiseFloor:
        """As ``parity.ladder.Ladder.drawn``."""
        wanted = FIRST_DRAWS * 2**rounds
        floor = self._floors.get(key)
        while floor is None or floor.draws < wanted:
            made = floor.draws if floor else 0
            draws = Draws(made, max(made, FIRST_DRAWS))
            noise = {prompt.id: noisy.drawn(prompt, draws, self.trace(centre)) for prompt in self.inputs.prompts}
            more = NoiseFloor(noise, least_floors(self.config))
            floor = floor + more if floor else more
        self._floors[key] = floor
        return floor

    def judged(self, question: Question, trace: Trace, quantized: Quantized | None = None) -> Edge:
        """A rung's trace held against what the question asks, with as many draws as it takes."""
        limits = limits_for(question)
        if quantized:
            expected, floor = self.rounded(quantized, precision="float64"), partial(self.floor_of, quantized)
        else:
            expected, floor = self.oracle, self.floor_in_float64 if question == "port" else self.floor
        comparison = Comparison(
            reference="reference",
            candidate="candidate",
            question=question,
            expected=self.trace(expected),
            trace=trace,
            inputs=self.inputs,
            given=self.inputs,
        )
        return comparison.drawn(lambda _: limits, floor)[-1]

    def pooled(self, trace: Trace) -> dict[str, float]:
        """The relative distance to the oracle over all positions of a phase together."""
        found = measure(self.trace(self.oracle), trace, self.inputs)["logits"].metrics
        return {phase: found[phase]["rel_l2"] for phase in PHASES}


def figures_of(edge: Edge) -> dict[str, Any]:
    """What is kept of an edge."""
    kept = ("floor_ratio", "worst_position_ratio", "worst_position", "draws", "rel_l2")
    found = {name: edge.metrics[name] for name in kept if name in edge.metrics}
    by_phase = {phase: edge.metrics[phase]["floor_ratio"] for phase in ("prefill", "decode")}
    return {**found, **by_phase, "verdict": str(edge.verdict), "cause": edge.cause, "remark": edge.remark}


def described(weights: Weights) -> Mapping[str, Any]:
    """What results are of: they are only ever added to results of the same."""
    return {"weights": weights.kind, "sha256": weights.sha256, "limits": _limits()}


def _limits() -> dict[str, dict[str, float]]:
    questions: tuple[Question, ...] = ("port", "rounding", "fidelity")
    return {name: {limit.metric: limit.most for limit in limits_for(name)} for name in questions}


def begin() -> None:
    """Make this process fit for running rungs, and for starting the jobs that make files."""
    isolated.prepare(converter=True)
    ArtifactCache.default()  # notes the sources before anything is made of them
    import torch

    torch.set_num_threads(1)
