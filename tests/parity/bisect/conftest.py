"""Tiny models of every kind with short inputs, made of ids, and what their originals make of those, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import registry
from models.authoring.config import EncoderDecoderConfig, ModelConfig, VisionLanguageConfig, WindowedVisionConfig
from models.authoring.hf_config import HFConfig
from parity.bisect.jobs import ReauthoredSide
from parity.compare.bisect import Bisection, Place, conclude, judge_floats
from parity.compare.limits import FLOAT_LIMITS
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.boundaries import measure_original, record_boundaries
from parity.runners.original import Original
from parity.weights import resolve

CONTINUATION = (17, 200, 45, 90)


def silent(_done: int, _total: int) -> None:
    """Nobody watches the progress."""


def prompt(config: ModelConfig) -> TokenizedPrompt:
    """A prompt of each kind: words, a source, samples, or words around two pictures."""
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


@dataclass(frozen=True)
class Prepared:
    """A tiny model, and what its original makes: it can be bisected as often as it is broken."""

    side: ReauthoredSide
    floor: dict[Place, Any]

    def bisect(self) -> Bisection:
        """The re-authored model as it is now."""
        own, chained = self.side.measure(silent)
        return conclude("reauthored", "original64", ["it"], judge_floats(own, chained, self.floor, FLOAT_LIMITS))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Callable[..., Prepared]:
    """Makes what a preset needs on first use."""
    made: dict[str, Prepared] = {}

    def make(name: str) -> Prepared:
        if name not in made:
            model = registry.get(name)
            folder: Path = resolve(model, "tiny").folder
            config = model.family.config_from(HFConfig.load(folder))
            inputs = Inputs("ids", "ids", "", "", (prompt(config),))
            scratch = tmp_path_factory.mktemp(name)
            record_boundaries(Original(folder, "float64"), inputs, scratch, silent)
            floor = dict(measure_original(Original(folder, "float32"), inputs, scratch, silent))
            floor |= {at._replace(stage="place"): noise for at, noise in floor.items() if at.stage == "embed"}
            made[name] = Prepared(
                ReauthoredSide(
                    family=model.family.name,
                    folder=folder,
                    cache_lengths=(config.boundary or 64,),  # within the boundary, where there is one
                    threads=1,
                    inputs=inputs,
                    boundaries=scratch,
                ),
                floor,
            )
        return made[name]

    return make
