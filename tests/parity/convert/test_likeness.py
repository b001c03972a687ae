"""Stages are alike when they differ in weights only; whatever else differs, or cannot be compared, sets them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.authoring.config import AttentionConfig, BlockConfig, MLPConfig, NormConfig, RopeConfig
from models.authoring.decoder import Block
from parity.convert.likeness import Parts, pattern

NORM = NormConfig(kind="rms", eps=1e-5)
ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=4, scale=0.5)
BLOCK = BlockConfig(
    attention_norm=NORM, attention=ATTENTION, mlp_norm=NORM, mlp=MLPConfig(hidden=24, activation="silu", gated=True)
)
ROPE = RopeConfig(theta=10000.0, rotary_dim=4)


def likeness(value: Any) -> Any:
    """Of a callable by itself."""
    return Parts().likeness(value)


def block(config: BlockConfig = BLOCK, rope: RopeConfig = ROPE, *, fused: bool = True) -> Block:
    """A decoder block with weights that no other has."""
    made = Block(config, 16, rope=rope, fused=fused)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def attending(**changes: Any) -> BlockConfig:
    """The block with another attention."""
    return replace(BLOCK, attention=replace(ATTENTION, **changes))


def test_blocks_that_differ_in_weights_only_are_alike() -> None:
    """Also in which of their parameters want a gradient, and where in a model they are."""
    first, second = block(), block().requires_grad_(requires_grad=False)
    assert likeness(first) == likeness(second)
    assert hash(likeness(first)) == hash(likeness(second))
    blocks = nn.ModuleList([block(), block()])
    assert likeness(blocks[0]) == likeness(blocks[1]) == likeness(first)


@pytest.mark.parametrize(
    "other",
    [
        partial(block, replace(BLOCK, attention_norm=replace(NORM, eps=1e-6))),
        partial(block, replace(BLOCK, mlp_norm=replace(NORM, gain_offset=1.0))),
        partial(block, replace(BLOCK, mlp_norm=NormConfig(kind="layer", eps=1e-5))),
        partial(block, replace(BLOCK, post_mlp_norm=NORM)),
        partial(block, replace(BLOCK, mlp_norm=None)),
        partial(block, attending(num_heads=8, head_dim=2)),
        partial(block, attending(num_kv_heads=4)),
        partial(block, attending(scale=0.25)),
        partial(block, attending(softcap=30.0)),
        partial(block, attending(window=8)),
        partial(block, attending(qkv_bias=True)),
        partial(block, attending(qk_norm=NORM)),
        partial(block, replace(BLOCK, mlp=replace(BLOCK.mlp, activation="relu"))),
        partial(block, replace(BLOCK, mlp=replace(BLOCK.mlp, activation="gelu_tanh"))),
        partial(block, replace(BLOCK, mlp=replace(BLOCK.mlp, gated=False))),
        partial(block, replace(BLOCK, mlp=replace(BLOCK.mlp, hidden=32))),
        partial(block, rope=replace(ROPE, interleaved=True)),
        partial(block, fused=False),
        lambda: block().train(mode=False),
        lambda: block().double(),
    ],
)
def test_blocks_that_compute_something_else_are_not(other: Callable[[], Block]) -> None:
    """Every field of a block's configuration that changes the maths; and its mode and its dtype."""
    assert likeness(other()) != likeness(block())


class Scaled(nn.Module):
    """A weight, a buffer, a number, and a function that is made for it."""

    def __init__(self, *, buffer: float = 1.0, number: float = 1.0, cell: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("table", torch.full((3,), buffer))
        self.number = number
        self.function = lambda x: x * cell

    def forward(self, x: Tensor, *, power: int = 1) -> Tensor:
        return self.function(x**power * self.weight + self.table) * self.number

    def backward(self, x: Tensor) -> Tensor:
        return x - self.weight


@given(st.tuples(*[st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), 1.0 + 2**-20])] * 3), st.data())
def test_contents_of_buffers_attributes_and_closures_count(values: tuple[float, ...], data: st.DataObject) -> None:
    """Alike exactly if they hold the same, a signed zero and the last bit included."""
    others = data.draw(st.one_of(st.just(values), st.tuples(*[st.sampled_from([0.0, -0.0, 1.0, float("nan")])] * 3)))
    names = ("buffer", "number", "cell")
    one, other = (Scaled(**dict(zip(names, each, strict=True))) for each in (values, others))
    assert (likeness(one) == likeness(other)) == (list(map(repr, values)) == list(map(repr, others)))


def _scale(x: Tensor, factor: float = 1.0) -> Tensor:
    return x * factor


def _with_default(default: float) -> Callable[..., Tensor]:
    def run(x: Tensor, factor: float = default) -> Tensor:
        return x * factor

    return run


