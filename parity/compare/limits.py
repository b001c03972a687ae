"""The limits, each with its reason. The only place with thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Half a unit in the last place of float32, relative. A noise floor counts as no less than this times the root of how
#: many roundings a model's output goes through in a row (``parity.compare.roundings`` derives and counts them).
UNIT_ROUNDOFF = 2.0**-24

#: Rungs that are judged by the original's own noise.
FLOAT_RUNGS = ("reauthored", "float")
#: Rungs with the weights as they were published, from the top of the ladder down.
UNQUANTIZED = ("original", *FLOAT_RUNGS)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``metric`` must lie in ``[least, most]``; ``reason`` says where the numbers come from.

    A figure that is ``sampled`` is an estimate of what other prompts would give, which takes enough of them. One that
    means nothing on fewer than ``positions_needed`` is not judged on them.
    """

    metric: str
    reason: str
    least: float = -math.inf
    most: float = math.inf
    sampled: bool = True
    positions_needed: int = 0

    def holds(self, value: float) -> bool:
        """Whether ``value`` is within; NaN never is."""
        return self.least <= value <= self.most

    @property
    def room(self) -> float:
        """The change that the limit allows, from no loss: KL and distances of 0, agreement in all, a ratio of 1."""
        if math.isinf(self.least):
            return self.most
        if math.isinf(self.most):
            return 1 - self.least
        return min(self.most, 1 / self.least) - 1

    @property
    def bound(self) -> float | list[float]:
        """The limit as the report shows it."""
        if math.isinf(self.least):
            return self.most
        return self.least if math.isinf(self.most) else [self.least, self.most]


ORIGINAL_LIMITS = (
    Limit(
        metric="rel_l2",
        most=1e-4,
        reason="The noise floor itself. A float32 original is 1e-7 to 1e-5 from its oracle; beyond this it did not run "
        "in float32, or is chaotic on these inputs, and a multiple of such a floor would let real mistakes through.",
    ),
)

FLOAT_LIMITS = (
    Limit(
        metric="floor_ratio",
        most=8.0,
        reason="A correct float32 port adds the same terms in another order, so its distance to the oracle is a small "
        "multiple of the original's own; the worst of the tiny presets is 1.7. It is the larger of prefill and decode.",
    ),
    Limit(
        metric="worst_position_ratio",
        most=16.0,
        reason="The same for the single worst position, so that one wrong position cannot hide among hundreds; an "
        "extreme value scatters more than a mean, hence twice the limit. The worst of the tiny presets is 2.3.",
    ),
)

_MEASURED = "; measured over the fourteen tiny presets (224 positions each): "


def _quantized(
    *, kl_mean: float, kl_p99: float, top1: float, perplexity: tuple[float, float], measured: str
) -> tuple[Limit, ...]:
    why = _MEASURED + measured
    return (
        Limit(metric="kl_mean", most=kl_mean, reason="Nats per position the next-token distribution may move" + why),
        Limit(
            metric="kl_p99",
            most=kl_p99,
            sampled=False,
            positions_needed=100,  # with fewer there is no worst one in a hundred, only a worst one
            reason="The same at the worst position in a hundred of these very ones: a guard against few that are far "
            "off. From a few hundred positions a tail is no estimate of other prompts' (intervals drawn again and "
            "again hold it in 74 to 92 % of cases, not 95), so the prompts are not asked to be enough for one" + why,
        ),
        Limit(metric="top1_agreement_clear", least=top1, reason="Same best token unless the oracle is undecided" + why),
        Limit(
            metric="perplexity_ratio",
            least=perplexity[0],
            most=perplexity[1],
            sampled=False,
            reason="Both ways: forced text becoming cheaper is as much a change as becoming dearer. Of these very "
            "tokens, too, of which seven prompts have 112: for other text they say it to 0.029 at 8 bits and to 1.1 at "
            "4 (what tiny SmolLM2 would notice); a guard beside KL, which says more from the same positions" + why,
        ),
    )


