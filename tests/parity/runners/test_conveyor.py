"""Which stage is loaded when, and which calls go through it, whatever the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest

from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.base import Ask, Decode, Guide, Prefill, Prefilled
from parity.runners.conveyor import Asked, Call, answer
from parity.trace import Trace

STAGES = ("see", "embed", "first", "second")
VOCABULARY = 8


class Toy:
    """A model that says the number after the last token; prompts that begin with 0 are seen first."""

    name = "toy"
    one_row = False
    at_once = False
    note = "a toy"
    end_tokens = frozenset((7,))
    stages = STAGES

    def __init__(self, broken: str = "") -> None:
        self.loads: list[str] = []
        self.passed: list[tuple[str, int, int]] = []
        self.lanes = 0
        self.present: str | None = None
        self.broken = broken

    def open(self) -> None:
        raise NotImplementedError

    @contextmanager
    def stream(self) -> Iterator[Toy]:
        yield self

    @contextmanager
    def loaded(self, stage: str) -> Iterator[None]:
        assert self.present is None, "one stage at a time"
        self.present = stage
        self.loads.append(stage)
        try:
            yield
        finally:
            self.present = None

    def lane(self) -> Lane:
        self.lanes += 1
        return Lane(self, self.lanes)


class Lane:
    """Every stage must see the tokens in order."""

    def __init__(self, toy: Toy, number: int) -> None:
        self.toy = toy
        self.number = number
        self.calls = 0
        self.at: dict[str, int] = {}
        self.closed = False

    def ask(self, ask: Ask) -> Asked:
        assert not self.closed
        self.calls += 1
        tokens = ask.prompt.prompt if isinstance(ask, Prefill) else [ask.token] if isinstance(ask, Decode) else []
        through = ["embed", "see", "first", "second"] if tokens[0] == 0 else ["embed", "first", "second"]
        kept = slice(-1 if isinstance(ask, Prefill) and ask.last else 0, None)
        return Asked([self.call(self.calls, tokens, through)], lambda results: Prefilled(results[0].logits[kept]))

    def close(self) -> None:
        self.closed = True

    def call(self, number: int, tokens: Sequence[int], through: Sequence[str]) -> Call:
        for stage in through:
            yield stage
            assert self.toy.present == stage
            if stage == self.toy.broken:
                raise RungError("broken")
            self.toy.passed.append((stage, self.number, number))
            assert self.at.get(stage, 0) < number, "a call has overtaken the one before it"
            self.at[stage] = number
        after = [-np.abs((np.arange(VOCABULARY) - (token + 1)) % VOCABULARY) for token in tokens]
        return Prefilled(np.asarray(after, np.float32))


def prompts(*prompts: Sequence[int], continuation: Sequence[int] = (5, 6)) -> Inputs:
    made = tuple(TokenizedPrompt(f"p{i}", tuple(tokens), tuple(continuation)) for i, tokens in enumerate(prompts))
    return Inputs("made", "", "", "", made)


def run(toy: Toy, inputs: Inputs, generate: int, guide: Guide | None = None) -> tuple[Trace, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    trace, note = answer(toy, inputs, generate, guide, lambda done, total: told.append((done, total)))
    assert note == "a toy"
    return trace, told


def test_what_is_known_goes_through_a_stage_while_it_is_loaded() -> None:
    """All prompts, what is forced after them and what a guide says: each stage is loaded once."""
    toy = Toy()
    trace, told = run(toy, prompts([1, 2], [3]), 3, {"p0": [3, 4, 5], "p1": [4, 5]})
    assert toy.loads == ["embed", "first", "second"]
    assert trace.said == {"p0": (3, 4, 5), "p1": (4, 5)}
    assert trace.prompts["p0"].decode.argmax(-1).tolist() == [6, 7]
    assert toy.lanes == 4
    embedded = [(lane, number) for stage, lane, number in toy.passed if stage == "embed"]
    assert embedded == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2)]
    assert told[-1] == (3, 4)
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(told))


def test_free_generation_takes_a_pass_for_each_token() -> None:
    """All prompts in step, each to its own end: a text that has ended takes no more."""
    toy = Toy()
    trace, told = run(toy, prompts([1, 2], [5]), 4)
    assert trace.said == {"p0": (3, 4, 5, 6), "p1": (6, 7)}
    assert toy.loads == ["embed", "first", "second"] * 4
    assert told[-1][0] <= told[-1][1] == 16


def test_who_is_behind_catches_up() -> None:
    """A prompt that goes back to an earlier stage is waited for, and the later stages are loaded once for all."""
    toy = Toy()
    run(toy, prompts([1, 2], [0, 2]), 0)
    assert toy.loads == ["embed", "see", "embed", "first", "second"]
    after = [number for stage, lane, number in toy.passed if stage == "embed" and lane == 2]
    assert after == [1, 2, 3], "what follows is embedded when the picture has been seen"


def test_nothing_stays_loaded_when_a_stage_fails() -> None:
    """The error is the stage's own."""
    toy = Toy(broken="first")
    with pytest.raises(RungError, match="broken"):
        run(toy, prompts([1, 2]), 2)
    assert toy.present is None
