"""Buckets of relative positions: the original's, monotone in distance, symmetric where both directions count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.authoring.config import RelativeBiasConfig
from models.layers.relative_bias import RelativeBias, bucket

LAWS = settings(deadline=None, max_examples=60)


@st.composite
def configs(draw: st.DrawFn, *, bidirectional: bool | None = None) -> RelativeBiasConfig:
    """Any bucket count that splits as the architecture needs it, and a distance beyond the exact ones."""
    both = draw(st.booleans()) if bidirectional is None else bidirectional
    buckets = 4 * draw(st.integers(1, 16))
    exact = buckets // 4 if both else buckets // 2
    return RelativeBiasConfig(
        num_heads=3, buckets=buckets, max_distance=exact + draw(st.integers(1, 300)), bidirectional=both
    )


RELATIVE = torch.arange(-400, 401)


@LAWS
@given(config=configs())
def test_bucket_is_the_originals(config: RelativeBiasConfig) -> None:
    """Every relative position from -400 to 400, whatever the counts."""
    from transformers.models.t5.modeling_t5 import T5Attention

    theirs = T5Attention._relative_position_bucket(
        RELATIVE, bidirectional=config.bidirectional, num_buckets=config.buckets, max_distance=config.max_distance
    )
    assert torch.equal(bucket(RELATIVE, config), theirs)


@LAWS
@given(config=configs())
def test_buckets_grow_with_the_distance_to_the_left(config: RelativeBiasConfig) -> None:
    """Never back, never a bucket that does not exist; each of the first distances has its own."""
    left = bucket(-torch.arange(0, 400), config)
    assert (left.diff() >= 0).all()
    assert left.min() == 0
    assert left.max() < config.buckets
    exact = config.buckets // 4 if config.bidirectional else config.buckets // 2
    assert torch.equal(left[:exact], torch.arange(exact))


@LAWS
@given(config=configs(bidirectional=True))
def test_both_directions_are_bucketed_alike(config: RelativeBiasConfig) -> None:
    """A key to the right has the bucket of its mirror image, half the table further on."""
    right, left = (bucket(sign * torch.arange(1, 400), config) for sign in (1, -1))
    assert torch.equal(right, left + config.buckets // 2)


@LAWS
@given(config=configs(bidirectional=False))
def test_a_decoder_does_not_tell_keys_to_the_right_apart(config: RelativeBiasConfig) -> None:
    """They are masked anyway, and count as distance zero."""
    assert not bucket(torch.arange(0, 400), config).any()


@pytest.mark.parametrize("bidirectional", [True, False])
@LAWS
@given(slots=st.integers(1, 70), start=st.integers(0, 69), count=st.integers(1, 70))
def test_bias_is_looked_up_by_distance(bidirectional: bool, slots: int, start: int, count: int) -> None:
    """Queries anywhere in the sequence: each pair gets the row of its bucket, head by head."""
    config = RelativeBiasConfig(num_heads=2, buckets=8, max_distance=20, bidirectional=bidirectional)
    module = RelativeBias(config)
    start %= slots
    positions = torch.arange(start, min(start + count, slots))
    with torch.no_grad():
        bias = module(positions, slots)
    assert bias.shape == (1, 2, len(positions), slots)
    for query in positions.tolist():
        for key in range(slots):
            row = module.table.weight[int(bucket(torch.tensor(key - query), config))]
            assert torch.equal(bias[0, :, query - start, key], row)
