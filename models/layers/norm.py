"""Normalizations.

RMSNorm: https://arxiv.org/abs/1910.07467. LayerNorm: https://arxiv.org/abs/1607.06450.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.authoring.config import NormConfig
from models.layers.composite import composite


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; any shape ``[..., D]``."""

    def __init__(self, width: int, eps: float, *, fused: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return composite("odml.rms_norm", {"epsilon": self.eps}, self._normalize, x, self.weight)
        return self._normalize(x, self.weight)

    def _normalize(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis; any shape ``[..., D]``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def build_norm(config: NormConfig, width: int, *, fused: bool = False) -> nn.Module:
    """The normalization that ``config`` describes, over vectors of ``width``."""
    match config.kind:
        case "rms":
            return RMSNorm(width, config.eps, fused=fused)
        case "layer":
            return LayerNorm(width, config.eps)
