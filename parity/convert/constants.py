"""What the constants of a graph hold: bytes, or a parameter and what the graph does to it before it runs.

The converter leaves arithmetic on weights in the graph, for it cannot look into them. Worked out here it costs the
runtime nothing: every result is rounded once to float32, as the converter's own folding does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Literal:
    """Bytes that the graph itself brings."""

    data: bytes


@dataclass(frozen=True)
class Parameter:
    """The values of a parameter, in whatever shape the graph wants them."""

    name: str


@dataclass(frozen=True)
class Worked:
    """The result of an operator on constants."""

    operator: str
    arguments: tuple[Constant, ...]


@dataclass(frozen=True)
class Constant:
    """A constant tensor: its shape, its NumPy dtype by name, and where its values are from."""

    shape: tuple[int, ...]
    dtype: str
    source: Literal | Parameter | Worked

    @property
    def bytes(self) -> int:
        """How large it is."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters it is made of."""
        match self.source:
            case Parameter(name):
                return (name,)
            case Worked(_, arguments):
                return tuple(name for argument in arguments for name in argument.parameters)
        return ()

    @property
    def name(self) -> str:
        """What it is made of, such as ``blocks.0.mlp_norm.weight+ADD``; empty if of nothing that has a name."""
        match self.source:
            case Parameter(name):
                return name
            case Worked(operator, _) if self.parameters:
                return "+".join([*self.parameters, operator])
        return ""

    def of(self, names: Mapping[str, str]) -> Constant:
        """The same of other parameters."""
        match self.source:
            case Parameter(name):
                return replace(self, source=Parameter(names[name]))
            case Worked(operator, arguments):
                return replace(self, source=Worked(operator, tuple(each.of(names) for each in arguments)))
        return self

    def values(self, parameters: Mapping[str, Tensor]) -> NDArray[Any]:
        """What it holds."""
        match self.source:
            case Literal(data):
                found: NDArray[Any] = np.frombuffer(data, self.dtype) if data else np.empty(0, self.dtype)
            case Parameter(name):
                found = parameters[name].detach().numpy()
            case Worked(operator, arguments):
                found = WORKED_OUT[operator](*(each.values(parameters) for each in arguments))
        return found.reshape(self.shape)


#: By the runtime's names. Shapes that are arguments say nothing new: a constant knows its own.
WORKED_OUT: Mapping[str, Callable[..., NDArray[Any]]] = {
    "ADD": np.add,
    "SUB": np.subtract,
    "MUL": np.multiply,
    "RESHAPE": lambda values, *_: values,
    "TRANSPOSE": np.transpose,
    "EMBEDDING_LOOKUP": lambda rows, table: table[rows],
}
