"""The noise floor: what float32 evaluation, in whatever order, does to this model at this position.

It is measured by *draws*: the re-authored model is run in float32 several times, and every sum is given a random error
as large as adding its terms one after the other would make it (``parity.runners.noise``). A position's floor is the
root mean square of the draws' distances to the same model in float64. So whatever amplifies rounding at a position
amplifies the draws as well, and a ratio to the floor means the same at a calm position as at a chaotic one.

How sure a floor is. In the worst case all rounding of a prompt acts along one direction: then a draw's distance is the
size of one normal number, and the sum of ``n`` squares, in units of its mean, is chi-squared with ``n`` degrees of
freedom. That gives the interval of the true floor in which it lies with ``CONFIDENCE``; more directions make it only
narrower. A ratio that keeps its limit whatever the floor is within that interval is decided; so is one that breaks it
so. Between the two, more draws are made (``parity.pipeline``), until ``MOST_DRAWS``; then the measured floor decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from parity.compare.limits import ROUNDING_LIMITS, Limit
from parity.compare.metrics import FAINT, Array

#: Draws of a run that is decided at once, and the most that an undecided one is given: each round doubles them.
FIRST_DRAWS = 4
MOST_DRAWS = 32
#: With which the true floor lies above, and with which it lies below, what a decision takes it for.
CONFIDENCE = 0.999
#: float64's unit roundoff in units of float32's: to first order both are amplified alike.
IN_FLOAT64 = 2.0**-29
#: A position amplifies rounding badly where its floor is so many times that of the typical position.
ILL_CONDITIONED = 30.0


class Distances(Protocol):
    """What a floor must know of a comparison: squared L2 distances and sizes of the reference, per position ``[P]``."""

    @property
    def squared_error(self) -> Array: ...

    @property
    def squared_reference(self) -> Array: ...


@dataclass(frozen=True)
class PromptNoise:
    """Draws of one prompt: squared L2 distances ``[n, P]`` by phase, and each draw's largest logit error ``[n]``."""

    squared: Mapping[str, Array]
    most: Array

    def __add__(self, other: PromptNoise) -> PromptNoise:
        squared = {phase: np.concatenate([rows, other.squared[phase]]) for phase, rows in self.squared.items()}
        return PromptNoise(squared, np.concatenate([self.most, other.most]))


@dataclass(frozen=True)
class NoiseFloor:
    """The draws of every prompt, by id; the encoder, where there is one, counts as a phase.

    ``least`` is what the floor of a phase counts as at least, relative to the size of the reference
    (``parity.compare.roundings``): an evaluation that happens to be exact says nothing of what others may lose.
    ``unit`` scales it, to float64's noise for the exact port.
    """

    prompts: Mapping[str, PromptNoise]
    least: Mapping[str, float]
    unit: float = 1.0
    #: Where activations are rounded to integers. Then a difference in the last bit makes one of them another integer at
    #: some positions and at others none, and few draws may have seen it nowhere. These are draws that have seen it
    #: everywhere; the worst position is held against them.
    dithered: NoiseFloor | None = None
    #: Whether that may be the case, so that a ratio beyond its limit is not decided before all draws are made.
    discrete: bool = False

    def __add__(self, other: NoiseFloor) -> NoiseFloor:
        return replace(self, prompts={name: noise + other.prompts[name] for name, noise in self.prompts.items()})

    @property
    def draws(self) -> int:
        """How many there are of every prompt."""
        return min((len(noise.most) for noise in self.prompts.values()), default=0)

    @property
    def exhausted(self) -> bool:
        """Whether there are no more draws to be had."""
        return self.draws >= MOST_DRAWS

    @property
    def in_float64(self) -> NoiseFloor:
        """The same model's floor where it is evaluated in float64."""
        return replace(self, unit=self.unit * IN_FLOAT64)

    def of(self, prompt: str, phase: str, errors: Distances) -> Array:
        """The floor ``[P]`` at the positions of ``errors``, an L2 distance as theirs; NaN where a draw is no number."""
        squared = errors.squared_reference
        least = self.least[phase] ** 2 * np.maximum(squared, FAINT**2 * squared.mean())
        drawn = self.prompts[prompt].squared[phase].mean(axis=0)
        drawn = np.where(np.isfinite(drawn), drawn, np.nan)  # an infinite floor would forgive everything
        result: Array = self.unit * np.sqrt(np.maximum(drawn, least))
        return result

    def ratios(self, prompt: str, phase: str, errors: Distances) -> Array:
        """Distances in units of the floor, ``[P]``. A reference of nothing but zeros gives no number, or infinity."""
        result: Array = np.sqrt(errors.squared_error) / self.of(prompt, phase, errors)
        return result

    def worst_ratios(self, prompt: str, phase: str, errors: Distances) -> Array:
        """The same for the worst position: in units of dithered draws, where those are larger."""
        ratios = self.ratios(prompt, phase, errors)
        return np.minimum(ratios, self.dithered.ratios(prompt, phase, errors)) if self.dithered else ratios

    def logit_noise(self, prompt: str) -> float:
        """The largest error of any logit of a prompt: the root mean square of the draws' largest."""
        return float(self.unit * np.sqrt(np.square(self.prompts[prompt].most).mean()))


