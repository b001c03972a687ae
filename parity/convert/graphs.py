"""Lowered graphs, taken apart once, to be put together as often as there are stages like them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from parity.convert.constants import Constant, Literal, Parameter
from parity.convert.fusing import fused
from parity.convert.nodes import Node, shape_of, type_of
from parity.convert.packing import Once, shallow
from parity.errors import RungError


@dataclass(frozen=True, eq=False)
class Graph:
    """A lowered stage. Tensors are numbers: ``inputs`` and ``outputs`` by name, ``constants`` with what they hold."""

    tensors: Sequence[Any]
    nodes: Sequence[Node]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    constants: Mapping[int, Constant]
    #: Graphs that operators of this one run, by the number that they call them.
    within: Mapping[int, Graph]
    model: Any

    @cached_property
    def types(self) -> Sequence[Hashable]:
        """A shape and a dtype for each tensor, whatever the runtime has as one."""
        return [(shape_of(each), each.type) for each in self.tensors]

    @cached_property
    def names(self) -> Sequence[str]:
        """A name for each tensor that says which module made it: surely that whose weights were read for it."""
        modules = [_readable(each.name) for each in self.tensors]
        for node in self.nodes:
            read = [self.constants[place] for place in node.inputs if place in self.constants]
            for parameter in [name for constant in read for name in constant.parameters][:1]:
                for place in node.outputs:
                    modules[place] = _module(parameter)
        return [f"{module}.{place}" for place, module in enumerate(modules)]


def read_graph(content: bytes, weight_mark: str) -> Graph:
    """The graph of a file with one signature; its inputs that bear the mark are parameters.

    What the graph does with parameters alone is worked out: such operators are gone, their results are constants.

    Raises:
        RungError: a constant has no values.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (signature,) = model.signatureDefs
    taken = {each.name.decode(): int(each.tensorIndex) for each in signature.inputs}
    parameters = {
        place: name.removeprefix(weight_mark) for name, place in taken.items() if name.startswith(weight_mark)
    }
    inputs = {name: place for name, place in taken.items() if not name.startswith(weight_mark)}
    outputs = {each.name.decode(): int(each.tensorIndex) for each in signature.outputs}
    return _graph(model, int(signature.subgraphIndex), parameters, inputs, outputs)


def _graph(
    model: Any, number: int, parameters: Mapping[int, str], inputs: Mapping[str, int], outputs: Mapping[str, int]
) -> Graph:
    subgraph = model.subgraphs[number]
    # What tensors hold is looked up by ``constants``; the numbers of buffers mean nothing in another file.
    tensors = [
        shallow(each, buffer=0, quantization=each.quantization and Once(each.quantization)) for each in subgraph.tensors
    ]
    constants = dict(_literals(model, subgraph))
    for place, name in parameters.items():
        constants[place] = Constant(*type_of(tensors[place]), Parameter(name))
    nodes = []
    for operator in subgraph.operators or ():
        node = Node.of(operator, model.operatorCodes[operator.opcodeIndex])
        if (found := node.worked_out([constants.get(place) for place in node.inputs], tensors)) is not None:
            constants[node.outputs[0]] = found
        else:
            nodes.append(node)
    nodes = fused(nodes, tensors, constants, list(outputs.values()))
    called = dict.fromkeys(number for node in nodes for number in node.calls.values())
    within = {number: _graph(model, number, {}, *_unnamed(model.subgraphs[number])) for number in called}
    return Graph(tensors, nodes, inputs, outputs, constants, within, model)


def _unnamed(subgraph: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Inputs and outputs of a graph that is called by position."""
    return (
        {str(place): int(tensor) for place, tensor in enumerate(subgraph.inputs)},
        {str(place): int(tensor) for place, tensor in enumerate(subgraph.outputs)},
    )


def _literals(model: Any, subgraph: Any) -> Iterator[tuple[int, Constant]]:
    """Tensors that neither a caller gives nor an operator makes."""
    made = {int(place) for operator in subgraph.operators or () for place in operator.outputs}
    made |= {int(place) for place in subgraph.inputs}
    for place, tensor in enumerate(subgraph.tensors):
        if place not in made:
            data = model.buffers[tensor.buffer].data
            held = b"" if data is None else bytes(data)
            constant = Constant(*type_of(tensor), Literal(held))
            if constant.bytes != len(held):
                raise RungError(f"{tensor.name.decode()} is a constant without its values; convert with --plain")
            yield place, constant


def _module(parameter: str) -> str:
    """Where in its stage a parameter is, such as ``mlp/up_proj``; the stage's own modules are in a numbered list."""
    return "/".join(parameter.split(".")[2:-1])


def _readable(name: Any) -> str:
    """Of the converter's name, which lists classes and modules from the outermost, the modules below the stage."""
    path = name.decode().partition(";")[0].split("/")[2:]
    return "/".join(part.rpartition(".")[2].partition("_")[2] for part in path)
