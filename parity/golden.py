"""Recordings of the oracle that gate tomorrow's conversion without the original."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.registry import Model
from parity.compare.verdict import NoiseFloor
from parity.inputs import Inputs
from parity.trace import Trace
from parity.weights import Weights


@dataclass(frozen=True)
class Reference:
    """What rungs are compared to, and the noise floor that their distance is measured in."""

    name: str
    trace: Trace
    floor: NoiseFloor


@dataclass(frozen=True)
class GoldenStore:
    """A folder of recordings, by preset / weights / prompt set."""

    folder: Path

    def replay(self, model: Model, weights: Weights, inputs: Inputs) -> Reference:
        raise NotImplementedError
