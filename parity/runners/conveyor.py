"""Many calls through a model of which one stage is loaded at a time.

What costs is to load a stage, so everything that is known goes through it while it is there. A call is a generator: it
gives the name of the stage that it goes through next, is resumed when that is loaded, and comes to its result. There
are no threads, and the order in which calls are resumed depends on nothing but the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from parity import isolated
from parity.inputs import Inputs
from parity.runners.base import Ask, Guide, Prefill, Prefilled, Runner, converse
from parity.trace import PromptTrace, Trace

#: A call on its way: the stages that it goes through, and what it comes to.
Call = Generator[str, None, Prefilled]


@dataclass(frozen=True)
class Asked:
    """The calls that something asked is, in order, and what their results come to."""

    calls: Sequence[Call]
    joined: Callable[[Sequence[Prefilled]], Prefilled]


class Lane(Protocol):
    """One key/value cache, and what is asked of it one after the other."""

    def ask(self, ask: Ask) -> Asked:
        """The calls, not yet begun. Those before them may not have come to anything yet."""

    def close(self) -> None:
        """Nothing more will be asked: what a stage keeps may go when the last call has gone through it."""


class Line(Protocol):
    """A model of which one stage is loaded at a time; otherwise what a session is."""

    note: str
    end_tokens: frozenset[int]

    @property
    def stages(self) -> Sequence[str]:
        """The names of the stages, in the order in which a call goes through those that it does."""

    def loaded(self, stage: str) -> AbstractContextManager[None]:
        """Load a stage; it is freed when the context ends."""

    def lane(self) -> Lane:
        """A new cache."""


class Streamable(Runner, Protocol):
    """A runner whose model can be had one stage at a time."""

    def stream(self) -> AbstractContextManager[Line]:
        """Prepare the model and check all of its weights against it; none is loaded yet."""


def answer(
    runner: Streamable, inputs: Inputs, generate: int, guide: Guide | None, progress: isolated.Progress
) -> tuple[Trace, str]:
    """As ``base.answer``, all prompts together, one stage of the model at a time: the same trace."""
    traces: dict[str, PromptTrace] = {}
    tracks: dict[str, _Track] = {}
    with runner.stream() as line:
        led = {prompt.id: None if guide is None else guide[prompt.id] for prompt in inputs.prompts}
        talks = {
            prompt.id: converse(line.end_tokens, prompt, generate, led[prompt.id], at_once=runner.at_once)
            for prompt in inputs.prompts
        }
        # All that is known goes through at once, and of free generation one token after the other.
        belt = _Belt(line, max(generate, 1) if guide is None else 1, progress)
        asked = {name: next(talk) for name, talk in talks.items()}
        while asked:
            under_way: dict[str, list[_Asked]] = {}
            for name, asks in asked.items():
                under_way[name] = []
                for ask in asks:
                    if isinstance(ask, Prefill):
                        if name in tracks:
                            tracks[name].lane.close()
                        tracks[name] = _Track(line.lane())
                    under_way[name].append(belt.put(tracks[name], ask))
                if guide is not None:
                    tracks[name].lane.close()
            belt.run()
            asked = {}
            for name, answers in under_way.items():
                try:
                    asked[name] = talks[name].send([answer.result for answer in answers])
                except StopIteration as end:
                    traces[name] = end.value
        return Trace({prompt.id: traces[prompt.id] for prompt in inputs.prompts}), line.note


class _Traveller:
    """A call, at the stage with this number; beyond the last one it has come to its result.

    It follows the call ``before`` it on the same cache, and never overtakes it: each stage has seen all earlier tokens.
    """

    def __init__(self, call: Call, before: _Traveller | None, stages: Sequence[str]) -> None:
        self.call = call
        self.before = before
        self.numbers = {stage: number for number, stage in enumerate(stages)}
        self.result: Prefilled
        self.at = -1
        self.go()

    @property
    def free(self) -> bool:
        """Whether it may go through its stage as soon as that is loaded."""
        return self.at < len(self.numbers) and (self.before is None or self.before.at > self.at)

    def go(self) -> None:
        """Go on to the next stage."""
        try:
            self.at = self.numbers[next(self.call)]
        except StopIteration as end:
            self.at = len(self.numbers)
            self.result = end.value
            self.before = None


@dataclass
class _Track:
    """A lane, and the last call that was put on it."""

    lane: Lane
    last: _Traveller | None = None


@dataclass(frozen=True)
class _Asked:
    """Something asked, under way."""

    travellers: Sequence[_Traveller]
    joined: Callable[[Sequence[Prefilled]], Prefilled]

    @property
    def result(self) -> Prefilled:
        """The answer, once all calls have come to their results."""
        return self.joined([traveller.result for traveller in self.travellers])


class _Belt:
    """The stages of a line, and the calls that wait for them. ``passes`` is how often each is expected to be loaded."""

    def __init__(self, line: Line, passes: int, progress: isolated.Progress) -> None:
        self.line = line
        self.stages = line.stages
        self.total = passes * len(self.stages)
        self.loads = 0
        self.progress = progress
        self.waiting: list[_Traveller] = []

    def put(self, track: _Track, ask: Ask) -> _Asked:
        """The calls of something that is asked, behind those that are on the same track."""
        asked = track.lane.ask(ask)
        travellers = []
        for call in asked.calls:
            track.last = _Traveller(call, track.last, self.stages)
            travellers.append(track.last)
        self.waiting += travellers
        return _Asked(travellers, asked.joined)

    def run(self) -> None:
        """Everything that waits to its end.

        The earliest stage comes first, so that those who are behind catch up, and go on together with the others.
        """
        while free := [traveller for traveller in self.waiting if traveller.free]:
            stage = min(traveller.at for traveller in free)
            with self.line.loaded(self.stages[stage]):
                for traveller in self.waiting:  # each before those that follow it
                    while traveller.at == stage and traveller.free:
                        traveller.go()
                        self.progress(min(self.loads, self.total - 1), self.total)
            self.loads += 1
        self.waiting.clear()
        self.progress(min(self.loads, self.total), self.total)
