"""Rows of numbers kept as a few: how far another row is from one that is no longer there, and how sure that is.

A *sketch* of a row is its sums under ``DIMENSIONS`` random signs, one sign a token. The sums of another row under the
same signs differ by those of the difference, whose squares are, on average, the squared L2 distance between the two
rows (Johnson and Lindenstrauss; with signs: Achlioptas, "Database-friendly random projections", 2003).

How sure a distance is. Let ``x`` be the estimate of a squared distance, in units of the true one; it is a mean of
``R = DIMENSIONS`` independent ``y``. Over the draw of the signs, for any difference whatever its shape:

- Signs never spread more than normal numbers do, so ``x`` is above ``a`` with a chance of at most
  ``exp(-R (a - 1 - log a) / 2)``, the Chernoff bound of chi-squared.
- ``y`` has mean 1 and a mean square of at most 3. Of all such ``y``, ``exp(-h y)`` is largest on average where ``y`` is
  3 in one case of three and else 0. So ``x`` is below ``b`` with a chance of at most ``exp(-R D(b/3))``, where ``D(q)``
  is the divergence of a coin of ``q`` from one of a third.

Both hold for the sum over any set of positions as well, although those share their signs: such a sum is again at most
as spread as its worst single position. At ``CONFIDENCE`` each, a true distance lies between 0.67 and 2.32 of its
estimate. (The quantiles of chi-squared would say 0.72 to 1.58. They hold in every simulation of the tests, but not by
proof: two equal errors cancel under all signs at once with a chance of 2^-32, which chi-squared knows nothing of.) An
error in one single number is seen exactly.

How fine it is. A row is cut into two integers a number, of as many bits as can be added without rounding, so its sums
are exact, in whatever order they are added, and the same on every machine. What is lost is their one rounding when they
are stored: 2^-53 of their size, and theirs is that of the row. ``RESOLUTION`` is twice that, which also covers what the
integers leave out (2^-60 of the row). Measured with rows of 49,152: 6e-17. No distance below it is ever reported.

Beside its sums a row leaves its size and its ``LARGEST`` values with their ids, which are compared one by one, and how
much the exponentials of all others add up to. KL then follows by the chain rule: that of the largest tokens and the
rest as a whole is exact, and is the least that KL can be. Within the rest, logits that differ by ``d`` make a KL of
at most ``|d|^2 / 4`` (Hoeffding's lemma: an eighth of the squared range) and of at most the range, ``sqrt(2) |d|``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.compare.metrics import FAINT, TOGETHER, Array, Logits

#: Signs that every token has: the bits of one 32-bit word.
DIMENSIONS = 32
#: How many of a row's largest values are kept as they are.
LARGEST = 16
#: With which a true distance is no larger than its upper bound, and with which no smaller than its lower one.
CONFIDENCE = 0.999
#: The least distance that is told from none, relative to the size of the stored sums.
RESOLUTION = 2.0**-52
#: Columns that are projected together; bounds memory whatever the vocabulary.
COLUMNS = 1 << 13

_STREAM = "parity/sketch/1"
#: By how much the logarithm of a number changes when it is rounded to float32.
_ROUNDED = 2.0**-24


@dataclass(frozen=True)
class Sketch:
    """What is kept of rows ``[P, width]``.

    ``projected`` ``[P, DIMENSIONS]`` are their sums under the signs. ``largest`` ``[P, K]`` are their largest values,
    the largest first (of equal ones the first), and ``ids`` ``[P, K]`` where those are; ``K`` may be 0. ``size``
    ``[P]`` is their L2 norm and ``rest`` ``[P]`` the sum of ``exp(value - largest value)`` over all others. Those two
    are rounded to float32: the last bits of an exponential are those of the machine.
    """

    width: int
    projected: Array
    ids: NDArray[np.int32]
    largest: Array
    size: NDArray[np.float32]
    rest: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.projected)

    def check(self) -> None:
        """Refuse parts that cannot be those of a sketch.

        Raises:
            ValueError: shapes or types that do not belong together, values that are not finite, or ids that are none.
        """
        count, kept = len(self.projected), self.ids.shape[-1] if self.ids.ndim else 0
        expected = {
            "projected": ((count, DIMENSIONS), np.float64),
            "ids": ((count, kept), np.int32),
            "largest": ((count, kept), np.float64),
            "size": ((count,), np.float32),
            "rest": ((count,), np.float32),
        }
        for name, (shape, dtype) in expected.items():
            part = getattr(self, name)
            if part.shape != shape or part.dtype != dtype:
                raise ValueError(f"{name} is {part.dtype} {list(part.shape)}, not {np.dtype(dtype)} {list(shape)}")
            if not np.isfinite(part).all():
                raise ValueError(f"NaN or infinity in {name}")
        if not ((self.ids >= 0) & (self.ids < self.width)).all() or (np.diff(np.sort(self.ids, axis=1)) == 0).any():
            raise ValueError(f"ids that are not {kept} of {self.width}")
        if (np.diff(self.largest, axis=1) > 0).any() or (self.size < 0).any() or (self.rest < 0).any():
            raise ValueError("largest values out of order, or sizes below zero")


@dataclass(frozen=True)
class SketchErrors:
    """How far rows are from a sketch, per position ``[P]``. Squares are over the vocabulary; KL is in nats.

    ``squared_estimate`` is the sketch's bare estimate, ``squared_resolution`` what it cannot tell from zero,
    ``squared_largest`` the part of the largest values, which is exact, ``largest_error`` the largest of those. KL lies
    between ``kl_least`` and ``kl_most``, where the distance lies between its bounds.
    """

    squared_reference: Array
    squared_estimate: Array
    squared_resolution: Array
    squared_largest: Array
    largest_error: Array
    same_top1: NDArray[np.bool_]
    kl_least: Array
    kl_most: Array

    def __len__(self) -> int:
        return len(self.squared_estimate)

    @property
    def squared_error(self) -> Array:
        """The estimate, but never below the resolution, nor below what is known exactly."""
        return np.maximum(np.maximum(self.squared_estimate, self.squared_resolution), self.squared_largest)

    @property
    def between(self) -> tuple[Array, Array]:
        """The least and the most that each L2 distance is, at ``CONFIDENCE`` each."""
        return _between(self.squared_estimate, self.squared_resolution, self.squared_largest)


def signs(width: int) -> NDArray[np.uint32]:
    """The signs of ``width`` tokens ``[width]``, each the bits of a word.

    They are the raw output of Philox, the same everywhere; a longer stream begins as a shorter one.
    """
    key = int.from_bytes(hashlib.sha256(_STREAM.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw((width + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[:width].astype(np.uint32)


def parameters() -> dict[str, Any]:
    """What sketches depend on: only those made with the same can be compared."""
    stream = hashlib.sha256(signs(1 << 10).astype("<u4").tobytes()).hexdigest()
    return {"dimensions": DIMENSIONS, "signs": stream[:16], "largest": LARGEST, "resolution": RESOLUTION}


def sketch(rows: Logits, largest: int = LARGEST) -> Sketch:
    """The sketch of rows ``[P, V]`` with so many of their largest values, or all where there are fewer.

    Raises:
        ValueError: no rows, or values that are not finite or too large for it.
    """
    _refuse(rows)
    kept = min(largest, rows.shape[1])
    ids = np.asarray([_largest(row, kept) for row in rows], np.int32).reshape(len(rows), kept)
    with np.errstate(over="ignore", invalid="ignore"):  # said by the check
        coarse, fine = _project(rows)
        made = Sketch(
            width=rows.shape[1],
            projected=coarse + fine,
            ids=ids,
            largest=np.take_along_axis(rows, ids, axis=1).astype(np.float64),
            size=_by_rows(lambda some, _: np.sqrt(np.square(some).sum(axis=1)), rows, ids).astype(np.float32),
            rest=np.exp(_log_rest(rows, ids) - _most(rows)).astype(np.float32),
        )
    made.check()
    return made


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is no number then is judged as none
def compare_sketch(reference: Sketch, candidate: Logits) -> SketchErrors:
    """How far ``candidate`` ``[P, V]`` is from what ``reference`` was made of.

    Raises:
        ValueError: another shape, no positions, or values that are not finite.
    """
    if candidate.shape != (len(reference), reference.width):
        raise ValueError(f"shapes {(len(reference), reference.width)} and {candidate.shape} cannot be compared")
    _refuse(candidate)
    coarse, fine = _project(candidate)
    squared = np.square((coarse - reference.projected) + fine).mean(axis=1)
    resolution = RESOLUTION**2 * np.square(reference.projected).mean(axis=1)
    chosen = np.take_along_axis(candidate, reference.ids, axis=1).astype(np.float64)
    errors = chosen - reference.largest
    exact = np.square(errors).sum(axis=1)
    _, most = _between(squared, resolution, exact)
    least_kl, most_kl = _kl(reference, candidate, chosen, most, exact)
    return SketchErrors(
        squared_reference=np.square(reference.size.astype(np.float64)),
        squared_estimate=squared,
        squared_resolution=resolution,
        squared_largest=exact,
        largest_error=np.abs(errors).max(axis=1, initial=0.0),
        same_top1=(reference.ids[:, :1] == candidate.argmax(axis=1)[:, None]).any(axis=1),  # none kept: not known
        kl_least=least_kl,
        kl_most=most_kl,
    )


def concatenate_sketched(parts: Iterable[SketchErrors]) -> SketchErrors:
    """The positions of several comparisons as one."""
    parts = list(parts)
    names = [field.name for field in fields(SketchErrors)]
    return SketchErrors(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def sketched_distances(errors: SketchErrors) -> dict[str, Any]:
    """The report's figures of rows of any meaning over a set of positions, with their error beside them."""
    squared, resolution = errors.squared_reference, errors.squared_resolution
    size = math.sqrt(squared.sum())
    counted = np.where(squared > 0, np.maximum(squared, FAINT**2 * squared.mean()), 0.0)
    pooled = (part.sum() for part in (errors.squared_estimate, resolution, errors.squared_largest))
    return {
        "positions": len(errors),
        "rel_l2": math.sqrt(errors.squared_error.sum()) / size,
        "rel_l2_between": [float(bound) / size for bound in _between(*pooled)],
        "worst_position_rel_l2": float(np.sqrt((errors.squared_error / counted).max())),
        "resolution": math.sqrt(resolution.sum()) / size,
        "confidence": CONFIDENCE,
    }


