"""The ladder of one model on one set of inputs: which rungs there are, and running them one after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from models.authoring.config import ModelConfig
from models.authoring.session import SessionInputs, session_inputs
from models.errors import ModelError
from models.registry import Model
from parity import environment, isolated
from parity.artifacts.forms import read_precisions
from parity.artifacts.making import Artifacts, Made, Making
from parity.compare.floor import FIRST_DRAWS, NoiseFloor
from parity.compare.limits import EXACT
from parity.compare.roundings import least_floors
from parity.convert.float_file import Export, FloatFile, default_cache_length, rope_facts
from parity.convert.quantize import WeightPrecision, summarize
from parity.convert.recipes import DEFAULT_RECIPE, Recipe, get_recipe, with_encoder
from parity.errors import ParityError, PromptError, UsageError
from parity.fidelity import RoundedRung
from parity.inputs import Inputs, TokenizedPrompt
from parity.memory import Streaming
from parity.progress import Reporter
from parity.runners import conveyor, divided
from parity.runners.base import PATIENCE, Answering, Guide, Recorded, Runner, answer, record
from parity.runners.litert import LiteRT
from parity.runners.noise import Draws, measured, read_floor
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.runners.streamed_files import StreamedFiles
from parity.weights import Weights
from parity.weights.published import published

#: Rungs of weights up to this size, in bytes, have one thread each: the conversion runs beside them, and together that
#: is faster than two threads in turn.
SMALL_BYTES = 64_000_000

ORIGINALS = ("original64", "original")
#: Threads of a process in which PyTorch runs a model. With another number some sums are rounded otherwise, and a model
#: that is run by stages would not give what the whole gives, bit for bit.
TORCH_THREADS = 1
#: The prefill of a check unless told otherwise. A short one: it cuts most prompts into pieces and pads the last. Where
#: prompts cannot be cut, the length that holds them all is a multiple of it.
PREFILL_LENGTH = 16


@dataclass(frozen=True)
class Plan:
    """Which rungs below the original are wanted; names are settled before anything is run."""

    exact: bool
    reauthored: bool
    float_file: bool
    recipes: tuple[Recipe, ...]

    @classmethod
    def of(cls, rungs: Sequence[str], recipes: Sequence[str], encoder_recipe: str | None = None) -> Plan:
        """The rungs named, or by default the port in both precisions, float, and the recipes asked for, one of them if
        none are.

        Every recipe leaves what only encoders read to ``encoder_recipe``, if there is one.

        Raises:
            UsageError: a name that is neither a rung nor a recipe.
        """
        if not rungs:
            chosen = tuple(get_recipe(name) for name in dict.fromkeys(recipes or (DEFAULT_RECIPE,)))
            return cls(True, True, True, tuple(with_encoder(recipe, encoder_recipe) for recipe in chosen))
        named = [rung for rung in rungs if rung not in (*ORIGINALS, EXACT, "reauthored", "float")]
        try:
            extra = tuple(get_recipe(name) for name in dict.fromkeys([*named, *recipes]))
        except UsageError as error:
            raise UsageError(f"{error}; rungs are {EXACT}, reauthored, float, or a recipe") from None
        recipes_of = tuple(with_encoder(each, encoder_recipe) for each in extra)
        plan = cls(EXACT in rungs, "reauthored" in rungs, "float" in rungs, recipes_of)
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
        return (EXACT,) * self.exact + ("reauthored",) * self.reauthored + self.files

    def recipe(self, rung: str) -> Recipe | None:
        """The recipe of a quantized rung; ``None`` for any other."""
        return next((recipe for recipe in self.recipes if recipe.name == rung), None)


@dataclass(frozen=True)
class Rung:
    """One rung's outcome: what it recorded and on what file, or why there is nothing.

    ``stored`` says how each weight of a quantized file is; the files themselves are at ``paths``, for as long as the
    rung is looked at.
    """

    name: str
    recorded: Recorded | None = None
    artifact: dict[str, Any] = field(default_factory=dict)
    cause: str | None = None
    stored: tuple[WeightPrecision, ...] = ()
    paths: tuple[Path, ...] = ()


@dataclass(kw_only=True)
class Ladder:
    """Everything the rungs of one run share. At most ``generate`` tokens are generated after each prompt.

    There is one export for each cache length that the prompts need: one, or two where the frequencies of a session
    depend on how long it gets (LongRoPE). ``end_tokens`` are those that our rungs take for the end of a text.
    """

    model: Model
    weights: Weights
    inputs: Inputs
    plan: Plan
    exports: tuple[Export, ...]
    config: ModelConfig
    end_tokens: frozenset[int]
    generate: int
    scratch: Path
    reporter: Reporter
    artifacts: Artifacts
    remote_code: bool = False
    #: Set where models are run one stage at a time.
    streaming: Streaming | None = None
    #: The float files once they are made, in the order of ``exports``.
    files: list[FloatFile] = field(default_factory=list)
    _exact: Recorded | None = None
    _floor: NoiseFloor | None = None

    @property
    def small(self) -> bool:
        """Whether a rung gains nothing from a second thread."""
        return self.weights.size <= SMALL_BYTES

    @property
    def threads(self) -> int:
        """Threads of each rung; those that PyTorch runs have as many processes instead."""
        return 1 if self.small else environment.threads()

    @contextmanager
    def converting(self) -> Iterator[Making[FloatFile] | None]:
        """The first float file, found or under way while the rungs above it run, when files are wanted; for the block.

        It takes one thread, and of memory no more than a weight at a time, however large the model is.
        """
        if not self.plan.files or self.streaming:
            yield None
            return
        with self._conversion(self.exports[0]) as making:
            yield making

    def oracle(self) -> Recorded:
        """The original in float64.

        Raises:
            ParityError, ModelError: it could not be run to its end.
        """
        with self._published() as folder:
            return self._original(Original(folder, "float64", TORCH_THREADS, self.remote_code))

    def original(self, *, guided: bool = True) -> tuple[Recorded, Recorded]:
        """The oracle and the original, whose generation is led along the oracle's if it is ``guided``.

        Raises:
            ParityError, ModelError: either could not be run to its end.
        """
        with self._published() as folder:
            oracle = self._original(Original(folder, "float64", TORCH_THREADS, self.remote_code))
            if oracle.cached:  # as the original will be, and no file is made before ours have been run
                isolated.prepare(originals=False, converter=False)
                isolated.begin()
            guide = oracle.trace.said if guided else None
            return oracle, self._original(Original(folder, "float32", TORCH_THREADS, self.remote_code), guide)

    @contextmanager
    def _published(self) -> Iterator[Path]:
        """The checkpoint as the original reads it. Of one that it cannot read, ours says what is wrong with it.

        Strict loading names the tensor and the remedy, where the original's library often names neither.
        """
        family, folder = self.model.family.name, self.weights.folder
        try:
            with published(family, folder, self.scratch, self.reporter) as found:
                yield found
        except ParityError:
            isolated.run("loading", partial(_load_strictly, family, folder))
            raise

    def rungs(self, converting: Making[FloatFile] | None, guide: Guide | None = None) -> Iterator[Rung]:
        """Every wanted rung below the original, as it finishes. What stops one is its cause, not the end of the run.

        Their generation is led along ``guide``, if there is one.
        """
        if self.plan.exact:
            yield self._try(EXACT, self.exact, {})
        if self.plan.reauthored:
            yield self._try("reauthored", partial(self._reauthored, guide), {})
        if not self.plan.files:
            return
        if self.streaming:
            yield from (self._try_streamed(name, guide) for name in self.plan.files)
            return
        try:
            made = self.convert(converting)
        except (ParityError, ModelError) as error:
            yield from (Rung(name, cause=str(error)) for name in self.plan.files)
            return
        files = self.files
        if self.plan.float_file:
            seconds, peak = sum(f.seconds for f in made), max(f.peak_rss_mb for f in made)
            facts = {
                "signatures": files[0].signatures,
                "convert_seconds": seconds,
                "convert_peak_rss_mb": peak,
                "cached": any(f.cached for f in made),
            }
            yield self._try_files("float", [file.path for file in files], facts, guide)
        for recipe in self.plan.recipes:
            rung = self._try_recipe(recipe, files, guide)
            try:
                yield rung
            finally:
                for path in rung.paths:
                    path.unlink(missing_ok=True)

    def exact(self) -> Recorded:
        """The exact port: ours in float64, every token of a continuation through the cache by itself.

        Raises:
            ParityError, ModelError: it could not be run to its end.
        """
        if self._exact is None:
            ours = Reauthored(*self.ours, name=EXACT, precision="float64")
            asked = {"family": ours.family, "cache_lengths": ours.cache_lengths}
            self._exact = replace(self, generate=0).recording(ours, None, asked, original=False)
        return self._exact

    def floor(self, rounds: int = 0) -> NoiseFloor:
        """The noise floor of the model, of ``FIRST_DRAWS`` draws, twice as many for each of the ``rounds`` after that.

        Raises:
            ParityError, ModelError: the port could not be run to its end.
        """
        self.exact()
        noisy = Reauthored(*self.ours, name="noise floor", at_once=True, noisy=True)
        self._floor = self.drawn(self._floor, rounds, noisy, self.inputs, self.scratch / f"{EXACT}.safetensors", {})
        return self._floor

    def rounded(self, rung: Rung) -> RoundedRung:
        """PyTorch with the numbers that a quantized rung's files store, on what was forced upon the rung.

        Raises:
            ParityError, ModelError: it could not be run to its end, or what it gave is unusable.
        """
        return RoundedRung(self, rung)

    def drawn(
        self,
        known: NoiseFloor | None,
        rounds: int,
        runner: Reauthored,
        inputs: Inputs,
        exact: Path,
        asked: Mapping[str, Any],
    ) -> NoiseFloor:
        """A floor of as many draws as ``rounds`` ask for: those that are ``known``, and those that are missing."""
        wanted = FIRST_DRAWS * 2**rounds
        floor = known
        while floor is None or floor.draws < wanted:
            made = floor.draws if floor else 0
            draws = Draws(made, max(made, FIRST_DRAWS))
            path = self.scratch / f"{runner.name} {made}.safetensors"
            how = {"cache_lengths": runner.cache_lengths, "first": draws.first, "count": draws.count, **asked}
            draw = partial(self._draw, runner, inputs, draws, exact, path)
            self.artifacts.floor(runner.name, self.model, self.weights, inputs, how, path, draw)
            more = read_floor(path, inputs, least_floors(self.config))
            floor = floor + more if floor else more
        return floor

    def _draw(self, runner: Reauthored, inputs: Inputs, draws: Draws, exact: Path, path: Path) -> None:
        named = f"{runner.name}, draws {draws.first + 1} to {draws.first + draws.count}"
        job = partial(measured, self._answering(runner), runner, inputs, draws, exact, path)
        with self.reporter.step(named) as progress:
            isolated.run(runner.name, job, progress, PATIENCE)

    @property
    def ours(self) -> tuple[str, Path, tuple[int, ...], int, frozenset[int]]:
        """What the re-authored model is run with."""
        lengths = tuple(export.cache_length for export in self.exports)
        return self.model.family.name, self.weights.folder, lengths, TORCH_THREADS, self.end_tokens

    def _answering(self, runner: Runner) -> Answering:
        """How a runner goes through the prompts."""
        if self.streaming:
            return conveyor.answer
        if isinstance(runner, (Original, Reauthored)) and self.threads > 1:
            return partial(divided.answer, processes=self.threads)
        return answer

    def convert(self, converting: Making[FloatFile] | None) -> list[Made[FloatFile]]:
        """The float file of each export; the first may be under way.

        Raises:
            ParityError, ModelError: the checkpoint is not usable, or the converter failed.
        """
        made = [self._convert(export, converting if export is self.exports[0] else None) for export in self.exports]
        self.files = [finished.value for finished in made]
        return made

    def run(self, runner: Runner, guide: Guide | None = None) -> Recorded:
        """Record one rung and refuse a trace that is not one.

        Raises:
            ParityError, ModelError: it could not be run to its end, or what it gave is unusable.
        """
        with self.reporter.step(runner.name) as progress:
            recorded = record(
                runner,
                self.inputs,
                self.scratch,
                generate=self.generate,
                guide=guide,
                on_progress=progress,
                answering=self._answering(runner),
            )
        recorded.trace.check(recorded.inputs, self.config.vocab_size, runner.name, self.generate, guide)
        return recorded

    def _original(self, runner: Original, guide: Guide | None = None) -> Recorded:
        """What an earlier run of the original has recorded, or this one."""
        if self.remote_code or runner.folder != self.weights.folder:
            return self.run(runner, guide)  # code that nobody has hashed decides what it gives
        return self.recording(runner, guide, {}, original=True)

    def _reauthored(self, guide: Guide | None) -> Recorded:
        """What an earlier run of the port has recorded, or this one."""
        # Token by token is the exact port's; here the continuation goes through the cache at once.
        ours = Reauthored(*self.ours, at_once=True)
        asked = {"family": ours.family, "cache_lengths": ours.cache_lengths, "end_tokens": sorted(ours.end_tokens)}
        return self.recording(ours, guide, asked, original=False)

    def recording(
        self, runner: Original | Reauthored, guide: Guide | None, asked: Mapping[str, Any], *, original: bool
    ) -> Recorded:
        path = self.scratch / f"{runner.name}.safetensors"  # where ``record`` puts it
        asked = {"generate": self.generate, "guide": guide, "threads": runner.threads, **asked}
        run = partial(self.run, runner, guide)
        recorded = self.artifacts.recording(
            runner.name, self.model, self.weights, self.inputs, asked, path, run, original=original
        )
        if recorded.cached:
            recorded.trace.check(self.inputs, self.config.vocab_size, runner.name, self.generate, guide)
        return recorded

    def _conversion(self, export: Export) -> Making[FloatFile]:
        destination = self.scratch / f"float_{export.cache_length}.tflite"
        return self.artifacts.float_file(self.model, self.weights, export, destination)

    def _convert(self, export: Export, under_way: Making[FloatFile] | None) -> Made[FloatFile]:
        with self.reporter.step("converting") as progress, under_way or self._conversion(export) as making:
            return making.result(progress)

    def _try(self, name: str, run: Callable[[], Recorded], artifact: dict[str, Any]) -> Rung:
        try:
            return Rung(name, run(), artifact)
        except (ParityError, ModelError) as error:
            return Rung(name, artifact=artifact, cause=str(error))

    def _try_streamed(self, name: str, guide: Guide | None) -> Rung:
        """An exported rung whose stages are converted, run and deleted one after another."""
        recipe = self.plan.recipe(name)
        facts = self.scratch / f"{name}.json"
        family, folder = self.model.family.name, self.weights.folder
        runner = StreamedFiles(
            name, family, folder, self.exports, self.threads, self.end_tokens, facts=facts, recipe=recipe
        )
        rung = self._try(name, partial(self.run, runner, guide), self._about_files())
        if rung.recorded is None:
            return rung
        found = json.loads(facts.read_text(encoding="utf-8"))
        stored = tuple(read_precisions(found.pop("stored", [])))
        encoder = {"encoder_recipe": recipe.encoder.name} if recipe and recipe.encoder else {}
        return replace(rung, artifact={**rung.artifact, **found, **encoder}, stored=stored)

    def _try_recipe(self, recipe: Recipe, files: Sequence[FloatFile], guide: Guide | None) -> Rung:
        made = [file.path.with_name(f"quantized_{file.export.cache_length}.tflite") for file in files]
        try:
            done = []
            for file, destination in zip(files, made, strict=True):
                with (
                    self.reporter.step(f"quantizing to {recipe.name}") as progress,
                    self.artifacts.quantized_file(file, recipe, destination) as making,
                ):
                    done.append(making.result(progress))
            stored = [weight for finished in done for weight in finished.value]
            facts = {
                "signatures": files[0].signatures,
                "quantize_seconds": sum(finished.seconds for finished in done),
                "cached": any(finished.cached for finished in done),
                **summarize(stored),
                **({"encoder_recipe": recipe.encoder.name} if recipe.encoder else {}),
            }
            rung = self._try_files(recipe.name, made, facts, guide)
            return replace(rung, stored=tuple(stored), paths=tuple(made))
        except (ParityError, ModelError) as error:
            return Rung(recipe.name, cause=str(error), paths=tuple(made))

    def _try_files(self, name: str, paths: Sequence[Path], facts: dict[str, Any], guide: Guide | None) -> Rung:
        files = [
            {
                "sha256": self.artifacts.content_sha256(path),
                "bytes": path.stat().st_size,
                "cache_length": export.cache_length,
            }
            for path, export in zip(paths, self.exports, strict=True)
        ]
        artifact = {
            "bytes": sum(path.stat().st_size for path in paths),
            "sha256": files[0]["sha256"],
            **({"files": files} if len(files) > 1 else {}),
            "prefill": list(self.exports[0].prefill_lengths),
            "prefill_logits": self.exports[0].prefill_logits,
            **self._about_files(),
            **facts,
        }
        runner = LiteRT(name, tuple(paths), self.config, self.threads, self.end_tokens)
        return self._try(name, partial(self.run, runner, guide), artifact)

    def _about_files(self) -> dict[str, Any]:
        """What is to be said of exported files, whatever is in them."""
        regimes = [rope_facts(self.config, export.cache_length) for export in self.exports]
        return {
            "cache_length": self.exports[0].cache_length,
            **({"rope_regimes": regimes} if any(regimes) else {}),
        }


def _load_strictly(family: str, folder: Path, progress: isolated.Progress) -> None:
    from models import registry

    progress(0, 1)
    registry.family(family).load(folder)


def fit(
    config: ModelConfig, inputs: Inputs, prefill_lengths: Sequence[int], cache_length: int | None, generate: int
) -> tuple[Export, ...]:
    """The exports whose caches hold the prompts and what follows them.

    Raises:
        PromptError: a prompt does not fit the cache, has more positions than the model knows, lies on both sides of a
            boundary between frequencies, or goes in one call and fits none.
        UsageError: a prefill length that does not fit the cache.
    """
    for prompt in inputs.prompts:
        needed = prompt.until(generate)
        if needed > config.max_positions:
            raise PromptError(
                f"prompt {prompt.id} and what follows it have {needed} positions, the model knows "
                f"{config.max_positions}; choose other prompts"
            )
        if cache_length is not None and needed > cache_length:
            raise PromptError(
                f"prompt {prompt.id} and what follows it need {needed} cache slots, --kv-cache gives {cache_length}; "
                "raise it, or choose other prompts"
            )
    lengths = cache_lengths(config, inputs.prompts, cache_length, generate)
    sessions = tuple(
        session_inputs(config, prompt.prompt, prompt.media, prompt.until(generate)) for prompt in inputs.prompts
    )
    prefills = _prefill_lengths(prefill_lengths, inputs, sessions)
    # Only what the project chose itself is left out where it does not fit; what was asked for is an error then.
    return tuple(
        Export(
            prefill_lengths=tuple(n for n in prefills if prefill_lengths or n <= length),
            cache_length=length,
            sessions=sessions,
        )
        for length in lengths
    )


def _prefill_lengths(asked: Sequence[int], inputs: Inputs, sessions: Sequence[SessionInputs]) -> tuple[int, ...]:
    """Those asked for, which must hold every prompt that goes in one call; or the default, which does."""
    whole = {
        prompt.id: len(prompt.prompt) for prompt, session in zip(inputs.prompts, sessions, strict=True) if session.whole
    }
    if not asked and inputs.prefill_lengths:
        return inputs.prefill_lengths
    if not asked:
        # Rounded up, so that most of them are padded.
        return (default_cache_length(max(whole.values()), PREFILL_LENGTH),) if whole else (PREFILL_LENGTH,)
    for name, tokens in whole.items():
        if tokens > max(asked):
            raise PromptError(
                f"prompt {name} has {tokens} tokens that all see each other, so it goes in one call, and the longest "
                f"--prefill takes {max(asked)}; raise it, or leave it out"
            )
    return tuple(asked)


def crosses(boundary: int | None, prompt: TokenizedPrompt, generate: int) -> bool:
    """Whether a session begins within the boundary between frequencies and ends beyond it: no export has both."""
    return boundary is not None and len(prompt.prompt) <= boundary < prompt.until(generate)


def cache_lengths(
    config: ModelConfig, prompts: Sequence[TokenizedPrompt], cache_length: int | None, generate: int
) -> list[int]:
    """One length for all prompts, or one for those within a boundary and one for those beyond it.

    Raises:
        PromptError: a prompt lies on both sides, or the length asked for has the wrong frequencies for some.
    """
    boundary = config.boundary
    needed = {prompt.id: prompt.until(generate) for prompt in prompts}
    if boundary is None:
        return [cache_length or min(default_cache_length(max(needed.values())), config.max_positions)]
    within = [slots for slots in needed.values() if slots <= boundary]
    beyond = [slots for slots in needed.values() if slots > boundary]
    for prompt in prompts:
        if crosses(boundary, prompt, generate):
            raise PromptError(
                f"prompt {prompt.id} starts within {boundary} positions and ends at {needed[prompt.id]}; this model "
                "has other frequencies beyond, an export has one set: choose prompts on either side (--prompts regimes)"
            )
    if cache_length is None:
        short = [min(default_cache_length(max(within)), boundary)] if within else []
        return short + ([min(default_cache_length(max(beyond)), config.max_positions)] if beyond else [])
    if within and cache_length > boundary:
        raise PromptError(
            f"an export of {cache_length} slots has the frequencies beyond {boundary} positions, and {len(within)} "
            f"prompts stay within; lower --kv-cache to {boundary}, or leave it out"
        )
    return [cache_length]
