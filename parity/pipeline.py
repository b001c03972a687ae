"""What the commands do with a ladder. ``check`` is the main job: one model, six steps, one report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from models.authoring.end_tokens import end_tokens
from models.authoring.hf_config import HFConfig
from models.registry import Model
from parity import isolated
from parity.artifacts.cache import ArtifactCache
from parity.artifacts.making import Artifacts
from parity.bisect.bisector import Bisector
from parity.bisect.locate import rung_of
from parity.bisect.reproduction import refuse_existing
from parity.bisect.reproduction import save as save_reproduction
from parity.compare.bisect import Bisection
from parity.compare.budgets import Budget
from parity.compare.limits import EXACT
from parity.errors import UsageError
from parity.files import scratch_folder
from parity.findings import Findings
from parity.golden import Golden, GoldenStore, Recording
from parity.inputs import Inputs, Prompt, PromptSet, read_prompts, tokenize
from parity.ladder import ORIGINALS, Ladder, Plan, Rung, fit
from parity.memory import Streaming, streaming
from parity.progress import Reporter
from parity.report.record import Report
from parity.report.side_by_side import Generated
from parity.runners.base import Recorded
from parity.situations import inputs_of, is_made
from parity.weights import LOCAL, Weights, kind_of, resolve

#: Tokens of free-running generation compared after each prompt.
GENERATED_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run. ``rungs`` names rungs or recipes; ``golden`` replaces the original by its recording.

    Without ``prefill_lengths`` and ``cache_length`` they follow from the prompts.
    ``remote_code`` lets an original that transformers lacks run the code published with it.
    ``streamed`` runs models one stage at a time, or never; by itself where they would not fit into memory.
    ``budget`` is what recipes may cost; without one each is held to the tier of its precision.
    ``command`` is how a person asked for it, and with ``texts`` the report tells what its token ids say.
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
    budget: Budget | None = None
    command: str | None = None
    texts: bool = False
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
        """What the report calls the model: a preset, or the family when the weights are a file or folder of one."""
        return self.model.family.name if kind_of(self.weights) in LOCAL else self.model.name


def check(request: Request, reporter: Reporter) -> Report:
    """Run the ladder and judge it. Always returns a report: what goes wrong on the way is an ERROR with its cause.

    Raises:
        UsageError, UnknownModelError: the request itself cannot be carried out.
    """
    findings = Findings(request)
    with scratch_folder() as scratch, findings.failing_closed():
        isolated.prepare(converter=bool(request.plan.files))
        request.settle_prompts()
        weights = findings.weighed(_weigh(request, reporter))
        artifacts = Artifacts(request.cache, reporter.note)
        inputs = findings.read(_read(request, weights, artifacts, scratch, reporter))
        ladder = _ladder(request, weights, inputs, GENERATED_TOKENS, artifacts, scratch, reporter)
        findings.streaming = ladder.streaming = _streaming(request, ladder)
        with ladder.converting() as converting:
            said = findings.referred(_refer(request, ladder), ladder)
            for rung in ladder.rungs(converting, said):
                findings.judge(rung)
        if request.texts:
            findings.spelled(partial(_spell, weights.folder))
    return findings.report()


def record_golden(request: Request, store: GoldenStore, reporter: Reporter, *, overwrite: bool) -> Recording:
    """Run the oracle on the request's inputs and store what it gives.

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
        oracle = ladder.oracle()
    return store.record(request.name, weights, inputs, oracle.trace)


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
        ladder.plan = replace(ladder.plan, exact=False)  # it is compared with the oracle, and writes no text
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


def _decode(folder: Path, sequences: Sequence[tuple[int, ...]], progress: isolated.Progress) -> list[str]:
    from transformers import AutoTokenizer

    progress(0, 1)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return [tokenizer.decode(ids) for ids in sequences]


def _spell(folder: Path, ids: Collection[int]) -> Mapping[int, str]:
    """What each id says by itself."""
    ordered = sorted(ids)
    texts = isolated.run("decoding tokens", partial(_decode, folder, [(each,) for each in ordered])).value
    return dict(zip(ordered, texts, strict=True))


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
            return artifacts.tokens(prompts, request.model, weights, scratch / "tokens.json", make) if text else make()
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
    rungs = [*originals, EXACT, *request.plan.rungs, *(["converting"] if request.plan.files else [])]
    held = 8 * ladder.inputs.positions * ladder.config.vocab_size  # of the oracle, the largest
    family, folder = request.model.family.name, ladder.weights.folder
    found = streaming(request.streamed, family, folder, ladder.config, rungs, ladder.weights.size, held)
    if found:
        ladder.reporter.note(f"{request.name}: {found}")
    return found


def _refer(request: Request, ladder: Ladder) -> Golden | tuple[Recorded, Recorded]:
    """What everything is compared to: the recording, or the oracle, with the original beside it."""
    if not request.golden:
        return ladder.original()
    recording = request.golden.replay(request.name, ladder.weights, ladder.inputs)
    recording.check(ladder.inputs, ladder.config.vocab_size, ladder.generate)
    return recording
