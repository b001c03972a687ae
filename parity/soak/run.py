"""Running draws: long-lived processes, one a core, and a file that remembers what is finished."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache, partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from models import registry
from models.authoring.end_tokens import end_tokens
from models.authoring.hf_config import HFConfig
from models.errors import ModelError
from parity import isolated
from parity.compare.comparison import Comparison
from parity.compare.floor import FIRST_DRAWS, NoiseFloor, tie
from parity.compare.generation import compare_generation
from parity.compare.limits import EXACT, limits_for, question_of
from parity.compare.roundings import least_floors
from parity.compare.verdict import Edge, Verdict, worst
from parity.convert.float_file import conversion
from parity.convert.quantize import quantization
from parity.convert.recipes import DEFAULT_RECIPE, get_recipe
from parity.convert.stored import Numbers
from parity.errors import ParityError
from parity.files import scratch_folder, write_whole
from parity.inputs import Inputs
from parity.ladder import fit
from parity.runners.base import Guide, answer
from parity.runners.litert import LiteRT
from parity.runners.noise import Draws, measured, read_floor
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.runners.rounded import Rounded
from parity.soak.draws import Draw
from parity.soak.results import Outcome, Results
from parity.trace import Trace
from parity.weights import write_checkpoint

#: Draws that a process takes at a time: many, because it reads the code of every architecture once; not all, so that
#: what its libraries keep stays little. Those with files come alone: a conversion leaves much behind.
BATCH = 64
#: Figures of an edge that are kept.
KEPT = (
    *("floor_ratio", "worst_position_ratio", "rel_l2", "worst_position_rel_l2"),
    *("kl_mean", "kl_p99", "kl_typical", "flips", "top1_agreement_clear", "perplexity_ratio"),
)

#: What OpenMP asks whether waiting threads spin or sleep.
_WAITING = "OMP_WAIT_POLICY"

#: Told of every draw that is finished.
Finished = Callable[[Outcome], None]


def soak(
    draws: Sequence[Draw], results: Results, failures: Path, workers: int, on_finished: Finished = lambda _: None
) -> list[Outcome]:
    """Run those of ``draws`` that ``results`` does not have yet, ``workers`` at a time; all outcomes, by number.

    What is no PASS is kept in ``failures``, a folder each.
    """
    with results.held(), _threads_that_sleep(), ExitStack() as everything:
        return _soak(draws, results, failures, workers, on_finished, everything)


def _soak(
    draws: Sequence[Draw],
    results: Results,
    failures: Path,
    workers: int,
    on_finished: Finished,
    everything: ExitStack,
) -> list[Outcome]:
    """The same, with what must end whatever happens on the stack ``everything``."""
    finished = {outcome.number: outcome for outcome in results.open()}
    seen = results.path.stat().st_size
    waiting = list(_batches([draw for draw in draws if draw.number not in finished]))
    isolated.prepare(converter=any(draw.files for draw in draws))
    running: dict[isolated.Job[None], tuple[list[Draw], ExitStack]] = {}

    def look(*_: int) -> None:
        nonlocal seen
        fresh, seen = results.since(seen)
        for outcome in fresh:
            finished[outcome.number] = outcome
            on_finished(outcome)

    while waiting or running:
        while waiting and len(running) < workers:
            batch, own = waiting.pop(0), everything.enter_context(ExitStack())
            job = own.enter_context(isolated.Job("soaking", partial(_run_all, batch, results, failures)))
            running[job] = (batch, own)
        ready = wait([job.connection for job in running])
        for job in [job for job in running if job.connection in ready]:
            try:
                ended = job.receive(look) is not None
            except (ParityError, ModelError) as error:
                ended = True
                look()
                # It died over the first draw that it left; the others are for another process.
                lost, *others = [draw for draw in running[job][0] if draw.number not in finished]
                results.append(_outcome(lost, 0.0, cause=str(error)))
                waiting += [others] if others else []
            if ended:
                look()
                running.pop(job)[1].close()
    return sorted(finished.values(), key=lambda outcome: outcome.number)


@contextmanager
def _threads_that_sleep() -> Iterator[None]:
    """What processes inherit, so that threads waiting for each other do not keep the cores from other draws.

    With more draws than cores under way, one on two threads takes a tenth of the time. Libraries that are loaded do not
    read it any more.
    """
    before = os.environ.get(_WAITING)
    os.environ[_WAITING] = "passive"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WAITING]
        else:
            os.environ[_WAITING] = before


def _batches(draws: Sequence[Draw]) -> Iterator[list[Draw]]:
    plain: list[Draw] = []
    for draw in draws:
        if draw.files:
            yield [draw]
            continue
        plain.append(draw)
        if len(plain) == BATCH:
            yield plain
            plain = []
    if plain:
        yield plain


def _run_all(draws: Sequence[Draw], results: Results, failures: Path, progress: isolated.Progress) -> None:
    for done, draw in enumerate(draws, start=1):
        results.append(run_draw(draw, failures))
        progress(done, len(draws))


def run_draw(draw: Draw, failures: Path) -> Outcome:
    """One draw in this process: every rung on the same weights and prompts, judged as a check judges them."""
    began = time.perf_counter()
    with scratch_folder() as scratch:
        folder = scratch / "checkpoint"
        folder.mkdir()
        try:
            found = _ladder(draw, folder, scratch)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is no PASS, and the next draw goes on)
            found = {"cause": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        outcome = _outcome(draw, time.perf_counter() - began, **found)
        if outcome.verdict != Verdict.PASS:
            _keep(outcome, draw, folder, failures)
    return outcome


def _outcome(
    draw: Draw, seconds: float, *, edges: Sequence[Edge] = (), cause: str | None = None, **found: Any
) -> Outcome:
    causes = [f"{edge.candidate}, {edge.output}: {edge.cause}" for edge in edges if edge.cause]
    return Outcome(
        number=draw.number,
        preset=draw.preset,
        family=registry.get(draw.preset).family.name,
        verdict=worst(edge.verdict for edge in edges),
        seconds=round(seconds, 3),
        files=draw.files,
        edges=tuple(
            {
                "candidate": edge.candidate,
                "question": edge.question,
                "output": edge.output,
                "verdict": edge.verdict,
                **{name: edge.metrics[name] for name in KEPT if name in edge.metrics},
            }
            for edge in edges
        ),
        cause="; ".join(filter(None, [cause, *causes])) or None,
        **found,
    )


def _ladder(draw: Draw, folder: Path, scratch: Path) -> dict[str, Any]:
    """Every rung of the draw, and what of it is kept."""
    model = draw.model
    write_checkpoint(folder, model, _silent, tiny=True)
    config = model.family.config_from(HFConfig.load(folder))
    inputs = draw.inputs(folder, config)
    exports = fit(config, inputs, (), None, draw.generate)
    threads: dict[str, int] = {}

    def run(runner: Original | Reauthored | LiteRT, guide: Guide | None, generate: int = draw.generate) -> Trace:
        threads[runner.name] = draw.threads(runner.name)
        runner = replace(runner, threads=threads[runner.name])
        trace, _ = answer(runner, draw.shuffled(inputs, runner.name), generate, guide, _silent)
        trace.check(inputs, config.vocab_size, runner.name, generate, guide)
        return trace

    def floor(noisy: Reauthored, exact: Path, rounds: int) -> NoiseFloor:
        path = scratch / "noise.safetensors"
        measured(answer, noisy, inputs, Draws(0, FIRST_DRAWS * 2**rounds), exact, path, _silent)
        return read_floor(path, inputs, least_floors(config))

    oracle, ends = run(Original(folder, "float64"), None), end_tokens(folder)
    lengths = tuple(export.cache_length for export in exports)
    ours = Reauthored(model.family.name, folder, lengths, end_tokens=ends)
    exact = scratch / "exact.safetensors"
    port = run(replace(ours, name=EXACT, precision="float64"), None, 0)
    port.save(exact)
    floors = cache(partial(floor, replace(ours, noisy=True, at_once=True), exact))
    edges: list[Edge] = []

    def judge(name: str, trace: Trace) -> None:
        question = question_of(name)
        comparison = Comparison(
            reference="original64",
            candidate=name,
            question=question,
            expected=oracle,
            trace=trace,
            inputs=inputs,
            given=inputs,
            generation=None if name == EXACT else compare_generation(name, oracle, trace, partial(tie, floors(0))),
        )
        scaled = (lambda rounds: floors(rounds).in_float64) if name == EXACT else floors
        limits = limits_for(question)
        edges.extend(comparison.drawn(lambda _: limits, scaled))

    guide = oracle.said
    judge(EXACT, port)
    judge("original", run(Original(folder), guide))
    judge("reauthored", run(ours, guide))
    if draw.files:
        made = [
            conversion(model.family.name, folder, export, scratch / f"float_{export.cache_length}.tflite")(_silent)
            for export in exports
        ]
        judge("float", run(LiteRT("float", tuple(file.path for file in made), config, 1, ends), guide))
        recipe, quantized, stored = get_recipe(DEFAULT_RECIPE), [], []
        for file in made:
            quantized.append(file.path.with_name(f"quantized_{file.export.cache_length}.tflite"))
            stored += quantization(file.path, file.names, recipe, quantized[-1])(_silent)
        trace = run(LiteRT(recipe.name, tuple(quantized), config, 1, ends), guide)
        rounded = Rounded(
            model.family.name,
            folder,
            lengths,
            at_once=True,
            stored=tuple(stored),
            numbers=Numbers(quantized[0], made[0].path, made[0].names),
        )
        edges += _faithful(recipe.name, trace, rounded, inputs, run, floor, scratch)
    return {
        "edges": edges,
        "prompts": len(inputs.prompts),
        "positions": inputs.positions,
        "threads": threads,
        "dimensions": draw.dimensions,
    }


def _faithful(
    name: str,
    trace: Trace,
    rounded: Rounded,
    inputs: Inputs,
    run: Callable[[Reauthored, None, int], Trace],
    floor: Callable[[Reauthored, Path, int], NoiseFloor],
    scratch: Path,
) -> list[Edge]:
    """A quantized file against PyTorch with its numbers. What a recipe costs weights that were drawn says nothing."""
    expected = run(replace(rounded, name=f"{name} in PyTorch", precision="float64"), None, 0)
    exact = scratch / "rounded.safetensors"
    expected.save(exact)

    def floors(rounds: int) -> NoiseFloor:
        drawn = floor(replace(rounded, noisy=True), exact, rounds)
        dithered = floor(replace(rounded, noisy=True, dither=True), exact, 0) if rounds else None
        return replace(drawn, discrete=True, dithered=dithered)

    comparison = Comparison(
        reference=f"{name} in PyTorch",
        candidate=name,
        question="fidelity",
        expected=expected,
        trace=trace,
        inputs=inputs,
        given=inputs,
    )
    limits = limits_for("fidelity")
    return comparison.drawn(lambda _: limits, floors)


def _keep(outcome: Outcome, draw: Draw, folder: Path, failures: Path) -> None:
    """The checkpoint, the outcome with the command that runs it again, and the prompts."""
    kept = failures / draw.name
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    facts: dict[str, Any] = {"command": draw.command, **asdict(outcome)}
    with suppress(ParityError, ModelError, OSError, ValueError):  # the cause of the failure may be just this
        config = draw.model.family.config_from(HFConfig.load(folder))
        prompts = draw.inputs(folder, config).prompts
        facts["ids"] = {each.id: {"prompt": each.prompt, "continuation": each.continuation} for each in prompts}
    write_whole(kept / "draw.json", json.dumps(facts, indent=1) + "\n")


def _silent(_done: int, _total: int) -> None:
    """Nobody is told: a draw is the unit of progress."""
