"""A short prompt for a model of any kind, made of ids: words, a source, samples, or words around two pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.authoring.config import EncoderDecoderConfig, ModelConfig, VisionLanguageConfig, WindowedVisionConfig
from parity.inputs import TokenizedPrompt

CONTINUATION = (17, 200, 45, 90)


def prompt(config: ModelConfig) -> TokenizedPrompt:
    """The kind that a model of ``config`` takes."""
    random = np.random.default_rng(0)
    words = (1, 17, 200, 45, 45, 90, 3, 311, 64)
    match config:
        case EncoderDecoderConfig(stem=None):
            return TokenizedPrompt(
                "source", (config.decoder_start,), CONTINUATION, {"input_ids": np.asarray([words], np.int64)}
            )
        case EncoderDecoderConfig():
            samples = 0.1 * random.standard_normal((1, 6000)).astype(np.float32)
            return TokenizedPrompt("sound", (config.decoder_start, 9), CONTINUATION, {"input_values": samples})
        case VisionLanguageConfig(vision=WindowedVisionConfig() as vision):
            grids = [(6, 10), (4, 4)]
            rows = [int(np.prod(vision.rows(grid))) for grid in grids]
            patches = sum(down * across for down, across in grids)
            media: dict[str, Any] = {
                "pixel_values": random.standard_normal((patches, vision.patch_values)).astype(np.float32),
                "image_grid_thw": np.asarray([(1, *grid) for grid in grids], np.int64),
            }
        case VisionLanguageConfig(vision=vision):
            rows = [vision.rows] * 2
            side = vision.image_size
            media = {"pixel_values": random.standard_normal((2, vision.channels, side, side)).astype(np.float32)}
        case _:
            return TokenizedPrompt("words", words, CONTINUATION)
    pictures = [(*config.image_start, *[config.image_token] * count, *config.image_end) for count in rows]
    return TokenizedPrompt("pictures", (1, *pictures[0], 80, 7, *pictures[1], 60, 33), CONTINUATION, media)
