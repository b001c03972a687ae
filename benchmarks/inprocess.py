"""A model's rungs kept open in one process, judged by the functions of the harness, draws of the floor included.

A check loads every rung anew, in a process of its own. Here they are loaded once, so that one may be changed a little
and run again, or be given one prompt after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from parity.trace import PHASES, PromptTrace, Trace
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

    def answer_together(self, inputs: Inputs) -> Trace:
        """The same of a rung of PyTorch, prompts of the same length as rows of a batch: each weight is read once."""
        found = {}
        for prompts in _alike(inputs.prompts):
            with self._computing():
                parts = [part.numpy() for part in self._rows(prompts, self.runner.at_once)]
            length = len(prompts[0].prompt)
            for row, prompt in enumerate(prompts):
                logits = np.concatenate([part[row] for part in parts])
                found[prompt.id] = PromptTrace(logits[:length], logits[length:])
        return Trace(found)

    def drawn(self, prompts: Sequence[TokenizedPrompt], draws: Draws, centre: Trace) -> dict[str, PromptNoise]:
        """As ``parity.runners.noise.measured`` of a rung that is noisy, prompts of the same length and draws together.

        Every row has its own noise, so the draws are as many and as independent; they are not the same numbers.
        """
        squared: dict[str, dict[str, list[Any]]] = {p.id: {phase: [] for phase in PHASES} for p in prompts}
        most: dict[str, list[float]] = {prompt.id: [] for prompt in prompts}
        for alike in _alike(prompts):
            wanted = [
                replace(prompt, id=draws.name(prompt.id, number)) for number in range(draws.count) for prompt in alike
            ]
            rows = max(1, TOGETHER // alike[0].positions)
            for start in range(0, len(wanted), rows):
                with self._computing():
                    parts = dict(zip(PHASES, self._rows(wanted[start : start + rows], at_once=True), strict=True))
                for row in range(len(wanted[start : start + rows])):
                    prompt = alike[(start + row) % len(alike)]
                    errors = {
                        phase: part[row].numpy().astype(np.float64) - getattr(centre.prompts[prompt.id], phase)
                        for phase, part in parts.items()
                    }
                    for phase, error in errors.items():
                        squared[prompt.id][phase].append(np.square(error).sum(axis=1))
                    most[prompt.id].append(max(float(np.abs(error).max(initial=0.0)) for error in errors.values()))
        return {
            name: PromptNoise(
                {phase: np.asarray(each) for phase, each in squared[name].items()}, np.asarray(most[name])
            )
            for name in squared
        }

    def _rows(self, prompts: Sequence[TokenizedPrompt], at_once: bool) -> list[Any]:
        """Logits ``[rows, T, V]`` of prompts of one length, and of their continuations on the filled cache.

        Those at once, or token by token.
        """
        import torch

        continued = torch.tensor([prompt.continuation for prompt in prompts], dtype=torch.int32)
        pieces = [torch.tensor([prompt.prompt for prompt in prompts], dtype=torch.int32)]
        pieces += [continued] if at_once else list(continued.split(1, dim=1))
        session: Any = self.session
        if isinstance(self.runner, Original):
            return self._original_rows(pieces)
        session.begin(prompts[0], prompts[0].until(0))
        length = session.program.cache_length
        cache, position, logits = self.model.empty_cache(length, len(prompts)), 0, []
        for tokens in pieces:
            positions = torch.arange(position, position + tokens.shape[1], dtype=torch.int32)
            cache = self.model.entry("prefill", length)({"tokens": tokens, "input_pos": positions, **cache})
            logits.append(cache.pop("logits"))
            position += tokens.shape[1]
        return logits

    def _original_rows(self, pieces: Sequence[Any]) -> list[Any]:
        cache, logits = None, []
        for tokens in pieces:
            output = self.model(tokens, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
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


def _alike(prompts: Sequence[TokenizedPrompt]) -> list[list[TokenizedPrompt]]:
    """Prompts by how long they and their continuations are."""
    found: dict[tuple[int, int], list[TokenizedPrompt]] = {}
    for prompt in prompts:
        found.setdefault((len(prompt.prompt), len(prompt.continuation)), []).append(prompt)
    return list(found.values())


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
        #: Draws, by what they are of and by prompt.
        self._noise: dict[str, dict[str, PromptNoise]] = {}

    def given(self, inputs: Inputs) -> None:
        """Go on with other prompts."""
        self.inputs = inputs
        self._traces.clear()
        self._noise.clear()

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
            together = not isinstance(kept.runner, LiteRT)
            self._traces[kept] = kept.answer_together(self.inputs) if together else kept.answer(self.inputs)
        return self._traces[kept]

    def floor(self, of: Inputs, rounds: int = 0) -> NoiseFloor:
        """As ``parity.ladder.Ladder.floor``, of some of the prompts."""
        return self._drawn("float", self.exact, self.noisy, of, rounds, first=self.inputs)

    def floor_in_float64(self, of: Inputs, rounds: int = 0) -> NoiseFloor:
        """The floor of the exact port."""
        return self.floor(of, rounds).in_float64

    def floor_of(self, quantized: Quantized, of: Inputs, rounds: int = 0) -> NoiseFloor:
        """As ``parity.fidelity.RoundedRung.floor``."""
        if not quantized.dynamic:
            return self.floor(of, rounds)
        centre = self.rounded(quantized, precision="float64")
        noisy = self.rounded(quantized, noisy=True)
        drawn = self._drawn(quantized.recipe, centre, noisy, of, rounds, first=self.inputs)
        dithered = None
        key = f"{quantized.recipe}, dithered"
        if rounds or set(drawn.prompts) <= set(self._noise.get(key, ())):
            dithering = self.rounded(quantized, noisy=True, dither=True)
            dithered = self._drawn(key, centre, dithering, of, 0, first=of)
        return replace(drawn, discrete=True, dithered=dithered)

    def _drawn(self, key: str, centre: Kept, noisy: Kept, of: Inputs, rounds: int, *, first: Inputs) -> NoiseFloor:
        """As ``parity.ladder.Ladder.drawn``; the first draws are made of all prompts in ``first`` together."""
        known = self._noise.setdefault(key, {})
        expected = self.trace(centre)
        if any(prompt.id not in known for prompt in of.prompts):
            known |= noisy.drawn(first.prompts, Draws(0, FIRST_DRAWS), expected)
        while (made := min(len(known[prompt.id].most) for prompt in of.prompts)) < FIRST_DRAWS * 2**rounds:
            more = noisy.drawn(of.prompts, Draws(made, made), expected)
            known |= {name: known[name] + noise for name, noise in more.items()}
        return NoiseFloor({prompt.id: known[prompt.id] for prompt in of.prompts}, least_floors(self.config))

    def judged(
        self, question: Question, trace: Trace, quantized: Quantized | None = None, of: Inputs | None = None
    ) -> Edge:
        """A rung's trace held against what the question asks, with as many draws as it takes.

        Together, unless one says ``of`` which prompts.
        """
        of = of or self.inputs
        limits = limits_for(question)
        if quantized:
            expected, floor = self.rounded(quantized, precision="float64"), partial(self.floor_of, quantized, of)
        else:
            expected = self.oracle
            floor = partial(self.floor_in_float64 if question == "port" else self.floor, of)
        comparison = Comparison(
            reference="reference",
            candidate="candidate",
            question=question,
            expected=self.trace(expected),
            trace=trace.of(of),
            inputs=of,
            given=of,
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
