"""Grouped-query attention (https://arxiv.org/abs/2305.13245) over an explicit key/value cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.authoring.config import AttentionConfig, RopeConfig
from models.layers.composite import composite
from models.layers.kv_cache import update_cache
from models.layers.norm import build_norm
from models.layers.rope import apply_rope


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    softcap: float | None = None,
    fused: bool = False,
) -> Tensor:
    """Softmax attention; query head ``n`` reads key/value head ``n // (N / K)``.

    Args:
        query: ``[B, T, N, H]``.
        key, value: ``[B, S, K, H]``.
        mask: ``[B, 1, T, S]``, added to the scaled scores; ``None`` where every query sees every key.
        scale: factor on the scores.
        softcap: bound on the scaled scores, before the mask is added.
        fused: mark the region for the converter's fused kernel.

    Returns:
        ``[B, T, N, H]``.
    """

    def body(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        group = query.shape[2] // key.shape[2]
        query = query.transpose(1, 2)
        key = key.transpose(1, 2).repeat_interleave(group, dim=1)
        value = value.transpose(1, 2).repeat_interleave(group, dim=1)
        scores = query @ key.transpose(-1, -2) * scale
        if softcap is not None:
            scores = soft_cap(scores, softcap)
        scores = scores if mask is None else scores + mask
        return (scores.softmax(-1) @ value).transpose(1, 2)

    if fused:
        attributes = {"scale": scale} if softcap is None else {"scale": scale, "logit_cap": softcap}
        inputs = (query, key, value) if mask is None else (query, key, value, mask)
        return composite("odml.scaled_dot_product_attention", attributes, body, *inputs)
    return body(query, key, value, mask)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """``cap * tanh(x / cap)``: the identity near zero, never beyond ``cap``; any shape."""
    return torch.tanh(x / cap) * cap


class Attention(nn.Module):
    """Projections, rotary positions, attention, output projection.

    ``forward`` is causal self-attention through a cache, ``within`` attention of a whole sequence to itself, ``across``
    attention to keys and values that another sequence gave. Without rotary positions, ``cos`` and ``sin`` are ``None``;
    with them, ``rope`` says which channels are rotated together.
    """

    def __init__(
        self, config: AttentionConfig, width: int, *, rope: RopeConfig | None = None, fused: bool = False
    ) -> None:
        super().__init__()
        query_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(width, query_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_width, width, bias=config.output_bias)
        self.q_norm = build_norm(config.qk_norm, config.head_dim, fused=fused)
        self.k_norm = build_norm(config.qk_norm, config.head_dim, fused=fused)
        self.config = config
        self.interleaved = rope is not None and rope.interleaved
        self.fused = fused

    def forward(
        self,
        x: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        mask: Tensor,
        positions: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` ``[B, T, D]``, tables ``[T, R/2]``, mask ``[B, 1, T, S]``, positions ``[T]``, caches ``[B, S, K, H]``.

        Returns:
            The attention output ``[B, T, D]`` and both updated caches.
        """
        key, value = self.keys_and_values(x, cos, sin)
        k_cache = update_cache(k_cache, key, positions)
        v_cache = update_cache(v_cache, value, positions)
        return self.across(x, cos, sin, mask, k_cache, v_cache), k_cache, v_cache

    def within(self, x: Tensor, cos: Tensor | None, sin: Tensor | None, mask: Tensor | None) -> Tensor:
        """``x`` ``[B, T, D]``, tables ``[T, R/2]``, mask ``[B, 1, T, T]`` if any -> ``[B, T, D]``."""
        return self.across(x, cos, sin, mask, *self.keys_and_values(x, cos, sin))

    def across(
        self, x: Tensor, cos: Tensor | None, sin: Tensor | None, mask: Tensor | None, key: Tensor, value: Tensor
    ) -> Tensor:
        """Queries from ``x`` ``[B, T, D]`` over keys and values ``[B, S, K, H]``, mask ``[B, 1, T, S]``."""
        query = self._rotated(self.q_norm(self._heads(self.q_proj(x))), cos, sin)
        attended = scaled_dot_product_attention(
            query, key, value, mask, scale=self.config.scale, softcap=self.config.softcap, fused=self.fused
        )
        projected: Tensor = self.o_proj(attended.flatten(2))
        return projected

    def keys_and_values(self, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What ``x`` ``[B, S, D]`` offers to be attended to: keys and values, each ``[B, S, K, H]``."""
        return self._rotated(self.k_norm(self._heads(self.k_proj(x))), cos, sin), self._heads(self.v_proj(x))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:2], -1, self.config.head_dim)

    def _rotated(self, heads: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        return heads if cos is None or sin is None else apply_rope(heads, cos, sin, interleaved=self.interleaved)
