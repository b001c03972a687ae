"""What a model costs on this machine: to convert, to quantize, and to run on every rung.

Each figure is of a process of its own and the median of several rounds. A round does everything once, so that what
disturbs the machine for a while disturbs all rungs alike, and ratios between them hold.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

from models.authoring.hf_config import HFConfig
from parity import environment, isolated
from parity.convert.float_file import Export, convert
from parity.convert.quantize import quantize
from parity.files import scratch_folder
from parity.inputs import Inputs, TokenizedPrompt
from parity.ladder import Ladder
from parity.pipeline import Request, prepared
from parity.progress import Reporter
from parity.runners.base import Runner
from parity.runners.litert import LiteRT
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.weights.published import published

SCHEMA_VERSION = 1
#: Length of the prompt, unless told otherwise; pictures and sounds make their own.
PROMPT_TOKENS = 128
#: Tokens decoded after it.
DECODED = 32
#: The rung that ``--plain`` adds: the file that the converter makes by itself.
PLAIN = "plain"
#: A prompt is taken at least so often, and for so many seconds if it is short.
PREFILLS, LEAST_SECONDS = 3, 1.0


@dataclass(frozen=True)
class Run:
    """One process that ran a rung: seconds from nothing to the first decoded token, for a prompt and for a token."""

    first: float
    prefill: float
    decode: float
    peak_rss_mb: float = 0.0


@dataclass(frozen=True)
class Making:
    """How long a file took, how much memory at most, and how large it is in bytes."""

    seconds: float
    peak_rss_mb: float
    bytes: int


Figures = TypeVar("Figures", Run, Making)


@dataclass
class Cost:
    """What was measured of one rung, round by round; for rungs of PyTorch nothing is made."""

    rung: str
    runs: list[Run] = field(default_factory=list)
    made: list[Making] = field(default_factory=list)

    @property
    def run(self) -> Run:
        """The medians."""
        return _medians(self.runs)

    @property
    def making(self) -> Making | None:
        """The medians, if anything was made."""
        return _medians(self.made) if self.made else None


def _medians(rounds: Sequence[Figures]) -> Figures:
    kind = type(rounds[0])
    return kind(**{each.name: statistics.median(getattr(one, each.name) for one in rounds) for each in fields(kind)})


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything measured of one model; ``prompt`` counts positions, ``decoded`` tokens."""

    model: str
    weights: str
    parameters_bytes: int
    prompt: int
    decoded: int
    threads: int
    costs: Sequence[Cost]
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All rounds, and their medians."""
        rungs = [
            {
                "name": cost.rung,
                **({"made": [vars(made) for made in cost.made]} if cost.made else {}),
                "runs": [vars(run) for run in cost.runs],
                "first_seconds": cost.run.first,
                "prefill_rate": self.prompt / cost.run.prefill,
                "decode_rate": 1 / cost.run.decode,
                "peak_rss_mb": cost.run.peak_rss_mb,
            }
            for cost in self.costs
        ]
        about = {name: getattr(self, name) for name in ("model", "weights", "prompt", "decoded", "threads")}
        return {"schema_version": SCHEMA_VERSION, **about, "rungs": rungs, "environment": self.environment}


def bench(request: Request, reporter: Reporter, *, rounds: int, plain: bool) -> Bench:
    """Make the files of a request and run its rungs, ``rounds`` times over.

    Raises:
        UsageError, UnknownModelError: the request itself cannot be carried out.
        ParityError, ModelError: a rung could not be run to its end.
    """
    request = _with_a_prefill(request)
    with scratch_folder() as scratch:
        ladder = prepared(request, DECODED, scratch, reporter, partial(_one_prompt, request.prefill_lengths))
        measured = _Bench(ladder, plain, request.rungs)
        for number in range(rounds):
            reporter.note(f"round {number + 1} of {rounds}")
            measured.round()
    return Bench(
        model=request.name,
        weights=request.weights,
        parameters_bytes=ladder.weights.size,
        prompt=measured.positions,
        decoded=DECODED,
        threads=measured.threads,
        costs=list(measured.costs.values()),
        environment=environment.describe(),
    )


def _with_a_prefill(request: Request) -> Request:
    """The request with the length of its prompt, where that is for us to choose."""
    if request.prefill_lengths or request.model.encodes:
        return request
    values = request.model.preset.values(tiny=request.weights == "tiny")
    known = request.model.family.config_from(HFConfig(values, request.name)).max_positions
    return replace(request, prefill_lengths=(min(PROMPT_TOKENS, known - DECODED),))


def _one_prompt(prefill_lengths: Sequence[int], inputs: Inputs) -> Inputs:
    """The longest prompt; one of words alone is repeated until it fills the longest prefill."""
    prompt = max(inputs.prompts, key=lambda each: (each.encoded_rows, len(each.prompt)))
    if prefill_lengths and not prompt.media:
        prompt = replace(prompt, prompt=tuple(islice(cycle(prompt.prompt), max(prefill_lengths))))
    return replace(inputs, prompts=(replace(prompt, id="bench", continuation=()).alone,))


class _Bench:
    """The rungs of a ladder, run one after the other as often as asked."""

    def __init__(self, ladder: Ladder, plain: bool, rungs: Sequence[str]) -> None:
        self.ladder = ladder
        self.plain = plain
        self.original = not rungs or "original" in rungs
        self.threads = environment.threads()
        (self.prompt,) = ladder.inputs.prompts
        (self.export,) = ladder.exports
        self.positions = max(len(self.prompt.prompt), self.prompt.encoded_rows)
        self.costs: dict[str, Cost] = {}

    def round(self) -> None:
        """Everything once."""
        ladder, plan = self.ladder, self.ladder.plan
        family, folder = ladder.model.family.name, ladder.weights.folder
        if self.original:
            with published(family, folder, ladder.scratch, ladder.reporter) as original:
                self._run(Original(original, "float32", self.threads, ladder.remote_code))
        if plan.reauthored:
            lengths = (self.export.cache_length,)
            self._run(Reauthored(family, folder, lengths, self.threads, ladder.end_tokens))
        if not plan.files:
            return
        if self.plain:
            self._run_file(PLAIN, self._convert(PLAIN, replace(self.export, plain=True))[0])
        path, names = self._convert("float", self.export)
        if plan.float_file:
            self._run_file("float", path)
        for recipe in plan.recipes:
            quantized = path.with_name("quantized.tflite")
            with ladder.reporter.step(f"{recipe.name}: quantizing") as progress:
                made = quantize(path, names, recipe, quantized, progress)
            self._note(recipe.name, made, quantized)
            self._run_file(recipe.name, quantized)

    def _convert(self, name: str, export: Export) -> tuple[Path, Sequence[str]]:
        """Make a float file, in the place of the one before."""
        ladder = self.ladder
        path = ladder.scratch / "float.tflite"
        with ladder.reporter.step(f"{name}: converting") as progress:
            made = convert(ladder.model.family.name, ladder.weights.folder, export, path, progress)
        self._note(name, made, path)
        return path, made.value.names

    def _note(self, name: str, made: isolated.Finished[Any], path: Path) -> None:
        self._cost(name).made.append(Making(made.seconds, made.peak_rss_mb, path.stat().st_size))

    def _run_file(self, name: str, path: Path) -> None:
        self._run(LiteRT(name, (path,), self.ladder.config, self.threads, self.ladder.end_tokens))

    def _run(self, runner: Runner) -> None:
        with self.ladder.reporter.step(f"{runner.name}: running") as progress:
            done = isolated.run(runner.name, partial(_measure, runner, self.prompt), progress)
        self._cost(runner.name).runs.append(replace(done.value, peak_rss_mb=done.peak_rss_mb))

    def _cost(self, name: str) -> Cost:
        return self.costs.setdefault(name, Cost(name))


def _measure(runner: Runner, prompt: TokenizedPrompt, progress: isolated.Progress) -> Run:
    """A job: a prompt taken again and again, then tokens after it, on a session that has warmed up."""
    began = time.perf_counter()
    with runner.open() as session:
        until = prompt.until(DECODED)
        tokens = list(islice(cycle(prompt.prompt), DECODED))
        session.prefill(prompt, until)
        session.decode(tokens[0])
        first = time.perf_counter() - began
        prefills: list[float] = []
        while len(prefills) < PREFILLS or sum(prefills) < LEAST_SECONDS:
            progress(len(prefills), 0)
            prefills.append(_seconds(partial(session.prefill, prompt, until)))
        decodes = [_seconds(partial(session.decode, token)) for token in tokens]
    return Run(first, statistics.median(prefills), statistics.median(decodes))


def _seconds(call: partial[Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
