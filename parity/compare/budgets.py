"""What a recipe may cost a model: built-in tiers, and budgets of one's own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from parity.compare.limits import Limit
from parity.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """Limits on what a recipe costs. ``name`` is a tier's, or says where the limits are from."""

    name: str
    limits: tuple[Limit, ...]


def _tier(name: str, kl: float, flips: float, reason: str) -> Budget:
    return Budget(
        name,
        (
            Limit(
                metric="kl_typical",
                most=kl,
                reason=f"Nats per position that the next-token distribution of the typical prompt moves by. {reason}",
            ),
            Limit(
                metric="flips",
                most=flips,
                optional=True,
                reason=f"Share of positions that get another best token although the oracle is not undecided. {reason}",
            ),
        ),
    )


#: Chosen from trained models: SmolLM2-135M-Instruct, measured here (docs/limits.md), and what is published of others.
TIERS = {
    tier.name: tier
    for tier in (
        _tier(
            "lossless",
            1e-3,
            0.05,
            "Tier lossless: nobody can tell. fp16 of trained SmolLM2-135M costs 3e-6, 8-bit weights of Llama 3.2 1B "
            "are published at 1e-3.",
        ),
        _tier(
            "good",
            0.1,
            0.25,
            "Tier good: what 8 bits cost a sound model. dynamic_int8 of trained SmolLM2-135M, one of the smallest and "
            "most sensitive there are, costs 0.04; its weights alone 0.006.",
        ),
        _tier(
            "compact",
            0.5,
            0.5,
            "Tier compact: what 4 bits cost a model that bears them. Llama 3.2 1B at 4 bits is published at 0.16 with "
            "21 % of its best tokens changed; of the tiny presets OpenELM 270M loses most by int4, 0.15 and at most "
            "0.43. Trained SmolLM2-135M does not bear them.",
        ),
    )
}
#: The tier that a recipe is held to unless told otherwise, by the smallest precision of its weights in bits.
_BY_BITS = {16: "lossless", 8: "good", 4: "compact"}

#: What a budget may hold, and whether it is the most or the least that is allowed.
_MOST = ("kl_typical", "kl_mean", "kl_p99", "kl_max", "flips", "perplexity_ratio", "rel_l2")
_LEAST = ("top1_agreement", "top1_agreement_clear", "top5_overlap", "cosine")


def default_budget(bits: int) -> Budget:
    """The tier of a recipe whose smallest weights have so many bits; of fewer than four, that of four."""
    return TIERS[next((tier for least, tier in _BY_BITS.items() if bits >= least), "compact")]


def own_budget(values: Mapping[str, object], where: str) -> Budget:
    """The budget that ``values`` spell out; ``where`` they are from, for people.

    Raises:
        UsageError: a metric that no budget can hold, or a value that is no limit for it.
    """
    if not values:
        raise UsageError(f"{where} holds no limit; write one, such as kl_typical = 0.1")
    return Budget(where, tuple(_limit(metric, value, where) for metric, value in values.items()))


def _limit(metric: str, value: object, where: str) -> Limit:
    known = (*_MOST, *_LEAST)
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UsageError(f"{where}: no metric is called {metric!r}; {hint}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise UsageError(f"{where}: {metric} = {value} is no limit; give a number of 0 or more")
    reason = f"As {where} asks."
    if metric in _LEAST:
        if value > 1:
            raise UsageError(f"{where}: {metric} = {value} is no share; give a number from 0 to 1")
        return Limit(metric=metric, least=float(value), reason=reason)
    if metric == "perplexity_ratio":
        if value < 1:
            raise UsageError(f"{where}: perplexity_ratio = {value} forbids what is no loss; give a number of 1 or more")
        return Limit(metric=metric, least=1 / float(value), most=float(value), reason=reason)
    return Limit(metric=metric, most=float(value), reason=reason)
