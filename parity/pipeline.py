"""What the commands do with a ladder. ``check`` is the main job: one model, six steps, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from models.authoring.end_tokens import end_tokens
from models.authoring.hf_config import HFConfig
from models.errors import ModelError, UnknownModelError
from models.registry import Model
from parity import environment, isolated
from parity.artifacts.cache import ArtifactCache
from parity.artifacts.making import Artifacts
from parity.bisect.bisector import Bisector
from parity.bisect.locate import Locator, rung_of
from parity.bisect.reproduction import refuse_existing
from parity.bisect.reproduction import save as save_reproduction
from parity.compare.bisect import Bisection
from parity.compare.copies import Numbers, copied, denouncing
from parity.compare.generation import Generation, compare_generation
from parity.compare.limits import (
    FLOAT_RUNGS,
    OWN_LOSSES,
    UNQUANTIZED,
    Limit,
    following,
    limits_for,
    own_loss_of,
)
from parity.compare.roundings import least_floors
from parity.compare.situations import measure_situations, with_situations
from parity.compare.verdict import (
    ENCODER,
    Edge,
    NoiseFloor,
    Output,
    Verdict,
    judge,
    measure,
    naming_the_weight,
    with_generation,
)
from parity.convert.recipes import Recipe, weight_bits
from parity.errors import GoldenError, ParityError, UsageError
from parity.files import scratch_folder
from parity.golden import GoldenStore, Recording, Reference
from parity.inputs import Inputs, Prompt, PromptSet, read_prompts, tokenize
from parity.ladder import ORIGINALS, Ladder, Plan, Rung, fit
from parity.memory import Streaming, streaming
from parity.progress import Reporter
from parity.report.record import Report, RungRecord
from parity.report.side_by_side import Generated
from parity.runners.base import Recorded
from parity.situations import inputs_of, is_made
from parity.trace import Trace
from parity.weights import Weights, kind_of, resolve

#: Tokens of free-running generation compared after each prompt.
GENERATED_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run. ``rungs`` names rungs or recipes; ``golden`` replaces the original by its recording.

    Without ``prefill_lengths`` and ``cache_length`` they follow from the prompts.
    ``remote_code`` lets an original that transformers lacks run the code published with it.
    ``streamed`` runs models one stage at a time, or never; by itself where they would not fit into memory.
    ``cache`` has the files of earlier runs and takes those of this one; without it all are made anew.
    ``prompt_set`` is the set asked for, or the default: the family's, or the one that shows a tiny model's quirks.
    """

    model: Model
    weights: str = "tiny"
    prompts: str | None = None
    rungs: Sequence[str] = ()
    recipes: Sequence[str] = ()
    encoder_recipe: str | None = None
    prefill_lengths: Sequence[int] = ()
    cache_length: int | None = None
    golden: GoldenStore | None = None
    remote_code: bool = False
    streamed: bool | None = None
    cache: ArtifactCache | None = None
    plan: Plan = field(init=False)
    prompt_set: str = field(init=False)

    def __post_init__(self) -> None:
        if self.encoder_recipe and not self.model.encodes:
            raise UsageError(
                f"--encoder-recipe is for models with an encoder, {self.model.name} has none; leave it out"
            )
        if self.streamed and self.remote_code:
            raise UsageError("--streamed does not run code that is published with a checkpoint; leave one of them out")
        object.__setattr__(self, "plan", Plan.of(self.rungs, self.recipes, self.encoder_recipe))
        object.__setattr__(self, "prompt_set", self.prompts or self.own_prompts)

    @property
    def own_prompts(self) -> str:
        """The prompt set that the model is checked on by default."""
        return self.model.prompts(tiny=self.weights == "tiny")

    def settle_prompts(self) -> str:
        """What recordings call the prompt set.

        Raises:
            UsageError, PromptError: there is no such set, or it cannot be read.
        """
        return self.prompt_set if is_made(self.prompt_set) else read_prompts(self.prompt_set).name

    @property
    def name(self) -> str:
        """What the report calls the model: a preset, or the family when the weights are a folder of any size."""
        return self.model.family.name if kind_of(self.weights) == "path" else self.model.name


