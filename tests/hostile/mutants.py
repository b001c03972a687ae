"""Damaged files, drawn from a seed: each kind knows the structure of what it damages."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What stands where another value stood.
WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30, -(10**18), 0.0, -0.5, 1e-38,
    1e308, 0.5, math.nan, math.inf, -math.inf, "", "0", "nan", "llama", "x" * 5000, "\0", "\u202e\n", [], {}, [[]], [0],
    [1, 2, 3], [-1], [2**62, 2**62], {"a": 1}, {"rope_type": "yarn"}, ["BOOL"], "BOOL", "F64", "I64", "F16", "F8_E4M3",
)  # fmt: skip


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a document: its container and its key there."""
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            found += leaves(value[key])
    return found


def deep(draw: random.Random) -> str:
    """JSON nested deeper than parsers go."""
    opening, closing = draw.choice([("[", "]"), ('{"a":', "}")])
    return opening * 100_000 + "0" + closing * 100_000


def edited(document: Any, draw: random.Random) -> Any:
    """One to three places of a document changed: another value, a neighbour's, a number nearby, gone, or new."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        places = leaves(document)
        if not places:
            break
        holder, key = draw.choice(places)
        value = holder[key]
        match draw.randrange(6):
            case 0 if isinstance(value, (int, float)) and not isinstance(value, bool):
                holder[key] = value + draw.choice([-8, -2, -1, 1, 2, 8])
            case 1:
                other, name = draw.choice(places)
                holder[key] = json.loads(json.dumps(other[name]))
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[draw.choice(["logit_scale", "sliding_window", "", "model_type2", "\n", "rope_scaling"])] = value
            case 4 if isinstance(holder, dict):
                holder[str(key) + draw.choice(["_", "\0", "2"])] = holder.pop(key)
            case _:
                holder[key] = draw.choice(WRONG)
    return document


def flipped(content: bytes, draw: random.Random, start: int, end: int) -> bytes:
    """Up to eight bits of a range."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[draw.randrange(start, end)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def text_damaged(text: str, draw: random.Random) -> bytes:
    """A JSON document edited, nested, cut, with a key twice, with bits flipped, or something else altogether."""
    match draw.randrange(10):
        case 0:
            return deep(draw).encode()
        case 1:
            return text.encode()[: draw.randrange(len(text))]
        case 2:
            return flipped(text.encode(), draw, 0, len(text))
        case 3:
            place = text.index("{") + 1
            return (text[:place] + '"model_type": "gpt2", "schema_version": 9, ' + text[place:]).encode()
        case 4:
            return draw.choice([b"", b"null", b"[]", b"{}", b"\xff\xfe", b"3", b'"x"', b"\0" * 4096, b"NaN", b"{" * 9])
        case _:
            return json.dumps(edited(json.loads(text), draw)).encode()


def safetensors_damaged(content: bytes, draw: random.Random) -> bytes:
    """The length of the header, the header, or the data behind it."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    match draw.randrange(12):
        case 0:
            wrong = draw.choice(
                [0, 1, length - 1, length + 1, length + 8, len(content), 2**31, 2**63, 2**64 - 1, 10**8]
            )
            return struct.pack("<Q", wrong) + header + data
        case 1:
            return content[: draw.choice([draw.randrange(len(content)), 0, 7, 8, 8 + length, len(content) - 1])]
        case 2:
            return content + draw.choice([b"\0", b"\0" * 4096, content])
        case 3:
            return flipped(content, draw, 0, 8 + length)
        case 4:
            return flipped(content, draw, 8 + length, len(content))
        case 5:
            return _with_header(_layout(json.loads(header), draw), data)
        case 6:
            name, entry = draw.choice(list(json.loads(header).items()))
            twice = b"{" + json.dumps(name).encode() + b":" + json.dumps(entry).encode() + b"," + header[1:]
            return struct.pack("<Q", len(twice)) + twice + data
        case 7:
            payload = struct.pack("<I", draw.choice([0x7FC00000, 0x7F800001, 0xFF800000, 0x7F7FFFFF, 1, 0x80000000]))
            at = 4 * draw.randrange(len(data) // 4)
            return content[: 8 + length] + data[:at] + payload + data[at + 4 :]
        case 8:
            nested = deep(draw).encode()
            return struct.pack("<Q", len(nested)) + nested + data
        case _:
            return _with_header(edited(json.loads(header), draw), data)


def _layout(header: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Two tensors that lie over each other, exchange places, or one that lies elsewhere, in another shape or dtype."""
    names = [name for name in header if name != "__metadata__"]
    one, other = draw.sample(names, 2)
    match draw.randrange(6):
        case 0:
            header[one]["data_offsets"] = header[other]["data_offsets"]
        case 1:
            header[one], header[other] = header[other], header[one]
        case 2:
            header[one]["data_offsets"] = [draw.choice([0, 4, 2**40, 2**63, -4, 1]) for _ in range(2)]
        case 3:
            header[one]["shape"] = draw.choice([[], [0], [1], header[one]["shape"][::-1], [2**32, 2**32], [-1], ["3"]])
        case 4:
            header[one]["dtype"] = draw.choice(["F16", "BF16", "F64", "I32", "BOOL", "F8_E5M2", "X", "", 3])
        case _:
            header[draw.choice([other + "2", "", "a\nb", "model", "../x", "__metadata__"])] = header.pop(one)
    return header


