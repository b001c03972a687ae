"""Rotary position embedding (https://arxiv.org/abs/2104.09864), positions as an input.

Channel ``c`` of a head is rotated together with channel ``c + R/2``, where ``R`` is the rotated size, or, interleaved,
channel ``2c`` with ``2c + 1``. ``R`` may be smaller than the head: the remaining channels pass through untouched
(partial rotary). Positions on several axes, each with its section of the channels: https://arxiv.org/abs/2409.12191.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.authoring.config import Llama3Scaling, LongRopeScaling, RopeConfig


def inverse_frequencies(config: RopeConfig, positions: int = 0) -> Tensor:
    """Angle per position of each rotated pair, float64 ``[R/2]``: ``theta ** (-2k/R)``, then the scaling rule.

    ``positions`` is how many a session may have; LongRoPE chooses its regime by it.
    """
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64, device="cpu") / config.rotary_dim
    frequencies = config.theta**-exponents
    match config.scaling:
        case None:
            return frequencies
        case Llama3Scaling():
            return _llama3(frequencies, config.scaling)
        case LongRopeScaling():
            return frequencies / torch.tensor(factors(config.scaling, positions), dtype=torch.float64, device="cpu")


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's rule: short wavelengths keep their frequency, long ones are divided, a band between is blended."""
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)  # over the original context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def factors(scaling: LongRopeScaling, positions: int) -> tuple[float, ...]:
    """LongRoPE's (https://arxiv.org/abs/2402.13753) divisors for a session of up to ``positions``."""
    return scaling.short_factors if positions <= scaling.original_max_positions else scaling.long_factors


class RopeTables(nn.Module):
    """Positions ``[T]`` (any integer dtype), with sections ``[axes, T]`` -> cosines and sines, each ``[T, R/2]``."""

    frequencies: Tensor
    long_frequencies: Tensor

    def __init__(self, config: RopeConfig) -> None:
        super().__init__()
        self.boundary = config.boundary
        self.sections = config.sections
        self.attention_factor = 1.0
        self._register("frequencies", inverse_frequencies(config))
        if isinstance(config.scaling, LongRopeScaling):
            self.attention_factor = config.scaling.attention_factor
            self._register("long_frequencies", inverse_frequencies(config, config.scaling.original_max_positions + 1))

    def _register(self, name: str, frequencies: Tensor) -> None:
        self.register_buffer(name, frequencies.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Tensor, *, cache_length: int = 0) -> tuple[Tensor, Tensor]:
        """``cache_length``: how many positions the session may have; LongRoPE's regime is fixed by it."""
        long = self.boundary is not None and cache_length > self.boundary
        frequencies = self.long_frequencies if long else self.frequencies
        positions = positions.to(frequencies.dtype)
        if self.sections is None:
            angles = positions[:, None] * frequencies[None, :]
        else:
            parts = zip(positions, torch.split(frequencies, list(self.sections)), strict=True)
            angles = torch.cat([axis[:, None] * part[None, :] for axis, part in parts], dim=-1)
        if self.attention_factor == 1.0:
            return angles.cos(), angles.sin()
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate heads ``x`` ``[B, T, N, H]`` by the tables; channels from ``R`` on are left alone.

    The tables are ``[T, R/2]``, or ``[B, T, R/2]`` where positions differ within a batch.
    """
    half = cos.shape[-1]
    cos, sin = cos[..., None, :], sin[..., None, :]
    tail = x[..., 2 * half :]
    if interleaved:
        pairs = x[..., : 2 * half].reshape(*x.shape[:-1], half, 2)
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        first, second = x[..., :half], x[..., half : 2 * half]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        rotated = [torch.stack(rotated, dim=-1).flatten(-2)]
    return torch.cat([*rotated, tail] if tail.shape[-1] else rotated, dim=-1)