def check(request: Request, reporter: Reporter) -> Report:
    """Run the ladder and judge it. Always returns a report: what goes wrong on the way is an ERROR with its cause.

    Raises:
        UsageError, UnknownModelError: the request itself cannot be carried out.
    """
    findings = _Findings(request)
    with scratch_folder() as scratch, findings.failing_closed():
        isolated.prepare(converter=bool(request.plan.files))
        request.settle_prompts()
        weights = findings.weighed(_weigh(request, reporter))
        artifacts = Artifacts(request.cache, reporter.note)
        inputs = findings.read(_read(request, weights, artifacts, scratch, reporter))
        ladder = _ladder(request, weights, inputs, GENERATED_TOKENS, artifacts, scratch, reporter)
        findings.streaming = ladder.streaming = _streaming(request, ladder)
        with ladder.converting() as converting:
            reference = findings.referred(*_refer(request, ladder), ladder)
            for rung in ladder.rungs(converting, reference.trace.said):
                findings.judge(rung, reference, inputs, ladder)
    return findings.report()


def record_golden(request: Request, store: GoldenStore, reporter: Reporter, *, overwrite: bool) -> Recording:
    """Run the oracle and the original on the request's inputs and store them.

    Raises:
        UsageError: a recording exists and ``overwrite`` was not asked for.
        ParityError, ModelError: the original could not be run to its end.
    """
    isolated.prepare(converter=False)
    name = request.settle_prompts()
    weights = _weigh(request, reporter)
    path = store.of(request.name, weights, name).path
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; give --overwrite to replace it")
    anew = Artifacts(None, reporter.note)
    with scratch_folder() as scratch:
        inputs = _read(request, weights, anew, scratch, reporter)
        ladder = _ladder(request, weights, inputs, GENERATED_TOKENS, anew, scratch, reporter)
        oracle, original = ladder.original()
    reference = Reference("original64", oracle.trace, _floor(ladder, oracle, original))
    edges, _ = judge_rung("original", original.trace, reference, inputs, lambda _: limits_for("original"))
    for edge in edges:
        if edge.verdict is not Verdict.PASS:
            raise GoldenError(
                f"{request.name} is not recorded, its original is no reference on these prompts: {edge.cause}"
            )
    return store.record(request.name, weights, inputs, reference)


def verify_golden(request: Request, store: GoldenStore, reporter: Reporter) -> None:
    """Check that the recording for the request is there and fresh, without running any rung.

    Raises:
        GoldenError: it is missing, stale or damaged.
    """
    isolated.prepare(converter=False)
    request.settle_prompts()
    weights = _weigh(request, reporter)
    with scratch_folder() as scratch:
        inputs = _read(request, weights, Artifacts(None, reporter.note), scratch, reporter)
    store.replay(request.name, weights, inputs)


def generate(request: Request, prompt: Prompt, tokens: int, reporter: Reporter) -> list[Generated]:
    """At most ``tokens`` tokens that each rung generates after ``prompt`` by itself: the original's first.

    Raises:
        ParityError, ModelError: the weights or the original cannot be used.
    """
    isolated.prepare(converter=bool(request.plan.files))
    weights = _weigh(request, reporter)
    config = request.model.family.config_from(HFConfig.load(weights.folder))
    prompts = PromptSet("prompt", "", "", (prompt,))
    with reporter.step("tokenizing"):
        inputs = tokenize(prompts, weights.folder, config, continuation=0)
    with scratch_folder() as scratch:
        ladder = _ladder(request, weights, inputs, tokens, Artifacts(request.cache, reporter.note), scratch, reporter)
        with ladder.converting() as converting:
            _, original = ladder.original(guided=False)
            rungs = [Rung("original", original), *ladder.rungs(converting)]
    said = [rung.recorded.trace.said[prompt.id] if rung.recorded else () for rung in rungs]
    texts = isolated.run("decoding text", partial(_decode, weights.folder, said)).value
    return [Generated(rung.name, ids, words, rung.cause) for rung, ids, words in zip(rungs, said, texts, strict=True)]


def bisect(request: Request, reporter: Reporter, output: Path | None = None) -> list[Bisection]:
    """Compare the request's rungs stage by stage, down to the first that has a bad stage.

    Of that stage a reproduction is written to ``output``, which must not exist.

    Raises:
        UsageError, UnknownModelError: the request itself cannot be carried out.
        ParityError, ModelError: the weights, or a side of a comparison, cannot be used.
    """
    if output:
        refuse_existing(output)
    found: list[Bisection] = []
    with scratch_folder() as scratch:
        ladder = prepared(request, 0, scratch, reporter, _one_by_one)
        bisector = Bisector(ladder, keeping=output is not None)
        for name in request.plan.rungs:
            files = partial(_float_files, ladder)
            result = rung_of(name, request.plan, bisector, files)()
            found.append(result.bisection)
            if result.bisection.first:
                if output:
                    quantized = request.plan.recipe(name)
                    recipe = quantized.source if quantized else None
                    save_reproduction(
                        result,
                        output,
                        model=request.model.name,
                        weights=request.weights,
                        sha256=ladder.weights.sha256,
                        recipe=name if recipe and not recipe.endswith(".json") else recipe,
                        encoder_recipe=request.encoder_recipe,
                    )
                break
    return found


