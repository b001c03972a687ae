"""Writing a file: its graphs first, then its large constants, from where they are straight to where they belong."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from parity.convert.constants import Constant

if TYPE_CHECKING:
    from torch import Tensor

    from parity import isolated

#: The runtime's kernels want constants at multiples of this.
ALIGNMENT = 64
#: Larger ones, in bytes, are written behind everything else.
_SMALL = 1024
#: A table cannot point further than this; larger files keep their weights outside of all tables.
_REACH = 2**31 - 1
_IDENTIFIER = b"TFL3"


def write(
    path: Path,
    model: Any,
    constants: Sequence[Constant],
    metadata: Mapping[str, bytes],
    parameters: Mapping[str, Tensor],
    progress: isolated.Progress,
) -> None:
    """Write a model whose tensors number their buffers: 0 is empty, ``n + 1`` holds ``constants[n]``.

    ``parameters`` are asked for by name when their turn comes, one at a time.
    """
    large = [(number, constant) for number, constant in enumerate(constants, start=1) if constant.bytes > _SMALL]
    header = _header(model, constants, metadata, parameters, outside=False)
    outside = len(header) + sum(constant.bytes + ALIGNMENT for _, constant in large) > _REACH
    if outside:
        header = _header(model, constants, metadata, parameters, outside=True)
    places, end = [], len(header)
    for number, constant in large:
        start = -(-(end + 4) // ALIGNMENT) * ALIGNMENT
        _point(header, number, start, constant.bytes, outside=outside)
        places.append(start)
        end = start + constant.bytes
    with path.open("wb") as file:
        file.write(header)
        for done, ((_, constant), start) in enumerate(zip(large, places, strict=True)):
            progress(done, len(large))
            file.write(bytes(start - 4 - file.tell()))
            file.write(struct.pack("<I", constant.bytes if constant.bytes < 2**32 else 0))
            file.write(np.ascontiguousarray(constant.values(parameters)).reshape(-1).view(np.uint8).data)


def _header(
    model: Any,
    constants: Sequence[Constant],
    metadata: Mapping[str, bytes],
    parameters: Mapping[str, Tensor],
    *,
    outside: bool,
) -> bytearray:
    """Everything but the large constants, whose buffers point nowhere yet."""
    buffers = [schema.BufferT()]
    for constant in constants:
        if constant.bytes > _SMALL:
            nowhere = schema.BufferT(offset=1, size=1) if outside else schema.BufferT(data=np.zeros(0, np.uint8))
            buffers.append(nowhere)
        else:
            buffers.append(_buffer(constant.values(parameters).tobytes()))
    model.metadata = [
        schema.MetadataT(name=name, buffer=number) for number, name in enumerate(metadata, start=len(buffers))
    ]
    model.buffers = [*buffers, *map(_buffer, metadata.values())]
    builder = flatbuffers.Builder(2**20)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytearray(builder.Output())


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
