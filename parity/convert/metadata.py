"""Facts that a file carries about itself, for whoever runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parity.convert.stored import read_file

#: The name of the metadata entry in the file.
ENTRY = "parity"


def packed(facts: dict[str, Any]) -> dict[str, bytes]:
    """``facts`` as an entry of a file's metadata; none if there are none."""
    return {ENTRY: json.dumps(facts).encode()} if facts else {}


def stamp(path: Path, facts: dict[str, Any]) -> None:
    """Write ``facts`` into a file that is there, as JSON under ``ENTRY``; it must fit into tables as a whole."""
    import numpy as np
    from ai_edge_litert.schema_py_generated import BufferT, MetadataT
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    model = read_file(path)
    buffer, entry = BufferT(), MetadataT()
    buffer.data = np.frombuffer(packed(facts)[ENTRY], np.uint8)
    entry.name, entry.buffer = ENTRY, len(model.buffers)
    model.buffers = [*model.buffers, buffer]
    model.metadata = [*(model.metadata or []), entry]
    tfl_flatbuffer_utils.write_model(model, str(path))


def read_stamp(path: Path) -> dict[str, Any]:
    """The facts in the file; none if it carries none."""
    model = read_file(path)
    for entry in model.metadata or []:
        name = entry.name.decode() if isinstance(entry.name, bytes) else entry.name
        if name == ENTRY:
            facts: dict[str, Any] = json.loads(bytes(model.buffers[entry.buffer].data))
            return facts
    return {}
