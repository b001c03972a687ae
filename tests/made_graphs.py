"""Graphs made by hand, as the converter would give them for a stage, and running what is linked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from parity.convert.constants import Constant, Literal, Parameter
from parity.convert.graphs import Graph
from parity.convert.nodes import Node

Arrays = Mapping[str, NDArray[Any]]


@dataclass
class Making:
    """A graph while it is made. Every method gives back the number of a tensor."""

    tensors: list[Any] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    constants: dict[int, Constant] = field(default_factory=dict)
    metadata: Mapping[str, bytes] = field(default_factory=dict)

    def tensor(self, *shape: int, dtype: str = "float32") -> int:
        kind = getattr(schema.TensorType, dtype.upper())
        name = f"stage/stage_1/module_x{len(self.tensors)};".encode()
        self.tensors.append(schema.TensorT(shape=np.array(shape, np.int32), type=kind, name=name, hasRank=True))
        return len(self.tensors) - 1

    def given(self, name: str, *shape: int, dtype: str = "float32") -> int:
        self.inputs[name] = self.tensor(*shape, dtype=dtype)
        return self.inputs[name]

    def weight(self, name: str, *shape: int) -> int:
        place = self.tensor(*shape)
        self.constants[place] = Constant(shape, "float32", Parameter(name))
        return place

    def literal(self, values: NDArray[Any]) -> int:
        place = self.tensor(*values.shape, dtype=values.dtype.name)
        self.constants[place] = Constant(values.shape, values.dtype.name, Literal(values.tobytes()))
        return place

    def run(
        self, operator: str, inputs: Sequence[int], *shape: int, options: Any = None, dtype: str = "float32"
    ) -> int:
        """What an operator makes of them, of this shape."""
        return self.run_all(operator, inputs, [shape], options=options, dtype=dtype)[0]

    def run_all(
        self,
        operator: str,
        inputs: Sequence[int],
        shapes: Sequence[Sequence[int]],
        *,
        options: Any = None,
        dtype: str = "float32",
    ) -> list[int]:
        """What an operator with several outputs makes."""
        number = getattr(schema.BuiltinOperator, operator)
        code = schema.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=1)
        table = schema.OperatorT()
        if options is not None:
            table.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            table.builtinOptions = options
        made = [self.tensor(*shape, dtype=dtype) for shape in shapes]
        self.nodes.append(Node(table, code, tuple(inputs), tuple(made)))
        return made

    def graph(self, **outputs: int) -> Graph:
        entries = [schema.MetadataT(name=name.encode(), buffer=n) for n, name in enumerate(self.metadata, start=1)]
        held = [schema.BufferT(data=np.frombuffer(data, np.uint8)) for data in self.metadata.values()]
        model = schema.ModelT(version=3, metadata=entries, buffers=[schema.BufferT(), *held])
        return Graph(self.tensors, self.nodes, self.inputs, outputs, self.constants, {}, model)


def ran(path: Path, signature: str, **inputs: NDArray[Any]) -> Arrays:
    """What the runtime makes of a signature."""
    from ai_edge_litert.interpreter import Interpreter

    made: Arrays = Interpreter(str(path), num_threads=1).get_signature_runner(signature)(**inputs)
    return made
