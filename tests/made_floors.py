"""Noise floors made by hand for tests: of traces that stand for draws, or as high as a test wants them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from models.authoring.config import ModelConfig
from parity.compare.floor import FIRST_DRAWS, NoiseFloor, PromptNoise
from parity.compare.limits import UNIT_ROUNDOFF
from parity.compare.roundings import least_floors
from parity.inputs import Inputs
from parity.runners.base import answer
from parity.runners.noise import Draws, measured, read_floor
from parity.runners.reauthored import Reauthored
from parity.trace import PHASES, PromptTrace, Trace

#: No floor counts as less than one rounding.
LEAST = {**dict.fromkeys(PHASES, UNIT_ROUNDOFF), "encoder": UNIT_ROUNDOFF}
PARTS = {"prefill": "prefill", "decode": "decode", "encoder": "encoded"}


def floor_of(centre: Trace, *draws: Trace, least: Mapping[str, float] = LEAST) -> NoiseFloor:
    """The floor that ``draws`` make around ``centre``."""
    return NoiseFloor(
        {name: _noise(prompt, [draw.prompts[name] for draw in draws]) for name, prompt in centre.prompts.items()}, least
    )


def level_floor(
    centre: Trace, size: float | Mapping[str, float], draws: int = FIRST_DRAWS, least: Mapping[str, float] = LEAST
) -> NoiseFloor:
    """A floor of ``size`` relative to every position of ``centre``, or of a size for each prompt."""
    noise = {}
    for name, prompt in centre.prompts.items():
        by = size if isinstance(size, float) else size[name]
        squared = {
            phase: np.tile(np.square(by * np.linalg.norm(found.astype(np.float64), axis=1)), (draws, 1))
            for phase, part in PARTS.items()
            if (found := getattr(prompt, part)) is not None
        }
        most = by * max(float(np.abs(getattr(prompt, phase)).max()) for phase in PHASES)
        noise[name] = PromptNoise(squared, np.full(draws, most))
    return NoiseFloor(noise, least)


def _noise(centre: PromptTrace, draws: list[PromptTrace]) -> PromptNoise:
    squared, most = {}, np.zeros(len(draws))
    for phase, part in PARTS.items():
        if getattr(centre, part) is None:
            continue
        errors = [getattr(draw, part).astype(np.float64) - getattr(centre, part) for draw in draws]
        squared[phase] = np.asarray([np.square(each).sum(axis=1) for each in errors])
        if phase in PHASES:
            most = np.maximum(most, [np.abs(each).max() for each in errors])
    return PromptNoise(squared, most)


def drawn_floor(
    runner: Reauthored, config: ModelConfig, inputs: Inputs, exact: Trace, count: int = FIRST_DRAWS
) -> NoiseFloor:
    """The floor of a ``runner`` that is noisy, around the ``exact`` trace, drawn as a ladder does."""
    with TemporaryDirectory() as folder:
        centre, found = Path(folder) / "exact.safetensors", Path(folder) / "floor.safetensors"
        exact.save(centre)
        measured(answer, runner, inputs, Draws(0, count), centre, found, lambda *_: None)
        return read_floor(found, inputs, least_floors(config))
