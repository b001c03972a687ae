"""Prompts of real text are drawn from a seed alone."""

from __future__ import annotations

from collections import Counter

import pytest
from texts import CONTINUATION, KINDS, LONG, LONGEST, SHORTEST, Texts

VOCABULARY = 1000


def encode(text: str) -> list[int]:
    """A tokenizer of words."""
    return [sum(map(ord, word)) % VOCABULARY for word in text.split()]


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts(encode, VOCABULARY, seed=3)


def test_a_number_is_one_prompt_whatever_was_drawn_before(texts: Texts) -> None:
    before = [texts.draw(number) for number in range(30)]
    again = Texts(encode, VOCABULARY, seed=3)
    assert [again.draw(number) for number in reversed(range(30))] == before[::-1]
    assert len({drawn.prompt.prompt for drawn in before}) == len(before)


def test_another_seed_is_other_text(texts: Texts) -> None:
    other = Texts(encode, VOCABULARY, seed=4)
    assert [other.draw(number) for number in range(5)] != [texts.draw(number) for number in range(5)]


def test_a_thousand_are_of_every_kind(texts: Texts) -> None:
    kinds = Counter(texts.kind(number) for number in range(sum(KINDS.values())))
    assert kinds == KINDS
    assert sum(KINDS.values()) == 1000


def test_lengths_are_those_of_the_kind(texts: Texts) -> None:
    seen = {}
    for number in range(400):
        if texts.kind(number) not in seen:
            drawn = texts.draw(number)
            seen[drawn.kind] = drawn
            assert len(drawn.prompt.continuation) == CONTINUATION
            assert all(0 <= token < VOCABULARY for token in drawn.prompt.prompt)
    assert len(seen["single token"].prompt.prompt) == 1
    assert seen["500 tokens"].prompt.positions == LONG
    others = [drawn.prompt.positions for kind, drawn in seen.items() if kind not in ("single token", "500 tokens")]
    assert all(SHORTEST <= count <= LONGEST for count in others)
