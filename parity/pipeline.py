"""``check``: one model down the ladder, in six steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.authoring.hf_config import HFConfig
from models.errors import ModelError, UnknownModelError
from models.registry import Model
from parity import environment, isolated
from parity.compare.generation import compare_generation
from parity.compare.limits import limits_for
from parity.compare.verdict import Edge, NoiseFloor, Verdict, judge, measure
from parity.convert.plain import Export, conversion, default_cache_length, usable_prefill_lengths
from parity.convert.quantize import quantize, summarize
from parity.convert.recipes import DEFAULT_RECIPE, Recipe, get_recipe
from parity.errors import ParityError, PromptError, UsageError
from parity.files import sha256_of
from parity.golden import GoldenStore, Reference
from parity.inputs import Inputs, read_prompts, tokenize
from parity.progress import Reporter
from parity.report.record import Report, RungRecord
from parity.runners.base import Recorded, Runner, record
from parity.runners.litert import LiteRT
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.trace import Trace
from parity.weights import Weights, resolve

#: Prefill signatures of a check unless told otherwise. One short one: most prompts are cut into pieces and padded by it.
PREFILL_LENGTHS = (16,)
#: Tokens of free-running generation compared after each prompt.
GENERATED_TOKENS = 8
#: Weights up to this size are converted while the original runs, each on one thread, which is faster than two threads in
#: turn. Larger ones wait, so that memory holds only one of them.
SMALL_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to check. ``rungs`` names rungs or recipes; ``golden`` replaces the original by its recording."""

    model: Model
    weights: str = "tiny"
    prompts: str = "short"
    rungs: Sequence[str] = ()
    recipes: Sequence[str] = ()
    prefill_lengths: Sequence[int] = PREFILL_LENGTHS
    cache_length: int | None = None
    golden: GoldenStore | None = None
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", Plan.of(self.rungs, self.recipes))


@dataclass(frozen=True)
class Plan:
    """Which rungs below the original are judged; names are settled before anything is run."""

    reauthored: bool
    float_file: bool
    recipes: tuple[Recipe, ...]

    @classmethod
    def of(cls, rungs: Sequence[str], recipes: Sequence[str]) -> Plan:
        """Default rungs: re-authored, float, and the recipes asked for (default: one).

        Raises:
            UsageError: a name that is neither a rung nor a recipe.
        """
        if not rungs:
            return cls(True, True, tuple(get_recipe(name) for name in dict.fromkeys(recipes or (DEFAULT_RECIPE,))))
        named = [rung for rung in rungs if rung not in ("original64", "original", "reauthored", "float")]
        try:
            extra = tuple(get_recipe(name) for name in dict.fromkeys([*named, *recipes]))
        except UsageError as error:
            raise UsageError(f"{error}; or a rung: reauthored, float") from None
        return cls("reauthored" in rungs, "float" in rungs, extra)

    @property
    def exports(self) -> bool:
        """Whether a file must be converted."""
        return self.float_file or bool(self.recipes)

    @property
    def judged(self) -> list[str]:
        """The judged rungs in ladder order."""
        names = ["reauthored"] * self.reauthored + ["float"] * self.float_file
        return names + [recipe.name for recipe in self.recipes]


def check(request: Request, reporter: Reporter) -> Report:
    """Run the ladder and judge it. Always returns a report: what goes wrong on the way is an ERROR with its cause.

    Raises:
        UsageError: the request itself cannot be carried out.
    """
    run = _Run(request, reporter)
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch, run.failing_closed():
        isolated.preload(converter=request.plan.exports)
        weights = run.weigh()
        inputs = run.read_inputs(weights)
        run.descend(weights, inputs, Path(scratch))
    return run.report()


