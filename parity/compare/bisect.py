"""From the errors of single stages to the first one that is off. Pure functions, float64 inside, no files.

A stage is measured three ways: its *own* error, made from the reference's inputs; the error that has *entered* it, and
the one that *leaves* it, when every stage is fed what ours made before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.authoring.stage import stage_of
from parity.compare.limits import STORED_LIMITS, UNIT_ROUNDOFF, Limit
from parity.compare.metrics import Array
from parity.trace import SIGNATURES, STAGE_PHASES, Phase

#: Mask entries this low block, in whatever precision; what is added to them is lost.
_BLOCKED = -1e30


class Place(NamedTuple):
    """A stage in a phase: blocks run in both prefill and decode, and may be right in one only."""

    phase: Phase
    stage: str


@dataclass(frozen=True)
class RowErrors:
    """Squared errors and squared references of rows ``[R]``."""

    squared_error: Array
    squared_reference: Array

    @property
    def rel_l2(self) -> float:
        """Over all rows. A reference of nothing but zeros is met exactly or not at all."""
        return float(_ratio(self.squared_error.sum(), self.squared_reference.sum()))

    @property
    def worst_row(self) -> float:
        """Of the worst single row."""
        return float(_ratio(self.squared_error, self.squared_reference).max(initial=0.0))

    def __add__(self, other: RowErrors) -> RowErrors:
        return RowErrors(
            np.concatenate([self.squared_error, other.squared_error]),
            np.concatenate([self.squared_reference, other.squared_reference]),
        )


def _ratio(error: Array, reference: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.sqrt(np.where(error == 0, 0.0, error / reference))
    return np.where(np.isnan(found), np.inf, found)


def compare_rows(expected: NDArray[Any], got: NDArray[Any]) -> RowErrors:
    """Errors of rows ``[R, ...]``. What blocks in both is equal; NaN and infinity are infinitely far off.

    Raises:
        ValueError: different shapes, or nothing to compare.
    """
    if expected.shape != got.shape or not expected.size:
        raise ValueError(f"shapes {expected.shape} and {got.shape} cannot be compared")
    rows = len(expected)
    want, have = expected.reshape(rows, -1).astype(np.float64), got.reshape(rows, -1).astype(np.float64)
    both = (want < _BLOCKED) & (have < _BLOCKED) & np.isfinite(want) & np.isfinite(have)
    want, have = np.where(both, 0.0, want), np.where(both, 0.0, have)
    with np.errstate(invalid="ignore"):
        error = np.square(have - want).sum(axis=1)
    usable = np.isfinite(error)
    return RowErrors(np.where(usable, error, np.inf), np.where(usable, np.square(want).sum(axis=1), 0.0))


@dataclass(frozen=True)
class Measured:
    """A stage's relative L2 error over all rows, and at its worst row: those of the output that is furthest off."""

    rel_l2: float
    worst_row: float

    @classmethod
    def of(cls, outputs: Mapping[str, RowErrors]) -> Measured:
        """Over the outputs of one stage, by name."""
        return cls(
            max(errors.rel_l2 for errors in outputs.values()), max(errors.worst_row for errors in outputs.values())
        )


class Tally:
    """Collects the errors of places, output by output."""

    def __init__(self) -> None:
        self._found: dict[Place, dict[str, RowErrors]] = {}

    def add(self, place: Place, output: str, errors: RowErrors) -> None:
        """More rows of an output."""
        outputs = self._found.setdefault(place, {})
        outputs[output] = outputs[output] + errors if output in outputs else errors

    def measured(self) -> dict[Place, Measured]:
        """What has been collected, in the order in which places were first reached."""
        return {place: Measured.of(outputs) for place, outputs in self._found.items()}


#: What was measured at each place, in the order in which places were first reached.
Measurements = Mapping[Place, Measured]


@dataclass(frozen=True, kw_only=True)
class StageErrors:
    """One row of the table. ``limit`` is what ``own`` may be; ``floor`` what it is measured in.

    ``worst_ratio`` is that of its worst row to the floor's worst.
    """

    stage: str
    phase: Phase
    entering: float
    own: float
    leaving: float
    floor: float
    limit: float
    worst_ratio: float | None = None
    bad: bool

    @property
    def ratio(self) -> float:
        """``own`` in units of the floor."""
        return self.own / self.floor


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """What bisecting one rung found. ``first`` is the first bad stage, ``remark`` what a person should make of it."""

    rung: str
    reference: str
    prompts: tuple[str, ...]
    stages: tuple[StageErrors, ...]
    first: str | None = None
    phase: Phase | None = None
    remark: str

    def first_in(self, phases: Sequence[Phase]) -> str | None:
        """The first bad stage among those of ``phases``; a fault that no stage shows is in none of them."""
        return next((row.stage for row in self.stages if row.bad and row.phase in phases), None)

    def to_json(self) -> dict[str, Any]:
        """As plain values, with each stage's ratio."""
        fields = asdict(self)
        fields["stages"] = [{**asdict(row), "ratio": row.ratio} for row in self.stages]
        return fields


