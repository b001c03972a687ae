"""Operators of a graph in the runtime's tables."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from parity.convert.constants import WORKED_OUT, Constant, Worked
from parity.convert.packing import shallow
from parity.errors import RungError

NAMES = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
DTYPES = {
    getattr(schema.TensorType, name.upper()): name
    for name in ("float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool")
}
#: Operators that are, or may be, more than a function of their inputs.
_STATEFUL = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "CUSTOM", "RANDOM_UNIFORM"})


@dataclass(frozen=True)
class Node:
    """An operator, its ``code``, and the numbers of the tensors that it reads (-1: none) and makes."""

    operator: Any
    code: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, operator: Any, code: Any) -> Node:
        """The node of a table."""
        return cls(operator, code, tuple(map(int, operator.inputs)), tuple(map(int, operator.outputs)))

    @property
    def name(self) -> str:
        """The runtime's name of what it does."""
        name: str = NAMES[self.code.builtinCode]
        return name

    @property
    def stateful(self) -> bool:
        """Whether running it twice may be something else than running it once."""
        return self.name in _STATEFUL

    @property
    def activated(self) -> bool:
        """Whether an activation is part of it."""
        return bool(getattr(self.operator.builtinOptions, "fusedActivationFunction", 0))

    @cached_property
    def calls(self) -> dict[str, int]:
        """The graphs that it runs, by the option that numbers them."""
        found = {}
        for options in (self.operator.builtinOptions, self.operator.builtinOptions2):
            for name, value in vars(options).items() if options is not None else ():
                if "subgraph" not in name.lower():
                    continue
                if not name.lower().endswith("subgraphindex"):
                    raise RungError(f"{self.name} runs subgraphs in a way that is not known here; convert with --plain")
                if value >= 0:
                    found[name] = int(value)
        return found

    @cached_property
    def kind(self) -> Hashable:
        """Equal for operators that make the same of the same inputs."""
        options = (self.operator.builtinOptions, self.operator.builtinOptions2, self.operator.customOptions)
        return self.name, self.code.version, self.code.customCode, tuple(map(_contents, options))

    def worked_out(self, values: Sequence[object], tensors: Sequence[Any]) -> Constant | None:
        """What it makes of ``values``, if they are constants and it can be known beforehand."""
        constants = tuple(value for value in values if isinstance(value, Constant))
        if self.name not in WORKED_OUT or self.activated or len(constants) != len(values):
            return None
        return Constant(*type_of(tensors[self.outputs[0]]), Worked(self.name, constants))

    def calling(self, numbers: Mapping[int, int]) -> Any:
        """Its table; the graphs that it runs have other numbers."""
        changed = {}
        for side in ("builtinOptions", "builtinOptions2"):
            options = getattr(self.operator, side)
            moved = {name: numbers[number] for name, number in self.calls.items() if hasattr(options, name)}
            if moved:
                changed[side] = shallow(options, **moved)
        return shallow(self.operator, **changed)


def shape_of(tensor: Any) -> tuple[int, ...]:
    """A tensor's shape."""
    return () if tensor.shape is None else tuple(map(int, tensor.shape))


def type_of(tensor: Any) -> tuple[tuple[int, ...], str]:
    """A tensor's shape and its dtype by NumPy's name."""
    return shape_of(tensor), DTYPES[tensor.type]


def _contents(options: Any) -> Hashable:
    """A table's fields, all the way down."""
    if options is None or isinstance(options, (bool, int, float, str, bytes)):
        return options
    if isinstance(options, np.ndarray):
        return options.dtype.str, options.tobytes()
    if isinstance(options, list):
        return tuple(map(_contents, options))
    return type(options).__name__, tuple((name, _contents(value)) for name, value in sorted(vars(options).items()))
