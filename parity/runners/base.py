"""What a runner is, and the one loop that drives every runner over the inputs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from parity import isolated
from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import BEST, Logits, PromptTrace, Steps, Trace

#: For each prompt, the tokens that generation goes on with, whatever a rung itself would choose.
Guide = Mapping[str, Sequence[int]]

#: Seconds that a rung may take for loading, and for each call of its model. Seven billion weights take minutes to load
#: from a slow disk, and minutes for a prefill in float64; a runtime that loops in a damaged file takes forever.
PATIENCE = 1800.0


class Prefilled(NamedTuple):
    """Logits ``[T, V]`` at every position of a prompt, and what an encoder made of what goes with it, ``[rows, D]``."""

    logits: Logits
    encoded: Logits | None = None


class Session(Protocol):
    """A loaded model with one key/value cache. ``note`` says where it is from, if not from where one would expect.

    ``end_tokens`` are those that it takes for the end of a text.
    """

    note: str
    end_tokens: frozenset[int]

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:
        """Start over: what goes with the prompt through the encoder, its tokens at positions 0..T-1.

        ``until`` is how many positions the session will have in the end.
        """

    def decode(self, token: int) -> Logits:
        """One more token through the cache; logits ``[V]``."""

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Several more tokens at once, on the filled cache; logits ``[T, V]``."""


class Prefill(NamedTuple):
    """Asks a session to start over. ``last`` keeps the logits of the last position only, which is all that is needed
    to go on."""

    prompt: TokenizedPrompt
    until: int
    last: bool = False

    def of(self, session: Session) -> Prefilled:
        """The answer of a session."""
        logits, encoded = session.prefill(self.prompt, self.until)
        return Prefilled(logits[-1:].copy() if self.last else logits, encoded)


class Decode(NamedTuple):
    """Asks a session for one more token."""

    token: int

    def of(self, session: Session) -> Prefilled:
        """The answer of a session."""
        return Prefilled(session.decode(self.token)[None])


class Extend(NamedTuple):
    """Asks a session for several more tokens."""

    tokens: Sequence[int]

    def of(self, session: Session) -> Prefilled:
        """The answer of a session."""
        return Prefilled(session.extend(self.tokens))


#: What a session is asked, one call at a time.
Ask = Prefill | Decode | Extend
#: Gives what can be asked without another answer, in order; is sent the answers; comes to a trace.
Conversation = Generator[Sequence[Ask], Sequence[Prefilled], PromptTrace]


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

    @property
    def at_once(self) -> bool:
        """Whether a continuation that is known goes through its cache in one call instead of token by token.

        That costs a fraction, and is for a model whose numbers nobody rounds differently for it.
        """

    def open(self) -> AbstractContextManager[Session]:
        """Load the model; it is freed when the context ends."""


@dataclass(frozen=True)
class Recorded:
    """A rung's trace of the inputs it was given, what it cost, and the session's note.

    One that is ``cached`` is of an earlier run, and so is what it cost.
    """

    inputs: Inputs
    trace: Trace
    seconds: float
    peak_rss_mb: float
    note: str
    cached: bool = False


#: Runs a runner over all inputs; gives its trace and its session's note.
Answering = Callable[[Any, Inputs, int, "Guide | None", isolated.Progress], tuple[Trace, str]]


def record(
    runner: Runner,
    inputs: Inputs,
    folder: Path,
    *,
    generate: int,
    guide: Guide | None = None,
    on_progress: isolated.Progress | None = None,
    patience: float = PATIENCE,
    answering: Answering | None = None,
) -> Recorded:
    """Run ``runner`` over all inputs that it takes, in its own process; the trace goes through a file in ``folder``.

    ``generate`` is how many tokens to generate freely after each prompt, at most: the text may end before. With a
    ``guide`` nothing is generated freely: the rung says what it would choose at every step of it. ``patience`` is how
    many seconds it may show no progress. ``answering`` is another way to run it than prompt by prompt.

    Raises:
        RungError, ModelError: the rung could not be run to its end, or takes none of the inputs.
    """
    inputs = inputs.one_row if runner.one_row else inputs
    if not inputs.prompts:
        raise RungError(f"{runner.name} takes one row and all prompts of {inputs.name} are batches; leave the rung out")
    path = folder / f"{runner.name}.safetensors"
    job = partial(_record, answering or answer, runner, inputs, path, generate, guide)
    finished = isolated.run(runner.name, job, on_progress, patience)
    return Recorded(inputs, Trace.load(path), finished.seconds, finished.peak_rss_mb, finished.value)


def _record(
    answering: Answering,
    runner: Runner,
    inputs: Inputs,
    path: Path,
    generate: int,
    guide: Guide | None,
    progress: isolated.Progress,
) -> str:
    trace, note = answering(runner, inputs, generate, guide, progress)
    trace.save(path)
    return note


def answer(
    runner: Runner, inputs: Inputs, generate: int, guide: Guide | None, progress: isolated.Progress
) -> tuple[Trace, str]:
    """Run ``runner`` over all inputs in this very process, prompt by prompt: its trace and the session's note."""
    with runner.open() as session:
        traces = answer_each(session, inputs.prompts, generate, guide, progress, at_once=runner.at_once)
        return Trace(traces), session.note


