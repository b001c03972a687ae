"""The limits, each with its reason. The only place with thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: Half a unit in the last place of float32, relative. A noise floor counts as no less than this times the root of how
#: many roundings a model's output goes through in a row (``parity.compare.roundings`` derives and counts them).
UNIT_ROUNDOFF = 2.0**-24

#: What an edge asks of its candidate; see README, "What the verdict means".
Question = Literal["port", "rounding", "fidelity", "quality"]

#: The exact port: ours in float64.
EXACT = "reauthored64"
#: Float32 rungs of ours, which are judged by what float32 rounding does to the model.
FLOAT_RUNGS = ("reauthored", "float")
#: Rungs with the weights as they were published, from the top of the ladder down.
UNQUANTIZED = ("original", EXACT, *FLOAT_RUNGS)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``metric`` must lie in ``[least, most]``; ``reason`` says where the numbers come from.

    What is held against it is the figure's ``bound`` where the prompts are a sample and have one
    (``parity.compare.sampling``). A figure that is ``optional`` may have no meaning on these prompts: then the others
    decide, and the edge says so.
    """

    metric: str
    reason: str
    least: float = -math.inf
    most: float = math.inf
    optional: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` is within; NaN never is."""
        return self.least <= value <= self.most

    @property
    def bound(self) -> float | list[float]:
        """The limit as the report shows it."""
        if math.isinf(self.least):
            return self.most
        return self.least if math.isinf(self.most) else [self.least, self.most]


PORT_LIMITS = (
    Limit(
        metric="floor_ratio",
        most=16.0,
        reason="In units of float64's noise at each position: the float32 floor times 2^-29. Both sides compute the "
        "same function in float64, so they differ by its rounding: the typical position of every tiny preset and of "
        "trained SmolLM2-135M is at 0.1 to 2.",
    ),
    Limit(
        metric="worst_position_ratio",
        most=64.0,
        reason="The same at the single worst position; 5 is the largest measured. A mistake of one part in 10^12 is "
        "above it, and the smallest porting mistakes known (an epsilon of 2e-6 for 1e-6) are a million times larger.",
    ),
)

_FLOOR = (
    "Distance in units of the noise floor at the same position, which several draws of float32 evaluation measure for "
    "this very model and prompt. "
)

ROUNDING_LIMITS = (
    Limit(
        metric="floor_ratio",
        most=3.0,
        reason=_FLOOR + "The median over all positions, the larger of prefill and decode. Draws add as the runtime "
        "does, term by term, so a sound file is below 1 whatever its width (measured sizes: docs/power.md).",
    ),
    Limit(
        metric="worst_position_ratio",
        most=8.0,
        reason=_FLOOR
        + "The worst position: where a prompt amplifies rounding along one direction, a sound distance is "
        "a normal number in units of the floor, and one of 8 does not happen.",
    ),
)

FIDELITY_LIMITS = (
    Limit(
        metric="floor_ratio",
        most=3.0,
        reason="Distance of the file from PyTorch with the numbers that the file stores, in units of the floor at each "
        "position; the median. Where activations are rounded as well, the draws are of that model too: a difference "
        "in the last bit of an activation makes it another integer, so the floor is as high as that makes it.",
    ),
    Limit(
        metric="worst_position_ratio",
        most=8.0,
        reason="The same at the worst position; see the worst position of a float file.",
    ),
)


#: What bisecting holds a single stage to, in float32.
STAGE_LIMITS = (
    Limit(
        metric="floor_ratio",
        most=8.0,
        reason="A single stage, fed the reference's inputs, in units of its own noise. It has few sums, so how a "
        "runtime adds them and approximates its functions does not average out as it does over a model.",
    ),
    Limit(metric="worst_position_ratio", most=16.0, reason="The same at the worst row of the stage."),
)


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


#: What is read off a quantized file without running it; see ``parity.convert.rounding``.
STORED_LIMITS = (
    Limit(
        metric="weight_steps",
        most=0.51,
        reason="How far what is stored of a weight is from it, in steps between neighbouring codes: half a step is "
        "what rounding to the nearest comes to, and a hundredth is left for the arithmetic of the quantizer; measured "
        "0.5000 for every recipe.",
    ),
    Limit(
        metric="weight_coarseness",
        most=1.01,
        reason="The largest step in units of what the largest weight of its group needs: 1, and up to 1 + 2^-8 where "
        "the steps of blocks are stored with eight bits of mantissa; measured 1.0000 by channel, 1.0038 by block.",
    ),
)

#: Recipes without limits of their own are held to those of the plainest recipe with the same weight bits.
_BY_BITS = {16: "fp16", 8: "dynamic_int8", 4: "dynamic_int4"}


#: The limits of every question but quality, which has budgets.
LIMITS: dict[Question, tuple[Limit, ...]] = {
    "port": PORT_LIMITS,
    "rounding": ROUNDING_LIMITS,
    "fidelity": FIDELITY_LIMITS,
}


def question_of(rung: str) -> Question:
    """What is asked of a rung whose weights are as they were published."""
    return "port" if rung == EXACT else "rounding"


def limits_for(question: Question, *, stored: bool = False) -> tuple[Limit, ...]:
    """The limits of a question that is answered in units of the noise floor.

    ``stored`` says that the file's weights were held against the float ones.
    """
    return (*LIMITS[question], *STORED_LIMITS) if stored else LIMITS[question]


def encoder_limits(rung: str, bits: int | None = None) -> tuple[Limit, ...]:
    """What a recipe may cost the rows of an encoder; none are known for less than four bits.

    ``bits`` is the smallest weight precision of a recipe that is not in the table.
    """
    return ENCODER_LIMITS.get(rung) or ENCODER_LIMITS.get(_BY_BITS.get(bits or 0, ""), ())
