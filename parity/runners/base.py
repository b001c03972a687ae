"""What a runner is, and the one loop that drives every runner over the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from parity import isolated
from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import Logits, PromptTrace, Trace


class Prefilled(NamedTuple):
    """Logits ``[T, V]`` at every position of a prompt, and what an encoder made of what goes with it, ``[rows, D]``."""

    logits: Logits
    encoded: Logits | None = None


class Session(Protocol):
    """A loaded model with one key/value cache. ``note`` says where it is from, if not from where one would expect."""

    note: str

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:
        """Start over: what goes with the prompt through the encoder, its tokens at positions 0..T-1.

        ``until`` is how many positions the session will have in the end.
        """

    def decode(self, token: int) -> Logits:
        """One more token through the cache; logits ``[V]``."""

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Several more tokens at once, on the filled cache; logits ``[T, V]``."""


def shortest(cache_lengths: Iterable[int], until: int) -> int:
    """The shortest cache that holds a session of ``until`` positions.

    Raises:
        RungError: none does.
    """
    holding = [length for length in cache_lengths if length >= until]
    if not holding:
        raise RungError(f"a session of {until} positions does not fit a cache of {max(cache_lengths, default=0)}")
    return min(holding)


class Runner(Protocol):
    """A rung's model, not yet loaded. Picklable, so that it can be opened in another process."""

    @property
    def name(self) -> str:
        """The rung's name."""

    @property
    def one_row(self) -> bool:
        """Whether it takes one row only, so that a batch does not apply to it."""

    def open(self) -> AbstractContextManager[Session]:
        """Load the model; it is freed when the context ends."""


@dataclass(frozen=True)
class Recorded:
    """A rung's trace of the inputs it was given, what it cost, and the session's note."""

    inputs: Inputs
    trace: Trace
    seconds: float
    peak_rss_mb: float
    note: str


def record(
    runner: Runner, inputs: Inputs, folder: Path, *, generate: int, on_progress: isolated.Progress | None = None
) -> Recorded:
    """Run ``runner`` over all inputs that it takes, in its own process; the trace goes through a file in ``folder``.

    ``generate`` is how many tokens to generate freely after each prompt.

    Raises:
        RungError, ModelError: the rung could not be run to its end, or takes none of the inputs.
    """
    inputs = inputs.one_row if runner.one_row else inputs
    if not inputs.prompts:
        raise RungError(f"{runner.name} takes one row and all prompts of {inputs.name} are batches; leave the rung out")
    path = folder / f"{runner.name}.safetensors"
    finished = isolated.run(runner.name, partial(_record, runner, inputs, path, generate), on_progress)
    return Recorded(inputs, Trace.load(path), finished.seconds, finished.peak_rss_mb, finished.value)


def _record(runner: Runner, inputs: Inputs, path: Path, generate: int, progress: isolated.Progress) -> str:
    total = sum(1 + bool(p.turn) + p.decoded + generate * p.generates for p in inputs.prompts)
    done = 0
    prompts = {}
    with runner.open() as session:
        for prompt in inputs.prompts:
            for result in _answer(session, prompt, generate):
                done += 1
                progress(done, total)
                prompts[prompt.id] = result
        note = session.note
    Trace(prompts).save(path)
    return note


def _answer(session: Session, prompt: TokenizedPrompt, generate: int) -> Iterator[PromptTrace]:
    """Teacher forcing, then free running. Yields after every call of the model; the last one is complete."""
    until = prompt.until(generate)
    prefill, encoded = session.prefill(prompt, until)
    decoded: list[Logits] = []
    empty = np.empty((0, prefill.shape[-1]), prefill.dtype)
    yield PromptTrace(prefill, empty)
    for token in prompt.continuation:
        decoded.append(session.decode(token))
        yield PromptTrace(prefill, empty)
    if prompt.turn:
        prefill = np.concatenate([prefill, session.extend(prompt.turn)])
        yield PromptTrace(prefill, empty)
    for token in prompt.reply:
        decoded.append(session.decode(token))
        yield PromptTrace(prefill, empty)
    forced = PromptTrace(prefill, np.stack(decoded) if decoded else empty, encoded=encoded)
    yield forced
    if not (generate and prompt.generates):
        return
    ids: list[int] = []
    margins: list[float] = []
    logits = session.prefill(prompt, until).logits[-1]
    while True:
        second, best = np.argpartition(logits, -2)[-2:]
        ids.append(int(best))
        margins.append(float(logits[best] - logits[second]))
        yield replace(forced, generated=tuple(ids), margins=tuple(margins))
        if len(ids) == generate:
            return
        logits = session.decode(ids[-1])
