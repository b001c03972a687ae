"""Additive attention masks, computed from positions so that one graph serves every prompt length."""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to a blocked score. Finite, so that a sum of two of them stays finite; far enough below any score that the
#: softmax weight of a blocked position is exactly zero.
BLOCKED = -0.4 * torch.finfo(torch.float32).max


def causal_mask(
    positions: Tensor, cache_length: int, window: int | None = None, prefix: Tensor | None = None
) -> Tensor:
    """Query at position ``p`` sees cache slots ``0..p``, or the last ``window`` of them; ``[T]`` -> ``[1, 1, T, S]``.

    The first ``prefix`` (integer ``[1]``) positions all see each other, in both directions and beyond the window.
    Slots beyond the newest position hold padding or stale values; they are blocked for the same reason as the future.
    """
    slots = torch.arange(cache_length, dtype=positions.dtype)
    visible = slots[None, :] <= positions[:, None]
    if window is not None:
        visible = visible & (slots[None, :] > positions[:, None] - window)
    if prefix is not None:
        visible = visible | ((slots[None, :] < prefix) & (positions[:, None] < prefix))
    return torch.where(visible, 0.0, BLOCKED)[None, None]


def padding_mask(count: Tensor, length: int) -> Tensor:
    """Everybody sees the first ``count`` (integer ``[1]``) of ``length`` slots: ``[1, 1, 1, S]``."""
    return torch.where(torch.arange(length, dtype=count.dtype) < count, 0.0, BLOCKED)[None, None, None]
