"""Relative position bias in buckets (https://arxiv.org/abs/1910.10683): learned, one value per head and bucket."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.authoring.config import RelativeBiasConfig


def bucket(relative: Tensor, config: RelativeBiasConfig) -> Tensor:
    """The bucket of each ``relative`` position (key minus query, integers of any shape).

    Half of a direction's buckets hold one distance each, the others grow logarithmically up to ``max_distance``, and
    the last one takes everything beyond. Without ``bidirectional``, keys to the right count as distance 0. The
    logarithm is the original's, in float32: at the edge of a bucket another precision would round the other way.
    """
    count = config.buckets // 2 if config.bidirectional else config.buckets
    offset = count * (relative > 0) if config.bidirectional else torch.zeros_like(relative)
    distance = relative.abs() if config.bidirectional else (-relative).clamp(min=0)
    exact = count // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(config.max_distance / exact)
    far = (exact + (growth * (count - exact)).to(relative.dtype)).clamp(max=count - 1)
    return offset + torch.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
    """What is added to attention scores, computed once and used by every block of a stack."""

    def __init__(self, config: RelativeBiasConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.buckets, config.num_heads)
        self.config = config

    def forward(self, positions: Tensor, slots: int) -> Tensor:
        """Queries at ``positions`` ``[T]`` over keys at ``0..S-1`` -> ``[1, N, T, S]``."""
        # One row a distance, looked up by distance: the buckets are constants, only the lookup is left to the runtime.
        nearest = -(slots - 1) if self.config.bidirectional else 0
        by_distance = self.table(bucket(-torch.arange(nearest, slots), self.config))
        distance = positions[:, None] - torch.arange(slots, dtype=positions.dtype)[None, :]
        rows = distance.clamp(min=nearest, max=slots - 1) - nearest
        bias: Tensor = by_distance[rows.long()].permute(2, 0, 1)[None]
        return bias
