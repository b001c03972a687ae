"""From audio samples to rows of the stream: strided convolutions, normalized over all channels and times together.

Group normalization: https://arxiv.org/abs/1803.08494, here with a single group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.authoring.config import AudioStemConfig


class WholeNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over all channels and real frames.

    Frames that padding has touched count for nothing: the statistics are those of the unpadded source.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """``x`` ``[B, C, T]``, ``real`` ``[T]`` with 1 for a frame that counts and 0 for another -> ``[B, C, T]``."""
        count = real.sum() * x.shape[1]
        # Centred before it is squared: the difference of two large sums would lose digits.
        centred = x - _total(x * real) / count
        scale = torch.rsqrt(_total(centred.square() * real) / count + self.eps)
        return centred * scale * self.weight[:, None] + self.bias[:, None]


def _total(x: Tensor) -> Tensor:
    """``[B, C, T]`` -> ``[B, 1, 1]``, in two steps: a runtime that adds one by one then rounds less."""
    return x.sum(2, keepdim=True).sum(1, keepdim=True)


class AudioStem(nn.Module):
    """``tanh`` of the first convolution, normalized, then ``gelu`` of the others; no padding anywhere."""

    inputs = ("audio", "samples")

    def __init__(self, config: AudioStemConfig, width: int) -> None:
        super().__init__()
        channels = (1, width, 2 * width, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels[i], channels[i + 1], kernel, stride, bias=i > 0)
            for i, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True))
        )
        self.norm = WholeNorm(width, config.norm_eps)
        self.config = config

    def forward(self, audio: Tensor, samples: Tensor) -> Tensor:
        """``audio`` float ``[B, S]`` of which the first ``samples`` (integer ``[1]``) are real -> ``[B, rows, D]``.

        As many rows as ``AudioStemConfig.rows`` of ``samples`` says are real, the rest have seen padding.
        """
        first, *others = self.convolutions
        x = torch.tanh(first(audio[:, None]))
        last = torch.arange(x.shape[-1], dtype=samples.dtype) * self.config.strides[0] + self.config.kernels[0]
        x = self.norm(x, (last <= samples).to(x.dtype))
        for convolution in others:
            x = functional.gelu(convolution(x))
        return x.transpose(1, 2)
