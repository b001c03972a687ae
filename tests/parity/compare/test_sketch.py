"""What a sketch says of a distance is so: exactly, or within its bounds as often as it claims."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare import sketch as module
from parity.compare.metrics import Array, kl_divergence
from parity.compare.sketch import (
    CONFIDENCE,
    DIMENSIONS,
    LARGEST,
    RESOLUTION,
    Sketch,
    compare_sketch,
    concatenate_sketched,
    parameters,
    signs,
    sketch,
    sketched_distances,
    spread,
    summarize_sketched,
)

LAWS = settings(deadline=None, max_examples=60)
WIDE = 49152


def logits(rows: int, width: int, seed: int = 0) -> Array:
    """About as large as a trained model's, and off zero as those are."""
    return 5 * np.random.default_rng(seed).standard_normal((rows, width)) - 8


def distance(a: Array, b: Array) -> Array:
    return np.linalg.norm(a - b, axis=1)


# The signs


def test_the_signs_are_these() -> None:
    """On every machine and with every numpy: recordings hold sums under them. Half of them are each way."""
    found = signs(1 << 16)
    digest = hashlib.sha256(found.astype("<u4").tobytes()).hexdigest()
    assert digest == "fce7a583b65f141cf72d1d71f89958308de091b337dabc57c1aabb9862769ae0"
    assert parameters() == {"dimensions": 32, "signs": "de14c9c73b520ac2", "largest": 16, "resolution": 2.0**-52}
    for width in (1, 2, 7, 4096):
        assert np.array_equal(signs(width), found[:width])
    ones = module._as_numbers(found)
    assert set(np.unique(ones)) == {-1.0, 1.0}
    assert np.abs(ones.mean(axis=0)).max() < 5 / math.sqrt(len(found))
    together = ones.T @ ones / len(found) - np.eye(DIMENSIONS)
    assert np.abs(together).max() < 5 / math.sqrt(len(found))


# The sums


@LAWS
@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=40),
    st.integers(-90, 90),
)
def test_sums_are_rounded_once(row: list[float], power: int) -> None:
    """Whatever the values and however large: fractions, which are exact, are the judge."""
    rows = np.ldexp(np.asarray([row]), power)
    plus_minus = module._as_numbers(signs(len(row)))
    dropped = Fraction(float(np.abs(rows).max())) / 2**80
    for found, column in zip(sketch(rows).projected[0].tolist(), plus_minus.T.tolist(), strict=True):
        exact = sum(Fraction(value) * int(sign) for value, sign in zip(rows[0].tolist(), column, strict=True))
        assert abs(Fraction(found) - exact) <= Fraction(math.ulp(found)) / 2 + dropped


