"""Look for false alarms on real text and trained weights, and write docs/false_alarms.md.

    python benchmarks/false_alarms.py [--prompts 1000] [--workers 2]
    python benchmarks/false_alarms.py --page
    python benchmarks/false_alarms.py --number 17

Every prompt is a set of its own: three rungs are judged on it alone, as ``parity check`` judges them. What is found is
kept in benchmarks/results/false_alarms.jsonl, so a run goes on where one was ended. ``--page`` only writes the page,
``--number`` runs one prompt and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import alarms_page
from inprocess import Bench, begin, described, figures_of, in_memory
from lines import FOLDER, Lines, read
from page import say
from texts import KINDS, Drawn, Texts

from models import registry
from models.errors import ModelError
from parity import environment, isolated
from parity.convert.float_file import Export
from parity.errors import ParityError
from parity.files import scratch_folder, sha256_of
from parity.inputs import Inputs, tokenizer_files
from parity.weights import resolve

MODEL, WEIGHTS, RECIPE = "smollm2-135m", "sample", "dynamic_int8"
SEED = 0
EXPORT = Export(prefill_lengths=(16,), cache_length=576)
#: Slots that hold all but the long texts.
SHORT_CACHE = 64
RESULTS = FOLDER / "false_alarms.jsonl"
#: The rungs and what is asked of each.
RUNGS = {"reauthored64": "port", "float": "rounding", RECIPE: "fidelity"}
#: Prompts of a window that have the same length go through PyTorch together, as many positions at a time at most.
WINDOW, ROOM = 100, 320
#: Prompts between two lines of progress.
OFTEN = 10


class Alarms:
    """The rungs, loaded once; files are opened by whoever runs them."""

    def __init__(self, scratch: Path) -> None:
        from transformers import AutoTokenizer

        model = registry.get(MODEL)
        weights = resolve(model, WEIGHTS)
        self.header = {
            "model": MODEL,
            "seed": SEED,
            **described(weights),
            "tokenizer": sha256_of(tokenizer_files(weights.folder)),
            "export": [EXPORT.prefill_lengths, EXPORT.cache_length],
            "kinds": KINDS,
            "environment": environment.describe(),
        }
        tokenizer = AutoTokenizer.from_pretrained(weights.folder, local_files_only=True)
        self.bench = Bench(model, weights, _inputs(), EXPORT, scratch, shorter=(SHORT_CACHE,))
        self.texts = Texts(
            lambda text: tokenizer(text, add_special_tokens=False).input_ids, self.bench.config.vocab_size, SEED
        )

    def load(self) -> None:
        """Everything that processes share."""
        bench = self.bench
        self.quantized = bench.quantized(RECIPE)
        _ = (bench.oracle, bench.exact, bench.noisy)
        for how in ({"precision": "float64"}, {"noisy": True}):  # dithered draws are rarely wanted
            bench.rounded(self.quantized, **how)

    def open_files(self) -> None:
        """The interpreters, which do not survive a fork."""
        self.files = {
            "float": self.bench.file("float", self.bench.float_file.path),
            RECIPE: self.bench.file(RECIPE, self.quantized.path),
        }

    def run(self, together: Sequence[Drawn]) -> list[dict[str, Any]]:
        """Every rung on some prompts, each judged by itself; those of one length cost least."""
        self.bench.given(_inputs(*together))
        shared = [self._spent(self.prepare)[1] / len(together)] * len(together)
        found = []
        for drawn, seconds in zip(together, shared, strict=True):
            rungs, own = self._spent(partial(self._rungs, drawn))
            line = {
                "number": int(drawn.prompt.id[:4]),
                "kind": drawn.kind,
                "source": drawn.source,
                "positions": drawn.prompt.positions,
                "rungs": rungs,
                "seconds": round(seconds + own, 2),
            }
            if _failed(line):
                line |= {"prompt": drawn.prompt.prompt, "continuation": drawn.prompt.continuation}
            found.append(line)
        return found

    def prepare(self) -> None:
        """What PyTorch gives for all of them, the first draws among it."""
        bench = self.bench
        for kept in (bench.oracle, bench.exact):
            bench.trace(kept)
        bench.floor(bench.inputs)
        bench.floor_of(self.quantized, bench.inputs)

    def _spent(self, do: Callable[[], Any]) -> tuple[Any, float]:
        began = time.perf_counter()
        return do(), time.perf_counter() - began

    def _rungs(self, drawn: Drawn) -> dict[str, Any]:
        rungs: dict[str, Any] = {}
        for rung in RUNGS:
            try:
                rungs[rung] = self._judged(rung, _inputs(drawn))
            except (ParityError, ModelError, ValueError) as error:  # nothing could be concluded: an alarm as well
                rungs[rung] = {"verdict": "ERROR", "cause": str(error)}
        return rungs

    def _judged(self, rung: str, of: Inputs) -> dict[str, Any]:
        bench = self.bench
        if rung == "reauthored64":
            return figures_of(bench.judged("port", bench.trace(bench.exact), of=of))
        trace = self.files[rung].answer(of)
        if rung == "float":
            return figures_of(bench.judged("rounding", trace, of=of))
        return figures_of(bench.judged("fidelity", trace, self.quantized, of))


def batches(drawn: Sequence[Drawn]) -> list[list[Drawn]]:
    """Prompts of the same length, at most ``ROOM`` positions of them, in the order of the first of each."""
    found: list[list[Drawn]] = []
    for each in drawn:
        length = each.prompt.positions
        room = (batch for batch in found if batch[0].prompt.positions == length and (len(batch) + 1) * length <= ROOM)
        if batch := next(room, None):
            batch.append(each)
        else:
            found.append([each])
    return found


def _inputs(*drawn: Drawn) -> Inputs:
    return Inputs("real text", "benchmarks/texts.py", "", "", tuple(each.prompt for each in drawn))


def _work(alarms: Alarms, results: Lines, numbers: Sequence[int], progress: isolated.Progress) -> None:
    """One of the processes."""
    alarms.open_files()
    done = 0
    for start in range(0, len(numbers), WINDOW):
        for batch in batches([alarms.texts.draw(number) for number in numbers[start : start + WINDOW]]):
            for line in alarms.run(batch):
                results.append(line)
                done += 1
                progress(done, len(numbers))


def look(prompts: int, workers: int) -> None:
    """Run what is missing of so many prompts."""
    begin()
    with scratch_folder(in_memory()) as scratch, ExitStack() as stack:
        alarms = Alarms(scratch)
        results = Lines(RESULTS, alarms.header)
        done = {line["number"] for line in results.open()}
        missing = [number for number in range(prompts) if number not in done]
        if not missing:
            return
        say(f"{len(missing)} of {prompts} prompts to go; loading")
        alarms.load()
        parts = [part for first in range(workers) if (part := missing[first::workers])]
        jobs = [
            stack.enter_context(isolated.fork(f"part {number}", partial(_work, alarms, results, part)))
            for number, part in enumerate(parts, start=1)
        ]
        try:
            _wait(jobs, partial(_tell, results, prompts))
        except KeyboardInterrupt:
            say("ended; the same command goes on")


def _wait(jobs: Sequence[isolated.Job[None]], tell: Callable[[], None]) -> None:
    """Until all are done; every word of theirs is told of."""
    running = list(jobs)
    while running:
        for job in wait([job.connection for job in running]):
            (said,) = (each for each in running if each.connection is job)
            if said.receive():
                running.remove(said)
            else:
                tell()


def _tell(results: Lines, wanted: int) -> None:
    """Progress now and then, and every alarm."""
    _, lines = read(results.path)
    last = lines[-1]
    if failed := _failed(last):
        say(f"prompt {last['number']}, {last['kind']}: {failed}")
    if len(lines) % OFTEN == 0:
        say(f"{len(lines)} of {wanted}, the last one {last['seconds']:.1f} s")


def _failed(line: Mapping[str, Any]) -> dict[str, str]:
    """What the rungs that do not pass say, of one prompt."""
    return {name: str(each["cause"]) for name, each in line["rungs"].items() if each["verdict"] != "PASS"}


def show(number: int) -> None:
    """Run one prompt again and print what is found."""
    begin()
    with scratch_folder(in_memory()) as scratch:
        alarms = Alarms(scratch)
        alarms.load()
        alarms.open_files()
        sys.stdout.write(json.dumps(alarms.run([alarms.texts.draw(number)]), indent=1) + "\n")


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=sum(KINDS.values()))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--number", type=int)
    asked = parser.parse_args()
    if asked.number is not None:
        show(asked.number)
        return
    if not asked.page:
        look(asked.prompts, asked.workers)
    alarms_page.write(*read(RESULTS))


if __name__ == "__main__":
    main()
