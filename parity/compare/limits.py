"""The limits, each with its reason. The only place with thresholds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

#: Half a unit in the last place of float32, relative: no float32 output can be expected nearer to the oracle, so a
#: measured noise floor below this counts as this.
UNIT_ROUNDOFF = 2.0**-24

FLOAT_RUNGS = ("original", "reauthored", "float")


@dataclass(frozen=True)
class Limit:
    """``metric`` must lie in ``[least, most]``; ``reason`` says where the numbers come from."""

    metric: str
    reason: str
    least: float = -math.inf
    most: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether ``value`` is within; NaN never is."""
        return self.least <= value <= self.most

    @property
    def bound(self) -> float | list[float]:
        """The limit as the report shows it."""
        if math.isinf(self.least):
            return self.most
        return self.least if math.isinf(self.most) else [self.least, self.most]


FLOAT_LIMITS = (
    Limit(
        metric="floor_ratio",
        most=8.0,
        reason="A correct float32 port sums the same terms in another order, so its distance to the oracle is a small "
        "multiple of the original's own. The smallest real porting bug in the fault catalogue is a hundred times the floor.",
    ),
)

#: KL limits are placeholders until measured.
_QUANTIZED: Mapping[str, tuple[float, float, float]] = {}


def limits_for(rung: str) -> tuple[Limit, ...]:
    """The limits a rung is held to: float rungs by the noise floor, quantized ones by their recipe."""
    if rung in FLOAT_RUNGS:
        return FLOAT_LIMITS
    return (Limit(metric="kl_mean", most=10.0, reason="placeholder"),)
