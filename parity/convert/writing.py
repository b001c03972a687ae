"""Writing a file: its graphs first, behind them its large constants, from where they are straight to where they belong.

Most constants are known with the first signature, while lowering the others takes the time. So a thread writes them
meanwhile, behind room for the graphs; what the graphs leave of it stays empty.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from parity.convert.constants import Constant
from parity.errors import RungError

if TYPE_CHECKING:
    from torch import Tensor

    from parity import isolated

#: The runtime's kernels want constants at multiples of this.
ALIGNMENT = 64
#: Larger ones, in bytes, are written behind everything else.
SMALL = 1024
#: A table cannot point further than this; larger files keep their weights outside of all tables.
_REACH = 2**31 - 1
_IDENTIFIER = b"TFL3"


class Writer:
    """A file while it is written; use as a context manager.

    ``parameters`` are asked for by name, one at a time and by one thread, when their turn comes. What that raises,
    ``finish`` does.
    """

    def __init__(self, path: Path, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._room = self._end = 0
        self._places: dict[Constant, int] = {}
        self._written: list[Future[None]] = []
        self._file = path.open("wb")
        self._thread = ThreadPoolExecutor(1)

    def begin(self, room: int, constants: Iterable[Constant]) -> None:
        """Leave that many bytes to the graphs, and start to write behind them what is known of the constants."""
        self._room = self._end = self._file.seek(room)
        self._places.clear()
        self._add(constants)

    def finish(
        self, model: Any, constants: Sequence[Constant], metadata: Mapping[str, bytes], progress: isolated.Progress
    ) -> None:
        """Write a model whose tensors number their buffers: 0 is empty, ``n + 1`` holds ``constants[n]``.

        Graphs that need more room than they were left have everything written again.
        """
        large = sum(constant.bytes + ALIGNMENT for constant in constants if constant.bytes > SMALL)
        outside = self._room + large > _REACH
        header = self._header(model, constants, metadata, outside=outside)
        if len(header) <= self._room:
            self._add(constants)
        else:
            if not outside and (outside := len(header) + large > _REACH):
                header = self._header(model, constants, metadata, outside=True)
            self._written_so_far(progress)
            self._file.truncate(0)
            self.begin(len(header), constants)
        for number, constant in enumerate(constants, start=1):
            if constant in self._places:
                _point(header, number, self._places[constant], constant.bytes, outside=outside)
        self._written_so_far(progress)
        self._file.seek(0)
        self._file.write(header)

    def _add(self, constants: Iterable[Constant]) -> None:
        """Have those written that are not yet."""
        for constant in constants:
            if constant.bytes > SMALL and constant not in self._places:
                start = -(-(self._end + 4) // ALIGNMENT) * ALIGNMENT
                self._written.append(self._thread.submit(self._append, constant, start - self._end))
                self._places[constant], self._end = start, start + constant.bytes

    def _append(self, constant: Constant, gap: int) -> None:
        """Write a constant ``gap`` bytes behind the one before, its size just before it."""
        values = np.ascontiguousarray(constant.values(self._parameters)).reshape(-1).view(np.uint8)
        if values.nbytes != constant.bytes:
            name = constant.name or "a constant"
            raise RungError(f"{name} has {values.nbytes} bytes, not {constant.bytes}; convert with --plain")
        self._file.write(struct.pack(f"<{gap - 4}xI", constant.bytes if constant.bytes < 2**32 else 0))
        self._file.write(values.data)

    def _written_so_far(self, progress: isolated.Progress) -> None:
        """Wait until the thread has nothing left to do."""
        for done, written in enumerate(self._written):
            progress(done, len(self._written))
            written.result()

    def _header(
        self, model: Any, constants: Sequence[Constant], metadata: Mapping[str, bytes], *, outside: bool
    ) -> bytearray:
        """Everything but the large constants, whose buffers point nowhere yet."""
        buffers = [schema.BufferT()]
        for constant in constants:
            if constant.bytes > SMALL:
                nowhere = schema.BufferT(offset=1, size=1) if outside else schema.BufferT(data=np.zeros(0, np.uint8))
                buffers.append(nowhere)
            else:
                buffers.append(_buffer(self._thread.submit(constant.values, self._parameters).result().tobytes()))
        model.metadata = [
            schema.MetadataT(name=name, buffer=number) for number, name in enumerate(metadata, start=len(buffers))
        ]
        model.buffers = [*buffers, *map(_buffer, metadata.values())]
        builder = _Builder(2**20)
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytearray(builder.Output())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()


class _Builder(flatbuffers.Builder):  # type: ignore[misc]  # it has no types
    """Vectors that are alike are written once: most tensors have one of a few shapes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802  (the library's name)
        """The place of the vector."""
        key = x.dtype.str, x.tobytes()
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


def _buffer(data: bytes) -> Any:
    return schema.BufferT(data=np.frombuffer(data, np.uint8))


def _point(header: bytearray, number: int, start: int, size: int, *, outside: bool) -> None:
    """Let a buffer of a packed model point to where its values will be, ``start`` bytes into the file."""
    table = schema.Model.GetRootAs(header, 0).Buffers(number)._tab  # noqa: SLF001  (the only way to a field's place)
    if outside:
        for slot, value in ((6, start), (8, size)):
            struct.pack_into("<Q", header, table.Pos + table.Offset(slot), value)
    else:
        place = table.Pos + table.Offset(4)
        struct.pack_into("<I", header, place, start - 4 - place)
