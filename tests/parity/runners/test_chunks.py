"""How a prompt is cut into calls of fixed length: nothing twice, nothing left out, nothing past the cache."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.errors import RungError
from parity.runners.driver import Chunk, plan_chunks

LAWS = settings(deadline=None, max_examples=300)
lengths = st.lists(st.integers(1, 64), max_size=5)


@st.composite
def fitting(draw: st.DrawFn) -> tuple[int, list[int], int]:
    """A prompt, signature lengths in any order and repeated, and a cache that holds the prompt."""
    cache = draw(st.integers(1, 200))
    return draw(st.integers(1, cache)), draw(lengths), cache


@LAWS
@given(case=fitting())
def test_every_token_exactly_once_in_order(case: tuple[int, list[int], int]) -> None:
    """Each chunk starts where the one before it ended; the last one ends with the prompt."""
    tokens, available, cache = case
    chunks = plan_chunks(tokens, available, cache)
    covered = [token for chunk in chunks for token in range(chunk.start, chunk.start + chunk.count)]
    assert covered == list(range(tokens))
    assert all(chunk.count >= 1 for chunk in chunks)


@LAWS
@given(case=fitting())
def test_chunks_are_signatures_that_stay_inside_the_cache(case: tuple[int, list[int], int]) -> None:
    """Only lengths that exist, decode's 1 among them; padding included, no chunk reaches past the cache."""
    tokens, available, cache = case
    for chunk in plan_chunks(tokens, available, cache):
        assert chunk.length in {1, *available}
        assert chunk.count <= chunk.length
        assert chunk.start + chunk.length <= cache


@LAWS
@given(case=fitting())
def test_padding_is_in_the_last_chunk_only(case: tuple[int, list[int], int]) -> None:
    """A chunk in the middle is full: what follows would otherwise be at wrong positions."""
    *middle, _ = plan_chunks(*case)
    assert all(chunk.count == chunk.length for chunk in middle)


@LAWS
@given(case=fitting())
def test_each_step_is_the_shortest_that_holds_the_rest_or_the_longest(case: tuple[int, list[int], int]) -> None:
    """Among the lengths that fit where the chunk starts."""
    tokens, available, cache = case
    for chunk in plan_chunks(tokens, available, cache):
        rest = tokens - chunk.start
        allowed = [length for length in {1, *available} if chunk.start + length <= cache]
        enough = [length for length in allowed if length >= rest]
        assert chunk.length == (min(enough) if enough else max(allowed))
        assert chunk.count == min(rest, chunk.length)


@LAWS
@given(available=lengths, cache=st.integers(0, 100), excess=st.integers(1, 100))
def test_prompt_longer_than_the_cache_is_refused(available: list[int], cache: int, excess: int) -> None:
    """Whatever the signatures, with both numbers in the message."""
    with pytest.raises(RungError, match=f"prompt of {cache + excess} tokens does not fit a cache of {cache}"):
        plan_chunks(cache + excess, available, cache)


@pytest.mark.parametrize(
    ("tokens", "available", "cache", "expected"),
    [
        (64, [64, 128], 256, [Chunk(0, 64, 64)]),
        (65, [64, 128], 256, [Chunk(0, 65, 128)]),
        (130, [64, 128], 256, [Chunk(0, 128, 128), Chunk(128, 2, 64)]),
        (1, [64], 256, [Chunk(0, 1, 1)]),
        (3, [], 8, [Chunk(0, 1, 1), Chunk(1, 1, 1), Chunk(2, 1, 1)]),
        # The padded 64 would end at 128, past the cache of 100: token by token instead.
        (66, [64], 100, [Chunk(0, 64, 64), Chunk(64, 1, 1), Chunk(65, 1, 1)]),
        (8, [8], 8, [Chunk(0, 8, 8)]),
        (3, [8], 7, [Chunk(0, 1, 1), Chunk(1, 1, 1), Chunk(2, 1, 1)]),
    ],
)
def test_known_plans(tokens: int, available: list[int], cache: int, expected: list[Chunk]) -> None:
    """Exact fit, padding, several chunks, no prefill signature, no room for padding."""
    assert plan_chunks(tokens, available, cache) == expected
    assert plan_chunks(tokens, available[::-1] * 2, cache) == expected
