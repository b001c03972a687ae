"""Biases go into products and sequences through them; only where nothing but the place of an addition changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from made_graphs import Making, ran
from tables import graphs_of, nodes_of, tables_of

from parity.convert.fusing import fused
from parity.convert.graphs import Graph
from parity.convert.linking import Linker
from parity.convert.writing import Writer

RELU = schema.ActivationFunctionType.RELU


def names(making: Making, *outputs: int) -> list[str]:
    """The operators after fusing."""
    return [node.name for node in fused(making.nodes, making.tensors, making.constants, outputs)]


def product(making: Making, given: int, *, activation: int = 0, bias: int = -1) -> int:
    """``[1, 2, 4]`` or ``[2, 4]`` times a weight ``[3, 4]``, as a matrix."""
    options = schema.FullyConnectedOptionsT(fusedActivationFunction=activation)
    return making.run("FULLY_CONNECTED", [given, making.weight("weight", 3, 4), bias], 2, 3, options=options)


def added(making: Making, first: int, second: int, *shape: int, activation: int = 0) -> int:
    options = schema.AddOptionsT(fusedActivationFunction=activation)
    return making.run("ADD", [first, second], *shape, options=options)


def numbers(making: Making, output: int, path: Path, *, fuse: bool, **inputs: Any) -> np.ndarray:
    """What the runtime makes of the graph, with or without fusions."""
    nodes = fused(making.nodes, making.tensors, making.constants, [output]) if fuse else making.nodes
    made = making.graph(out=output)
    graph = Graph(made.tensors, nodes, made.inputs, made.outputs, made.constants, {}, made.model)
    shapes = {each.name: each.shape for each in made.constants.values() if each.parameters}
    weights = {name: torch.randn(shape, generator=torch.manual_seed(len(name))) for name, shape in shapes.items()}
    linker = Linker(1)
    linker.begin("run")
    known: dict[str, Any] = {}
    same = {name: name for name in making.inputs}
    linker.place("stage", graph, known, same, {"out": "out"}, {name: name for name in weights})
    linker.finish(known, list(same), ["out"])
    with Writer(path, weights) as writer:
        linker.write(writer, {}, lambda *_: None)
    return ran(path, "run", **inputs)["out"]


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 1, 3)])
@pytest.mark.parametrize("first", [True, False])
def test_a_bias_becomes_the_products(tmp_path: Path, shape: tuple[int, ...], first: bool) -> None:
    """Whichever side of the addition it is on, and whatever axes of one it has; it gives the same numbers."""

    def make() -> tuple[Making, int]:
        making = Making()
        sides = [product(making, making.given("x", 2, 4)), making.weight("bias", *shape)]
        result = (2, 3) if len(shape) < 3 else (1, 2, 3)
        return making, added(making, *(sides if first else sides[::-1]), *result)

    making, out = make()
    if len(shape) == 3:  # an addition that changes the shape stays
        assert names(making, out) == ["FULLY_CONNECTED", "ADD"]
        return
    nodes = fused(making.nodes, making.tensors, making.constants, [out])
    assert [node.name for node in nodes] == ["FULLY_CONNECTED"]
    bias = making.constants[nodes[0].inputs[2]]
    assert (bias.shape, bias.name) == ((3,), "bias")
    assert nodes[0].outputs == (out,)
    x = np.random.default_rng(0).standard_normal((2, 4), np.float32)
    (one, place), (other, _) = make(), make()
    apart = numbers(one, place, tmp_path / "apart.tflite", fuse=False, x=x)
    together = numbers(other, place, tmp_path / "together.tflite", fuse=True, x=x)
    # A sum of five terms, in another order.
    np.testing.assert_allclose(together, apart, rtol=0, atol=5 * 2**-24 * np.abs(apart).max() * 4)


@pytest.mark.parametrize(
    ("operator", "weight", "shape"),
    [("CONV_2D", (3, 1, 2, 4), (1, 1, 5, 3)), ("DEPTHWISE_CONV_2D", (1, 1, 2, 3), (1, 1, 5, 3))],
)
def test_convolutions_take_biases_too(operator: str, weight: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """One for each channel that comes out, which is not always the weight's first axis."""
    making = Making()
    out = making.run(operator, [making.given("x", 1, 1, 6, 4), making.weight("weight", *weight)], *shape)
    out = added(making, out, making.weight("bias", 3), *shape)
    assert names(making, out) == [operator]


def _read_twice(making: Making) -> list[int]:
    middle = product(making, making.given("x", 2, 4))
    return [added(making, middle, making.weight("bias", 3), 2, 3), making.run("TANH", [middle], 2, 3)]


def _given_back(making: Making) -> list[int]:
    middle = product(making, making.given("x", 2, 4))
    return [middle, added(making, middle, making.weight("bias", 3), 2, 3)]


def _added_to_itself(making: Making) -> list[int]:
    middle = product(making, making.given("x", 2, 4))
    return [added(making, middle, middle, 2, 3)]


def _a_sum_of_two(making: Making) -> list[int]:
    return [added(making, product(making, making.given("x", 2, 4)), making.given("y", 2, 3), 2, 3)]


def _one_for_each_value(making: Making) -> list[int]:
    return [added(making, product(making, making.given("x", 2, 4)), making.weight("bias", 2, 3), 2, 3)]


def _one_for_each_row(making: Making) -> list[int]:
    return [added(making, product(making, making.given("x", 2, 4)), making.weight("bias", 2, 1), 2, 3)]


def _one_for_all(making: Making) -> list[int]:
    return [added(making, product(making, making.given("x", 2, 4)), making.weight("bias"), 2, 3)]