def _with_header(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tflite_damaged(content: bytes, draw: random.Random) -> bytes:
    """Bits of the tables or of the weights, a part missing, or one field of the model's description."""
    match draw.randrange(10):
        case 0:
            return content[: draw.choice([0, 4, 8, draw.randrange(len(content)), len(content) - 1])]
        case 1:
            return flipped(content, draw, 0, 64)
        case 2:
            return flipped(content, draw, 64, len(content))
        case 3:
            cut = draw.randrange(len(content) - 4096)
            return content[:cut] + bytes(4096) + content[cut + 4096 :]
        case 4 | 5:
            # The tables come after the buffers that hold the weights.
            return flipped(content, draw, len(content) * 9 // 10, len(content))
        case _:
            return _rewritten(content, draw)


def _rewritten(content: bytes, draw: random.Random) -> bytes:
    """One field of the model's description changed, everything else as it was."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    draw.choice(FIELDS)(model, draw)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _index(graph: Any, draw: random.Random) -> int:
    """A tensor of the graph, or none."""
    return draw.choice([-2, -1, 0, 1, 10**6, 2**31 - 1, draw.randrange(len(graph.tensors))])


def _signature_names(model: Any, draw: random.Random) -> None:
    one, other = draw.sample(model.signatureDefs, 2)
    one.signatureKey, other.signatureKey = other.signatureKey, one.signatureKey


def _signature_name(model: Any, draw: random.Random) -> None:
    draw.choice(model.signatureDefs).signatureKey = draw.choice([b"", b"decode2", b"prefill_999999", b"prefill_0"])


def _input_names(model: Any, draw: random.Random) -> None:
    one, other = draw.sample(draw.choice(model.signatureDefs).inputs, 2)
    one.name, other.name = other.name, one.name


def _output_tensor(model: Any, draw: random.Random) -> None:
    signature = draw.choice(model.signatureDefs)
    draw.choice(signature.outputs).tensorIndex = (
        _index(model.subgraphs[signature.subgraphIndex], draw) % 2**32
    )  # it has no sign


def _operator_input(model: Any, draw: random.Random) -> None:
    import numpy as np

    graph = draw.choice(model.subgraphs)
    operator = draw.choice(graph.operators)
    operator.inputs = np.array(operator.inputs)  # it came read-only
    operator.inputs[draw.randrange(len(operator.inputs))] = _index(graph, draw)


def _operator_output(model: Any, draw: random.Random) -> None:
    import numpy as np

    graph = draw.choice(model.subgraphs)
    operator = draw.choice(graph.operators)
    operator.outputs = np.array(operator.outputs)  # it came read-only
    operator.outputs[draw.randrange(len(operator.outputs))] = _index(graph, draw)


def _buffer(model: Any, draw: random.Random) -> None:
    tensor = draw.choice(draw.choice(model.subgraphs).tensors)
    tensor.buffer = draw.choice([0, 1, 2**31, draw.randrange(len(model.buffers))])


def _type(model: Any, draw: random.Random) -> None:
    draw.choice(draw.choice(model.subgraphs).tensors).type = draw.choice([0, 1, 2, 4, 9, 17, 99])


def _shape(model: Any, draw: random.Random) -> None:
    import numpy as np

    tensor = draw.choice(draw.choice(model.subgraphs).tensors)
    shape = np.array(tensor.shape if tensor.shape is not None else [1], np.int32).reshape(-1)
    wrong = [shape[::-1].copy(), shape * 2, shape - 1, np.full(1, 2**31 - 1, np.int32), shape * 0]
    tensor.shape = draw.choice(wrong)


def _opcode(model: Any, draw: random.Random) -> None:
    operator = draw.choice(draw.choice(model.subgraphs).operators)
    operator.opcodeIndex = draw.choice([0, len(model.operatorCodes) - 1, 2**20])


def _order(model: Any, draw: random.Random) -> None:
    draw.shuffle(draw.choice(model.subgraphs).operators)


def _scales(model: Any, draw: random.Random) -> None:
    import numpy as np

    quantizations = [tensor.quantization for graph in model.subgraphs for tensor in graph.tensors]
    scaled = [each for each in quantizations if each and each.scale is not None]
    for each in draw.sample(scaled, min(3, len(scaled))):
        each.scale = np.full_like(each.scale, draw.choice([0.0, np.nan, 1e38, -1.0]))


FIELDS: tuple[Callable[[Any, random.Random], None], ...] = (
    _signature_names, _signature_name, _input_names, _output_tensor, _operator_input, _operator_output,
    _buffer, _type, _shape, _opcode, _order, _scales,
)  # fmt: skip


def of_text(content: bytes, draw: random.Random) -> bytes:
    """Of a JSON file."""
    return text_damaged(content.decode(), draw)


def index_damaged(folder: Path, draw: random.Random) -> bytes:
    """An index beside a single file, right but for one thing, or not even that."""
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    names = [name for name in json.loads(content[8 : 8 + length]) if name != "__metadata__"]
    index = {"metadata": {"total_size": len(content)}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    return text_damaged(json.dumps(index), draw)
