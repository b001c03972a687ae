"""Putting lowered stages together into one file, in which every weight is stored once.

A signature is its stages in order, each a copy of its graph whose inputs are tensors that are there already. What two
stages would both work out from the same tensors is worked out once, and what no output needs is left out. The graphs
are small; weights go from where they are straight to the end of the file, one at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from parity.convert.constants import Constant
from parity.convert.graphs import Graph
from parity.convert.nodes import Node
from parity.convert.packing import Alike, Once, shallow
from parity.convert.stored import names_of
from parity.convert.writing import SMALL, Writer

if TYPE_CHECKING:
    from parity import isolated

#: Bytes that a tensor, an operator or a buffer takes in a file, besides names and values: 38 to 40 in tiny presets.
_ITEM = 40
#: How much larger signatures may be, on average, than those before them.
_SPARE = 1.5
#: What a name stands for in a signature: the number of a tensor, or a constant that no operator has needed yet.
Value = int | Constant


@dataclass(frozen=True)
class _Operator:
    """A node of a stage's graph, and the tensors of the signature that it reads (-1: none) and makes."""

    node: Node
    graph: Graph
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class _Signature:
    """A signature while it is put together."""

    name: str
    inputs: dict[str, int]
    tensors: list[Any] = field(default_factory=list)
    operators: list[_Operator] = field(default_factory=list)
    constants: dict[Constant, int] = field(default_factory=dict)
    #: How many constants are called the same: a parameter in two shapes, or worked on in two ways.
    named: Counter[str] = field(default_factory=Counter)
    #: What operators of each kind have made of which tensors.
    made: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)


