"""Which cache slots a query sees: all before it and itself, or a window of them; and what the rest weighs."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import registry
from models.authoring.decoder import DecoderOnlyModel, mask_name, windows
from models.authoring.hf_config import HFConfig
from models.authoring.stage import run_stages
from models.layers.mask import BLOCKED, causal_mask


def visible(start: int, count: int, slots: int, window: int | None = None) -> torch.Tensor:
    """``[T, S]``: which slots each of ``count`` queries from position ``start`` on sees."""
    mask = causal_mask(torch.arange(start, start + count), slots, window)
    assert mask.shape == (1, 1, count, slots)
    assert set(mask.unique().tolist()) <= {0.0, BLOCKED}
    return mask[0, 0] == 0


@settings(deadline=None, max_examples=50)
@given(
    start=st.integers(0, 40),
    count=st.integers(1, 20),
    slots=st.integers(1, 50),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_mask_shows_each_query_its_past_and_itself(start: int, count: int, slots: int, dtype: torch.dtype) -> None:
    """The query at position p sees the slots up to p and no other: p + 1 of them, in a cache that has as many."""
    mask = causal_mask(torch.arange(start, start + count, dtype=dtype), slots)
    assert mask.shape == (1, 1, count, slots)
    assert set(mask.unique().tolist()) <= {0.0, BLOCKED}
    for row, position in zip(mask[0, 0], range(start, start + count), strict=True):
        assert int((row == 0).sum()) == min(position + 1, slots)
        assert (row[: position + 1] == 0).all()


def test_blocked_scores_weigh_exactly_nothing() -> None:
    """In float32, beside the lowest score that could occur and raised by the highest, a blocked slot weighs zero."""
    blocked = torch.tensor(BLOCKED, dtype=torch.float32)
    assert torch.isfinite(blocked)
    scores = torch.stack([torch.tensor(-1e6, dtype=torch.float32), blocked + 1e6])
    assert scores.softmax(0).tolist() == [1.0, 0.0]


def test_two_blocks_added_stay_finite() -> None:
    """What the comment on BLOCKED promises."""
    blocked = torch.tensor(BLOCKED, dtype=torch.float32)
    assert torch.isfinite(blocked + blocked)


@settings(deadline=None, max_examples=60)
@given(start=st.integers(0, 40), count=st.integers(1, 20), slots=st.integers(1, 50), window=st.integers(1, 70))
def test_window_shows_the_last_positions_and_no_other(start: int, count: int, slots: int, window: int) -> None:
    """Position p sees p - W + 1 .. p, W of them itself included, as far as there are such slots."""
    rows = visible(start, count, slots, window)
    for row, position in zip(rows, range(start, start + count), strict=True):
        expected = [slot for slot in range(slots) if position - window < slot <= position]
        assert row.nonzero().flatten().tolist() == expected
        if position < slots:
            assert len(expected) == min(window, position + 1)


@pytest.mark.parametrize("window", range(1, 9))
def test_small_windows_exhaustively(window: int) -> None:
    """Every T, S and W up to eight, from every position that fits: the slot by slot definition."""
    for count, slots in product(range(1, 9), repeat=2):
        for start in range(max(1, slots - count + 1)):
            expected = [[p - window < s <= p for s in range(slots)] for p in range(start, start + count)]
            assert visible(start, count, slots, window).tolist() == expected


@settings(deadline=None, max_examples=40)
@given(start=st.integers(0, 40), count=st.integers(1, 20), slots=st.integers(1, 50), more=st.integers(0, 1000))
def test_window_as_long_as_the_context_is_causal(start: int, count: int, slots: int, more: int) -> None:
    """A window that reaches back to the first position hides nothing: bit for bit the causal mask."""
    positions = torch.arange(start, start + count)
    whole = causal_mask(positions, slots)
    assert torch.equal(causal_mask(positions, slots, start + count + more), whole)
    if start + count <= slots and start + count > 1:
        assert not torch.equal(causal_mask(positions, slots, start + count - 1), whole)


def test_window_of_one_sees_itself() -> None:
    """The diagonal alone."""
    assert torch.equal(visible(0, 5, 5, 1), torch.eye(5, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_window_for_either_integer(dtype: torch.dtype) -> None:
    """Positions of 32 bits do not wrap where the window is longer than they are."""
    mask = causal_mask(torch.arange(3, dtype=dtype), 4, 2**31 - 1)
    assert torch.equal(mask, causal_mask(torch.arange(3), 4))


@settings(deadline=None, max_examples=20)
@given(start=st.integers(0, 20), count=st.integers(1, 12), window=st.integers(1, 12))
def test_window_equals_the_originals(start: int, count: int, window: int) -> None:
    """transformers' own sliding overlay, slot by slot."""
    from transformers.masking_utils import sliding_window_causal_mask_function

    theirs = sliding_window_causal_mask_function(window)
    slots = start + count
    expected = [
        [bool(theirs(0, 0, torch.tensor(p), torch.tensor(s))) for s in range(slots)] for p in range(start, slots)
    ]
    assert visible(start, count, slots, window).tolist() == expected


def test_layers_of_gemma2_get_the_masks_of_their_kind() -> None:
    """In the tiny model the even layers get the window's mask, the odd one the causal mask, and these differ."""
    preset = registry.get("gemma-2-2b").preset
    values = preset.values(tiny=True)
    model = DecoderOnlyModel(registry.family("gemma").config_from(HFConfig(values, "config.json"))).eval()
    window = values["sliding_window"]
    assert windows(model.config) == (window, None)
    seen = []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    with torch.no_grad():
        model(torch.zeros(1, 9, dtype=torch.int32), torch.arange(9), model.empty_cache(12))
    assert [int((mask[0, 0, -1] == 0).sum()) for mask in seen] == [window, 9, window]
    for mask, own in zip(seen, (window, None, window), strict=True):
        assert torch.equal(mask, causal_mask(torch.arange(9), 12, own))
    names = [next(name for name in stage.inputs if name.startswith("mask")) for stage in model.stages(12)[1:-1]]
    assert names == [mask_name(window), mask_name(None), mask_name(window)]
    made = run_stages(
        model.stages(12)[:1], {"tokens": torch.zeros(1, 9, dtype=torch.int32), "input_pos": torch.arange(9)}
    )
    assert not torch.equal(made[mask_name(window)], made[mask_name(None)])
