"""Weights drawn from a seed, bit-identical on every machine.

Each tensor has its own counter-based streams (Philox, keyed by its name), so tensors can be drawn in any order. The raw
64-bit integers become values by exact arithmetic: four 16-bit parts are summed (an integer, close to normally
distributed), integers are multiplied and added in float64 far below 2**53, and the result is scaled once in float32.

The statistics imitate a trained model's, because an untrained one hides bugs and makes quantization look hopeless:

- gains around 1 and biases off 0;
- the residual stream lives mostly in a subspace of few dimensions: what writes to it writes there, what reads from it
  listens there, so that rounding errors (which go everywhere) are heard less than the signal;
- the first block writes more than the later ones;
- a few outlier channels, which is what breaks quantization;
- a head scaled so that the next-token distribution is peaked.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: Dimensions of the subspace, and the strength of full-rank noise beside it.
RANK = 12
NOISE = 1
#: Residual channels that every block writes to more strongly than to the others, and by how much.
OUTLIER_CHANNELS = 3
OUTLIER_FACTOR = 4.0
#: How much blocks after the first write, relative to the first.
LATER_BLOCKS = 0.5
#: q and k together raise the scores' standard deviation to about the square of this.
SCORE_CONTRAST = 1.2
#: Elements drawn at a time; bounds memory whatever the tensor's size.
CHUNK = 1 << 22

_SUM_MEAN = 2 * 65535  # of four uniform 16-bit integers
_SUM_STD = math.sqrt(4 * (65536**2 - 1) / 12)
_WRITES_TO_STREAM = re.compile(r"\.(o_proj|down_proj|dense|fc2|out_proj|proj_2|o|wo|conv3|attn\.proj)\.")
_READS_QUERY_OR_KEY = re.compile(r"\.(q_proj|k_proj|qkv_proj|qkv|q|k)\.")
_TABLE = re.compile(r"(^|\.)(embed_tokens|lm_head|token_embeddings|shared)\.")
#: Norms of what a block adds to the stream; they, not the matrices before them, decide how much that is.
_POST_NORM = re.compile(r"\.(post_attention_layernorm|post_feedforward_layernorm)\.")
#: Values that are looked up or slid over the input, not multiplied with the stream.
_APART = re.compile(r"\.relative_attention_bias\.")
#: Slides over samples, and how large those of speech are.
_READS_SAMPLES = re.compile(r"\.conv1\.")
SAMPLE = 0.1
_LAYER = re.compile(r"\.(\d+)\.")
#: A tower for pictures has a stream of its own, which begins with patches and their positions, and which a projector
#: hands on to the text's.
_TOWER = re.compile(r"(^|\.)(vision_tower|visual)\.")
_PATCHES = re.compile(r"\.patch_embed(ding)?\.")
_POSITIONS = re.compile(r"\.position_embedding\.")
_PROJECTOR = re.compile(r"(^|\.)(multi_modal_projector|merger\.mlp\.2)\.")
#: Before it, what reads several patches put end to end; and a bias beside which rows as small as words' would be lost.
_JOINED = re.compile(r"\.merger\.mlp\.0\.")
_SMALL_BIAS = re.compile(r"\.merger\.mlp\.2\.bias$")


@dataclass(frozen=True)
class Drawn:
    """A tensor to draw.

    ``kind`` is ``apart`` (independent values around ``centre``), ``reader`` (rows listen to the stream, which is the
    last axis) or ``writer`` (rows are stream channels, whatever the other axes are). ``std`` is of the elements.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["apart", "reader", "writer"]
    std: float
    centre: float = 0.0
    outlier_rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manner:
    """What of a model's arithmetic the drawing must know.

    ``gain_offset`` is added to stored gains by the model, ``embedding_scale`` multiplies its embedded tokens;
    ``post_norms`` says that it normalizes what a block adds. ``head_scale`` multiplies what the head reads,
    ``score_scale`` attention scores, beyond the usual division by the root of the head's size.
    """

    gain_offset: float = 0.0
    embedding_scale: float = 1.0
    post_norms: bool = False
    head_scale: float = 1.0
    score_scale: float = 1.0


def plan(layout: Mapping[str, tuple[int, ...]], seed: str, manner: Manner) -> list[Drawn]:
    """How every tensor of a checkpoint is drawn, from the published names and shapes."""
    table = next(shape for name, shape in layout.items() if _TABLE.search(name))
    # Embeddings that are scaled up must not drown what the blocks write: the model would repeat its input.
    embedded = _logit_std(table[0]) / manner.head_scale / _heard(table[-1]) * manner.embedding_scale
    strength = round(max(1.0, 3 * embedded), 3)
    return [_planned(name, shape, seed, strength, embedded, manner) for name, shape in layout.items()]


