"""Fusions that the converter makes where it sees constants, for graphs in which it could see none.

A bias that is added becomes the bias of the multiplication before it, and a multiplication that is given a sequence
gives one back instead of a matrix that is then reshaped. Neither changes a number but by the order of one addition.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.convert.constants import Constant, Literal
from parity.convert.nodes import Node, shape_of
from parity.convert.packing import shallow

#: Operators with a bias as their third input, and which axis of their weights counts the outputs.
_BIASED = {"FULLY_CONNECTED": 0, "CONV_2D": 0, "DEPTHWISE_CONV_2D": -1}


def fused(
    nodes: Sequence[Node], tensors: list[Any], constants: dict[int, Constant], outputs: Sequence[int]
) -> list[Node]:
    """The nodes of a graph with ``outputs`` after both fusions; ``tensors`` and ``constants`` may grow."""
    graph = _Graph(list(nodes), tensors, constants)
    for fuse in (_bias, _rank):
        uses = Counter(place for node in graph.nodes for place in node.inputs) + Counter(outputs)
        reader = {place: node for node in graph.nodes for place in node.inputs if uses[place] == 1}
        gone: set[int] = set()
        merged: list[Node] = []
        for node in graph.nodes:
            after = reader.get(node.outputs[0])
            found = None if after is None else fuse(node, after, graph)
            merged += found or [node]
            if found:
                gone.add(id(after))
        graph.nodes = [node for node in merged if id(node) not in gone]
    return graph.nodes


@dataclass
class _Graph:
    nodes: list[Node]
    tensors: list[Any]
    constants: dict[int, Constant]

    def shape(self, place: int) -> tuple[int, ...]:
        return shape_of(self.tensors[place])

    def maker(self, place: int) -> Node | None:
        return next((node for node in self.nodes if place in node.outputs), None)

    def like(self, place: int, shape: tuple[int, ...]) -> int:
        """A new tensor, like another one but for its shape."""
        self.tensors.append(shallow(self.tensors[place], shape=np.array(shape, np.int32)))
        return len(self.tensors) - 1


def _bias(node: Node, after: Node, graph: _Graph) -> list[Node] | None:
    """``node`` and an addition of one parameter value for each of its outputs."""
    if node.name not in _BIASED or after.name != "ADD" or node.activated or after.activated:
        return None
    if len(node.inputs) == 3 and node.inputs[2] != -1:
        return None
    other = next((place for place in after.inputs if place != node.outputs[0]), -1)
    constant = graph.constants.get(other)
    channels = graph.shape(node.inputs[1])[_BIASED[node.name]]
    if constant is None or not constant.parameters or math.prod(constant.shape) != channels:
        return None
    if constant.shape[-1:] != (channels,) or graph.shape(after.outputs[0]) != graph.shape(node.outputs[0]):
        return None
    if constant.shape != (channels,):
        other = graph.like(other, (channels,))
        graph.constants[other] = replace(constant, shape=(channels,))
    return [replace(node, inputs=(*node.inputs[:2], other), outputs=after.outputs)]


def _rank(node: Node, after: Node, graph: _Graph) -> list[Node] | None:
    """A multiplication whose result is reshaped to a sequence, as what it is given is or was one, or can be."""
    if node.name != "FULLY_CONNECTED" or after.name != "RESHAPE" or after.inputs[0] != node.outputs[0]:
        return None
    made = graph.shape(after.outputs[0])
    wanted = (*made[:-1], graph.shape(node.inputs[1])[1])
    if made[-1] != graph.shape(node.inputs[1])[0] or math.prod(wanted) != math.prod(graph.shape(node.inputs[0])):
        return None
    kept = replace(node, operator=with_option(node.operator, "keepNumDims", True), outputs=after.outputs)
    if graph.shape(node.inputs[0]) == wanted:
        return [kept]
    before = graph.maker(node.inputs[0])
    if before is None or before.name != "RESHAPE":
        return None
    if graph.shape(before.inputs[0]) == wanted:
        return [replace(kept, inputs=(before.inputs[0], *node.inputs[1:]))]
    given, shape = graph.like(node.inputs[0], wanted), graph.like(before.inputs[1], (len(wanted),))
    graph.constants[shape] = Constant((len(wanted),), "int32", Literal(np.array(wanted, np.int32).tobytes()))
    reshaped = replace(
        before,
        operator=with_option(before.operator, "newShape", None),
        inputs=(before.inputs[0], shape),
        outputs=(given,),
    )
    return [reshaped, replace(kept, inputs=(given, *node.inputs[1:]))]


def with_option(operator: Any, name: str, value: object) -> Any:
    """The operator with an option of its own."""
    options = operator.builtinOptions
    return shallow(operator, builtinOptions=options and shallow(options, **{name: value}))