class Linker:
    """Takes signatures one after the other, then writes the file. ``count`` is how many there will be."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._subgraphs: list[Any] = []
        self._definitions: list[Any] = []
        self._codes: dict[Hashable, int] = {}
        self._code_tables: list[Any] = []
        self._buffers: dict[Constant, int] = {}
        self._bodies: dict[Graph, tuple[list[Any], list[Once]]] = {}
        self._called: list[Any] = []
        self._likes: dict[Node, Any] = {}
        self._metadata: dict[str, bytes] = {}
        self._model: Any = None
        self._current: _Signature | None = None

    def begin(self, name: str) -> None:
        """A new signature."""
        self._current = _Signature(name, {})

    def place(
        self,
        stage: str,
        graph: Graph,
        known: dict[str, Value],
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        weights: Mapping[str, str],
    ) -> None:
        """Copy a stage behind what is there.

        ``known`` is what the signature has by name; the stage's outputs are added. ``inputs`` and ``outputs`` map the
        graph's own names to those, ``weights`` its parameters to the model's. An input that is not known is the
        signature's.
        """
        self._note(graph.model)
        values: dict[int, Value] = {place: constant.of(weights) for place, constant in graph.constants.items()}
        for name, place in graph.inputs.items():
            if inputs[name] not in known:
                tensor = self._tensor(graph.tensors[place], inputs[name])
                known[inputs[name]] = self._now.inputs[inputs[name]] = tensor
            values[place] = known[inputs[name]]
        for node in graph.nodes:
            taken = [values[place] if place >= 0 else -1 for place in node.inputs]
            if (found := node.worked_out(taken, graph.tensors)) is not None:
                values[node.outputs[0]] = found
            else:
                values.update(zip(node.outputs, self._run(stage, node, taken, graph), strict=True))
        known.update({outputs[name]: values[place] for name, place in graph.outputs.items()})

    def _run(self, stage: str, node: Node, values: Sequence[Value], graph: Graph) -> tuple[int, ...]:
        """The tensors that the node makes of the values; by an operator of its own, unless one has made them before."""
        signature = self._now
        taken = tuple(value if isinstance(value, int) else self._constant(value) for value in values)
        # What comes out says what an operator does where its options leave it open, such as the dtype of a CAST.
        types = tuple(graph.types[place] for place in node.outputs)
        key = (node.kind, taken, types, *(graph.within[number] for number in node.calls.values()))
        made = None if node.stateful else signature.made.get(key)
        if made is None:
            made = tuple(self._tensor(graph.tensors[place], f"{stage}/{graph.names[place]}") for place in node.outputs)
            signature.made[key] = made
            signature.operators.append(_Operator(node, graph, taken, made))
        return made

    def _note(self, model: Any) -> None:
        """What the converter says of the files that the graphs came in: of all runtimes asked for, the latest."""
        self._model = self._model or model
        for entry in model.metadata or ():
            name, held = entry.name.decode(), bytes(model.buffers[entry.buffer].data)
            self._metadata[name] = max(self._metadata.get(name, held), held, key=_version)

    def finish(self, known: Mapping[str, Value], inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """End the signature, which gives back the ``outputs`` of what is ``known``."""
        signature = self._now
        values = {name: known[name] for name in outputs}
        made = {name: value if isinstance(value, int) else self._constant(value) for name, value in values.items()}
        needed = set(made.values())
        operators = []
        for operator in reversed(signature.operators):
            if needed.intersection(operator.outputs):
                # Its other outputs as well: the runtime writes every one.
                needed.update(operator.inputs, operator.outputs)
                operators.append(operator)
        places = {place: number for number, place in enumerate(sorted(place for place in needed if place >= 0))}
        given = {name: places[place] for name in inputs if (place := signature.inputs.get(name)) in places}
        gives = {name: places[place] for name, place in made.items()}
        lookup = {-1: -1, **places}
        self._definitions.append(_definition(len(self._definitions), signature.name, given, gives))
        self._subgraphs.append(
            schema.SubGraphT(
                tensors=[signature.tensors[place] for place in places],
                inputs=np.array(list(given.values()), np.int32),
                outputs=np.array(list(gives.values()), np.int32),
                operators=[self._table(operator, lookup) for operator in reversed(operators)],
                name=signature.name,
            )
        )
        self._current = None

    @property
    def _now(self) -> _Signature:
        assert self._current is not None, "begin() comes first"
        return self._current

    def _constant(self, constant: Constant) -> int:
        """The tensor of a constant."""
        known = self._now.constants
        if constant not in known:
            buffer = self._buffer(constant)
            name = constant.name or str(buffer)
            self._now.named[name] += 1
            if self._now.named[name] > 1:
                name += f"+{self._now.named[name]}"
            tensor = schema.TensorT(
                shape=np.array(constant.shape, np.int32),
                type=getattr(schema.TensorType, constant.dtype.upper()),
                buffer=buffer,
                name=f"{self._now.name}/{name}".encode(),
                hasRank=True,
            )
            known[constant] = len(self._now.tensors)
            self._now.tensors.append(tensor)
        return known[constant]

    def _buffer(self, constant: Constant) -> int:
        """The number of what holds a constant."""
        return self._buffers.setdefault(constant, len(self._buffers) + 1)

    def _tensor(self, like: Any, name: str) -> int:
        """A tensor that a caller or an operator gives its values."""
        self._now.tensors.append(Alike(like, name=f"{self._now.name}/{name}".encode()))
        return len(self._now.tensors) - 1

    def _code(self, code: Any) -> int:
        key = (code.builtinCode, code.version, code.customCode)
        if key not in self._codes:
            self._codes[key] = len(self._codes)
            self._code_tables.append(code)
        return self._codes[key]

    def _table(self, operator: _Operator, places: Mapping[int, int]) -> Any:
        """The operator, its tensors in their places."""
        node, within = operator.node, operator.graph.within
        inputs, outputs = (
            np.array([places[place] for place in side], np.int32) for side in (operator.inputs, operator.outputs)
        )
        if node.calls:
            table = node.calling({number: self._call(within[number]) for number in node.calls.values()})
            return shallow(table, opcodeIndex=self._code(node.code), inputs=inputs, outputs=outputs)
        if node not in self._likes:
            self._likes[node] = shallow(node.operator, opcodeIndex=self._code(node.code))
        return Alike(self._likes[node], inputs=inputs, outputs=outputs)

    def _call(self, graph: Graph) -> int:
        """The number of a subgraph that one operator runs, its own.

        With shared ones the runtime took 1.2 (float32) to 1.6 times (int4) as long for a token of SmolLM-135M.
        """
        if graph not in self._bodies:
            self._bodies[graph] = self._body(graph)
        likes, operators = self._bodies[graph]
        name = f"within_{len(self._called)}"
        self._called.append(
            schema.SubGraphT(
                tensors=[Alike(like, name=f"{name}/{place}".encode()) for place, like in enumerate(likes)],
                inputs=np.array(list(graph.inputs.values()), np.int32),
                outputs=np.array(list(graph.outputs.values()), np.int32),
                operators=operators,
                name=name,
            )
        )
        return self._count + len(self._called) - 1

    def _body(self, graph: Graph) -> tuple[list[Any], list[Once]]:
        """What subgraphs of one graph have alike: tensors but for their names, and operators."""
        tensors = list(graph.tensors)
        for place, constant in graph.constants.items():
            tensors[place] = shallow(tensors[place], buffer=self._buffer(constant))
        places = {place: place for place in range(-1, len(tensors))}
        operators = [_Operator(node, graph, node.inputs, node.outputs) for node in graph.nodes]
        return tensors, [Once(self._table(operator, places)) for operator in operators]

    def begin_writing(self, writer: Writer) -> None:
        """Have the constants written that the signatures need so far, behind room for the graphs of all."""
        graphs = [*self._subgraphs, *self._called]
        operators = [each.operators for each in self._subgraphs] + [shared for _, shared in self._bodies.values()]
        items = sum(len(each.tensors) for each in graphs) + sum(map(len, operators))
        names = sum(len(tensor.name) for each in graphs for tensor in each.tensors)
        kept = sum(constant.bytes for constant in self._buffers if constant.bytes <= SMALL)
        size = kept + names + _ITEM * (items + len(self._buffers))
        writer.begin(int(_SPARE * size * self._count / len(self._subgraphs)), self._buffers)

    def write(self, writer: Writer, metadata: Mapping[str, bytes], progress: isolated.Progress) -> tuple[str, ...]:
        """Write the file.

        ``metadata`` is said besides what the converter said of the graphs. Returns the names of the weights, in file
        order.
        """
        assert len(self._subgraphs) == self._count, "as many signatures as were promised"
        assert self._model is not None, "place() comes first"
        model = schema.ModelT(
            version=self._model.version,
            description=self._model.description,
            operatorCodes=self._code_tables,
            subgraphs=[*self._subgraphs, *self._called],
            signatureDefs=self._definitions,
        )
        writer.finish(model, list(self._buffers), {**self._metadata, **metadata}, progress)
        return names_of(model)


def _definition(number: int, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    return schema.SignatureDefT(
        inputs=[schema.TensorMapT(name=each, tensorIndex=place) for each, place in inputs.items()],
        outputs=[schema.TensorMapT(name=each, tensorIndex=place) for each, place in outputs.items()],
        signatureKey=name,
        subgraphIndex=number,
    )


def _version(entry: bytes) -> list[int]:
    """What a metadata entry counts by, such as ``2.17.0``; nothing for others."""
    return [int(number) for number in re.findall(rb"\d+", entry)]
