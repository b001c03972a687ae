"""Writing a file: its graphs first, behind them its large constants, from where they are straight to where they belong.

Most constants are known with the first signature, while lowering the others takes the time. So another process writes
them meanwhile, behind room for the graphs; what the graphs leave of it stays empty. A thread would not do: lowering is
Python as well, and every call of the one would wait for the other.
"""

from __future__ import annotations

import multiprocessing
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from parity import isolated
from parity.convert.constants import Constant
from parity.convert.packing import Builder
from parity.errors import CannotStartError, RungError

if TYPE_CHECKING:
    from torch import Tensor

#: The runtime's kernels want constants at multiples of this.
ALIGNMENT = 64
#: Larger ones, in bytes, are written behind everything else.
SMALL = 1024
#: A table cannot point further than this; larger files keep their weights outside of all tables.
_REACH = 2**31 - 1
_IDENTIFIER = b"TFL3"
#: More words of a process that nobody listens to yet would stop it: they have to fit a pipe.
_STEPS = 100


class Writer:
    """A file while it is written; use as a context manager.

    ``parameters`` are asked for by name, one at a time, when their turn comes. ``early`` writers have a process beside
    this one to ``begin`` with. It is forked here and now, so nothing may have started threads of its own before. Where
    the system does not fork a process with room for so large a model, there is none, and ``finish`` writes everything.
    """

    def __init__(self, path: Path, parameters: Mapping[str, Tensor], *, early: bool = False) -> None:
        self._parameters = parameters
        self._room = self._end = 0
        self._places: dict[Constant, int] = {}
        self._helper: _Helper | None = None
        with ExitStack() as stack:
            self._file = stack.enter_context(path.open("wb"))
            if early:
                with suppress(CannotStartError):
                    self._helper = _Helper(path, parameters, stack)
            self._stack = stack.pop_all()

    @property
    def early(self) -> bool:
        """Whether it can ``begin``."""
        return self._helper is not None

    def begin(self, room: int, constants: Iterable[Constant]) -> None:
        """Leave that many bytes to the graphs, and have written behind them what is known of the constants."""
        assert self._helper is not None, "made as an early writer"
        self._room = self._end = room
        self._helper.begin(self._place(constants))

    def finish(
        self, model: Any, constants: Sequence[Constant], metadata: Mapping[str, bytes], progress: isolated.Progress
    ) -> None:
        """Write a model whose tensors number their buffers: 0 is empty, ``n + 1`` holds ``constants[n]``.

        Graphs that need more room than they were left have everything written again. Raises what reading or writing
        constants has raised, here or in the process beside.
        """
        large = sum(constant.bytes + ALIGNMENT for constant in constants if constant.bytes > SMALL)
        outside = self._room + large > _REACH
        header = self._header(model, constants, metadata, outside=outside)
        if len(header) > self._room:
            if not outside and (outside := len(header) + large > _REACH):
                header = self._header(model, constants, metadata, outside=True)
            self._wait(progress)
            self._file.truncate(0)
            self._room = self._end = len(header)
            self._places.clear()
        _write(self._file, self._place(constants), self._parameters, progress)
        for number, constant in enumerate(constants, start=1):
            if constant in self._places:
                _point(header, number, self._places[constant], constant.bytes, outside=outside)
        self._wait(progress)
        self._file.seek(0)
        self._file.write(header)

    def _wait(self, progress: isolated.Progress) -> None:
        """For the process beside."""
        if self._helper:
            self._helper.finish(progress)

    def _place(self, constants: Iterable[Constant]) -> dict[Constant, int]:
        """Where those go, in bytes from the file's beginning, that have no place yet and are not among the graphs."""
        places = {}
        for constant in constants:
            if constant.bytes > SMALL and constant not in self._places:
                # Its size is just before it.
                start = -(-(self._end + 4) // ALIGNMENT) * ALIGNMENT
                places[constant], self._end = start, start + constant.bytes
        self._places |= places
        return places

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
                buffers.append(_buffer(constant.values(self._parameters).tobytes()))
        model.metadata = [
            schema.MetadataT(name=name, buffer=number) for number, name in enumerate(metadata, start=len(buffers))
        ]
        model.buffers = [*buffers, *map(_buffer, metadata.values())]
        builder = Builder(2**20)
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytearray(builder.Output())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _Helper:
    """A process beside this one that writes constants to a file when it is told where; it ends with the stack."""

    def __init__(self, path: Path, parameters: Mapping[str, Tensor], stack: ExitStack) -> None:
        theirs, ours = multiprocessing.Pipe(duplex=False)
        self._told = stack.enter_context(ours)
        with theirs:
            job = isolated.fork("writing weights", partial(_write_told, theirs, path, parameters))
        self._job = stack.enter_context(job)
        self._busy = False

    def begin(self, places: Mapping[Constant, int]) -> None:
        """Have those written."""
        self._busy = True
        with suppress(BrokenPipeError):  # what has ended it is said when it is waited for
            self._told.send(places)

    def finish(self, progress: isolated.Progress) -> None:
        """Wait until they are. Raises what has come between."""
        if self._busy:
            self._busy = False
            if failure := self._job.result(progress).value:
                raise failure


def _write_told(
    told: Connection, path: Path, parameters: Mapping[str, Tensor], progress: isolated.Progress
) -> OSError | None:
    """Write the constants that another process tells of; what the disk says to it is for that process to say."""
    import torch

    torch.set_num_threads(1)  # more would be those of the process that this one was forked from
    places = told.recv()
    try:
        with path.open("r+b") as file:
            _write(file, places, parameters, progress)
    except OSError as error:
        return error
    return None


def _write(
    file: BinaryIO, places: Mapping[Constant, int], parameters: Mapping[str, Tensor], progress: isolated.Progress
) -> None:
    """Write constants to their places in a file, and say now and then how far that is."""
    steps = range(0, len(places), len(places) // _STEPS + 1)
    for done, (constant, start) in enumerate(places.items()):
        if done in steps:
            progress(done, len(places))
        _write_one(file, constant, start, parameters)


def _write_one(file: BinaryIO, constant: Constant, start: int, parameters: Mapping[str, Tensor]) -> None:
    """Write a constant, its size just before it; its values are gone afterwards."""
    values = np.ascontiguousarray(constant.values(parameters)).reshape(-1).view(np.uint8)
    if values.nbytes != constant.bytes:
        name = constant.name or "a constant"
        raise RungError(f"{name} has {values.nbytes} bytes, not {constant.bytes}; convert with --plain")
    file.seek(start - 4)
    file.write(struct.pack("<I", constant.bytes if constant.bytes < 2**32 else 0))
    file.write(values.data)


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
