"""What the prompts of a set say about a rung as a sample: an interval for each figure, and the change they notice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.compare.metrics import NEAR_TIE, PositionErrors
from parity.compare.statistics import Array, Estimate, quantile, rarest_seen, ratio, share_interval

Sampled = dict[str, Any]


def of_logits(errors: Sequence[PositionErrors], extra_cost: Sequence[Array]) -> Sampled:
    """Intervals and noticeable changes of what quantized logits are judged by; ``errors`` are by prompt.

    ``extra_cost`` holds, by prompt, what each token of the continuation costs more than under the reference, in nats.
    Changes of ``perplexity_ratio`` are relative, and its interval is of its logarithm.
    """
    kl_mean = ratio(_sums([each.kl for each in errors]), _counts(errors))
    kl_p99 = quantile([each.kl for each in errors], 0.99)
    cost = ratio(_sums(extra_cost), _counts(extra_cost))
    agreement, noticed = _agreement(errors, kl_mean)
    least, most = (_exp(end) for end in cost.interval)
    return _gathered(
        {
            "kl_mean": (_from_zero(kl_mean), kl_mean.detectable),
            "kl_p99": (_from_zero(kl_p99), kl_p99.detectable),
            "top1_agreement_clear": (agreement, noticed),
            "perplexity_ratio": ((least, most), _exp(cost.detectable) - 1),
        },
        len(errors),
    )


def of_encoder(errors: Sequence[PositionErrors]) -> Sampled:
    """The same of the rows that an encoder made."""
    squares = _sums([each.squared_error for each in errors]), _sums([each.squared_reference for each in errors])
    rel_l2 = ratio(*squares, np.sqrt)
    return _gathered({"rel_l2": (_from_zero(rel_l2), rel_l2.detectable)}, len(errors))


def _agreement(errors: Sequence[PositionErrors], kl_mean: Estimate) -> tuple[tuple[float, float], float]:
    """The interval of the share of clear positions with the same best token, and the loss of it that is noticed.

    A loss shows in two ways. Directly: as more positions that disagree than between prompts anyway, which are at least
    one. And through KL, which sees it long before: another best token costs at least ``another_best`` at its position,
    so a mean KL that is noticed is a loss of agreement that is noticed.
    """
    clear = [each.margin >= NEAR_TIE for each in errors]
    same = [each.same_top1[mask] for each, mask in zip(errors, clear, strict=True)]
    positions, agreeing = sum(map(len, same)), int(sum(each.sum() for each in same))
    if not positions:
        return (0.0, 1.0), math.inf
    found = ratio(_sums(same), _counts(same))
    exact = share_interval(agreeing, positions)
    least, most = (end(pair) for end, pair in zip((min, max), zip(found.interval, exact, strict=True), strict=True))
    directly = max(found.detectable, rarest_seen(positions))
    cheapest = min(each.another_best[mask].min() for each, mask in zip(errors, clear, strict=True) if mask.any())
    all_positions = sum(map(len, errors))
    through_kl = kl_mean.detectable / float(cheapest) * all_positions / positions
    return (max(least, 0.0), min(most, 1.0)), min(directly, through_kl)


def _gathered(found: Mapping[str, tuple[tuple[float, float], float]], prompts: int) -> Sampled:
    return {
        "prompts": prompts,
        "interval": {name: list(interval) for name, (interval, _) in found.items()},
        "detectable": {name: noticed for name, (_, noticed) in found.items()},
    }


def _sums(values: Sequence[Any]) -> Array:
    return np.asarray([each.sum() for each in values], np.float64)


def _counts(values: Sequence[Any]) -> Array:
    return np.asarray([len(each) for each in values], np.float64)


def _from_zero(estimate: Estimate) -> tuple[float, float]:
    """The interval of a figure that cannot be negative."""
    least, most = estimate.interval
    return max(least, 0.0), most


def _exp(value: float) -> float:
    """``exp``, infinite beyond what a float holds."""
    return math.exp(value) if value < 700 else math.inf
