"""What a host does around the entry points: the tensors it gives them besides tokens, positions and the cache.

One rule a kind of model, decided by typed fields of its configuration. Every rung follows it: the re-authored model,
and an exported file as an engine would drive it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.authoring.config import (
    DecoderConfig,
    EncoderDecoderConfig,
    ModelConfig,
    SiglipConfig,
    VisionLanguageConfig,
    WindowedVisionConfig,
)

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


def grid_of(entry: str) -> tuple[int, ...] | None:
    """The grid that an encoder's entry point is for: none for ``encode``, two numbers for ``encode_{down}x{across}``.

    ``None`` where the entry point is no encoder's.
    """
    kind, _, grid = entry.partition("_")
    return tuple(map(int, filter(None, grid.split("x")))) if kind == "encode" else None


def shipped_sessions(
    config: ModelConfig, length: int, *, samples: int = 0, grids: Sequence[tuple[int, int]] = ()
) -> tuple[SessionInputs, ...]:
    """What a file is made for that is to be used on anything: sessions that between them call every entry point.

    ``length`` is of the longest prompt, or source of text; ``samples`` of the longest sound, for a model that hears.
    ``grids`` are those of the pictures that one prompt may hold, where pictures come in any grid; without them it may
    hold one of sixteen full windows.
    """
    match config:
        case DecoderConfig():
            return (SessionInputs(),)
        case EncoderDecoderConfig():
            audio = {"input_values": np.zeros((1, samples), np.float32)}
            return (_encoder_decoder(config, audio if config.stem else {"input_ids": np.zeros((1, length), np.int64)}),)
        case VisionLanguageConfig():
            media = _blank(config.vision, grids)
            tokens = [config.image_token] * sum(image_lengths(config, media))
            until = max(length, len(tokens))
            return (_vision_language(config, [0], {}, until), _vision_language(config, tokens, media, until))


def _blank(config: SiglipConfig | WindowedVisionConfig, grids: Sequence[tuple[int, int]]) -> Tensors:
    """Pictures without anything on them."""
    match config:
        case SiglipConfig():
            return {"pixel_values": np.zeros((1, config.channels, config.image_size, config.image_size), np.float32)}
        case WindowedVisionConfig():
            side = 4 * config.window * config.merge
            grids = grids or [(side, side)]
            patches = sum(down * across for down, across in grids)
            return {
                "pixel_values": np.zeros((patches, config.patch_values), np.float32),
                "image_grid_thw": np.asarray([(1, *grid) for grid in grids], np.int64),
            }


def image_lengths(config: VisionLanguageConfig, media: Tensors) -> list[int]:
    """How many rows, hence image tokens, each picture of a prompt becomes."""
    return [call.rows for call in _pictures(config.vision, media)]


def _pictures(config: SiglipConfig | WindowedVisionConfig, media: Tensors) -> tuple[EncoderCall, ...]:
    """One call for each picture."""
    pixels = media.get("pixel_values", np.empty(0)).astype(np.float32)
    match config:
        case SiglipConfig():
            return tuple(
                EncoderCall("encode", {"pixel_values": pixels[i : i + 1]}, config.rows) for i in range(len(pixels))
            )
        case WindowedVisionConfig():
            grids = _grids(media)
            ends = np.cumsum([down * across for down, across in grids])
            return tuple(
                EncoderCall(
                    f"encode_{down}x{across}",
                    {"pixel_values": pixels[end - down * across : end]},
                    math.prod(config.rows((down, across))),
                )
                for (down, across), end in zip(grids, ends, strict=True)
            )


def _grids(media: Tensors) -> list[tuple[int, int]]:
    """Patches down and across of each picture; the time of a still picture is one slot."""
    return [(int(down), int(across)) for _, down, across in media.get("image_grid_thw", np.empty((0, 3)))]


def axial_positions(
    tokens: Sequence[int], image_token: int, frames: Sequence[tuple[int, int]], until: int
) -> NDArray[np.int32]:
    """Positions in time, down and across for a session of ``until`` tokens ``[3, until]``.

    Text goes on by one on all axes. The rows of a picture, ``frames`` of them down and across, stand still in time and
    go on down and across from where the text before them ended; the text after them begins beyond the longer side.
    """
    positions = np.empty((3, until), np.int32)
    index = position = 0
    for down, across in frames:
        begin = tokens.index(image_token, index)
        positions[:, index:begin] = np.arange(position, position + begin - index)
        position += begin - index
        index = begin + down * across
        positions[:, begin:index] = position + np.indices((1, down, across)).reshape(3, -1)
        position += max(down, across)
    positions[:, index:] = np.arange(position, position + until - index)
    return positions


def _vision_language(config: VisionLanguageConfig, tokens: Sequence[int], media: Tensors, until: int) -> SessionInputs:
    """Each picture is encoded once; its rows take the places of its image tokens, in order."""
    calls = _pictures(config.vision, media)
    given: dict[str, NDArray[np.int32]] = {}
    if isinstance(config.vision, WindowedVisionConfig):
        frames = [config.vision.rows(grid) for grid in _grids(media)]
        given["rope_pos"] = axial_positions(tokens, config.image_token, frames, until)
    rows = np.full(until, -1, np.int32)
    places = np.flatnonzero(np.asarray(tokens) == config.image_token)
    rows[places] = np.arange(len(places))
    prefix = {"prefix_length": np.asarray([len(tokens)], np.int32)} if config.bidirectional_prefix else {}
    return SessionInputs(
        calls=calls,
        prefill="prefill_pixel" if calls else "prefill",
        whole=config.bidirectional_prefix,
        per_position={**given, "image_rows": rows} if calls else given,
        constant=prefix,
    )