def _planned(name: str, shape: tuple[int, ...], seed: str, strength: float, embedded: float, manner: Manner) -> Drawn:
    if drawn := _of_pictures(name, shape, embedded):
        return drawn
    if std := _std_apart(name, shape):
        return Drawn(name, shape, "apart", std)
    if _TOWER.search(name):  # a plain encoder, whatever the text model is like
        strength, manner = 1.0, Manner()
    layer = _LAYER.search(name)
    written = strength if layer is None or int(layer[1]) == 0 else strength * LATER_BLOCKS
    if len(shape) == 1:
        gain = written if manner.post_norms and _POST_NORM.search(name) else 1.0
        return Drawn(name, shape, "apart", 0.1 * gain, centre=gain - manner.gain_offset)
    if _WRITES_TO_STREAM.search(name):
        outliers = _outlier_channels(shape[0], seed)
        return Drawn(name, shape, "writer", written / math.sqrt(math.prod(shape[1:])), outlier_rows=outliers)
    if _TABLE.search(name):
        return Drawn(name, shape, "reader", _logit_std(shape[0]) / manner.head_scale / _heard(shape[-1]))
    contrast = SCORE_CONTRAST / math.sqrt(manner.score_scale) if _READS_QUERY_OR_KEY.search(name) else 1.0
    return Drawn(name, shape, "reader", contrast / _heard(shape[-1]))


def _std_apart(name: str, shape: tuple[int, ...]) -> float | None:
    """Of what has nothing to do with the stream: biases, values that are looked up, or slid over something else."""
    if name.endswith(".bias"):
        return 0.2
    if _APART.search(name):
        return 1.0
    if len(shape) < 3 or _WRITES_TO_STREAM.search(name) or _PATCHES.search(name):
        return None
    return (1.0 / SAMPLE if _READS_SAMPLES.search(name) else 1.0) / math.sqrt(math.prod(shape[1:]))


def _of_pictures(name: str, shape: tuple[int, ...], embedded: float) -> Drawn | None:
    """What makes the tower's stream, and what makes rows of it that are as large as those of words."""
    if name.endswith(".bias"):
        return Drawn(name, shape, "apart", 0.2 * embedded) if _SMALL_BIAS.search(name) else None
    if _PATCHES.search(name):
        return Drawn(name, shape, "writer", 1 / math.sqrt(math.prod(shape[1:])))
    if _POSITIONS.search(name):
        return Drawn(name, shape, "reader", 0.5)
    if _PROJECTOR.search(name):
        return Drawn(name, shape, "writer", embedded / math.sqrt(shape[-1]))
    if _JOINED.search(name):
        return Drawn(name, shape, "reader", 1 / math.sqrt(shape[-1]))
    return None


def _heard(width: int) -> float:
    """How much larger than a unit signal in the subspace it comes out of a row of unit elements."""
    return math.sqrt((width**2 + NOISE**2 * width) / (RANK + NOISE**2))


def _logit_std(vocabulary: int) -> float:
    """Around ``sqrt(2 ln V)`` normal logits, however many, settle on a few candidates; a tenth more gives 2 to 3 nats.

    Rounded, so that the last bit of a platform's logarithm does not matter.
    """
    return round(1.1 * math.sqrt(2 * math.log(vocabulary)), 3)


def _outlier_channels(width: int, seed: str) -> tuple[int, ...]:
    raw = _stream(f"{seed}/outliers").random_raw(64)
    return tuple(dict.fromkeys(int(value) % width for value in raw))[:OUTLIER_CHANNELS]


def _stream(key: str) -> np.random.Philox:
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))


def _integers(stream: np.random.Philox, rows: int, columns: int) -> NDArray[np.float64]:
    """Integers (held in float64) of mean 0 and standard deviation ``_SUM_STD``, ``[rows, columns]``."""
    parts = stream.random_raw(rows * columns).astype("<u8", copy=False).view("<u2").reshape(rows, columns, 4)
    sums: NDArray[np.float64] = parts.sum(axis=2, dtype=np.int32).astype(np.float64)
    return sums - _SUM_MEAN


def _subspace(width: int, seed: str) -> NDArray[np.float64]:
    """The stream's directions: random signs ``[width, RANK]``, the same for every tensor that touches the stream."""
    raw = _stream(f"{seed}/subspace/{width}").random_raw(width * RANK)
    return np.where(raw & np.uint64(1), 1.0, -1.0).reshape(width, RANK)


def values(drawn: Drawn, seed: str) -> Iterator[NDArray[np.float32]]:
    """The tensor's values in row-major order, flat, a bounded number at a time."""
    noise = _stream(f"{seed}/{drawn.name}")
    if drawn.kind == "apart":
        yield _scaled(_integers(noise, 1, math.prod(drawn.shape)), drawn.std)[0] + np.float32(drawn.centre)
        return
    rows, columns = drawn.shape[0], math.prod(drawn.shape[1:])
    factors = _stream(f"{seed}/{drawn.name}/factors")
    directions = _subspace(rows if drawn.kind == "writer" else columns, seed)
    written = _integers(factors, columns, RANK) if drawn.kind == "writer" else None
    std = drawn.std / math.sqrt(RANK + NOISE**2)
    step = max(1, CHUNK // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        integers = _integers(noise, count, columns) * NOISE
        if written is None:
            integers += _integers(factors, count, RANK) @ directions.T
        else:
            integers += directions[first : first + count] @ written.T
        chunk = _scaled(integers, std)
        for outlier in drawn.outlier_rows:
            if first <= outlier < first + count:
                chunk[outlier - first] *= np.float32(OUTLIER_FACTOR)
        yield chunk.reshape(-1)


def _scaled(integers: NDArray[np.float64], std: float) -> NDArray[np.float32]:
    """Integers below 2**24 are exact in float32, so this is one rounding."""
    return integers.astype(np.float32) * np.float32(std / _SUM_STD)


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