#: About three times the worst KL that was measured, twice the worst loss of agreement, three times the worst change of
#: perplexity: far from what a sound file does, far below what a broken one does (KL of 1 and more).
RECIPE_LIMITS = {
    "fp16": _quantized(
        kl_mean=2e-6,
        kl_p99=2e-5,
        top1=0.99,
        perplexity=(0.998, 1.002),
        measured="KL 5.7e-7, p99 5.5e-6, agreement 1.000, perplexity 0.9996 to 1.0004",
    ),
    "weight_only_int8": _quantized(
        kl_mean=1.6e-3,
        kl_p99=1.2e-2,
        top1=0.97,
        perplexity=(0.975, 1.025),
        measured="KL 5.4e-4, p99 3.7e-3, agreement 0.990, perplexity 0.992 to 1.008",
    ),
    "dynamic_int8": _quantized(
        kl_mean=2.7e-2,
        kl_p99=0.14,
        top1=0.94,
        perplexity=(0.955, 1.045),
        measured="KL 2.2e-3, p99 0.016, agreement 0.971, perplexity 0.985 to 1.015. At full size the rounding of "
        "activations adds up over the layers: KL 4.1e-3 (SmolLM 135M), 3.2e-3 (OpenELM 270M), 9.0e-3 with p99 0.045 "
        "(OpenELM 450M), where the same rounding done in PyTorch gives 9.2e-3, and 2.3e-4 without that of activations",
    ),
    "dynamic_int4_block32": _quantized(
        kl_mean=0.36,
        kl_p99=3.0,
        top1=0.6,
        perplexity=(0.7, 1.43),
        measured="KL 0.12, p99 1.0, agreement 0.803, perplexity 0.91 to 1.14",
    ),
    "dynamic_int4_block128": _quantized(
        kl_mean=0.36,
        kl_p99=3.0,
        top1=0.6,
        perplexity=(0.6, 1.8),
        measured="KL 0.12, p99 1.0, agreement 0.817, perplexity 0.89 to 1.28",
    ),
    "dynamic_int4": _quantized(
        kl_mean=0.6,
        kl_p99=4.2,
        top1=0.4,
        perplexity=(0.6, 1.9),
        measured="KL 0.21, p99 1.4, agreement 0.688, perplexity 0.89 to 1.30",
    ),
}


def _encoded(rel_l2: float, measured: str) -> tuple[Limit, ...]:
    why = (
        "Distance of the rows that an encoder makes, relative to their size; the worst measured over the tiny presets "
    )
    return (Limit(metric="rel_l2", most=rel_l2, reason=f"{why}with an encoder: {measured}"),)


#: What an encoder made, before anything reads it: about three times the worst that was measured, twice for four bits,
#: where three times would be as far away as rows that have nothing to do with each other.
ENCODER_LIMITS = {
    "fp16": _encoded(1.6e-3, "5.4e-4 (Moonshine tiny)"),
    "weight_only_int8": _encoded(0.048, "0.016 (Moonshine tiny)"),
    "dynamic_int8": _encoded(0.087, "0.029 (Moonshine tiny)"),
    "dynamic_int4_block32": _encoded(0.33, "0.167 (Qwen 2.5-VL)"),
    "dynamic_int4_block128": _encoded(0.36, "0.181 (Qwen 2.5-VL)"),
    "dynamic_int4": _encoded(0.71, "0.355 (T5 small, whose position bias is one of the weights)"),
}


def stage_limits(rung: str, bits: int | None = None) -> tuple[Limit, ...]:
    """What a recipe may cost a single stage that is fed the reference's inputs: as much as a whole encoder.

    An encoder is a few stages that hand on rows of the stream, and rounding adds up along them. A stage by itself can
    only lose less; one that loses more has lost something else.
    """
    return limits_for(rung, bits, "encoder")


#: The bound on how far a quantized stage may stand out among its siblings when all keep their limits.
SIBLING_RATIO = Limit(
    metric="sibling_ratio",
    most=8.0,
    reason="A stage's error over the median of its siblings'. Blocks differ in width, outliers and position in the "
    "stack; a multiple as large as that allowed over the noise floor is what something else than rounding makes.",
)

#: What is read off a quantized file without running it; see ``parity.convert.rounding``.
STORED_LIMITS = (
    Limit(
        metric="weight_steps",
        sampled=False,
        most=0.51,
        reason="How far what is stored of a weight is from it, in steps between neighbouring codes: half a step is "
        "what rounding to the nearest comes to, and a hundredth is left for the arithmetic of the quantizer; measured "
        "0.5000 for every recipe.",
    ),
    Limit(
        metric="weight_coarseness",
        sampled=False,
        most=1.01,
        reason="The largest step in units of what the largest weight of its group needs: 1, and up to 1 + 2^-8 where "
        "the steps of blocks are stored with eight bits of mantissa; measured 1.0000 by channel, 1.0038 by block.",
    ),
)

#: Recipes without limits of their own are held to those of the plainest recipe with the same weight bits.
_BY_BITS = {16: "fp16", 8: "dynamic_int8", 4: "dynamic_int4"}


