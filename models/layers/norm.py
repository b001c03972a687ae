"""Normalizations.

RMSNorm: https://arxiv.org/abs/1910.07467. LayerNorm: https://arxiv.org/abs/1607.06450.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.authoring.config import NormConfig
from models.layers.composite import composite


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * (gain_offset + weight)`` over the last axis; any shape ``[..., D]``."""

    def __init__(self, width: int, eps: float, *, gain_offset: float = 0.0, fused: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.gain_offset = gain_offset
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight + self.gain_offset if self.gain_offset else self.weight
        if self.fused:
            return composite("odml.rms_norm", {"epsilon": self.eps}, self._normalize, x, gain)
        return self._normalize(x, gain)

    def _normalize(self, x: Tensor, gain: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * gain


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis; any shape ``[..., D]``."""

    def __init__(self, width: int, eps: float, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def build_norm(config: NormConfig | None, width: int, *, fused: bool = False) -> nn.Module:
    """The normalization that ``config`` describes, over vectors of ``width``; none leaves them as they are."""
    if config is None:
        return nn.Identity()
    match config.kind:
        case "rms":
            return RMSNorm(width, config.eps, gain_offset=config.gain_offset, fused=fused)
        case "layer":
            return LayerNorm(width, config.eps, bias=config.bias)
