"""Rotary position embedding (https://arxiv.org/abs/2104.09864), half-split pairing, positions as an input.

Channel ``c`` of a head is rotated together with channel ``c + R/2``, where ``R`` is the rotated size. ``R`` may be
smaller than the head: the remaining channels pass through untouched (partial rotary).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.authoring.config import Llama3Scaling, RopeConfig


def inverse_frequencies(config: RopeConfig) -> Tensor:
    """Angle per position of each rotated pair, float64 ``[R/2]``: ``theta ** (-2k/R)``, then the scaling rule."""
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64, device="cpu") / config.rotary_dim
    frequencies = config.theta**-exponents
    if config.scaling is None:
        return frequencies
    return _llama3(frequencies, config.scaling)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's rule: short wavelengths keep their frequency, long ones are divided, a band between is blended."""
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)  # over the original context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


class RopeTables(nn.Module):
    """Positions ``[T]`` (any integer dtype) -> cosines and sines, each ``[T, R/2]``."""

    frequencies: Tensor

    def __init__(self, config: RopeConfig) -> None:
        super().__init__()
        frequencies = inverse_frequencies(config).to(torch.get_default_dtype())
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions.to(self.frequencies.dtype)[:, None] * self.frequencies[None, :]
        return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads ``x`` ``[B, T, N, H]`` by the tables ``[T, R/2]``; channels from ``R`` on are left alone."""
    half = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second, tail = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*rotated, tail] if tail.shape[-1] else rotated, dim=-1)