def answer_each(
    session: Session,
    prompts: Sequence[TokenizedPrompt],
    generate: int,
    guide: Guide | None,
    progress: isolated.Progress,
    *,
    at_once: bool,
) -> dict[str, PromptTrace]:
    """What a session answers to each of the prompts, by id."""
    total, done = sum(calls(prompt, generate, guide, at_once=at_once) for prompt in prompts), 0

    def answered() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    traces = {}
    for prompt in prompts:
        led = None if guide is None else guide[prompt.id]
        conversation = converse(session.end_tokens, prompt, generate, led, at_once=at_once)
        traces[prompt.id] = hold(conversation, session, answered)
    return traces


def calls(prompt: TokenizedPrompt, generate: int, guide: Guide | None, *, at_once: bool) -> int:
    """About how many calls of a model a prompt takes; fewer where what is generated freely ends before."""
    steps = generate * prompt.generates if guide is None else len(guide[prompt.id])
    known = sum(len(_following(tokens, at_once=at_once)) for tokens in (prompt.continuation, prompt.reply))
    return 1 + bool(prompt.turn) + known + steps


def hold(conversation: Conversation, session: Session, answered: Callable[[], None] = lambda: None) -> PromptTrace:
    """Ask a session one thing after the other, to the end of a conversation."""
    asks = next(conversation)
    while True:
        answers = []
        for ask in asks:
            answers.append(ask.of(session))
            answered()
        try:
            asks = conversation.send(answers)
        except StopIteration as end:
            trace: PromptTrace = end.value
            return trace


def converse(
    end_tokens: frozenset[int],
    prompt: TokenizedPrompt,
    generate: int,
    guide: Sequence[int] | None,
    *,
    at_once: bool = False,
) -> Conversation:
    """Teacher forcing, then greedy generation.

    Everything that is known is asked at once; of free generation only the first step is.
    """
    # Not of the guide's length: frequencies may depend on how long a session gets, and must not on what was said.
    until = prompt.until(generate)
    steps = generate * prompt.generates if guide is None else len(guide)
    began: list[Ask] = [Prefill(prompt, until)]
    turned: list[Ask] = [Extend(prompt.turn)] if prompt.turn else []
    continued, replied = (_following(tokens, at_once=at_once) for tokens in (prompt.continuation, prompt.reply))
    forced = [*began, *continued, *turned, *replied]
    led: list[Ask] = [Prefill(prompt, until, last=True), *map(Decode, (guide or ())[:-1])] if steps else []
    answers = yield [*forced, *led]
    known = answers[len(forced) :]
    decoded = [False] * len(began) + [True] * len(continued) + [False] * len(turned) + [True] * len(replied)
    trace = _forced(answers, decoded)
    taken: list[Steps] = []
    for number in range(steps):
        if number >= len(known):
            known = [*known, *(yield [Decode(taken[-1].chosen[0])])]
        where = f"generated token {number} of prompt {prompt.id}"
        taken.append(_choose(known[number].logits[0], end_tokens, where))
        if guide is None and taken[-1].ends[0]:
            break
    return replace(trace, steps=_joined(taken)) if taken else trace


def _following(tokens: Sequence[int], *, at_once: bool) -> list[Ask]:
    """Asks for the tokens of a continuation."""
    return [Extend(tokens)] if at_once and tokens else [*map(Decode, tokens)]


def _forced(answers: Sequence[Prefilled], decoded: Sequence[bool]) -> PromptTrace:
    """What teacher forcing has made, each answer of it ``decoded`` or prefilled."""
    forced = [(answer.logits, kind) for answer, kind in zip(answers, decoded, strict=False)]
    prefills, decodes = ([logits for logits, kind in forced if kind is wanted] for wanted in (False, True))
    empty = np.empty((0, prefills[0].shape[-1]), prefills[0].dtype)
    return PromptTrace(
        np.concatenate(prefills), np.concatenate(decodes) if decodes else empty, encoded=answers[0].encoded
    )


def _choose(logits: Logits, end_tokens: frozenset[int], where: str) -> Steps:
    """One step: the best tokens of ``logits`` ``[V]``; of equal ones, the first is better."""
    if not np.isfinite(logits).all():
        raise RungError(f"NaN or infinity in the logits of {where}")
    count = min(BEST, len(logits))
    best = np.argpartition(-logits, count - 1)[:count]
    best = best[np.lexsort((best, -logits[best]))]
    margins = logits[best[0]] - logits[best]
    ends = [int(best[0]) in end_tokens]
    return Steps(best[None].astype(np.int32), margins[None].astype(np.float32), np.asarray(ends))


def _joined(steps: Sequence[Steps]) -> Steps:
    """Steps that follow each other as one."""
    return Steps(
        ids=np.concatenate([step.ids for step in steps]),
        margins=np.concatenate([step.margins for step in steps]),
        ends=np.concatenate([step.ends for step in steps]),
    )
