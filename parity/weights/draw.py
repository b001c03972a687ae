"""Weights drawn from a seed, bit-identical on every machine.

Each tensor has its own counter-based stream (Philox, keyed by the tensor's name), so tensors and parts of tensors can
be drawn in any order. The raw 64-bit integers become floats by exact arithmetic: four 16-bit parts are summed (an
integer, close to normally distributed) and multiplied once by a float32 scale.

The statistics imitate a trained model's: gains around 1 and biases off 0 (a fresh initialization hides bugs), scores
with some contrast, a few outlier channels in the residual stream (what breaks quantization), and a head scaled so that
the next-token distribution is peaked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Next-token entropy that the head's scale aims at, in nats (a trained model averages 1.5 to 3 on text).
TARGET_ENTROPY = 2.0
#: Residual channels that every block writes to more strongly than to the others, and by how much.
OUTLIER_CHANNELS = 3
OUTLIER_FACTOR = 5.0
#: q and k together raise the scores' standard deviation to about the square of this.
SCORE_CONTRAST = 1.5
#: Elements drawn at a time; bounds memory whatever the tensor's size.
CHUNK = 1 << 22

_SUM_MEAN = 2 * 65535  # of four uniform 16-bit integers
_SUM_STD = math.sqrt(4 * (65536**2 - 1) / 12)


@dataclass(frozen=True)
class Drawn:
    """A tensor to draw: its name and shape, and the standard deviation around ``centre`` of its values."""

    name: str
    shape: tuple[int, ...]
    centre: float
    std: float
    outlier_rows: tuple[int, ...] = ()


def plan(layout: Mapping[str, tuple[int, ...]], seed: str) -> list[Drawn]:
    """How every tensor of a checkpoint is drawn, from the published names and shapes alone."""
    width = next(shape[-1] for name, shape in layout.items() if _is_table(name))
    outliers = _outlier_channels(width, seed)
    return [_planned(name, shape, width, outliers) for name, shape in layout.items()]


def _is_table(name: str) -> bool:
    return any(word in name for word in ("embed_tokens", "lm_head"))


def _planned(name: str, shape: tuple[int, ...], width: int, outliers: tuple[int, ...]) -> Drawn:
    if name.endswith(".bias"):
        return Drawn(name, shape, 0.0, 0.2)
    if len(shape) == 1:
        return Drawn(name, shape, 1.0, 0.1)
    if _is_table(name):
        return Drawn(name, shape, 0.0, _logit_std(shape[0]) / math.sqrt(width))
    std = 1 / math.sqrt(shape[-1])
    if any(word in name for word in ("q_proj", "k_proj")):
        std *= SCORE_CONTRAST
    writes_to_stream = any(word in name for word in ("o_proj", "down_proj"))
    return Drawn(name, shape, 0.0, std, outliers if writes_to_stream else ())


def _logit_std(vocabulary: int) -> float:
    """Spread of normal logits whose softmax has the target entropy: ``H = ln V - std^2 / 2``.

    Rounded, so that the last bit of a platform's logarithm does not matter.
    """
    return round(math.sqrt(2 * (math.log(vocabulary) - TARGET_ENTROPY)), 3)


def _outlier_channels(width: int, seed: str) -> tuple[int, ...]:
    raw = _stream(f"{seed}/outliers").random_raw(64)
    return tuple(dict.fromkeys(int(value) % width for value in raw))[:OUTLIER_CHANNELS]


def _stream(key: str) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))


def values(drawn: Drawn, seed: str) -> Iterator[NDArray[np.float32]]:
    """The tensor's values in row-major order, flat, a bounded number at a time."""
    stream = _stream(f"{seed}/{drawn.name}")
    scale = np.float32(drawn.std / _SUM_STD)
    row = math.prod(drawn.shape[1:])
    rows_at_once = max(1, CHUNK // row)
    for first in range(0, drawn.shape[0], rows_at_once):
        rows = min(rows_at_once, drawn.shape[0] - first)
        parts = stream.random_raw(rows * row).astype("<u8", copy=False).view("<u2").reshape(-1, 4)
        sums = parts.sum(axis=1, dtype=np.int32) - np.int32(_SUM_MEAN)
        chunk = sums.astype(np.float32) * scale + np.float32(drawn.centre)
        for outlier in drawn.outlier_rows:
            if first <= outlier < first + rows:
                start = (outlier - first) * row
                chunk[start : start + row] *= np.float32(OUTLIER_FACTOR)
        yield chunk


def _as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to nearest, ties to even
    return (rounded >> np.uint32(16)).astype("<u2")


_FORMATS = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}


def write_safetensors(path: Path, tensors: list[Drawn], *, dtype: str, seed: str) -> None:
    """Write ``tensors`` to ``path`` as they are drawn; memory stays bounded whatever their size."""
    label, itemsize = _FORMATS[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for drawn in tensors:
        size = math.prod(drawn.shape) * itemsize
        header[drawn.name] = {"dtype": label, "shape": list(drawn.shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for drawn in tensors:
            for chunk in values(drawn, seed):
                file.write((chunk.astype("<f4", copy=False) if dtype == "float32" else _as_bfloat16(chunk)).data)