def limits_for(
    rung: str, bits: int | None = None, output: str = "logits", *, stored: bool = False
) -> tuple[Limit, ...]:
    """The limits a rung is held to: the original, float rungs by its noise, quantized ones by their recipe.

    ``bits`` is the smallest weight precision of a recipe that is not in the table. No limits are known for less than
    four bits: the tuple is empty, and the verdict ERROR. ``output`` is ``logits`` or ``encoder``. ``stored`` says that
    the file's weights were held against the float ones.
    """
    if rung == "original":
        return ORIGINAL_LIMITS
    if rung in FLOAT_RUNGS:
        return FLOAT_LIMITS
    table = RECIPE_LIMITS if output == "logits" else ENCODER_LIMITS
    found = table.get(rung) or table.get(_BY_BITS.get(bits or 0, ""), ())
    return (*found, *STORED_LIMITS) if found and stored else found


#: How many times its recipe's own loss a file may lose: as the same rounding in PyTorch, but another draw of it.
OWN_LOSS_LIMITS = (
    Limit(
        metric="kl_mean",
        most=1.5,
        reason="Times the recipe's own. The runtime's over PyTorch's at 8 bits: 0.89 (SmolLM 135M, 4.1e-3 over "
        "4.6e-3), 0.98 (OpenELM 450M, 9.0e-3 over 9.2e-3), 0.89 (TinyLlama 1.1B, 0.066 over 0.074).",
    ),
    Limit(
        metric="kl_p99",
        most=2.0,
        reason="Times the recipe's own. Of some 200 positions it is the second or third largest, which scatters more "
        "than a mean; 0.75 for TinyLlama 1.1B.",
    ),
    Limit(
        metric="top1_agreement_clear",
        most=1.5,
        reason="Times the share of positions where the recipe by itself has another best token; 1.09 for TinyLlama "
        "1.1B.",
    ),
    Limit(metric="rel_l2", most=1.5, reason="Times the recipe's own, of what an encoder makes; as the KL."),
)
#: What a recipe by itself may be the reason of.
OWN_LOSSES = frozenset((*(limit.metric for limit in OWN_LOSS_LIMITS), "perplexity_ratio"))


def following(
    limits: Sequence[Limit], own_loss: Mapping[str, float], rung: str, bits: int | None = None, output: str = "logits"
) -> tuple[Limit, ...]:
    """The limits of a quantized rung, wider where its recipe by itself loses that much on these very prompts.

    ``own_loss`` are the figures of the same rounding done in PyTorch, as ``own_loss_of`` has them. No limit becomes
    wider than that of the next coarser recipe, and none narrower. Both sides are of the same prompts, so nothing is
    asked of those as a sample of others.
    """
    table = RECIPE_LIMITS if output == "logits" else ENCODER_LIMITS
    names = list(table)
    known = rung if rung in table else _BY_BITS.get(bits or 0)
    if known is None or known == names[-1]:
        return tuple(limits)
    coarser = {limit.metric: limit for limit in table[names[names.index(known) + 1]]}
    return tuple(_following(limit, own_loss, coarser.get(limit.metric)) for limit in limits)


def _following(limit: Limit, own_loss: Mapping[str, float], coarser: Limit | None) -> Limit:
    loss = own_loss.get(limit.metric)
    if coarser is None or loss is None:
        return limit
    if limit.metric == "perplexity_ratio":
        factor = math.exp(abs(math.log(loss))) * (1 + own_loss["perplexity_noticed"])
        least, most, room = 1 / factor, factor, f"what these prompts notice ({own_loss['perplexity_noticed']:.2g})"
    else:
        times = next(room.most for room in OWN_LOSS_LIMITS if room.metric == limit.metric)
        least, most, room = 1 - times * (1 - loss), times * loss, f"{times:g} times as much"
    least, most = (float(f"{bound:.3g}") for bound in (least, most))
    least, most = max(min(limit.least, least), coarser.least), min(max(limit.most, most), coarser.most)
    limit = replace(limit, sampled=False)
    if (least, most) == (limit.least, limit.most):
        return limit
    reason = (
        f"On these prompts the recipe itself, done in PyTorch, comes to {loss:.3g}; a file may lose {room}, and never "
        f"more than the next coarser recipe. Without that the limit is {limit.bound}"
    )
    return replace(limit, least=least, most=most, reason=reason)


def own_loss_of(metrics: Mapping[str, Any], limits: Sequence[Limit]) -> dict[str, float]:
    """Of what was measured of a recipe in PyTorch on a sample of prompts, the figures that its limits follow from."""
    wanted = [limit.metric for limit in limits if limit.metric in OWN_LOSSES]
    found = {name: metrics[name] for name in wanted if metrics.get(name) is not None}
    ratio, noticed = found.pop("perplexity_ratio", 0.0), metrics["detectable"].get("perplexity_ratio", math.inf)
    if 0 < ratio < math.inf and noticed < math.inf:
        found |= {"perplexity_ratio": ratio, "perplexity_noticed": noticed}
    return found