def prepared(
    request: Request, generate_tokens: int, scratch: Path, reporter: Reporter, choose: Callable[[Inputs], Inputs]
) -> Ladder:
    """The ladder of a request on what ``choose`` makes of its prompts. Nothing has been run yet.

    Raises:
        UsageError, UnknownModelError: the request itself cannot be carried out.
        ParityError, ModelError: the weights or the prompts cannot be used.
    """
    isolated.prepare(converter=bool(request.plan.files))
    request.settle_prompts()
    weights = _weigh(request, reporter)
    artifacts = Artifacts(request.cache, reporter.note)
    inputs = choose(_read(request, weights, artifacts, scratch, reporter))
    return _ladder(request, weights, inputs, generate_tokens, artifacts, scratch, reporter)


def _one_by_one(inputs: Inputs) -> Inputs:
    """The prompts without the rows beside them."""
    return replace(inputs, prompts=tuple(prompt.alone for prompt in inputs.prompts))


def _float_files(ladder: Ladder) -> list[Path]:
    return [finished.value.path for finished in ladder.convert(None)]


def _decode(folder: Path, sequences: list[tuple[int, ...]], progress: isolated.Progress) -> list[str]:
    from transformers import AutoTokenizer

    progress(0, 1)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return [tokenizer.decode(ids) for ids in sequences]


def _weigh(request: Request, reporter: Reporter) -> Weights:
    with reporter.step(f"{request.name}: weights") as progress:
        return resolve(request.model, request.weights, progress, reporter.note, remote_code=request.remote_code)


def _read(request: Request, weights: Weights, artifacts: Artifacts, scratch: Path, reporter: Reporter) -> Inputs:
    config = request.model.family.config_from(HFConfig.load(weights.folder))
    with reporter.step("tokenizing"):
        if not is_made(request.prompt_set):
            prompts = read_prompts(request.prompt_set)
            make = partial(tokenize, prompts, weights.folder, config)
            text = prompts.is_text and not request.model.encodes
            return artifacts.tokens(prompts, weights, scratch / "tokens.json", make) if text else make()
        return inputs_of(
            request.prompt_set,
            request.own_prompts,
            weights.folder,
            config,
            prefill_lengths=request.prefill_lengths,
            cache_length=request.cache_length,
            generate=GENERATED_TOKENS,
        )


def _ladder(
    request: Request,
    weights: Weights,
    inputs: Inputs,
    generate_tokens: int,
    artifacts: Artifacts,
    scratch: Path,
    reporter: Reporter,
) -> Ladder:
    config = request.model.family.config_from(HFConfig.load(weights.folder))
    exports = fit(config, inputs, request.prefill_lengths, request.cache_length, generate_tokens)
    return Ladder(
        model=request.model,
        weights=weights,
        inputs=inputs,
        plan=request.plan,
        exports=exports,
        config=config,
        end_tokens=end_tokens(weights.folder),
        generate=generate_tokens,
        scratch=scratch,
        reporter=reporter,
        artifacts=artifacts,
        remote_code=request.remote_code,
    )


def _streaming(request: Request, ladder: Ladder) -> Streaming | None:
    """Whether the rungs are run one stage at a time; said before it is begun."""
    originals = () if request.golden else ORIGINALS
    rungs = [*originals, *request.plan.rungs, *(["converting"] if request.plan.files else [])]
    held = 8 * ladder.inputs.positions * ladder.config.vocab_size  # of the oracle, the largest
    family, folder = request.model.family.name, ladder.weights.folder
    found = streaming(request.streamed, family, folder, ladder.config, rungs, ladder.weights.size, held)
    if found:
        ladder.reporter.note(f"{request.name}: {found}")
    return found


def _refer(request: Request, ladder: Ladder) -> tuple[Reference, tuple[Recorded, Recorded] | None]:
    """What everything is compared to: the recording, or the oracle and the original's own noise."""
    if request.golden:
        recorded = request.golden.replay(request.name, ladder.weights, ladder.inputs)
        recorded.trace.check(ladder.inputs, ladder.config.vocab_size, "the recording", ladder.generate)
        return recorded, None
    oracle, original = ladder.original()
    floor = _floor(ladder, oracle, original)
    return Reference("original64", oracle.trace, floor), (oracle, original)