def _one_for_the_only_channel(making: Making) -> list[int]:
    inputs = [making.given("x", 2, 4), making.weight("weight", 1, 4), -1]
    out = making.run("FULLY_CONNECTED", inputs, 2, 1, options=schema.FullyConnectedOptionsT())
    return [added(making, out, making.weight("bias"), 2, 1)]


def _along_rows_as_long_as_columns(making: Making) -> list[int]:
    inputs = [making.given("x", 3, 4), making.weight("weight", 3, 4), -1]
    out = making.run("FULLY_CONNECTED", inputs, 3, 3, options=schema.FullyConnectedOptionsT())
    return [added(making, out, making.weight("bias", 3, 1), 3, 3)]


def _a_literal(making: Making) -> list[int]:
    bias = making.literal(np.ones(3, np.float32))
    return [added(making, product(making, making.given("x", 2, 4)), bias, 2, 3)]


def _activated(making: Making) -> list[int]:
    middle = product(making, making.given("x", 2, 4), activation=RELU)
    return [added(making, middle, making.weight("bias", 3), 2, 3)]


def _activated_afterwards(making: Making) -> list[int]:
    middle = product(making, making.given("x", 2, 4))
    return [added(making, middle, making.weight("bias", 3), 2, 3, activation=RELU)]


def _biased_already(making: Making) -> list[int]:
    middle = product(making, making.given("x", 2, 4), bias=making.weight("first", 3))
    return [added(making, middle, making.weight("bias", 3), 2, 3)]


def _subtracted(making: Making) -> list[int]:
    middle = product(making, making.given("x", 2, 4))
    return [making.run("SUB", [middle, making.weight("bias", 3)], 2, 3)]


@pytest.mark.parametrize(
    "make",
    [
        _read_twice,
        _given_back,
        _added_to_itself,
        _a_sum_of_two,
        _one_for_each_value,
        _one_for_each_row,
        _one_for_all,
        _one_for_the_only_channel,
        _along_rows_as_long_as_columns,
        _a_literal,
        _activated,
        _activated_afterwards,
        _biased_already,
        _subtracted,
    ],
)
def test_what_is_no_bias_stays(make: Any) -> None:
    """The same operators as before, and no tensor changed."""
    making = Making()
    outputs = make(making)
    before, tensors = list(making.nodes), len(making.tensors)
    assert fused(making.nodes, making.tensors, making.constants, outputs) == before
    assert len(making.tensors) == tensors


def shape_to(making: Making, given: int, *shape: int) -> int:
    return making.run("RESHAPE", [given, making.literal(np.int32(shape))], *shape)


def _sequence(making: Making) -> tuple[int, list[str]]:
    out = product(making, making.given("x", 1, 2, 4))
    return shape_to(making, out, 1, 2, 3), ["FULLY_CONNECTED"]


def _sequence_that_was_flattened(making: Making) -> tuple[int, list[str]]:
    flat = shape_to(making, making.given("x", 1, 2, 4), 2, 4)
    return shape_to(making, product(making, flat), 1, 2, 3), ["FULLY_CONNECTED"]


def _heads_that_are_joined(making: Making) -> tuple[int, list[str]]:
    flat = shape_to(making, making.given("x", 1, 2, 2, 2), 2, 4)
    return shape_to(making, product(making, flat), 1, 2, 3), ["RESHAPE", "FULLY_CONNECTED"]


def _sequence_with_a_bias(making: Making) -> tuple[int, list[str]]:
    flat = shape_to(making, making.given("x", 1, 2, 4), 2, 4)
    biased = added(making, product(making, flat), making.weight("bias", 3), 2, 3)
    return shape_to(making, biased, 1, 2, 3), ["FULLY_CONNECTED"]


def _heads_that_are_taken_apart(making: Making) -> tuple[int, list[str]]:
    out = product(making, making.given("x", 1, 2, 4))
    return shape_to(making, out, 1, 2, 3, 1), ["FULLY_CONNECTED", "RESHAPE"]


def _matrix_from_nowhere(making: Making) -> tuple[int, list[str]]:
    out = product(making, making.given("x", 2, 4))
    return shape_to(making, out, 1, 2, 3), ["FULLY_CONNECTED", "RESHAPE"]


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (_sequence, True),
        (_sequence_that_was_flattened, True),
        (_heads_that_are_joined, True),
        (_sequence_with_a_bias, True),
        (_heads_that_are_taken_apart, False),
        (_matrix_from_nowhere, False),
    ],
)
def test_sequences_stay_sequences(tmp_path: Path, make: Any, kept: bool) -> None:
    """Through a product as before it and after it, with the same numbers; nothing is left of how they were cut."""
    results = []
    for fuse in (False, True):
        making = Making()
        out, expected = make(making)
        shape = tuple(making.tensors[making.inputs["x"]].shape)
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        results.append(numbers(making, out, tmp_path / f"{fuse}.tflite", fuse=fuse, x=x))
    apart, together = results
    model = tables_of(tmp_path / "True.tflite")
    nodes = list(nodes_of(model, graphs_of(model)["run"]))
    assert [node.name for node in nodes] == expected
    options = next(node for node in nodes if node.name == "FULLY_CONNECTED").operator.builtinOptions
    assert bool(options.keepNumDims) is kept
    assert together.shape == apart.shape
    np.testing.assert_allclose(together, apart, rtol=0, atol=5 * 2**-24 * np.abs(apart).max() * 4)


def test_options_are_the_operators_own() -> None:
    """Graphs that share a table are not changed with the one that is fused."""
    making = Making()
    out = shape_to(making, product(making, making.given("x", 1, 2, 4)), 1, 2, 3)
    before = making.nodes[0].operator
    fused(making.nodes, making.tensors, making.constants, [out])
    assert not before.builtinOptions.keepNumDims
