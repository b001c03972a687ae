"""PyTorch with the very numbers that a quantized rung's files store: what the rung is held against for fidelity."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from parity.compare.floor import NoiseFloor
from parity.convert.stored import Numbers
from parity.runners.rounded import Rounded

if TYPE_CHECKING:
    from parity.ladder import Ladder, Rung
    from parity.runners.base import Recorded


class RoundedRung:
    """PyTorch with the numbers of one quantized rung: what it gives in float64, and the noise floor of that."""

    def __init__(self, ladder: Ladder, rung: Rung) -> None:
        self.inputs = rung.recorded.inputs if rung.recorded else ladder.inputs
        self._ladder = replace(ladder, inputs=self.inputs, generate=0, _exact=None, _floor=None)
        self._rung = rung
        self._dynamic = any(weight.dynamic for weight in rung.stored)
        self._whole = ladder
        self._floor: NoiseFloor | None = None
        self._dithered: NoiseFloor | None = None
        self.name = f"{rung.name} in PyTorch"
        #: Of a streamed rung there is no file: then its weights are rounded anew.
        self._asked = {"file": rung.artifact.get("sha256"), "stored": [asdict(weight) for weight in rung.stored]}
        self.trace = self._recorded().trace

    def _runner(self, **how: Any) -> Rounded:
        numbers = None
        if self._rung.paths:
            source = self._ladder.files[0]
            numbers = Numbers(self._rung.paths[0], source.path, source.names)
        return Rounded(*self._ladder.ours, at_once=True, stored=self._rung.stored, numbers=numbers, **how)

    def _recorded(self) -> Recorded:
        runner = self._runner(name=self.name, precision="float64")
        return self._ladder.recording(runner, None, self._asked, original=False)

    def floor(self, rounds: int = 0) -> NoiseFloor:
        """Its noise floor. Weights alone leave the model as well conditioned as it was; activations do not.

        The first round that something is left open for has dithered draws as well.
        """
        if not self._dynamic:
            return self._whole.floor(rounds)
        drawn = self._drawn(self._floor, rounds, dither=False)
        self._floor = drawn
        if rounds:
            self._dithered = self._drawn(self._dithered, 0, dither=True)
        return replace(drawn, discrete=True, dithered=self._dithered)

    def _drawn(self, known: NoiseFloor | None, rounds: int, *, dither: bool) -> NoiseFloor:
        kind = "dithered" if dither else "noise"
        noisy = self._runner(name=f"{self.name}, {kind} floor", noisy=True, dither=dither)
        exact = self._ladder.scratch / f"{self.name}.safetensors"
        return self._ladder.drawn(known, rounds, noisy, self.inputs, exact, {**self._asked, "dither": dither})
