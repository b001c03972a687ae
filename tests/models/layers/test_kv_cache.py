"""The functional key/value cache: what one update may touch, and what it must refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.kv_cache import update_cache


@st.composite
def updates(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A cache ``[B, S, K, H]``, new rows ``[B, T, K, H]`` and where they start, such that they fit."""
    batch, slots, heads, head_dim = (draw(st.integers(1, most)) for most in (2, 12, 3, 5))
    start = draw(st.integers(0, slots - 1))
    count = draw(st.integers(1, slots - start))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cache = torch.randn(batch, slots, heads, head_dim, generator=generator)
    return cache, torch.randn(batch, count, heads, head_dim, generator=generator), start


@settings(deadline=None, max_examples=60)
@given(update=updates(), dtype=st.sampled_from([torch.int32, torch.int64]))
def test_update_touches_only_its_positions(update: tuple[torch.Tensor, torch.Tensor, int], dtype: torch.dtype) -> None:
    """The new rows are where they belong, every other slot is as before, and the input is not changed."""
    cache, new, start = update
    before = cache.clone()
    end = start + new.shape[1]
    updated = update_cache(cache, new, torch.arange(start, end, dtype=dtype))
    assert torch.equal(cache, before)
    assert updated.data_ptr() != cache.data_ptr()
    assert torch.equal(updated[:, start:end], new)
    assert torch.equal(updated[:, :start], cache[:, :start])
    assert torch.equal(updated[:, end:], cache[:, end:])


@settings(deadline=None, max_examples=60)
@given(positions=st.lists(st.integers(0, 7), min_size=2, max_size=8))
def test_positions_that_are_not_consecutive_are_refused(positions: list[int]) -> None:
    """Only start, start + 1, ... is one slice; gaps, repeats and other orders are refused with their positions."""
    cache, new = torch.zeros(1, 16, 1, 2), torch.ones(1, len(positions), 1, 2)
    if positions == list(range(positions[0], positions[0] + len(positions))):
        assert torch.equal(update_cache(cache, new, torch.tensor(positions))[:, positions], new)
        return
    with pytest.raises(ValueError, match="consecutive") as caught:
        update_cache(cache, new, torch.tensor(positions))
    assert str(positions) in str(caught.value)


@pytest.mark.parametrize("start", [-1, -8, 6, 8, 100])
def test_slices_that_do_not_fit_are_refused(start: int) -> None:
    """Three rows into eight slots: before the first or past the last is refused, never moved."""
    with pytest.raises(ValueError, match="do not fit a cache of 8"):
        update_cache(torch.zeros(1, 8, 1, 2), torch.ones(1, 3, 1, 2), torch.arange(start, start + 3))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_positions_and_rows_must_be_as_many(rows: int) -> None:
    """Three positions for another number of rows are refused."""
    with pytest.raises(ValueError, match="do not belong"):
        update_cache(torch.zeros(1, 8, 1, 2), torch.ones(1, rows, 1, 2), torch.arange(3))


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (2, 2, 1, 4), (2, 2, 3, 1)], ids=["batch", "heads", "head dim"])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """The axes B, K and H of the new rows are the cache's; a single one is not repeated to fill it."""
    with pytest.raises((ValueError, RuntimeError)):
        update_cache(torch.zeros(2, 8, 3, 4), torch.ones(shape), torch.arange(2))


@pytest.mark.parametrize(
    ("start", "count", "dtype"),
    [(0, 1, torch.int32), (2, 3, torch.int32), (0, 8, torch.int64), (7, 1, torch.int64)],
)
def test_custom_op_is_registered_correctly(start: int, count: int, dtype: torch.dtype) -> None:
    """torch's own check: schema, fake tensor, autograd registration and tracing agree with what the op does."""
    arguments = (torch.randn(2, 8, 3, 4), torch.randn(2, count, 3, 4), torch.arange(start, start + count, dtype=dtype))
    results = torch.library.opcheck(update_cache, arguments)
    assert set(results.values()) == {"SUCCESS"}
