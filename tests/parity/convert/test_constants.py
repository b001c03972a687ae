"""What is worked out of weights is NumPy's float32 result, every bit of it, and says what it is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_graphs import Making
from numpy.typing import NDArray

from parity.convert.constants import WORKED_OUT, Constant, Literal, Parameter, Worked
from parity.convert.nodes import NAMES, Node

RANDOM = np.random.default_rng(0)
PARAMETERS = {
    "a": torch.from_numpy(RANDOM.standard_normal((3, 4), np.float32) * 1e3),
    "b": torch.from_numpy(RANDOM.standard_normal((4,), np.float32) / 7),
}
A, B = (PARAMETERS[name].numpy() for name in "ab")


def parameter(name: str) -> Constant:
    return Constant(tuple(PARAMETERS[name].shape), "float32", Parameter(name))


def literal(values: NDArray[Any]) -> Constant:
    return Constant(values.shape, values.dtype.name, Literal(values.tobytes()))


def node(operator: str, options: Any = None) -> tuple[Node, list[Any]]:
    """An operator whose result is of shape ``[3, 4]``."""
    making = Making()
    making.run(operator, [0, 1], 3, 4, options=options)
    return making.nodes[0], making.tensors


@pytest.mark.parametrize(
    ("operator", "arguments", "expected"),
    [
        ("ADD", (parameter("a"), parameter("b")), A + B),
        ("SUB", (parameter("a"), parameter("b")), A - B),
        ("MUL", (parameter("a"), parameter("b")), A * B),
        ("ADD", (parameter("a"), literal(np.float32([1.0]))), A + np.float32(1)),
        ("TRANSPOSE", (parameter("a"), literal(np.int32([1, 0]))), A.T),
        ("RESHAPE", (parameter("a"), literal(np.int32([2, 6]))), A.reshape(2, 6)),
        ("EMBEDDING_LOOKUP", (literal(np.int32([2, 0, 2])), parameter("a")), A[[2, 0, 2]]),
    ],
)
def test_results_are_numpys(operator: str, arguments: tuple[Constant, ...], expected: NDArray[Any]) -> None:
    """In float32, rounded once; never through float64."""
    found = Constant(expected.shape, "float32", Worked(operator, arguments)).values(PARAMETERS)
    assert found.dtype == expected.dtype == np.float32
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def test_every_operator_that_is_worked_out_is_tested_above() -> None:
    """A new one needs a line there; and a name that the runtime knows."""
    tested = test_results_are_numpys.pytestmark[0].args[1]
    assert {operator for operator, *_ in tested} == set(WORKED_OUT)
    assert set(WORKED_OUT) <= set(NAMES.values())


def test_results_of_results() -> None:
    """Each is rounded before the next reads it."""
    inner = Constant((3, 4), "float32", Worked("MUL", (parameter("a"), parameter("b"))))
    outer = Constant((3, 4), "float32", Worked("ADD", (inner, parameter("b"))))
    assert outer.values(PARAMETERS).tobytes() == (np.float32(A * B) + B).tobytes()
    assert outer.parameters == ("a", "b", "b")


def test_constants_are_named_after_their_parameters() -> None:
    """Which is how they are found again in a file; literals are nobody's."""
    added = Constant((4,), "float32", Worked("ADD", (parameter("b"), literal(np.float32([1.0])))))
    assert added.name == "b+ADD"
    assert added.of({"b": "blocks.7.norm.weight"}).name == "blocks.7.norm.weight+ADD"
    assert parameter("b").of({"b": "c"}) == Constant((4,), "float32", Parameter("c"))
    assert literal(B).of({}) == literal(B)
    assert literal(B).name == ""
    assert Constant((4,), "float32", Worked("ADD", (literal(B), literal(B)))).name == ""


def test_equal_contents_are_equal_and_nothing_else_is() -> None:
    """What is equal is stored once: shape, dtype and every bit count, also the sign of zero."""
    values = [np.float32([0.0]), np.float32([-0.0]), np.int32([0]), np.float32([[0.0]]), np.float32([np.nan])]
    constants = [literal(each) for each in values]
    assert len(set(constants)) == len(values)
    assert literal(np.float32([np.nan])) == constants[-1]
    assert literal(np.empty((0, 4), np.float32)).values({}).shape == (0, 4)
    sizes = [each.bytes for each in (parameter("a"), literal(np.int64([1, 2])), literal(np.array([True])))]
    assert sizes == [48, 16, 1]


def test_only_what_is_known_beforehand_is_worked_out() -> None:
    """Not what a caller gives, not what is left out, not with an activation, not by any other operator."""
    from ai_edge_litert import schema_py_generated as schema

    add, tensors = node("ADD")
    a, b = parameter("a"), parameter("b")
    assert add.worked_out([a, b], tensors) == Constant((3, 4), "float32", Worked("ADD", (a, b)))
    assert add.worked_out([a, 1], tensors) is None
    assert add.worked_out([a, None], tensors) is None
    relu = schema.AddOptionsT(fusedActivationFunction=schema.ActivationFunctionType.RELU)
    assert node("ADD", relu)[0].worked_out([a, b], tensors) is None
    assert node("DIV")[0].worked_out([a, b], tensors) is None
