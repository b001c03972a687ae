"""What the prompts of a set say about a recipe's cost as a sample: an interval for each figure, robust where it can be.

The typical prompt is the median one: a prompt that amplifies rounding decides for itself and for nobody else. The bound
on it is an order statistic, and needs no distribution: of ``n`` prompts, the ``k``-th smallest is above the median of
all prompts like these if fewer than ``k`` of them are below it, which has a binomial probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.compare.metrics import NEAR_TIE, PositionErrors
from parity.compare.statistics import Array, quantile, ratio, share_interval

Sampled = dict[str, Any]

#: With which the typical prompt loses no more than its bound, if there are prompts enough: three. Six and seven prompts
#: then have one to spare: the bound is the second largest, so that a single outlier does not set it.
TYPICAL_CONFIDENCE = 0.85
#: A prompt is an outlier that loses so many times what the typical one does.
OUTLIER = 4.0


def of_logits(errors: Mapping[str, PositionErrors], extra_cost: Sequence[Array]) -> Sampled:
    """What quantized logits are judged by; ``errors`` are by prompt.

    ``extra_cost`` holds, by prompt, what each token of the continuation costs more than under the reference, in nats.
    The interval of ``perplexity_ratio`` is of its logarithm. ``bound`` is what a budget is held against: the end of the
    interval that is worse.
    """
    each = list(errors.values())
    kl_mean = ratio(_sums([one.kl for one in each]), _counts(each))
    kl_p99 = quantile([one.kl for one in each], 0.99)
    cost = ratio(_sums(extra_cost), _counts(extra_cost))
    losses = {name: float(one.kl.mean()) for name, one in errors.items()}
    typical, most, confidence = typical_of(list(losses.values()))
    flips = _flips(each)
    clear = int(sum((one.margin >= NEAR_TIE).sum() for one in each))
    least_cost, most_cost = (_exp(end) for end in cost.interval)
    intervals: dict[str, tuple[float, float]] = {
        "kl_typical": (min(losses.values()), most),
        "kl_mean": (max(kl_mean.interval[0], 0.0), kl_mean.interval[1]),
        "kl_p99": (max(kl_p99.interval[0], 0.0), kl_p99.interval[1]),
        "perplexity_ratio": (least_cost, most_cost),
        **({"flips": flips} if flips else {}),
    }
    bound: dict[str, Any] = {name: ends[1] for name, ends in intervals.items()}
    bound["perplexity_ratio"] = [least_cost, most_cost]
    if flips:
        bound["top1_agreement_clear"] = 1 - flips[1]
    return {
        "prompts": len(each),
        "kl_typical": typical,
        "flips": 1 - _agreement(each) if flips else None,
        # The bound of a share of so few positions even if none were flipped: what a smaller limit cannot be held by.
        "at_best": {"flips": share_interval(0, clear)[1]} if clear else {},
        "typical_confidence": confidence,
        "outliers": {name: loss for name, loss in losses.items() if loss > OUTLIER * typical},
        "interval": {name: list(ends) for name, ends in intervals.items()},
        "bound": bound,
    }


def of_encoder(errors: Mapping[str, PositionErrors]) -> Sampled:
    """The same of the rows that an encoder made: the typical prompt's distance."""
    distances = [math.sqrt(one.squared_error.sum() / one.squared_reference.sum()) for one in errors.values()]
    typical, most, confidence = typical_of(distances)
    return {
        "prompts": len(distances),
        "rel_l2_typical": typical,
        "typical_confidence": confidence,
        "interval": {"rel_l2_typical": [min(distances), most]},
    }


def typical_of(losses: Sequence[float]) -> tuple[float, float, float]:
    """The median of what prompts lose, what it is at most, and with which confidence.

    The least order statistic that is ``TYPICAL_CONFIDENCE`` sure; of few prompts the largest, which may be less sure.
    """
    from scipy.special import bdtr

    ordered = sorted(losses)
    count = len(ordered)
    # The median of all prompts is above the place-th smallest with the probability that so many or more lie below it.
    sure = [float(bdtr(place - 1, count, 0.5)) for place in range(1, count + 1)]
    place = next((place for place, chance in enumerate(sure) if chance >= TYPICAL_CONFIDENCE), count - 1)
    return float(np.median(ordered)), ordered[place], sure[place]


def _flips(errors: Sequence[PositionErrors]) -> tuple[float, float] | None:
    """The interval of the share of clear positions with another best token; ``None`` where there are none.

    No narrower than of independent positions: positions that resemble each other say less.
    """
    clear = [each.margin >= NEAR_TIE for each in errors]
    other = [~each.same_top1[mask] for each, mask in zip(errors, clear, strict=True)]
    positions, flipped = sum(map(len, other)), int(sum(each.sum() for each in other))
    if not positions:
        return None
    found = ratio(_sums(other), _counts(other)).interval
    exact = share_interval(flipped, positions)
    return max(min(found[0], exact[0]), 0.0), min(max(found[1], exact[1]), 1.0)


def _agreement(errors: Sequence[PositionErrors]) -> float:
    same = np.concatenate([each.same_top1[each.margin >= NEAR_TIE] for each in errors])
    return float(same.mean())


def _sums(values: Sequence[Any]) -> Array:
    return np.asarray([each.sum() for each in values], np.float64)


def _counts(values: Sequence[Any]) -> Array:
    return np.asarray([len(each) for each in values], np.float64)


def _exp(value: float) -> float:
    """``exp``, infinite beyond what a float holds."""
    return math.exp(value) if value < 700 else math.inf