class _Run:
    """The state of one check while it goes down the ladder."""

    def __init__(self, request: Request, reporter: Reporter) -> None:
        self.request = request
        self.reporter = reporter
        self.began = time.perf_counter()
        self.weights: dict[str, Any] = {"kind": request.weights, "sha256": None, "revision": None}
        self.prompt_set: dict[str, Any] = {"name": request.prompts, "sha256": None, "prompts": 0, "positions": 0}
        self.rungs: list[RungRecord] = []
        self.edges: list[Edge] = []
        self.generation: list[dict[str, Any]] = []
        self.cause: str | None = None

    @contextmanager
    def failing_closed(self) -> Iterator[None]:
        """What cannot be had for the whole run is the run's ERROR; wrong use stays the caller's business."""
        try:
            yield
        except (UsageError, UnknownModelError):
            raise
        except (ParityError, ModelError) as error:
            self.cause = str(error)

    def weigh(self) -> Weights:
        """Step 1: the checkpoint."""
        with self.reporter.step(f"{self.request.model.name}: weights") as progress:
            weights = resolve(self.request.model, self.request.weights, progress)
        self.weights = {"kind": weights.kind, "sha256": weights.sha256, "revision": weights.revision}
        if weights.kind == "path":
            self.weights["path"] = weights.label
        return weights

    def read_inputs(self, weights: Weights) -> Inputs:
        """Step 2: the prompts, tokenized once for everybody."""
        prompts = read_prompts(self.request.prompts)
        self.config = self.request.model.family.config_from(HFConfig.load(weights.folder))
        with self.reporter.step("tokenizing"):
            inputs = tokenize(prompts, weights.folder, self.config.vocab_size)
        self.prompt_set = {
            "name": inputs.name,
            "sha256": inputs.sha256,
            "prompts": len(inputs.prompts),
            "positions": inputs.positions,
        }
        cache_length = self.request.cache_length or default_cache_length(inputs.longest)
        if inputs.longest > cache_length:
            raise PromptError(
                f"the longest prompt and its continuation need {inputs.longest} cache slots, --kv-cache gives "
                f"{cache_length}; raise it, or choose other prompts"
            )
        if inputs.longest > self.config.max_positions:
            raise PromptError(
                f"the longest prompt and its continuation have {inputs.longest} positions, the model knows "
                f"{self.config.max_positions}; choose other prompts"
            )
        lengths = usable_prefill_lengths(self.request.prefill_lengths, cache_length)
        self.export = Export(prefill_lengths=lengths, cache_length=cache_length)
        return inputs

    def descend(self, weights: Weights, inputs: Inputs, scratch: Path) -> None:
        """Steps 3 to 6: reference, conversion, every rung, comparison."""
        plan = self.request.plan
        float_file = scratch / "float.tflite"
        job = conversion(self.request.model.family.name, weights.folder, self.export, float_file)
        small = weights.size <= SMALL_BYTES
        self.threads = 1 if small else environment.threads()
        early = isolated.Job("converting", job) if plan.exports and small else None
        try:
            reference = self.refer(weights, inputs, scratch)
            if plan.reauthored:
                family = self.request.model.family.name
                runner = Reauthored(family, weights.folder, self.export.cache_length, self.threads)
                self.judge_rung(runner, inputs, reference, scratch)
            if plan.exports:
                self.judge_files(early or isolated.Job("converting", job), float_file, inputs, reference, scratch)
        finally:
            if early:
                early.__exit__(None, None, None)

    def refer(self, weights: Weights, inputs: Inputs, scratch: Path) -> Reference:
        """Step 3: what everything is compared to: the oracle and the original's own noise, or their recording."""
        if self.request.golden:
            with self.reporter.step("golden"):
                return self.request.golden.replay(self.request.model, weights, inputs)
        oracle = self.run_rung(Original(weights.folder, "float64", self.threads), inputs, scratch)
        original = self.run_rung(Original(weights.folder, "float32", self.threads), inputs, scratch)
        floor = NoiseFloor.measure(oracle.trace, original.trace)
        reference = Reference("original64", oracle.trace, floor)
        self.compare("original", original, inputs, reference)
        return reference

    def judge_files(
        self, job: isolated.Job[None], float_file: Path, inputs: Inputs, reference: Reference, scratch: Path
    ) -> None:
        """Steps 4 and 5 for the exported rungs: one conversion, then every recipe applied to its file."""
        plan = self.request.plan
        names = [name for name in plan.judged if name != "reauthored"]
        try:
            with job, self.reporter.step("converting") as progress:
                converted = job.result(progress)
        except (ParityError, ModelError) as error:
            self.edges += [_failed(reference.name, name, error) for name in names]
            return
        made = {"convert_seconds": converted.seconds, "convert_peak_rss_mb": converted.peak_rss_mb}
        if plan.float_file:
            self.judge_file("float", float_file, made, inputs, reference, scratch)
        for recipe in plan.recipes:
            quantized = scratch / f"{recipe.name}.tflite"
            try:
                with self.reporter.step(f"quantizing to {recipe.name}") as progress:
                    done = quantize(float_file, recipe, quantized, progress)
            except (ParityError, ModelError) as error:
                self.edges.append(_failed(reference.name, recipe.name, error))
                continue
            facts = {"quantize_seconds": done.seconds, **summarize(done.value)}
            self.judge_file(recipe.name, quantized, facts, inputs, reference, scratch)
            quantized.unlink()

    def judge_file(
        self, name: str, path: Path, facts: dict[str, Any], inputs: Inputs, reference: Reference, scratch: Path
    ) -> None:
        """Run and judge one exported file, and record what it is."""
        artifact = {
            "bytes": path.stat().st_size,
            "sha256": sha256_of([path]),
            "signatures": [*(f"prefill_{length}" for length in self.export.prefill_lengths), "decode"],
            "cache_length": self.export.cache_length,
            **facts,
        }
        self.judge_rung(LiteRT(name, path, self.threads), inputs, reference, scratch, artifact)

    def judge_rung(
        self,
        runner: Runner,
        inputs: Inputs,
        reference: Reference,
        scratch: Path,
        artifact: dict[str, Any] | None = None,
    ) -> None:
        """Run one rung and hold it against the reference; whatever stops it is this rung's ERROR."""
        try:
            recorded = self.run_rung(runner, inputs, scratch, artifact)
            self.compare(runner.name, recorded, inputs, reference)
        except (ParityError, ModelError) as error:
            self.edges.append(_failed(reference.name, runner.name, error))

    def run_rung(
        self, runner: Runner, inputs: Inputs, scratch: Path, artifact: dict[str, Any] | None = None
    ) -> Recorded:
        """Record one rung and refuse a trace that is not one."""
        with self.reporter.step(runner.name) as progress:
            recorded = record(runner, inputs, scratch, generate=GENERATED_TOKENS, on_progress=progress)
        self.rungs.append(
            RungRecord(
                name=runner.name,
                seconds=recorded.seconds,
                peak_rss_mb=recorded.peak_rss_mb,
                artifact=artifact or {},
            )
        )
        recorded.trace.check(inputs, self.config.vocab_size, runner.name)
        return recorded

    def compare(self, name: str, recorded: Recorded, inputs: Inputs, reference: Reference) -> None:
        """Step 6: figures, limits, verdict."""
        metrics = measure(reference.trace, recorded.trace, reference.floor, inputs)
        edge = judge(reference.name, name, metrics, limits_for(name))
        generation = compare_generation(name, reference.trace, recorded.trace, metrics["max_abs"])
        self.generation.append(asdict(generation))
        self.edges.append(edge)

    def report(self) -> Report:
        """The record of whatever was reached. Rungs that were asked for and not reached are ERRORs."""
        reached = {edge.candidate for edge in self.edges}
        for name in self.request.plan.judged:
            if name not in reached:
                self.edges.append(
                    Edge(reference="original64", candidate=name, verdict=Verdict.ERROR, cause=self.cause or "not reached")
                )
        return Report(
            model=self.request.model.name,
            family=self.request.model.family.name,
            weights=self.weights,
            prompt_set=self.prompt_set,
            rungs=self.rungs,
            edges=self.edges,
            generation=self.generation,
            environment=environment.describe(),
            seconds=time.perf_counter() - self.began,
            cause=self.cause,
        )


def _failed(reference: str, name: str, error: Exception) -> Edge:
    return Edge(reference=reference, candidate=name, verdict=Verdict.ERROR, cause=str(error))