def tie(floor: NoiseFloor, prompt: str) -> float:
    """How far apart two logits of a prompt may be that float32 evaluation can bring into the other order."""
    return next(limit.most for limit in ROUNDING_LIMITS if limit.metric == "worst_position_ratio") * floor.logit_noise(
        prompt
    )


def typical_ratio(ratios: Iterable[Array]) -> float:
    """The median over all positions."""
    return float(np.median(np.concatenate(list(ratios))))


def decided(figure: float, limit: Limit, draws: int, *, discrete: bool = False) -> bool:
    """Whether a ratio to the floor of so many draws keeps or breaks its limit whatever the true floor may be.

    Where noise is ``discrete``, few draws do not bound the floor from above.
    """
    if not math.isfinite(figure):
        return True
    below, above = _interval(draws)
    return figure <= limit.most * below or (figure > limit.most * above and not discrete)


def _interval(draws: int) -> tuple[float, float]:
    """Where the true floor lies, in units of the measured one: its least and its most."""
    from scipy.special import chdtri

    # chdtri is the inverse of the upper tail.
    return math.sqrt(draws / chdtri(draws, 1 - CONFIDENCE)), math.sqrt(draws / chdtri(draws, CONFIDENCE))


@dataclass(frozen=True)
class Conditioning:
    """How much a prompt amplifies rounding: its floor over what no evaluation gets around, typically and at worst.

    ``times`` is the typical amplification over that of the typical prompt.
    """

    typical: float
    worst: float
    times: float

    @property
    def ill(self) -> bool:
        """Whether the floor is so high that a mistake could hide below it."""
        return self.times >= ILL_CONDITIONED


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # of what overflows nothing is known
def conditioning(floor: NoiseFloor, errors: Mapping[str, Mapping[str, Distances]]) -> dict[str, Conditioning]:
    """Of every prompt; ``errors`` of any rung, by phase and prompt, tell the size of the reference."""
    found: dict[str, list[Array]] = {}
    for phase, prompts in errors.items():
        for name, each in prompts.items():
            size = np.sqrt(np.maximum(each.squared_reference, FAINT**2 * each.squared_reference.mean()))
            inevitable = floor.unit * floor.least[phase] * size
            found.setdefault(name, []).append(floor.of(name, phase, each) / inevitable)
    amplified = {name: np.concatenate(parts) for name, parts in found.items()}
    typical = {name: float(np.median(each)) for name, each in amplified.items()}
    middle = float(np.median(list(typical.values())))
    return {
        name: Conditioning(typical[name], float(each.max()), typical[name] / middle) for name, each in amplified.items()
    }