def summarize_sketched(errors: SketchErrors) -> dict[str, Any]:
    """The same of logits, whose largest are compared one by one."""
    return {
        **sketched_distances(errors),
        "max_abs_largest": float(errors.largest_error.max()),
        "kl_mean_between": [float(errors.kl_least.mean()), float(errors.kl_most.mean())],
        "kl_max_between": [float(errors.kl_least.max()), float(errors.kl_most.max())],
        "top1_agreement": float(errors.same_top1.mean()),
    }


@cache
def spread(confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Between what an estimated squared distance lies, in units of the true one, with ``confidence`` on each side."""
    from scipy.optimize import brentq

    exponent = -math.log(1 - confidence) / DIMENSIONS

    def below(b: float) -> float:
        return b / 3 * math.log(b) + (1 - b / 3) * math.log((1 - b / 3) * 3 / 2) - exponent

    def above(a: float) -> float:
        return (a - 1 - math.log(a)) / 2 - exponent

    # So sure of so few signs that nothing lies below: the estimate may be zero whatever the distance.
    least = float(brentq(below, 1e-12, 1.0)) if below(1e-12) > 0 else 0.0
    return least, float(brentq(above, 1.0, 4 * exponent + 10))


def _between(squared: Any, resolution: Any, exact: Any) -> tuple[Any, Any]:
    """The least and the most of a distance: of one position, or of many whose squares are added up."""
    below, above = spread()
    distance, blur, part = np.sqrt(squared), np.sqrt(resolution), np.sqrt(exact)
    return (
        np.maximum((distance - blur) / math.sqrt(above), part),
        np.maximum((distance + blur) / math.sqrt(below), part),
    )


def _refuse(rows: Logits) -> None:
    if rows.ndim != 2 or not rows.size:
        raise ValueError("nothing to compare")
    if not (np.isfinite(rows.max(axis=1)).all() and np.isfinite(rows.min(axis=1)).all()):  # NaN is both
        raise ValueError("NaN or infinity in the logits")


def _most(rows: Logits) -> Array:
    most: Array = rows.max(axis=1).astype(np.float64)
    return most


def _project(rows: Logits) -> tuple[Array, Array]:
    """The sums of each row under every sign, ``[P, DIMENSIONS]``, in two parts: a coarse one, and a fine one to add.

    Every number is cut into an integer of ``bits`` bits and what is left, again of so many. Sums of ``V`` such integers
    stay below 2^53, so every order of adding them is exact.
    """
    width = rows.shape[1]
    bits = 53 - (width - 1).bit_length()
    exponent = np.frexp(np.maximum(_most(rows), -rows.min(axis=1).astype(np.float64)))[1][:, None]
    words = signs(width)
    coarse, fine = np.zeros((2, len(rows), DIMENSIONS))
    for start in range(0, width, COLUMNS):
        some = slice(start, start + COLUMNS)
        values = np.ldexp(rows[:, some].astype(np.float64), bits - exponent)
        whole = np.rint(values)
        plus_minus = _as_numbers(words[some])
        coarse += whole @ plus_minus
        fine += np.rint(np.ldexp(values - whole, bits)) @ plus_minus
    return np.ldexp(coarse, exponent - bits), np.ldexp(fine, exponent - 2 * bits)


def _as_numbers(words: NDArray[np.uint32]) -> Array:
    """Bits as 1 and -1, ``[V, DIMENSIONS]``."""
    bits = (words[:, None] >> np.arange(DIMENSIONS, dtype=np.uint32)) & np.uint32(1)
    return np.where(bits, -1.0, 1.0)


def _largest(row: Logits, kept: int) -> NDArray[np.intp]:
    """The ids of a row's largest values, the largest first, of equal ones the first: one answer on every machine."""
    if not kept:
        return np.empty(0, np.intp)
    among = np.flatnonzero(row >= np.partition(row, len(row) - kept)[len(row) - kept])
    return among[np.argsort(-row[among], kind="stable")[:kept]]


def _by_rows(of: Callable[[Array, NDArray[np.int32]], Array], rows: Logits, ids: NDArray[np.int32]) -> Array:
    """``of`` some rows and their ids at a time, so that what is worked out on the way takes no memory."""
    step = max(1, TOGETHER // rows.shape[1])
    starts = range(0, len(rows), step)
    return np.concatenate([of(rows[at : at + step].astype(np.float64), ids[at : at + step]) for at in starts])


def _log_rest(rows: Logits, ids: NDArray[np.int32]) -> Array:
    """The log of the sum of the exponentials of all values but those of ``ids``; -infinity where there are none."""

    def of(some: Array, without: NDArray[np.int32]) -> Array:
        np.put_along_axis(some, without, -np.inf, axis=1)
        most: Array = some.max(axis=1)
        shift: Array = np.where(np.isfinite(most), most, 0.0)
        with np.errstate(divide="ignore"):
            result: Array = shift + np.log(np.exp(some - shift[:, None]).sum(axis=1))
        return result

    return _by_rows(of, rows, ids)


def _kl(reference: Sketch, candidate: Logits, chosen: Array, most: Array, exact: Array) -> tuple[Array, Array]:
    """The least and the most of KL(reference || candidate), whose distance is at most ``most``.

    ``exact`` is the squared distance of the largest values.
    """
    shift = reference.largest[:, 0] if reference.largest.shape[1] else np.zeros(len(reference))
    rest = shift + np.log(reference.rest.astype(np.float64))
    log_p = _normalized(np.column_stack([reference.largest, rest]))
    log_q = _normalized(np.column_stack([chosen, _log_rest(candidate, reference.ids)]))
    p = np.exp(log_p)
    apart = np.where(p > 0, log_p - log_q, 0.0)
    coarse = (p * apart).sum(axis=1)
    # What the rounded rest may be off by, to first and second order of its logarithm; and rounding here.
    steep = np.abs(apart[:, -1] - coarse)
    blur = p[:, -1] * (_ROUNDED * steep + _ROUNDED**2 * (1 + steep))
    blur += 2.0**-50 * (1 + np.where(p > 0, p * (np.abs(log_p) + np.abs(log_q)), 0.0).sum(axis=1))
    within = _most_kl(np.sqrt(np.maximum(np.square(most) - exact, 0.0)))
    above = np.minimum(coarse + blur + (1 + 2 * _ROUNDED) * p[:, -1] * within, _most_kl(most))
    return np.minimum(np.maximum(coarse - blur, 0.0), above), above


def _normalized(logits: Array) -> Array:
    """Log-probabilities ``[P, K]``; -infinity stays itself."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _most_kl(distance: Array) -> Array:
    """The largest KL of two distributions whose logits are so far apart."""
    return np.minimum(np.square(distance) / 4, math.sqrt(2) * distance)
