"""How far figures of a prompt set can be trusted. Pure functions, float64 inside, no limits, no files.

The prompts are the sample: positions within one prompt resemble each other, so their number says little. A figure is
of all positions of all prompts; how much it would vary with other prompts follows from how it varies between these.

- Sums over sums (a mean over positions, a norm over a norm): the jackknife that leaves out one prompt at a time, whose
  standard error for a plain mean is the usual one (Miller, "The jackknife: a review", Biometrika 61, 1974).
- Quantiles, for which the jackknife is not consistent: the bootstrap that draws whole prompts with replacement (Efron
  and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 11), enlarged by sqrt(n / (n - 1)), without
  which it is too small for few prompts.

Intervals are Student's, of ``n - 1`` degrees of freedom for ``n`` prompts. Of seven prompts they hold the true mean
about as often as they say; a 99th percentile less often, in 74 to 92 % of simulated samples, because a set's largest
values hardly say how much larger others can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The convention of the field: 95 % intervals.
CONFIDENCE = 0.95
#: Resamples of the bootstrap: its standard error is then itself known to about 2 %. Always the same ones.
RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A figure, and its standard error over ``prompts`` prompts; infinite where there is only one."""

    value: float
    standard_error: float
    prompts: int

    @property
    def interval(self) -> tuple[float, float]:
        """Where the figure of all prompts like these lies, with 95 % confidence."""
        half = self._times(_student(1 - (1 - CONFIDENCE) / 2, self.prompts))
        return self.value - half, self.value + half

    def _times(self, factor: float) -> float:
        return factor * self.standard_error if self.standard_error else 0.0


def _student(probability: float, prompts: int) -> float:
    """The quantile of Student's distribution that belongs to so many prompts."""
    from scipy.special import stdtrit

    return float(stdtrit(prompts - 1, probability)) if prompts > 1 else math.inf


def ratio(numerators: Array, denominators: Array, form: Callable[[Array], Array] = np.asarray) -> Estimate:
    """``form(sum of numerators / sum of denominators)``; each array ``[n]`` has one entry a prompt.

    Prompts without a denominator say nothing and do not count.
    """
    counted = denominators > 0
    numerators, denominators = numerators[counted], denominators[counted]
    count = len(numerators)
    value = float(form(np.asarray(numerators.sum() / denominators.sum()))) if count else math.nan
    if count < 2:
        return Estimate(value, math.inf, count)
    # Sums of the others, not differences from the sum of all, which would leave rounding where nothing varies.
    others = ~np.eye(count, dtype=bool)
    without = form((others * numerators).sum(axis=1) / (others * denominators).sum(axis=1))
    spread = np.square(without - without.mean()).sum()
    return Estimate(value, float(np.sqrt((count - 1) / count * spread)), count)


def quantile(values: Sequence[Array], share: float) -> Estimate:
    """The quantile over all positions; ``values`` holds those of one prompt after the other."""
    count = len(values)
    value = float(np.quantile(np.concatenate(values), share)) if count else math.nan
    if count < 2:
        return Estimate(value, math.inf, count)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(count, size=(RESAMPLES, count))
    found = [np.quantile(np.concatenate([values[each] for each in draw]), share) for draw in drawn]
    return Estimate(value, float(np.std(found) * math.sqrt(count / (count - 1))), count)


def share_interval(agreeing: int, of: int) -> tuple[float, float]:
    """The exact 95 % interval of a share of independent positions (Clopper and Pearson, Biometrika 26, 1934).

    No interval of positions that resemble each other is narrower, and a standard error says nothing where all agree.
    """
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    least = float(betaincinv(agreeing, of - agreeing + 1, tail)) if agreeing else 0.0
    most = float(betaincinv(agreeing + 1, of - agreeing, 1 - tail)) if agreeing < of else 1.0
    return least, most
