"""This project's models and files with one stage at a time, driven as everywhere else.

The driver says which calls there are and what each is given. It need not wait for one to make the next, because all
that a call leaves for those after it is the cache, and of that a stage keeps its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.authoring.config import ModelConfig
from models.authoring.session import EncoderCall
from parity.runners.base import Ask, Decode, Extend, Prefill, Prefilled
from parity.runners.conveyor import Asked, Call
from parity.runners.driver import Chunk, DrivenSession, Tensor, taken
from parity.runners.stages import Stages, Step


class Source(Protocol):
    """What loads a stage."""

    @property
    def stages(self) -> Sequence[str]:
        """The names of all stages, in order."""

    def loaded(self, stage: str) -> AbstractContextManager[None]:
        """Load one; it is freed when the context ends."""


class DrivenLine:
    """Stages over each cache length, of which ``source`` loads one at a time."""

    note = ""

    def __init__(
        self, config: ModelConfig, source: Source, programs: Sequence[Stages], end_tokens: frozenset[int]
    ) -> None:
        self.config = config
        self.source = source
        self.programs = programs
        self.end_tokens = end_tokens

    @property
    def stages(self) -> Sequence[str]:
        return self.source.stages

    def loaded(self, stage: str) -> AbstractContextManager[None]:
        return self.source.loaded(stage)

    def lane(self) -> DrivenLane:
        return DrivenLane(self)


class Planned:
    """Stages as a program that is only asked what it would take. Its caches are nothing until a stage needs them."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.cache_length = stages.cache_length
        self._cache = stages.empty_cache()
        self.cache_names = self._cache.keys()

    def empty_cache(self, rows: int) -> dict[str, Tensor]:
        return {
            name: np.broadcast_to(np.zeros((), cache.dtype), (rows, *cache.shape[1:]))
            for name, cache in self._cache.items()
        }

    def prefill_lengths(self, entry: str) -> Sequence[int] | None:
        return self.stages.prefill_lengths(entry)

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int] | None]:
        return self.stages.shapes(entry, length)

    def call(self, entry: str, length: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError(f"{entry} is called stage by stage")


class DrivenLane:
    """A session that plans its calls without running them, and what they have put into its cache so far."""

    def __init__(self, line: DrivenLine) -> None:
        self.session = DrivenSession(line.config, [Planned(stages) for stages in line.programs], line.end_tokens)
        self.encoded: list[Tensor] = []
        self.calls = 0
        self.closed = False

    def ask(self, ask: Ask) -> Asked:
        match ask:
            case Prefill():
                self.session.begin(ask.prompt, ask.until)
                encoders = [self._encoding(call) for call in self.session.given.calls]
                chunks = self._taking(ask.prompt.prompt, whole=self.session.given.whole)
                count = len(encoders)
                return Asked([*encoders, *chunks], lambda results: _prefilled(results, count, last=ask.last))
            case Decode():
                return Asked([self._chunk("decode", [ask.token], Chunk(0, 1, 1))], _in_a_row)
            case Extend():
                return Asked(self._taking(ask.tokens), _in_a_row)

    def close(self) -> None:
        self.closed = True

    def _taking(self, tokens: Sequence[int], *, whole: bool = False) -> list[Call]:
        return [self._chunk(entry, tokens, chunk) for entry, chunk in self.session.plan(tokens, whole=whole)]

    def _chunk(self, entry: str, tokens: Sequence[int], chunk: Chunk) -> Call:
        here = copy(self.session)  # the cache is the same
        self.session.position += chunk.count

        def finish(made: dict[str, Tensor]) -> Prefilled:
            return Prefilled(taken(made, "logits", entry, here.prompt.row, here.rows)[: chunk.count])

        return self._through(entry, chunk.length, lambda: here.prepared(entry, tokens, chunk), finish)

    def _encoding(self, call: EncoderCall) -> Call:
        session = self.session

        def finish(made: dict[str, Tensor]) -> Prefilled:
            self.encoded.append(taken(made, "encoded", call.entry)[: call.rows])
            session.state |= {**made, "encoded": np.concatenate(self.encoded)[None]}
            return Prefilled(self.encoded[-1])

        return self._through(call.entry, 0, lambda: session.fitted(call.entry, 0, call.tensors), finish)

    def _through(
        self,
        entry: str,
        length: int,
        prepare: Callable[[], dict[str, Tensor]],
        finish: Callable[[dict[str, Tensor]], Prefilled],
    ) -> Call:
        """A call; what it is given is made when its first stage is loaded, and the calls before it are beyond that."""
        planned = self.session.program
        assert isinstance(planned, Planned)
        self.calls += 1
        passage = Passage(self, self.session.state, planned.cache_names, self.calls)
        steps = planned.stages.steps(entry, length)
        outputs = [name for name in planned.stages.outputs(entry, length) if name not in planned.cache_names]

        def call() -> Call:
            known: dict[str, Tensor] = {}
            for step in steps:
                yield step.name
                known = known or prepare()
                known |= passage.through(step, known)
            return finish({name: known[name] for name in outputs})

        return call()


@dataclass(frozen=True)
class Passage:
    """The call with this number on a lane: each stage takes its part of the cache as the call before has left it."""

    lane: DrivenLane
    state: dict[str, Tensor]
    cache: AbstractSet[str]
    number: int

    def through(self, step: Step, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a stage makes, but for its part of the cache, which is kept as long as there may be another call."""
        given = {name: _there(self.state[name]) if name in self.cache else known[name] for name in step.inputs}
        made = step.run(given)
        last = self.lane.closed and self.number == self.lane.calls
        for name in self.cache & made.keys():
            self.state[name] = made[name]
            if last:
                del self.state[name]
        return {name: value for name, value in made.items() if name not in self.cache}


def _there(cache: Tensor) -> Tensor:
    """A cache tensor, which a program left out as long as nothing was in it."""
    import torch

    return cache if cache.flags.c_contiguous else torch.zeros(cache.shape).numpy()


def _in_a_row(results: Sequence[Prefilled]) -> Prefilled:
    return Prefilled(np.concatenate([result.logits for result in results]))


def _prefilled(results: Sequence[Prefilled], encoders: int, *, last: bool) -> Prefilled:
    """Encoders' rows and the prompt's logits, each in one."""
    logits = results[-1].logits[-1:].copy() if last else _in_a_row(results[encoders:]).logits
    return Prefilled(logits, _in_a_row(results[:encoders]).logits if encoders else None)
