"""The ladder of one model on one set of inputs: which rungs there are, and running them one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from models.authoring.config import DecoderConfig
from models.authoring.hf_config import HFConfig
from models.errors import ModelError
from models.registry import Model
from parity import environment, isolated
from parity.convert.plain import Export, conversion, default_cache_length
from parity.convert.quantize import quantize, summarize
from parity.convert.recipes import DEFAULT_RECIPE, Recipe, get_recipe
from parity.errors import ParityError, PromptError, UsageError
from parity.files import sha256_of
from parity.inputs import Inputs
from parity.progress import Reporter
from parity.runners.base import Recorded, Runner, record
from parity.runners.litert import LiteRT
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.weights import Weights

#: Weights up to this size, in bytes, are converted while the original runs, each on one thread, which is faster than
#: two threads in turn. Larger ones wait, so that memory holds only one of them.
SMALL_BYTES = 64_000_000

ORIGINALS = ("original64", "original")


@dataclass(frozen=True)
class Plan:
    """Which rungs below the original are wanted; names are settled before anything is run."""

    reauthored: bool
    float_file: bool
    recipes: tuple[Recipe, ...]

    @classmethod
    def of(cls, rungs: Sequence[str], recipes: Sequence[str]) -> Plan:
        """The rungs named, or by default re-authored, float, and the recipes asked for (one unless told otherwise).

        Raises:
            UsageError: a name that is neither a rung nor a recipe.
        """
        if not rungs:
            return cls(True, True, tuple(get_recipe(name) for name in dict.fromkeys(recipes or (DEFAULT_RECIPE,))))
        named = [rung for rung in rungs if rung not in (*ORIGINALS, "reauthored", "float")]
        try:
            extra = tuple(get_recipe(name) for name in dict.fromkeys([*named, *recipes]))
        except UsageError as error:
            raise UsageError(f"{error}; rungs are reauthored, float, or a recipe") from None
        plan = cls("reauthored" in rungs, "float" in rungs, extra)
        if not plan.rungs:
            raise UsageError("the original alone is compared to nothing; name another --rung")
        return plan

    @property
    def files(self) -> tuple[str, ...]:
        """The rungs that run an exported file, in ladder order."""
        return ("float",) * self.float_file + tuple(recipe.name for recipe in self.recipes)

    @property
    def rungs(self) -> tuple[str, ...]:
        """All wanted rungs, in ladder order."""
        return ("reauthored",) * self.reauthored + self.files


@dataclass(frozen=True)
class Rung:
    """One rung's outcome: what it recorded and on what file, or why there is nothing."""

    name: str
    recorded: Recorded | None = None
    artifact: dict[str, Any] = field(default_factory=dict)
    cause: str | None = None


