"""Tiny models of every kind with short inputs, made of ids, and what their originals make of those, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from models import registry
from models.authoring.hf_config import HFConfig
from parity.bisect.jobs import ReauthoredSide
from parity.compare.bisect import Bisection, Place, conclude, judge_floats
from parity.compare.floor import IN_FLOAT64
from parity.compare.limits import PORT_LIMITS, STAGE_LIMITS
from parity.inputs import Inputs
from parity.runners.boundaries import measure_original, record_boundaries
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.weights import resolve
from tests.prompt_kinds import prompt


def silent(_done: int, _total: int) -> None:
    """Nobody watches the progress."""


@dataclass(frozen=True)
class Prepared:
    """A tiny model, and what its original makes: it can be bisected as often as it is broken."""

    side: ReauthoredSide
    floor: dict[Place, Any]

    def bisect(self) -> Bisection:
        """The re-authored model as it is now, in float32."""
        own, chained = self.side.measure(silent)
        return conclude("reauthored", "original64", ["it"], judge_floats(own, chained, self.floor, STAGE_LIMITS))

    def bisect_port(self) -> Bisection:
        """The exact port of the model as it is now, in units of float64."""
        side = replace(self.side, ours=replace(self.side.ours, precision="float64"))
        own, chained = side.measure(silent)
        rows = judge_floats(own, chained, self.floor, PORT_LIMITS, IN_FLOAT64)
        return conclude("reauthored64", "original64", ["it"], rows)


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
                    # Within the boundary, where there is one.
                    ours=Reauthored(model.family.name, folder, (config.boundary or 64,)),
                    inputs=inputs,
                    boundaries=scratch,
                ),
                floor,
            )
        return made[name]

    return make
