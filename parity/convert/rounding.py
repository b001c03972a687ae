"""Whether the numbers in a quantized file are the nearest ones to the weights they stand for.

A quantizer that is right rounds: what is stored of a weight is at most half a step away from it, and a step is no
larger than the largest weight of its group makes necessary. Both can be read off the file, without running it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

#: The largest code, by how many bits are stored.
LARGEST = {8: 127, 4: 7}
#: Values looked at a time; bounds memory whatever the weight's size.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Rounding:
    """Of one weight. ``steps``: how far the stored values are from it at most, in steps between neighbouring codes.

    ``coarseness``: the largest step, in units of what its group needs; 1 where nothing is given away.
    """

    steps: float
    coarseness: float

    @property
    def metrics(self) -> dict[str, float]:
        """By the names that limits have for them."""
        return {"weight_steps": self.steps, "weight_coarseness": self.coarseness}

    def worse(self, other: Rounding) -> Rounding:
        """The larger of both figures."""
        return Rounding(max(self.steps, other.steps), max(self.coarseness, other.coarseness))


@dataclass(frozen=True)
class Grouping:
    """Which values of a weight share a step: a slice of ``axis``, of that ``block`` in a row if given, or all."""

    axis: int | None
    block: int = 0

    def largest(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest magnitude of each group, one for each value or to be broadcast to them."""
        size = np.abs(weight)
        if self.block:
            blocks = size.reshape(*weight.shape[:-1], -1, self.block).max(axis=-1)
            return np.repeat(blocks, self.block, axis=-1)
        others = tuple(dimension for dimension in range(weight.ndim) if dimension != self.axis)
        result: NDArray[np.float32] = size.max(axis=others, keepdims=True)
        return result


def of_halves(weight: NDArray[np.float32], stored: NDArray[np.float16]) -> Rounding:
    """Of a weight that is ``stored`` as float16, both of one shape; a step is the distance to the next float16."""

    def part(rows: slice) -> Rounding:
        exact = weight[rows].astype(np.float64)
        spacing = np.spacing(np.abs(weight[rows]).astype(np.float16)).astype(np.float64)
        return Rounding(float((np.abs(exact - stored[rows]) / spacing).max()), 1.0)

    return reduce(Rounding.worse, map(part, _chunks(weight)))


def of_codes(
    weight: NDArray[np.float32],
    codes: NDArray[np.int8],
    scales: NDArray[np.floating],
    bits: int,
    wanted: Grouping,
) -> Rounding:
    """Of a weight that is stored as ``codes`` times ``scales``, which have its number of axes and broadcast to it.

    ``wanted`` is the grouping that the recipe asks for.
    """
    largest = wanted.largest(weight)

    def rows_of(values: NDArray[np.floating], rows: slice) -> NDArray[np.float64]:
        return (values[rows] if len(values) == len(weight) else values).astype(np.float64)

    def part(rows: slice) -> Rounding:
        step = rows_of(scales, rows)
        distance = np.abs(weight[rows].astype(np.float64) - codes[rows] * step) / step
        needed = rows_of(largest, rows) / LARGEST[bits]
        # A group of zeros needs no step, and has one all the same.
        coarseness = np.where(needed > 0, step / np.where(needed > 0, needed, 1.0), 1.0)
        return Rounding(float(distance.max()), float(coarseness.max()))

    return reduce(Rounding.worse, map(part, _chunks(weight)))


def _chunks(weight: NDArray[np.float32]) -> Iterator[slice]:
    """Rows, so many at a time that no more than ``CHUNK`` values are."""
    rows = max(1, CHUNK * len(weight) // weight.size)
    for first in range(0, len(weight), rows):
        yield slice(first, first + rows)
