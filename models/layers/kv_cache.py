"""Functional key/value cache: an explicit input and output, never hidden state.

A cache tensor is ``[B, S, K, H]``; slot ``s`` holds the key or value of the token at position ``s``.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("models::update_cache", mutates_args=())
def update_cache(cache: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """A copy of ``cache`` ``[B, S, K, H]`` with ``new`` ``[B, T, K, H]`` written at ``positions`` ``[T]``.

    The positions are consecutive: the exported graph writes one slice that starts at the first of them.

    Raises:
        ValueError: the slice does not fit, or the positions are not consecutive. (The runtime's own operator would
            move the slice back to make it fit and overwrite other tokens.)
    """
    start, count = int(positions[0]), len(positions)
    if new.shape != (cache.shape[0], count, *cache.shape[2:]):
        raise ValueError(f"{count} rows of shape {list(new.shape)} do not belong in a cache of {list(cache.shape)}")
    if not torch.equal(positions.long(), torch.arange(start, start + count)):
        raise ValueError(f"cache positions must be consecutive, got {positions.tolist()}")
    if start < 0 or start + count > cache.shape[1]:
        raise ValueError(f"positions {start}..{start + count - 1} do not fit a cache of {cache.shape[1]}")
    updated = cache.clone()
    updated[:, start : start + count] = new
    return updated


@update_cache.register_fake
def _(cache: Tensor, _new: Tensor, _positions: Tensor) -> Tensor:
    return torch.empty_like(cache)
