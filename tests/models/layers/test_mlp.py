"""Feed-forward blocks against their formulas, and activations against torch's and the original library's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.authoring.config import Activation, MLPConfig
from models.authoring.hf_config import HFConfig
from models.layers.mlp import ACTIVATIONS, GatedMLP, PlainMLP, build_mlp

EPS = torch.finfo(torch.float64).eps
#: Two sums of at most 64 products, and an activation: no value gathers more roundings than this.
ROUNDINGS = {"rtol": 256 * EPS, "atol": 256 * EPS}


def by_hand(x: float, name: Activation) -> float:
    """The activation in plain Python."""
    match name:
        case "silu":
            return x / (1 + math.exp(-x))
        case "gelu":
            return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
        case "gelu_tanh":
            return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "relu":
            return max(x, 0.0)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[MLPConfig, nn.Module, Tensor]:
    """A block of random shape and weights in float64, and an input ``[2, 3, D]``."""
    config = MLPConfig(
        hidden=draw(st.integers(1, 64)),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        gated=draw(st.booleans()),
        bias=draw(st.booleans()),
    )
    width = draw(st.integers(1, 64))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    block = build_mlp(config, width).double().requires_grad_(requires_grad=False)
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 8)
    return config, block, torch.randn(2, 3, width, dtype=torch.float64, generator=generator)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    product = torch.einsum("...i,oi->...o", x, layer.weight)
    return product if layer.bias is None else product + layer.bias


@settings(deadline=None, max_examples=60)
@given(case=blocks())
def test_blocks_follow_their_formulas(case: tuple[MLPConfig, nn.Module, Tensor]) -> None:
    """Gated is down(act(gate(x)) * up(x)), plain is down(act(up(x))); biases exactly where configured."""
    config, block, x = case
    activate, up = ACTIVATIONS[config.activation], linear(x, block.up_proj)
    hidden = activate(linear(x, block.gate_proj)) * up if config.gated else activate(up)
    torch.testing.assert_close(block(x), linear(hidden, block.down_proj), **ROUNDINGS)
    assert {name for name, _ in block.named_parameters() if name.endswith("bias")} == (
        {f"{name}.bias" for name, _ in block.named_children()} if config.bias else set()
    )


@pytest.mark.parametrize(("gated", "expected"), [(True, GatedMLP), (False, PlainMLP)])
def test_build_mlp(gated: bool, expected: type) -> None:
    """The configuration chooses the kind and the inner width."""
    block = build_mlp(MLPConfig(hidden=5, activation="silu", gated=gated), 3)
    assert type(block) is expected
    assert block.up_proj.weight.shape == (5, 3)
    assert block.down_proj.weight.shape == (3, 5)


def test_gate_and_up_are_not_interchangeable() -> None:
    """The activation is on the gate, not on the linear half."""
    block = build_mlp(MLPConfig(hidden=2, activation="relu", gated=True), 1).requires_grad_(requires_grad=False)
    block.gate_proj.weight.copy_(torch.tensor([[-1.0], [2.0]]))
    block.up_proj.weight.copy_(torch.tensor([[3.0], [-5.0]]))
    block.down_proj.weight.copy_(torch.tensor([[1.0, 1.0]]))
    # relu(-1) * 3 + relu(2) * -5; with the roles exchanged it would be 3 * -1 + 0.
    assert block(torch.tensor([[1.0]])).item() == -10.0


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("silu", nn.SiLU()), ("gelu", nn.GELU()), ("gelu_tanh", nn.GELU(approximate="tanh")), ("relu", nn.ReLU())],
)
def test_activations_equal_torch(name: Activation, theirs: Callable[[Tensor], Tensor]) -> None:
    """Bit for bit the torch module of that name, and the textbook formula to rounding."""
    x = torch.linspace(-12, 12, 481, dtype=torch.float64)
    assert torch.equal(ACTIVATIONS[name](x), theirs(x))
    formula = torch.tensor([by_hand(float(value), name) for value in x], dtype=torch.float64)
    # Far out 1 + erf and 1 + tanh cancel to the rounding of 1, times x.
    torch.testing.assert_close(ACTIVATIONS[name](x), formula, rtol=8 * EPS, atol=12 * 8 * EPS)


def test_every_activation_is_tested() -> None:
    """The table holds these four and no other."""
    assert set(ACTIVATIONS) == {"silu", "gelu", "gelu_tanh", "relu"}


@pytest.mark.parametrize("published", ["silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_published_names_mean_what_the_original_computes(published: str) -> None:
    """The name in config.json selects the function that transformers calls by that name."""
    from transformers.activations import ACT2FN

    ours = ACTIVATIONS[HFConfig({"hidden_act": published}, "config.json").activation("hidden_act")]
    x = torch.linspace(-12, 12, 481, dtype=torch.float64)
    torch.testing.assert_close(ours(x), ACT2FN[published](x), rtol=8 * EPS, atol=12 * 8 * EPS)
