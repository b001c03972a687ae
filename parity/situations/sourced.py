"""The situations of encoder-decoders: an encoder reads a source, a decoder begins with one token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.authoring.config import AudioStemConfig, EncoderDecoderConfig
from models.authoring.session import Tensors
from parity.inputs import TokenizedPrompt
from parity.situations.making import DECODED, REACHABLE, Made, Makings, cycled

NO_PREFILL = "its decoder begins with one token and goes on token by token: there is no prefill"
#: Rows of what is hardly anything to read.
FEW_ROWS = 4


def _config(makings: Makings) -> EncoderDecoderConfig:
    if not isinstance(makings.config, EncoderDecoderConfig):
        raise TypeError("only an encoder-decoder reads a source")
    return makings.config


def _distance(makings: Makings) -> int | None:
    """The distance from which on all positions are equally far, where the encoder has a bias by distance."""
    bias = _config(makings).encoder.relative_bias
    return bias.max_distance if bias and bias.max_distance <= REACHABLE // 2 else None


def _heard(makings: Makings) -> NDArray[np.generic]:
    """The longest sound of the model's own prompts ``[1, samples]``."""
    sounds = [prompt.media["input_values"] for inputs in makings.material.sets for prompt in inputs.prompts]
    return max(sounds, key=lambda sound: int(sound.shape[1]))


def largest(makings: Makings) -> int:
    """Tokens or samples of the longest source of all situations, hence what the encoder's signature takes."""
    if _config(makings).stem:
        return int(_heard(makings).shape[1])
    read = [int(prompt.media["input_ids"].shape[1]) for inputs in makings.material.sets for prompt in inputs.prompts]
    return max(*read, (_distance(makings) or 0) + 12, 24)


def _source(makings: Makings, count: int, seed: str) -> Tensors:
    """A source of exactly ``count`` tokens or samples."""
    if _config(makings).stem:
        return {"input_values": cycled(_heard(makings), count)}
    ends = makings.material.ends if count > len(makings.material.ends) else ()
    ids = (*makings.opening(count - len(ends), seed), *ends)
    return {"input_ids": np.asarray([ids], np.int64)}


def _read(makings: Makings, name: str, counts: dict[str, int], decoded: int = DECODED) -> Made:
    return [
        makings.source(f"{name}/{label}", _source(makings, count, label), makings.text(decoded, label))
        for label, count in counts.items()
    ]


def no_prefill(_: Makings) -> str:
    """Situations of a prompt that has several tokens."""
    return NO_PREFILL


def no_window(_: Makings) -> str:
    """Windows are of decoder-only models."""
    return "no layer has a window"


def no_batch(_: Makings) -> str:
    """Sources are read one at a time."""
    return "its encoder is given one source at a time"


def edges(makings: Makings) -> Made:
    """As much as the encoder's signature takes, one fewer; a sample short of a row, exactly it, and one more."""
    most = largest(makings)
    counts = {"most": most, "one-under": most - 1}
    stem = _config(makings).stem
    if stem:
        exactly = _samples(stem, stem.rows(most) // 2)
        counts |= {"row-under": exactly - 1, "row": exactly, "row-over": exactly + 1}
    else:
        counts |= {"half": most // 2}
    return _read(makings, "edges", counts)


def _samples(stem: AudioStemConfig, rows: int) -> int:
    """The fewest samples that make so many rows."""
    count = rows
    for kernel, stride in zip(reversed(stem.kernels), reversed(stem.strides), strict=True):
        count = (count - 1) * stride + kernel
    return count


def padding(makings: Makings) -> Made:
    """Hardly anything to read, in a signature for much."""
    stem = _config(makings).stem
    few = _samples(stem, FEW_ROWS) if stem else FEW_ROWS
    return _read(makings, "padding", {"few": few, "some": largest(makings) // 3}, decoded=2 * DECODED)


def beyond(makings: Makings) -> Made:
    """Distances that all fall in the last bucket, in encoder and decoder; or the last position that the model knows."""
    config = _config(makings)
    if distance := _distance(makings):
        return _read(makings, "beyond", {"distance": largest(makings)}, decoded=distance + DECODED)
    if config.max_positions > REACHABLE:
        return f"nothing changes before its {config.max_positions} positions, more than the {REACHABLE} that are tried"
    return _read(makings, "beyond", {"last": largest(makings) // 2}, decoded=config.max_positions - 1)


def full(makings: Makings) -> Made:
    """Decode writes the last slot of the cache."""
    made = []
    for slots in makings.slots:
        name = f"full/{slots}"
        source = _source(makings, largest(makings) // 2, name)
        made.append(makings.source(name, source, makings.text(slots - 1, name)))
    return made


def repeated(makings: Makings) -> Made:
    """One token again and again in what is written, and in what is read where that is text."""
    return list(_repeated(makings))


def _repeated(makings: Makings) -> Iterator[TokenizedPrompt]:
    token = makings.text(1, "repeated")
    run = token * (3 * DECODED)
    yield makings.source("repeated/written", _source(makings, largest(makings) // 2, "repeated"), run)
    if not _config(makings).stem:
        read = {"input_ids": np.asarray([token * 20], np.int64)}
        yield makings.source("repeated/read", read, makings.text(DECODED, "read"))
        yield makings.source("repeated/both", read, run)


def special(makings: Makings) -> Made:
    """The tokenizer's own marks in the middle of what is written, and of what is read where that is text."""
    marks = makings.material.special
    if not marks:
        return "its tokenizer has no marks of its own"
    text = makings.text(DECODED, "special")
    said = (*text[: DECODED // 2], *marks, *text[DECODED // 2 :])
    made = [makings.source("special/written", _source(makings, largest(makings) // 2, "special"), said)]
    if not _config(makings).stem:
        ids = makings.opening(16, "special")
        read = {"input_ids": np.asarray([(*ids[:8], *marks, *ids[8:], *makings.material.ends)], np.int64)}
        made.append(makings.source("special/read", read, text))
    return made