@dataclass(kw_only=True)
class Ladder:
    """Everything the rungs of one run share. ``generate`` tokens are generated freely after each prompt."""

    model: Model
    weights: Weights
    inputs: Inputs
    plan: Plan
    export: Export
    config: DecoderConfig
    generate: int
    scratch: Path
    reporter: Reporter

    @property
    def small(self) -> bool:
        """Whether the weights are small enough to do two things at once."""
        return self.weights.size <= SMALL_BYTES

    @property
    def threads(self) -> int:
        """Threads of each rung."""
        return 1 if self.small else environment.threads()

    @contextmanager
    def converting(self) -> Iterator[isolated.Job[tuple[str, ...]] | None]:
        """The conversion under way, when files are wanted and the model is small; it ends with the block."""
        if not (self.plan.files and self.small):
            yield None
            return
        with self._conversion() as job:
            yield job

    def original(self) -> tuple[Recorded, Recorded]:
        """The oracle and the original.

        Raises:
            ParityError, ModelError: either could not be run to its end.
        """
        try:
            oracle = self.run(Original(self.weights.folder, "float64", self.threads))
            return oracle, self.run(Original(self.weights.folder, "float32", self.threads))
        except ParityError:
            # Strict loading names the tensor and the remedy, where the original's library often names neither.
            isolated.run("loading", partial(_load_strictly, self.model.family.name, self.weights.folder))
            raise

    def rungs(self, converting: isolated.Job[tuple[str, ...]] | None) -> Iterator[Rung]:
        """Every wanted rung below the original, as it finishes. What stops one is its cause, not the end of the run."""
        if self.plan.reauthored:
            runner = Reauthored(self.model.family.name, self.weights.folder, self.export.cache_length, self.threads)
            yield self._try(runner, {})
        if not self.plan.files:
            return
        file = self.scratch / "float.tflite"
        try:
            with converting or self._conversion() as job, self.reporter.step("converting") as progress:
                made = job.result(progress)
        except (ParityError, ModelError) as error:
            yield from (Rung(name, cause=str(error)) for name in self.plan.files)
            return
        if self.plan.float_file:
            facts = {"convert_seconds": made.seconds, "convert_peak_rss_mb": made.peak_rss_mb}
            yield self._try_file("float", file, facts)
        for recipe in self.plan.recipes:
            yield self._try_recipe(recipe, file, made.value)

    def run(self, runner: Runner) -> Recorded:
        """Record one rung and refuse a trace that is not one.

        Raises:
            ParityError, ModelError: it could not be run to its end, or what it gave is unusable.
        """
        with self.reporter.step(runner.name) as progress:
            recorded = record(runner, self.inputs, self.scratch, generate=self.generate, on_progress=progress)
        recorded.trace.check(self.inputs, self.config.vocab_size, runner.name)
        return recorded

    def _conversion(self) -> isolated.Job[tuple[str, ...]]:
        destination = self.scratch / "float.tflite"
        job = conversion(self.model.family.name, self.weights.folder, self.export, destination)
        return isolated.Job("converting", job)

    def _try(self, runner: Runner, artifact: dict[str, Any]) -> Rung:
        try:
            return Rung(runner.name, self.run(runner), artifact)
        except (ParityError, ModelError) as error:
            return Rung(runner.name, artifact=artifact, cause=str(error))

    def _try_recipe(self, recipe: Recipe, source: Path, names: tuple[str, ...]) -> Rung:
        file = self.scratch / "quantized.tflite"
        try:
            with self.reporter.step(f"quantizing to {recipe.name}") as progress:
                done = quantize(source, names, recipe, file, progress)
            return self._try_file(recipe.name, file, {"quantize_seconds": done.seconds, **summarize(done.value)})
        except (ParityError, ModelError) as error:
            return Rung(recipe.name, cause=str(error))
        finally:
            file.unlink(missing_ok=True)

    def _try_file(self, name: str, path: Path, facts: dict[str, Any]) -> Rung:
        artifact = {
            "bytes": path.stat().st_size,
            "sha256": sha256_of([path]),
            "signatures": [*(f"prefill_{length}" for length in self.export.prefill_lengths), "decode"],
            "cache_length": self.export.cache_length,
            **facts,
        }
        return self._try(LiteRT(name, path, self.threads), artifact)


def _load_strictly(family: str, folder: Path, progress: isolated.Progress) -> None:
    from models import registry

    progress(0, 1)
    registry.family(family).load(folder)


def fit(
    model: Model,
    weights: Weights,
    inputs: Inputs,
    prefill_lengths: Sequence[int],
    cache_length: int | None,
    generate: int,
) -> tuple[DecoderConfig, Export]:
    """The checkpoint's configuration, and an export whose cache holds the longest prompt and what follows it.

    Raises:
        PromptError: a prompt does not fit the cache, or has more positions than the model knows.
        UsageError: a prefill length that does not fit the cache.
    """
    config = model.family.config_from(HFConfig.load(weights.folder))
    needed = max(inputs.longest, max(len(prompt.prompt) for prompt in inputs.prompts) + generate)
    if needed > config.max_positions:
        raise PromptError(
            f"the longest prompt of {inputs.name} and what follows it have {needed} positions, the model knows "
            f"{config.max_positions}; choose other prompts"
        )
    if cache_length is not None and needed > cache_length:
        raise PromptError(
            f"the longest prompt of {inputs.name} and what follows it need {needed} cache slots, --kv-cache gives "
            f"{cache_length}; raise it, or choose other prompts"
        )
    length = cache_length or default_cache_length(needed)
    return config, Export(prefill_lengths=tuple(prefill_lengths), cache_length=length)
