"""Feed-forward blocks: gated (https://arxiv.org/abs/2002.05202) and plain."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from models.authoring.config import MLPConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,  # exact, with erf
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
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
        result: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return result


class PlainMLP(nn.Module):
    """``down(act(up(x)))``; ``[..., D]`` -> ``[..., D]``."""

    def __init__(self, config: MLPConfig, width: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, config.hidden, bias=config.bias)
        self.down_proj = nn.Linear(config.hidden, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(self.activation(self.up_proj(x)))
        return result


def build_mlp(config: MLPConfig, width: int) -> nn.Module:
    """The feed-forward block that ``config`` describes, around a stream of ``width``."""
    return GatedMLP(config, width) if config.gated else PlainMLP(config, width)
