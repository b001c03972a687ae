"""Typed descriptions of a model. Fields decide behaviour; a model's name never does.

Plain dataclasses, no torch: reading a configuration costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """``kind`` ``rms`` (gain only) or ``layer`` (mean removed, gain and bias)."""

    kind: Literal["rms", "layer"]
    eps: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's frequency scaling. Context lengths in tokens, factors dimensionless."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding over the first ``rotary_dim`` channels of a head."""

    theta: float
    rotary_dim: int
    scaling: Llama3Scaling | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention: ``num_heads`` query heads share ``num_kv_heads`` key/value heads block-wise."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool = False
    output_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Feed-forward block of width ``hidden``; ``gated`` multiplies the activated half by a linear half."""

    hidden: int
    activation: Activation
    gated: bool
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One pre-norm decoder block."""

    attention_norm: NormConfig
    attention: AttentionConfig
    mlp_norm: NormConfig
    mlp: MLPConfig


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only model: embedding, ``blocks`` in order, final norm, head."""

    vocab_size: int
    width: int
    max_positions: int
    rope: RopeConfig
    blocks: tuple[BlockConfig, ...]
    final_norm: NormConfig
    tied_head: bool
