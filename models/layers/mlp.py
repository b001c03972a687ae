"""Feed-forward blocks: gated (https://arxiv.org/abs/2002.05202) and plain."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.authoring.config import MLPConfig

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,  # exact, with erf
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``; ``[..., D]`` -> ``[..., D]``."""

    def __init__(self, config: MLPConfig, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, config.hidden, bias=config.bias)
        self.up_proj = nn.Linear(width, config.hidden, bias=config.bias)
        self.down_proj = nn.Linear(config.hidden, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class PlainMLP(nn.Module):
    """``down(act(up(x)))``; ``[..., D]`` -> ``[..., D]``."""

    def __init__(self, config: MLPConfig, width: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, config.hidden, bias=config.bias)
        self.down_proj = nn.Linear(config.hidden, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))  # type: ignore[no-any-return]


def build_mlp(config: MLPConfig, width: int) -> nn.Module:
    """The feed-forward block that ``config`` describes, around a stream of ``width``."""
    return GatedMLP(config, width) if config.gated else PlainMLP(config, width)
