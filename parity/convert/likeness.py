"""Which stages compute the same with other weights, so that lowering one of them lowers them all.

A stage is whatever can be called: a module, a method of one, a function with modules bound to it. Two are alike when
everything but the values of their parameters is equal. What cannot be compared is alike only to itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType, UnionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
#: What a module keeps its parts in, which are looked at one by one, and what only says how it is being watched.
_REGISTERED = ("_parameters", "_buffers", "_modules")


@dataclass
class Parts:
    """What was found in a callable: its ``modules``, outermost only, in the order they were met."""

    modules: list[nn.Module] = field(default_factory=list)
    _seen: dict[int, int] = field(default_factory=dict)

    def likeness(self, value: Any) -> Hashable:
        """Equal for values that compute the same with other weights."""

        if isinstance(value, _PLAIN):
            return type(value), repr(value)
        for kind, compared in self._kinds.items():
            if isinstance(value, kind):
                return compared(value)
        if is_dataclass(value) and not isinstance(value, type):
            return type(value), tuple(self.likeness(getattr(value, each.name)) for each in fields(value))
        return "only", id(value)

    def __post_init__(self) -> None:
        from torch import Tensor, nn

        self._kinds: Mapping[type | UnionType, Callable[[Any], Hashable]] = {
            nn.Module: self._outermost,
            Tensor: lambda value: ("tensor", tuple(value.shape), value.dtype, _digest(value)),
            partial: lambda value: ("partial", *map(self.likeness, (value.func, value.args, value.keywords))),
            MethodType: lambda value: ("method", self.likeness(value.__func__), self.likeness(value.__self__)),
            FunctionType: self._function,
            tuple | list: lambda value: (type(value), tuple(map(self.likeness, value))),
            set | frozenset: lambda value: (type(value), frozenset(map(self.likeness, value))),
            Mapping: lambda value: (type(value), tuple(map(self.likeness, value.items()))),
        }

    def _outermost(self, module: nn.Module) -> Hashable:
        if id(module) not in self._seen:
            self.modules.append(module)
        return self._module(module)

    def _function(self, function: FunctionType) -> Hashable:
        cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
        defaults = (function.__defaults__, function.__kwdefaults__)
        return "function", id(function.__code__), self.likeness(cells), self.likeness(defaults)

    def _module(self, module: nn.Module | None) -> Hashable:
        if module is None:
            return None
        if id(module) in self._seen:
            return "again", self._seen[id(module)]
        self._seen[id(module)] = len(self._seen)
        registered: list[Mapping[str, Any]] = [vars(module)[name] for name in _REGISTERED]
        parameters, buffers, modules = registered
        return (
            type(module),
            tuple((name, self._parameter(value)) for name, value in parameters.items()),
            tuple((name, self.likeness(value)) for name, value in buffers.items()),
            tuple((name, self._module(value)) for name, value in modules.items()),
            tuple((name, self.likeness(value)) for name, value in vars(module).items() if name not in _REGISTERED),
        )

    def _parameter(self, parameter: Tensor | None) -> Hashable:
        """Its shape, and whether it is one that was met before."""
        if parameter is None:
            return None
        place = self._seen.setdefault(id(parameter), len(self._seen))
        return place, tuple(parameter.shape), parameter.dtype


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def pattern(names: Sequence[str]) -> tuple[int, ...]:
    """Which of the names are the same: ``a b a`` is ``0 1 0``."""
    order = list(dict.fromkeys(names))
    return tuple(map(order.index, names))
