"""What a host does around the entry points: the tensors it gives them besides tokens, positions and the cache.

One rule a kind of model, decided by typed fields of its configuration. Every rung follows it: the re-authored model,
and an exported file as an engine would drive it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.authoring.config import DecoderConfig, EncoderDecoderConfig, ModelConfig, VisionLanguageConfig

Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class EncoderCall:
    """One call of an encoder: its entry point and inputs, unpadded, and how many rows it makes of them."""

    entry: str
    tensors: Tensors
    rows: int


@dataclass(frozen=True, kw_only=True)
class SessionInputs:
    """What a session gives besides tokens, positions and the cache.

    ``calls`` come first; the rows that they make are one after the other in ``encoded``. ``prefill`` is the entry point
    for the prompt, ``None`` where tokens are taken one at a time. ``per_position`` tensors have a value for each
    position of the session on their last axis, of which a call is given those of its tokens; ``constant`` ones are
    given to every call that takes them. A prompt goes in a ``whole``, in one call, where its tokens also see those
    after them.
    """

    calls: tuple[EncoderCall, ...] = ()
    prefill: str | None = "prefill"
    whole: bool = False
    per_position: Tensors = field(default_factory=dict)
    constant: Tensors = field(default_factory=dict)


def prefill_name(entry: str, length: int) -> str:
    """``prefill`` is exported as ``prefill_{T}``, ``prefill_pixel`` as ``prefill_{T}_pixel``."""
    kind, _, rest = entry.partition("_")
    return f"{kind}_{length}" + (f"_{rest}" if rest else "")


def session_inputs(config: ModelConfig, tokens: Sequence[int], media: Tensors, until: int) -> SessionInputs:
    """For a prompt of tokens, what goes with it by the original's names, and a session of so many positions."""
    match config:
        case DecoderConfig():
            return SessionInputs()
        case EncoderDecoderConfig():
            return _encoder_decoder(config, media)
        case VisionLanguageConfig():
            return _vision_language(config, tokens, media, until)


def _encoder_decoder(config: EncoderDecoderConfig, media: Tensors) -> SessionInputs:
    """The source is read once; the decoder begins with a single token, so there is nothing to prefill."""
    source: Tensors
    if config.stem:
        audio = media["input_values"].astype(np.float32)
        made = config.stem.rows(audio.shape[1])
        source = {"audio": audio, "samples": np.asarray([audio.shape[1]], np.int32)}
    else:
        tokens = media["input_ids"].astype(np.int32)
        made = tokens.shape[1]
        source = {"source_tokens": tokens}
    rows = np.asarray([made], np.int32)
    call = EncoderCall("encode", {**source, "encoder_rows": rows}, made)
    return SessionInputs(calls=(call,), prefill=None, constant={"encoder_rows": rows})


def shipped_sessions(config: ModelConfig, length: int, samples: int) -> tuple[SessionInputs, ...]:
    """What a file is made for that is to be used on anything: sessions that between them call every entry point.

    ``length`` is of the longest prompt, or source of text; ``samples`` of the longest sound, for a model that hears.
    """
    match config:
        case DecoderConfig():
            return (SessionInputs(),)
        case EncoderDecoderConfig():
            audio = {"input_values": np.zeros((1, samples), np.float32)}
            return (_encoder_decoder(config, audio if config.stem else {"input_ids": np.zeros((1, length), np.int64)}),)
        case VisionLanguageConfig():
            vision = config.vision
            pixels = np.zeros((1, vision.channels, vision.image_size, vision.image_size), np.float32)
            until = max(length, vision.rows)
            return (
                _vision_language(config, [0], {}, until),
                _vision_language(config, [config.image_token] * vision.rows, {"pixel_values": pixels}, until),
            )


def image_lengths(config: VisionLanguageConfig, media: Tensors) -> list[int]:
    """How many rows, hence image tokens, each picture of a prompt becomes."""
    return [config.vision.rows] * len(media["pixel_values"])


def _vision_language(config: VisionLanguageConfig, tokens: Sequence[int], media: Tensors, until: int) -> SessionInputs:
    """Each picture is encoded once; its rows take the places of its image tokens, in order."""
    pixels = media.get("pixel_values", np.empty(0)).astype(np.float32)
    calls = tuple(
        EncoderCall("encode", {"pixel_values": pixels[i : i + 1]}, config.vision.rows) for i in range(len(pixels))
    )
    rows = np.full(until, -1, np.int32)
    places = np.flatnonzero(np.asarray(tokens) == config.image_token)
    rows[places] = np.arange(len(places))
    prefix = {"prefix_length": np.asarray([len(tokens)], np.int32)} if config.bidirectional_prefix else {}
    return SessionInputs(
        calls=calls,
        prefill="prefill_pixel" if calls else "prefill",
        whole=config.bidirectional_prefix,
        per_position={"image_rows": rows} if calls else {},
        constant=prefix,
    )
