"""Packing the runtime's tables, most of which are like others: what is alike is laid out once."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import NDArray

#: What a field of a table can point to and every copy of the table can have as its own: a name, or numbers.
Own = bytes | NDArray[np.int32]
_SIZE = struct.Struct("<I")
_BACK = struct.Struct("<i")
#: No number in a table needs more.
_ALIGNMENT = 8


class Once:
    """A table that several others have: it is written once, and all of them point to it."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._builder: Any = None
        self._place = 0

    def Pack(self, builder: Any) -> int:  # noqa: N802  (what the tables around it call)
        """Its place in what the builder has built."""
        if builder is not self._builder:
            self._builder, self._place = builder, self._table.Pack(builder)
        return self._place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # one that is being copied has no table yet
            raise AttributeError(name)
        return getattr(self._table, name)


class Alike:
    """A table like another, which has the same fields, but for names and vectors of its own."""

    def __init__(self, table: Any, **own: Own) -> None:
        self._table = table
        self._own = own

    def Pack(self, builder: Any) -> int:  # noqa: N802  (what the tables around it call)
        """Its place in what the builder has built."""
        place: int = builder.CreateAlike(self._table, self._own)
        return place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # one that is being copied has neither yet
            raise AttributeError(name)
        return self._own[name] if name in self._own else getattr(self._table, name)


def shallow(table: Any, **changes: Any) -> Any:
    """A table with the same fields but for ``changes``; ``copy.copy`` takes several times as long."""
    other = object.__new__(type(table))
    other.__dict__.update(table.__dict__, **changes)
    return other


@dataclass(frozen=True)
class _Layout:
    """A packed table at ``place``: its bytes, and where in it offsets are to what it shares and to what is its own."""

    table: Any  # it goes by its identity, so it must live as long
    place: int
    content: bytes
    shared: tuple[int, ...]
    own: dict[str, int]


class Builder(flatbuffers.Builder):  # type: ignore[misc]  # it has no types
    """Builds what tables pack themselves into. Vectors that are alike are written once.

    Places count from the end, for a file is built from its end to its beginning.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}
        self._layouts: dict[int, _Layout] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802  (the library's name)
        """The place of the vector."""
        key = x.dtype.str, x.tobytes()
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]

    def CreateAlike(self, table: Any, own: dict[str, Own]) -> int:  # noqa: N802  (like the library's names)
        """The place of a table with fields of its own: the first one is packed, the others are copies of it.

        A copy is followed by what its own fields point to. What it shares is as much further away as it is itself.
        """
        layout = self._layouts.get(id(table))
        if layout is None:
            place: int = shallow(table, **own).Pack(self)
            self._layouts[id(table)] = self._layout(table, own, place)
            return place
        copied = bytearray(layout.content)
        for name, field in layout.own.items():
            value = own[name]
            _SIZE.pack_into(copied, field, len(copied) - field)
            if isinstance(value, bytes):
                copied += _SIZE.pack(len(value)) + value + bytes(4 - len(value) % 4)  # a zero ends it
            else:
                copied += _SIZE.pack(len(value)) + value.tobytes()
        place = self.Offset() + len(copied)
        place += (layout.place - place) % _ALIGNMENT
        moved = place - layout.place
        _BACK.pack_into(copied, 0, _BACK.unpack_from(copied, 0)[0] - moved)
        for field in layout.shared:
            _SIZE.pack_into(copied, field, _SIZE.unpack_from(copied, field)[0] + moved)
        self.Prep(1, place - self.Offset())  # makes room
        self.head = len(self.Bytes) - place
        self.Bytes[self.head : self.head + len(copied)] = copied
        return place

    def _layout(self, table: Any, own: dict[str, Own], place: int) -> _Layout:
        """That of a table which has just been packed."""
        start = len(self.Bytes) - place
        packed = flatbuffers.table.Table(self.Bytes, start)
        size = struct.unpack_from("<H", self.Bytes, start - _BACK.unpack_from(self.Bytes, start)[0] + 2)[0]
        # A table's attributes are its fields in order, each two bytes in the list of where they are.
        fields = {name: packed.Offset(4 + 2 * number) for number, name in enumerate(vars(table))}
        points = [name for name, value in vars(table).items() if not isinstance(value, int | float | np.generic | None)]
        return _Layout(
            table,
            place,
            bytes(self.Bytes[start : start + size]) + bytes(-size % 4),
            tuple(fields[name] for name in points if name not in own),
            {name: fields[name] for name in own},
        )