@pytest.mark.parametrize("columns", [7, 100, 1 << 20])
def test_the_order_of_adding_does_not_matter(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """To the last bit: so neither does the machine, nor how many processors it has."""
    rows = logits(3, 1001)
    before = sketch(rows)
    monkeypatch.setattr(module, "COLUMNS", columns)
    after = sketch(np.asfortranarray(rows))
    for part in ("projected", "ids", "largest", "size", "rest"):
        assert getattr(after, part).tobytes() == getattr(before, part).tobytes()


@pytest.mark.parametrize("width", [5, 320, WIDE])
def test_the_resolution_is_as_stated(width: int) -> None:
    """The same rows are nowhere further away than it, and never said to be nearer."""
    rows = logits(8, width)
    kept = sketch(rows)
    errors = compare_sketch(kept, rows)
    relative = np.sqrt(errors.squared_estimate / errors.squared_reference)
    assert relative.max() <= 1e-16
    assert (errors.squared_estimate <= errors.squared_resolution / 2).all()
    assert np.array_equal(errors.squared_error, errors.squared_resolution)
    assert errors.squared_resolution == pytest.approx(RESOLUTION**2 * np.square(kept.projected).mean(axis=1))
    assert summarize_sketched(errors)["resolution"] == pytest.approx(RESOLUTION, rel=0.5)
    assert errors.kl_least.max() == 0
    assert errors.kl_most.max() < 1e-20


# The distance


SHAPES = {
    "two": [1.0, 1.0],
    "swapped": [1.0, -1.0],
    "three": [1.0] * 3,
    "four": [1.0] * 4,
    "halves": [0.5**i for i in range(8)],
    "two and a half": [1.0, 1.0, 0.5],
    "one and little": [1.0] + [0.1] * 63,
    "sixteen": [1.0] * 16,
    "dense": np.random.default_rng(0).standard_normal(64).tolist(),
    "heavy": np.random.default_rng(1).standard_cauchy(64).tolist(),
}


def estimates(shape: list[float], draws: int) -> Array:
    """Squared distances as a sketch sees them, in units of the true one: each draw is of other tokens' signs."""
    error = np.asarray(shape) / np.linalg.norm(shape)
    plus_minus = module._as_numbers(signs(draws * len(error))).reshape(draws, len(error), DIMENSIONS)
    return np.square(np.einsum("nkr,k->nr", plus_minus, error)).mean(axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_bounds_hold_as_often_as_they_say(shape: str) -> None:
    """For errors of a few logits as for dense ones. So do the narrower ones of chi-squared, as the module says."""
    from scipy.stats import chi2

    found = estimates(SHAPES[shape], (1 << 18) // len(SHAPES[shape]))
    below, above = spread()
    assert (found < below).mean() <= (1 - CONFIDENCE) / 10
    assert (found > above).mean() <= (1 - CONFIDENCE) / 10
    assert found.mean() == pytest.approx(1, abs=0.02)
    low, high = chi2.ppf([1 - CONFIDENCE, CONFIDENCE], DIMENSIONS) / DIMENSIONS
    several = 4 * math.sqrt((1 - CONFIDENCE) / len(found))
    assert (found < low).mean() <= 1 - CONFIDENCE + several
    assert (found > high).mean() <= 1 - CONFIDENCE + several


def test_the_bounds_are_those_of_their_proof() -> None:
    """What is stated in words, and what the words are derived from, at several confidences."""
    below, above = spread()
    assert (1 / math.sqrt(above), 1 / math.sqrt(below)) == pytest.approx((0.669, 2.317), abs=1e-3)
    assert spread(0.9)[0] > spread(0.99)[0] > below > spread(1 - 1e-5)[0] > 0
    assert spread(1 - 1e-9)[0] == 0  # 3/2 to the power of 32 is no more: all signs may cancel
    # Two-point values of mean 1 and mean square 3, the extreme of the proof, keep the lower bound too.
    chance = sum(
        math.comb(DIMENSIONS, k) * (1 / 3) ** k * (2 / 3) ** (DIMENSIONS - k)
        for k in range(DIMENSIONS + 1)
        if 3 * k / DIMENSIONS < below
    )
    assert chance <= 1 - CONFIDENCE


@LAWS
@given(st.integers(2, 400), st.floats(1e-13, 1e3), st.integers(0, 2**32 - 1))
def test_one_wrong_logit_is_seen_exactly(width: int, error: float, seed: int) -> None:
    """Wherever it is; and among the largest also as such."""
    rng = np.random.default_rng(seed)
    reference = logits(2, width, seed)
    candidate = reference.copy()
    token = int(rng.integers(width))
    candidate[1, token] += error
    made = float(candidate[1, token] - reference[1, token])
    errors = compare_sketch(sketch(reference), candidate)
    assert math.sqrt(errors.squared_estimate[1]) == pytest.approx(
        made, rel=1e-6, abs=2e-16 * np.linalg.norm(reference[1])
    )
    among = token in sketch(reference).ids[1]
    assert errors.largest_error.tolist() == [0.0, abs(made) if among else 0.0]
    assert errors.squared_error[0] == errors.squared_resolution[0]


@LAWS
@given(
    st.integers(2, 300),
    st.floats(-14, 0.5),
    st.sampled_from(["dense", "sparse", "shift", "largest"]),
    st.integers(0, 2**32 - 1),
)
def test_kl_lies_between_its_bounds(width: int, power: float, shape: str, seed: int) -> None:
    """Wherever the distance does, for whatever shape of error; and its square is what floors are asked with."""
    rng = np.random.default_rng(seed)
    reference = logits(3, width, seed)
    kept = sketch(reference)
    error = 10**power * rng.standard_normal(reference.shape)
    if shape == "sparse":
        error[rng.random(error.shape) < 0.9] = 0
    elif shape == "shift":
        error = np.full(error.shape, 10**power)
    elif shape == "largest":
        here = np.zeros_like(error)
        np.put_along_axis(here, kept.ids, 1.0, axis=1)
        error *= here
    candidate = reference + error
    errors = compare_sketch(kept, candidate)
    least, most = errors.between
    true = distance(candidate, reference)
    sound = (least <= true * (1 + 1e-9)) & (true <= most * (1 + 1e-9))
    kl = kl_divergence(reference, candidate)
    assert (errors.kl_least <= kl + 1e-14)[sound].all()
    assert (kl <= errors.kl_most + 1e-14)[sound].all()
    assert (np.sqrt(errors.squared_error) <= most).all()
    if width <= LARGEST:
        assert errors.kl_least == pytest.approx(kl, abs=1e-13)
        assert np.sqrt(errors.squared_largest) == pytest.approx(true)


def test_what_is_stated_of_a_set_of_positions_is_so() -> None:
    """The bounds of the whole are no wider than those of one position, and hold."""
    reference = logits(60, 512)
    for scale in (1e-13, 1e-7, 1e-2):
        error = scale * np.random.default_rng(3).standard_normal(reference.shape) * np.geomspace(1, 30, 60)[:, None]
        candidate = reference + error
        parts = [compare_sketch(sketch(reference[i : i + 20]), candidate[i : i + 20]) for i in (0, 20, 40)]
        found = summarize_sketched(concatenate_sketched(parts))
        true = np.linalg.norm(candidate - reference) / np.linalg.norm(reference)
        least, most = found["rel_l2_between"]
        assert least <= true <= most <= 4 * least
        assert found["rel_l2"] == pytest.approx(true, rel=0.3)
        assert found["positions"] == 60
        assert found["confidence"] == CONFIDENCE
        low, high = found["kl_mean_between"]
        assert low <= kl_divergence(reference, candidate).mean() + 1e-14 <= high + 2e-14


# Faults


def test_a_millionth_of_a_millionth_is_seen() -> None:
    """One logit of 49,152 at one position, wrong by 1e-12 of itself; no other position is touched."""
    reference = logits(6, WIDE)
    candidate = reference.copy()
    candidate[4, 31_007] *= 1 + 1e-12
    made = abs(candidate[4, 31_007] - reference[4, 31_007])
    errors = compare_sketch(sketch(reference), candidate)
    assert math.sqrt(errors.squared_error[4]) == pytest.approx(made, rel=0.05)
    assert errors.squared_error[4] > 50 * errors.squared_resolution[4]
    others = np.arange(6) != 4
    assert np.array_equal(errors.squared_error[others], errors.squared_resolution[others])


def test_noise_of_a_few_last_bits_is_seen() -> None:
    """What float64 itself does to a model's logits, 1e-15 of them, is measured, not drowned by storing them."""
    reference = logits(6, WIDE)
    candidate = reference * (1 + 1e-15 * np.random.default_rng(1).standard_normal(reference.shape))
    errors = compare_sketch(sketch(reference), candidate)
    assert np.sqrt(errors.squared_error) == pytest.approx(distance(candidate, reference), rel=0.5)
    assert (errors.squared_error > 4 * errors.squared_resolution).all()


@pytest.mark.parametrize("fault", ["next position", "other tokens", "two tokens", "two of the best", "float32", "sign"])
def test_a_fault_is_far_away(fault: str) -> None:
    """Rows or logits that change places, and a precision that is too low."""
    reference = logits(6, 512)
    kept = sketch(reference)
    candidate = reference.copy()
    if fault == "next position":
        candidate = np.roll(reference, 1, axis=0)
    elif fault == "other tokens":
        candidate = np.roll(reference, 1, axis=1)
    elif fault == "two tokens":
        candidate[:, [5, 6]] = reference[:, [6, 5]]
    elif fault == "two of the best":
        best = kept.ids[:, :2]
        np.put_along_axis(candidate, best, np.take_along_axis(reference, best[:, ::-1], axis=1), axis=1)
    elif fault == "float32":
        candidate = reference.astype(np.float32)
    else:
        candidate = -reference
    errors = compare_sketch(kept, candidate)
    least, most = errors.between
    true = distance(candidate, reference)
    assert ((least <= true) & (true <= most)).all()
    assert (least > 1e-9 * np.sqrt(errors.squared_reference)).all()
    assert errors.same_top1.all() == (fault in {"two tokens", "float32"})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    """On either side, in any place."""
    reference = logits(3, 40)
    broken = reference.copy()
    broken[2, 17] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        sketch(broken)
    with pytest.raises(ValueError, match="NaN or infinity"):
        compare_sketch(sketch(reference), broken)


def test_what_cannot_be_compared_is_refused() -> None:
    """Other shapes, no rows, and values whose sums no number can hold."""
    reference = sketch(logits(3, 40))
    for shape in ((3, 41), (2, 40), (40,), (3, 40, 1)):
        with pytest.raises(ValueError, match="cannot be compared"):
            compare_sketch(reference, np.ones(shape))
    for empty in (np.empty((0, 40)), np.empty((3, 0)), np.ones(3)):
        with pytest.raises(ValueError, match="nothing to compare"):
            sketch(empty)
    with pytest.raises(ValueError, match="infinity in projected"):
        sketch(np.full((1, 4000), 1e308))
    with pytest.raises(ValueError, match="infinity in size"):
        sketch(np.full((1, 4), 1e200))


def test_a_candidate_out_of_bounds_is_never_near() -> None:
    """Finite values whose squares are not: the distance is infinite or no number, which no limit holds."""
    reference = logits(2, 40)
    errors = compare_sketch(sketch(reference), np.where(reference > -5, 1e200, reference))
    assert not (errors.squared_error < 1e300).any()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("projected", np.zeros((2, 31)), "projected is"),
        ("projected", np.zeros((2, 32), np.float32), "projected is float32"),
        ("projected", np.full((2, 32), np.nan), "NaN or infinity in projected"),
        ("size", np.zeros(3, np.float32), "size is"),
        ("ids", np.full((2, 16), 3, np.int32), "ids that are not 16 of 40"),
        ("ids", np.arange(25, 41, dtype=np.int32) * np.ones((2, 1), np.int32), "ids that are not 16 of 40"),
        ("largest", np.arange(32.0).reshape(2, 16), "out of order"),
        ("rest", np.full(2, -1, np.float32), "below zero"),
    ],
)
def test_parts_that_are_no_sketch_are_refused(part: str, value: Array, message: str) -> None:
    """One line that says which."""
    kept: Sketch = replace(sketch(logits(2, 40)), **{part: value})
    with pytest.raises(ValueError, match=message):
        kept.check()


# What else is kept


def test_the_largest_are_kept_in_their_order() -> None:
    """Of equal ones the first; all of them where there are few; none if none are asked for."""
    rows = np.asarray([[1.0, 3.0, 3.0, 2.0, 3.0, -1.0]])
    kept = sketch(rows, 4)
    assert kept.ids.tolist() == [[1, 2, 4, 3]]
    assert kept.largest.tolist() == [[3.0, 3.0, 3.0, 2.0]]
    assert kept.rest[0] == pytest.approx(math.exp(-2) + math.exp(-4))
    assert sketch(rows).ids.shape == (1, 6)
    assert sketch(rows).rest[0] == 0
    assert compare_sketch(sketch(rows), rows).same_top1.all()


def test_an_encoders_rows_need_no_largest() -> None:
    """Then a distance is all there is, and KL is only known to be no more than it allows."""
    reference = logits(4, 96)
    kept = sketch(reference, 0)
    candidate = reference + 1e-9
    errors = compare_sketch(kept, candidate)
    figures = sketched_distances(errors)
    least, most = figures["rel_l2_between"]
    assert least <= np.linalg.norm(candidate - reference) / np.linalg.norm(reference) <= most
    assert not errors.same_top1.any()
    assert (errors.kl_least == 0).all()
    assert (errors.kl_most >= kl_divergence(reference, candidate) - 1e-14).all()


def test_a_row_of_zeros_is_no_answer() -> None:
    """It can be kept; relative to nothing, nothing is near."""
    errors = compare_sketch(sketch(np.zeros((1, 8))), np.ones((1, 8)))
    with np.errstate(divide="ignore"):
        assert np.isinf(errors.squared_error / errors.squared_reference).all()