def _floor(ladder: Ladder, oracle: Recorded, original: Recorded) -> NoiseFloor:
    return NoiseFloor.of(oracle.trace, original.trace, ladder.inputs, least_floors(ladder.config))


def judge_rung(
    name: str,
    trace: Trace,
    reference: Reference,
    inputs: Inputs,
    limits: Callable[[Output], tuple[Limit, ...]],
    *,
    given: Inputs | None = None,
    sampled: bool = False,
    rounding: Mapping[str, tuple[float, str]] | None = None,
) -> tuple[list[Edge], Generation]:
    """The edges of a rung, one for each output that is compared, and its generation.

    ``given`` are those of the ``inputs`` that the rung was given, if not all. ``sampled`` takes the prompts for a
    sample, which must be large enough for the limits. ``rounding`` is what was read off a quantized file of its
    weights: the worst figures, and the weights that they are of.
    """
    given = given or inputs
    expected = reference.trace.of(given)
    measured = measure(expected, trace, reference.floor, given, sampled=sampled)
    measured["logits"] |= {f"weight_{name}": figure for name, (figure, _) in (rounding or {}).items()}
    situations = measure_situations(expected, trace, reference.floor, given)
    generation = compare_generation(name, expected, trace, measured["logits"]["max_abs"])
    edges = []
    for output, metrics in measured.items():
        edge = judge(reference.name, name, metrics, limits(output), output)
        edges.append(with_situations(edge, situations, limits(output), inputs, given))
    edges[-1] = naming_the_weight(with_generation(edges[-1], generation), rounding or {})
    return edges, generation


class _Findings:
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
        rounding = rung.artifact.get("rounding", {})
        judged = partial(
            judge_rung,
            rung.name,
            recorded.trace,
            reference,
            inputs,
            given=recorded.inputs,
            sampled=rung.name not in UNQUANTIZED,
            rounding=rounding,
        )
        limits = partial(self._limits, rung.name, stored=bool(rounding))
        edges, generation = judged(limits)
        if rung.stored and self._may_be_the_recipes(rung, edges, limits):
            edges = self._held_to_the_recipe(rung, edges, lambda wider: judged(wider)[0], limits, reference, ladder)
        numbers = self._numbers(rung, recorded.trace.of(self.shared))
        cause = copied(numbers, self.digest, self.numbers, reference.floor, self.least)
        self.numbers.append(numbers)
        self.edges += denouncing(edges, cause)
        if generation.of:  # prompts made for situations are not generated from, and nothing of nothing is no result
            self.generation.append(asdict(generation))

    def _may_be_the_recipes(
        self, rung: Rung, edges: Sequence[Edge], limits: Callable[[Output], tuple[Limit, ...]]
    ) -> bool:
        """Whether a quantized rung is off in nothing but what a recipe loses, on a sound float rung if there is one.

        Not if its file has fewer bits than the recipe wanted.
        """
        if any(weight.coarser for weight in rung.stored):
            return False
        above = {edge.verdict for edge in self.edges if edge.candidate in FLOAT_RUNGS}
        held = [(limit, edge.metrics[limit.metric]) for edge in edges for limit in limits(edge.output)]
        broken = {limit.metric for limit, figure in held if figure is not None and not limit.holds(figure)}
        return bool(broken) and broken <= OWN_LOSSES and above <= {Verdict.PASS}

    def _held_to_the_recipe(
        self,
        rung: Rung,
        edges: list[Edge],
        judged: Callable[[Callable[[Output], tuple[Limit, ...]]], list[Edge]],
        limits: Callable[[Output], tuple[Limit, ...]],
        reference: Reference,
        ladder: Ladder,
    ) -> list[Edge]:
        """The edges of a quantized rung that loses more than its recipe should, judged by what the recipe does lose."""
        try:
            recorded = ladder.rounded(rung)
        except (ParityError, ModelError) as error:
            said = f"what the recipe itself loses could not be found out: {error}"
            return [replace(edge, cause=f"{edge.cause}; {said}") if edge.cause else edge for edge in edges]
        expected = reference.trace.of(recorded.inputs)
        measured = measure(expected, recorded.trace, reference.floor, recorded.inputs, sampled=True)
        own = {output: own_loss_of(metrics, limits(output)) for output, metrics in measured.items()}

        def wider(output: Output) -> tuple[Limit, ...]:
            recipe = self._recipe_of(rung.name, output)
            assert recipe is not None, "a rung with stored weights has a recipe"
            return following(limits(output), own[output], recipe.name, weight_bits(recipe), output)

        return [replace(edge, own_loss=own[edge.output]) for edge in judged(wider)]

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