def judge_floats(
    own: Measurements, chained: Measurements, floor: Measurements, limits: Sequence[Limit], scale: float = 1.0
) -> tuple[StageErrors, ...]:
    """Hold the stages of a rung against the noise floor of each, which is float32's times ``scale``."""
    allowed = {limit.metric: limit.most for limit in limits}
    rows = []
    for place, entering, leaving in _along(own, chained):
        mine, noise = own[place], floor[place]
        unit, worst = (scale * max(each, UNIT_ROUNDOFF) for each in (noise.rel_l2, noise.worst_row))
        limit, worst_ratio = allowed["floor_ratio"] * unit, mine.worst_row / worst
        bad = not (mine.rel_l2 <= limit and worst_ratio <= allowed["worst_position_ratio"])
        rows.append(
            StageErrors(
                stage=place.stage,
                phase=place.phase,
                entering=entering,
                own=mine.rel_l2,
                leaving=leaving,
                floor=unit,
                limit=limit,
                worst_ratio=worst_ratio,
                bad=bad,
            )
        )
    return tuple(rows)


def _along(own: Measurements, chained: Measurements) -> list[tuple[Place, float, float]]:
    """The places in order, each with the error that enters and the one that leaves it."""
    found = []
    for phase in STAGE_PHASES:
        entering = 0.0
        for place in own:
            if place.phase == phase:
                leaving = chained[place].rel_l2
                found.append((place, entering, leaving))
                entering = leaving
    return found


def _kin(row: StageErrors) -> tuple[Phase, str]:
    return row.phase, re.sub(r"\d+$", "", row.stage)


def together(rounds: Sequence[Measurements]) -> dict[Place, Measured]:
    """The floor of several draws: the root mean square of what each has measured."""
    return {
        place: Measured(
            float(np.sqrt(np.mean([each[place].rel_l2 ** 2 for each in rounds]))),
            float(np.sqrt(np.mean([each[place].worst_row ** 2 for each in rounds]))),
        )
        for place in rounds[0]
    }


def conclude(rung: str, reference: str, prompts: Sequence[str], stages: tuple[StageErrors, ...]) -> Bisection:
    """Name the first bad stage in the order in which they run, and say how far the fault reaches."""
    first = next((row for row in stages if row.bad), None)
    return Bisection(
        rung=rung,
        reference=reference,
        prompts=tuple(prompts),
        stages=stages,
        first=first.stage if first else None,
        phase=first.phase if first else None,
        remark=_remark(first, stages),
    )


def _remark(first: StageErrors | None, stages: Sequence[StageErrors]) -> str:
    if first is None:
        return "no stage is off, and no call, when it is given the reference's inputs: it is rounding that adds up"
    siblings = [row for row in stages if _kin(row) == _kin(first)]
    bad = [row.stage for row in siblings if row.bad]
    kind = first.stage.rpartition("_")[0] or first.stage
    elsewhere = [row.stage for row in stages if row.bad and row.phase == first.phase and row not in siblings]
    if len(siblings) == 1 or not first.stage[-1].isdigit():
        found = f"{first.stage} alone is off: look at what it does" if not elsewhere else f"{first.stage} is off first"
    elif len(bad) == 1:
        found = f"exactly one {kind} is off, {bad[0]}: look at its own weights"
    elif len(bad) == len(siblings):
        found = f"every {kind} is off: look at what they share: rotary tables, masks, the configuration, their code"
    else:
        found = f"{len(bad)} of {len(siblings)} are off ({', '.join(bad)}): look at what these have that others do not"
    before = [row.phase for row in stages if row.stage == first.stage and row.phase != first.phase]
    if first.phase == "decode" and "prefill" in before:
        found += "; only in decode, where the cache and the positions come in"
    return found


def broken_stages(stored: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, str]:
    """Stages whose stored weights are not what rounding makes of the float ones, each with one of these weights.

    ``stored`` has the name of every weight and its ``weight_`` metrics.
    """
    broken = [name for name, figures in stored if not all(each.holds(figures[each.metric]) for each in STORED_LIMITS)]
    return {stage: name for name in broken if (stage := stage_of(name))}


def with_stored(found: Bisection, broken: Mapping[str, str]) -> Bisection:
    """What holds where stages read weights that are stored wrongly: that is certain, however little comes of it."""
    rows = tuple(replace(row, bad=row.bad or row.stage in broken) for row in found.stages)
    first = next((row for row in rows if row.stage in broken), None)
    if first is None:
        return found
    remark = (
        f"{broken[first.stage]} is not stored as rounding would have it: look at its steps, what shares one, and the "
        "order of its codes"
    )
    return replace(found, stages=rows, first=first.stage, phase=first.phase, remark=remark)


def with_signatures(found: Bisection, calls: Sequence[StageErrors]) -> Bisection:
    """What holds for a file whose stages are all right: its signatures are wrong, if what they give is off.

    ``calls`` are the errors of the file's own calls; whatever has entered them came from the calls before.
    """
    rows = (*found.stages, *(replace(row, entering=0.0) for row in calls))
    off = next((row for row in calls if row.bad), None)
    if found.first or off is None:
        return replace(found, stages=rows)
    remark = (
        "every stage is right, and a call of the file, given what the port's was given, is off by more than rounding "
        "makes of it: look at how its signatures are put together (the order of outputs, positions, what was taken for "
        "a constant)"
    )
    return replace(found, stages=rows, first=SIGNATURES, phase=off.phase, remark=remark)