def _with_keyword(default: float) -> Callable[..., Tensor]:
    def run(x: Tensor, *, factor: float = default) -> Tensor:
        return x * factor

    return run


def _closing_over(value: object) -> Callable[..., object]:
    return lambda: value


def _bound(method: str) -> Callable[[], object]:
    return lambda: getattr(Scaled(), method)


@dataclass(frozen=True)
class Fields:
    """What a configuration is to a stage."""

    module: nn.Module
    number: int


CALLABLES: dict[str, Callable[[], object]] = {
    "method": _bound("forward"),
    "another method": _bound("backward"),
    "module": Scaled,
    "partial of a module": lambda: partial(Scaled(), power=2),
    "partial with another argument": lambda: partial(Scaled(), power=3),
    "partial of a method": lambda: partial(Scaled().forward, power=2),
    "function": lambda: _scale,
    "partial of a function": lambda: partial(_scale, factor=2.0),
    "partial by position": lambda: partial(_scale, 2.0),
    "integer for a float": lambda: partial(_scale, factor=2),
    "default": lambda: _with_default(1.0),
    "another default": lambda: _with_default(2.0),
    "keyword default": lambda: _with_keyword(1.0),
    "another keyword default": lambda: _with_keyword(2.0),
    "closure over a module": lambda: _closing_over(Scaled()),
    "closure over a list": lambda: _closing_over([Scaled(), 1]),
    "closure over a tuple": lambda: _closing_over((Scaled(), 1)),
    "closure over a dictionary": lambda: _closing_over({"a": Scaled(), "b": 1}),
    "closure over another dictionary": lambda: _closing_over({"a": Scaled(), "b": 2}),
    "closure over a set": lambda: _closing_over({1, 2}),
    "closure over a tensor": lambda: _closing_over(torch.arange(3.0)),
    "closure over its shape": lambda: _closing_over(torch.arange(3.0)[None]),
    "closure over another dtype": lambda: _closing_over(torch.arange(3)),
    "closure over a dataclass": lambda: _closing_over(Fields(Scaled(), 1)),
    "closure over another dataclass": lambda: _closing_over(Fields(Scaled(), 2)),
    "operator of torch": lambda: torch.relu,
    "another operator of torch": lambda: torch.tanh,
}


def test_whatever_can_be_called_is_known_again() -> None:
    """Made twice it is alike, with other weights; and like nothing else."""
    first, second = ([likeness(make()) for make in CALLABLES.values()] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(CALLABLES)


def test_ties_count() -> None:
    """Two weights are something else than one that is used twice: within a module, and between two."""

    def pair(*, tied: bool) -> nn.ModuleList:
        modules = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
        if tied:
            modules[1].weight = modules[0].weight
        return modules

    assert likeness(pair(tied=True)) == likeness(pair(tied=True)) != likeness(pair(tied=False))
    apart, tied = pair(tied=False), pair(tied=True)
    assert likeness(_closing_over((apart[0], apart[1]))) != likeness(_closing_over((tied[0], tied[1])))
    assert likeness(_closing_over((apart[0], apart[1]))) != likeness(_closing_over((apart[0], apart[0])))
    first, second = apart
    assert likeness(_closing_over((first, second, first))) != likeness(_closing_over((first, second, second)))


def test_what_cannot_be_compared_is_like_itself_only() -> None:
    """An object of a kind that nothing is known of, wherever it is."""

    class Unknown:
        def __call__(self, x: Tensor) -> Tensor:
            return x

    one, other = Unknown(), Unknown()
    for around in (lambda value: value, _closing_over, lambda value: partial(_scale, value), lambda value: [value]):
        assert likeness(around(one)) == likeness(around(one))
        assert likeness(around(one)) != likeness(around(other))


def test_modules_are_found_outermost_first_and_once() -> None:
    """Those that a stage is made of, in the order in which they are met: like stages give like lists."""
    inner = nn.Linear(2, 2)
    outer = nn.Sequential(inner, nn.ReLU())
    parts = Parts()
    parts.likeness(_closing_over((outer, inner, nn.Identity())))
    assert [type(module) for module in parts.modules] == [nn.Sequential, nn.Identity]
    assert parts.modules[0] is outer


@given(st.lists(st.sampled_from("abcd")))
def test_patterns_forget_names_and_nothing_else(names: list[str]) -> None:
    """Which are the same, in order of appearance."""
    found = pattern(names)
    assert [(found[i] == found[j]) for i in range(len(names)) for j in range(i)] == [
        (names[i] == names[j]) for i in range(len(names)) for j in range(i)
    ]
    assert list(dict.fromkeys(found)) == list(range(len(set(names))))
