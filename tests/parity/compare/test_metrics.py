"""Metrics: ideal on equal traces, worse with more noise, true to their definitions, loud about bad input."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from parity.compare import metrics
from parity.compare.metrics import (
    NEAR_TIE,
    PositionErrors,
    compare_positions,
    concatenate,
    entropy,
    kl_divergence,
    log_softmax,
    negative_log_likelihood,
    rel_l2,
    summarize,
    worst_position_rel_l2,
)

LAWS = settings(deadline=None, max_examples=60)
EPS = float(np.finfo(np.float64).eps)
Array = NDArray[np.float64]

#: What each figure is when nothing is lost.
IDEAL = {
    "rel_l2": 0.0,
    "worst_position_rel_l2": 0.0,
    "nmse": 0.0,
    "max_abs": 0.0,
    "mean_abs": 0.0,
    "cosine": 1.0,
    "kl_mean": 0.0,
    "kl_p99": 0.0,
    "kl_max": 0.0,
    "top1_agreement": 1.0,
    "top1_agreement_clear": 1.0,
    "top5_overlap": 1.0,
}
#: Figures of the reference or of the set, not of a distance.
COUNTS = {"positions", "near_ties"}
#: Figures that may stay while the noise grows.
DISCRETE = {"top1_agreement", "top1_agreement_clear", "top5_overlap"}
#: Figures that are differences of numbers around 1: of the smallest, the last bits are rounding.
CANCELLING = {"cosine", "kl_mean", "kl_p99", "kl_max"}
CANCELLATION = 64 * EPS

seeds = st.integers(0, 2**31)
shapes = st.tuples(st.integers(1, 6), st.integers(2, 20))


def logits(positions: int, vocabulary: int, seed: int, spread: float = 4.0) -> Array:
    """Random logits; with a spread of 4 the distribution is about as peaked as a trained model's."""
    return spread * np.random.default_rng(seed).standard_normal((positions, vocabulary))


def direct_kl(reference: Array, candidate: Array) -> float:
    """KL of one position, term by term in Python's floats with exact summation."""

    def log_probabilities(row: Array) -> list[float]:
        total = math.log(math.fsum(math.exp(x - float(row.max())) for x in row))
        return [float(x) - float(row.max()) - total for x in row]

    p, q = log_probabilities(reference), log_probabilities(candidate)
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def loss(name: str, value: float) -> float:
    """How far a figure is from its ideal."""
    return abs(value - IDEAL[name])


def test_every_figure_is_tested() -> None:
    """A new figure must be given its ideal here."""
    assert summarize(compare_positions(logits(2, 7, 0), logits(2, 7, 1))).keys() == IDEAL.keys() | COUNTS


@LAWS
@given(shape=shapes, seed=seeds, dtype=st.sampled_from([np.float16, np.float32, np.float64]))
def test_equal_traces_are_ideal(shape: tuple[int, int], seed: int, dtype: type) -> None:
    """metric(x, x) is its ideal exactly, for every figure, from any storage dtype."""
    x = logits(*shape, seed).astype(dtype)
    figures = summarize(compare_positions(x, x))
    for name, ideal in IDEAL.items():
        if name == "top1_agreement_clear" and figures["near_ties"] == shape[0]:
            assert figures[name] is None
        elif name == "cosine":  # a product, a root and a quotient round
            assert figures[name] == pytest.approx(ideal, abs=4 * EPS)
        else:
            assert figures[name] == ideal, name
    assert figures["positions"] == shape[0]


@LAWS
@given(x=hnp.arrays(np.float64, (3, 8), elements=st.integers(1, 3).map(float)))
def test_equal_traces_with_ties_are_ideal(x: Array) -> None:
    """Also where best tokens are tied, as they are in half precision."""
    figures = summarize(compare_positions(x, x.copy()))
    assert (figures["top1_agreement"], figures["top5_overlap"], figures["kl_max"]) == (1.0, 1.0, 0.0)
    assert figures["near_ties"] == sum(np.sort(row)[-1] == np.sort(row)[-2] for row in x)


@LAWS
@given(shape=shapes, seed=seeds, less=st.floats(1e-6, 10), factor=st.floats(1.01, 100))
def test_every_figure_is_monotone_in_noise(shape: tuple[int, int], seed: int, less: float, factor: float) -> None:
    """More of the same noise is never better, and strictly worse for every figure that is not a count."""
    x, noise = logits(*shape, seed), logits(*shape, seed + 1, spread=1.0)
    some, more = (summarize(compare_positions(x, x + scale * noise)) for scale in (less, less * factor))
    for name in IDEAL:
        if some[name] is None:
            assert name == "top1_agreement_clear"
            assert more[name] is None
            continue
        small, large = loss(name, some[name]), loss(name, more[name])
        if name in DISCRETE:
            assert small <= large, name
        else:
            assert small < large + (CANCELLATION if name in CANCELLING else 0), name


@LAWS
@given(shape=shapes, seed=seeds, scale=st.floats(0, 10))
def test_kl_is_its_definition_and_never_negative(shape: tuple[int, int], seed: int, scale: float) -> None:
    """sum p (ln p - ln q), with the reference as p."""
    reference = logits(*shape, seed)
    candidate = reference + logits(*shape, seed + 1, spread=scale)
    kl = kl_divergence(reference, candidate)
    assert kl.shape == shape[:1]
    assert (kl >= 0).all()
    direct = [direct_kl(*rows) for rows in zip(reference, candidate, strict=True)]
    # Log probabilities of up to 100 are rounded to 100 * EPS, and the terms cancel.
    np.testing.assert_allclose(kl, direct, rtol=1e-13, atol=400 * EPS)


def test_kl_of_a_known_pair() -> None:
    """Certain against even odds costs ln 2; the other way round the certainty of the candidate costs more."""
    certain, even = np.array([[100.0, 0.0]]), np.array([[0.0, 0.0]])
    assert kl_divergence(certain, even)[0] == pytest.approx(math.log(2), rel=1e-15)
    assert kl_divergence(even, certain)[0] == pytest.approx(50 - math.log(2), rel=1e-15)


@LAWS
@given(shape=shapes, seed=seeds, shifts=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)))
def test_kl_ignores_a_constant_per_position(shape: tuple[int, int], seed: int, shifts: tuple[float, float]) -> None:
    """The softmax does; a different constant at every position, on either side."""
    reference, candidate = logits(*shape, seed), logits(*shape, seed + 1)
    ramp = np.arange(1, shape[0] + 1)[:, None] / shape[0]
    shifted = kl_divergence(reference + shifts[0] * ramp, candidate + shifts[1] * ramp)
    # Adding up to 1e3 rounds the logits to 1e3 * EPS / 2 each; probabilities weigh those errors to at most a few.
    np.testing.assert_allclose(shifted, kl_divergence(reference, candidate), rtol=1e4 * EPS, atol=1e4 * EPS)


@LAWS
@given(seed=seeds, size=st.floats(1.0, 1e30))
def test_distributions_of_any_finite_logits(seed: int, size: float) -> None:
    """No overflow, no NaN: huge logits give a certain distribution."""
    x = logits(3, 9, seed) * size
    log_p = log_softmax(x)
    assert np.isfinite(log_p).all()
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=64 * EPS)
    assert np.isfinite(kl_divergence(x, -x)).all()
    assert (entropy(x) >= 0).all()


def test_entropy_of_known_distributions() -> None:
    """Nothing known is ln V nats, everything known none."""
    assert entropy(np.zeros((1, 8)))[0] == pytest.approx(math.log(8), rel=1e-15)
    assert entropy(np.array([[1e4, 0.0, 0.0]]))[0] == 0.0


@LAWS
@given(shape=shapes, seed=seeds)
def test_negative_log_likelihood(shape: tuple[int, int], seed: int) -> None:
    """Minus the log of the softmax at the token, in nats; an even distribution costs ln V."""
    x = logits(*shape, seed)
    tokens = np.random.default_rng(seed).integers(shape[1], size=shape[0])
    expected = [-math.log(math.exp(row[t]) / math.fsum(map(math.exp, row))) for row, t in zip(x, tokens, strict=True)]
    # exp of up to 20 and its logarithm round to 20 * EPS.
    np.testing.assert_allclose(negative_log_likelihood(x, tokens), expected, rtol=0, atol=100 * EPS)
    np.testing.assert_allclose(negative_log_likelihood(np.zeros(shape), tokens), math.log(shape[1]), rtol=4 * EPS)


@LAWS
@given(positions=st.integers(1, 5), vocabulary=st.integers(1, 12), seed=seeds)
def test_position_figures_are_their_definitions(positions: int, vocabulary: int, seed: int) -> None:
    """Each recorded sum against plain Python, one position at a time."""
    reference, candidate = logits(positions, vocabulary, seed), logits(positions, vocabulary, seed + 1)
    errors = compare_positions(reference, candidate)
    assert len(errors) == positions
    for i, (r, c) in enumerate(zip(reference.tolist(), candidate.tolist(), strict=True)):
        difference = [b - a for a, b in zip(r, c, strict=True)]
        close = {"rel": 32 * EPS, "abs": 1e3 * EPS}  # twelve terms of up to 300, in another order
        assert errors.squared_error[i] == pytest.approx(math.fsum(d * d for d in difference), **close)
        assert errors.squared_reference[i] == pytest.approx(math.fsum(a * a for a in r), **close)
        assert errors.squared_candidate[i] == pytest.approx(math.fsum(b * b for b in c), **close)
        assert errors.product[i] == pytest.approx(math.fsum(a * b for a, b in zip(r, c, strict=True)), **close)
        assert errors.abs_error_sum[i] == pytest.approx(math.fsum(map(abs, difference)), **close)
        assert errors.abs_error_max[i] == max(map(abs, difference))
        order_r, order_c = (sorted(range(vocabulary), key=row.__getitem__, reverse=True) for row in (r, c))
        top = min(5, vocabulary)
        assert errors.same_top1[i] == (order_r[0] == order_c[0])
        assert errors.top5_overlap[i] == len({*order_r[:top]} & {*order_c[:top]}) / top
        assert errors.margin[i] == (r[order_r[0]] - r[order_r[1]] if vocabulary > 1 else math.inf)
        assert errors.vocabulary[i] == vocabulary


def test_summary_of_a_known_pair() -> None:
    """Two positions by hand: the second keeps its norm and loses its best token."""
    reference, candidate = np.array([[3.0, 4.0], [4.0, 3.0]]), np.array([[3.0, 4.5], [3.0, 4.0]])
    figures = summarize(compare_positions(reference, candidate))
    assert figures["positions"] == 2
    assert figures["nmse"] == 2.25 / 50
    assert figures["rel_l2"] == math.sqrt(2.25 / 50)
    assert figures["worst_position_rel_l2"] == math.sqrt(2 / 25)
    assert figures["max_abs"] == 1.0
    assert figures["mean_abs"] == 2.5 / 4
    assert figures["cosine"] == pytest.approx(51 / math.sqrt(50 * 54.25), rel=1e-15)
    assert figures["top1_agreement"] == figures["top1_agreement_clear"] == 0.5
    assert figures["top5_overlap"] == 1.0
    assert figures["near_ties"] == 0
    kl = [direct_kl(*rows) for rows in zip(reference, candidate, strict=True)]
    assert figures["kl_mean"] == pytest.approx(sum(kl) / 2, rel=1e-13)
    assert figures["kl_max"] == pytest.approx(max(kl), rel=1e-13)


def test_kl_quantile() -> None:
    """Of 101 positions that lose 0, 1, ... 100 nats in any order, one is worse than the 99th percentile."""
    errors = compare_positions(logits(101, 3, 0), logits(101, 3, 1))
    figures = summarize(replace(errors, kl=np.random.default_rng(0).permutation(np.arange(101.0))))
    assert (figures["kl_mean"], figures["kl_p99"], figures["kl_max"]) == (50.0, 99.0, 100.0)


def test_near_ties_are_set_apart() -> None:
    """Where the reference's best two are nearly equal, losing the best counts in one agreement and not in the other."""
    half = NEAR_TIE / 2
    reference, candidate = np.array([[half, 0.0], [5.0, 0.0]]), np.array([[0.0, half], [5.0, 0.0]])
    figures = summarize(compare_positions(reference, candidate))
    assert (figures["near_ties"], figures["top1_agreement"], figures["top1_agreement_clear"]) == (1, 0.5, 1.0)
    only = summarize(compare_positions(reference[:1], candidate[:1]))
    assert only["top1_agreement_clear"] is None


@LAWS
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(2, 9)), min_size=1, max_size=4),
    seed=seeds,
)
def test_concatenate_and_summarize_are_consistent(sizes: list[tuple[int, int]], seed: int) -> None:
    """Parts put together have all their positions in order, and means and maxima follow from the parts'."""
    parts = [compare_positions(logits(*size, seed + i), logits(*size, seed + i + 10)) for i, size in enumerate(sizes)]
    whole = concatenate(parts)
    for name in (field.name for field in fields(PositionErrors)):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))
    figures, pieces = summarize(whole), [summarize(part) for part in parts]
    counts = np.array([piece["positions"] for piece in pieces], dtype=float)
    assert figures["positions"] == len(whole) == counts.sum()
    for name in ("kl_mean", "top1_agreement", "top5_overlap"):  # means of up to 16 numbers, in another order
        mean = sum(piece[name] * count for piece, count in zip(pieces, counts, strict=True)) / counts.sum()
        assert figures[name] == pytest.approx(mean, rel=64 * EPS)
    for name in ("max_abs", "kl_max"):
        assert figures[name] == max(piece[name] for piece in pieces)
    assert figures["near_ties"] == sum(piece["near_ties"] for piece in pieces)
    assert min(p["rel_l2"] for p in pieces) * (1 - 64 * EPS) <= figures["rel_l2"]
    assert figures["rel_l2"] <= max(p["rel_l2"] for p in pieces) * (1 + 64 * EPS)
    assert figures["rel_l2"] == rel_l2(whole)
    assert figures["worst_position_rel_l2"] == worst_position_rel_l2(whole)


@LAWS
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=3), seed=seeds)
def test_positions_are_measured_one_by_one(sizes: list[int], seed: int) -> None:
    """Comparing all at once, or in parts, gives the same numbers."""
    reference, candidate = logits(sum(sizes), 7, seed), logits(sum(sizes), 7, seed + 1)
    cuts = np.cumsum(sizes)[:-1]
    parts = zip(np.split(reference, cuts), np.split(candidate, cuts), strict=True)
    whole, joined = compare_positions(reference, candidate), concatenate(compare_positions(*part) for part in parts)
    for name in (field.name for field in fields(PositionErrors)):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=64 * EPS, atol=64 * EPS)


def test_float32_traces_are_compared_in_float64() -> None:
    """A difference in the last place is not lost, nor are large squares."""
    reference = np.array([[1e30, 1.0]], dtype=np.float32)
    candidate = np.array([[1e30, np.nextafter(np.float32(1), np.float32(2))]], dtype=np.float32)
    errors = compare_positions(reference, candidate)
    assert errors.abs_error_max[0] == 2.0**-23
    assert np.isfinite(errors.squared_reference).all()


# -- what must not be compared


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite_are_refused(bad: float, dtype: type) -> None:
    """On either side or both, equal or not: never mapped to anything."""
    good = logits(3, 5, 0).astype(dtype)
    spoilt = good.copy()
    spoilt[2, 4] = bad
    for pair in ((spoilt, good), (good, spoilt), (spoilt, spoilt)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            compare_positions(*pair)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_compare_is_refused(shape: tuple[int, int]) -> None:
    """No positions, or no vocabulary: an empty comparison is not an agreement."""
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_positions(np.empty(shape), np.empty(shape))


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ((3, 5), (2, 5)),
        ((3, 5), (3, 4)),
        ((3, 5), (1, 5)),
        ((3, 5), (3, 1)),
        ((5,), (5,)),
        ((1, 3, 5), (1, 3, 5)),
        ((), ()),
    ],
    ids=str,
)
def test_other_shapes_are_refused(reference: tuple[int, ...], candidate: tuple[int, ...]) -> None:
    """Also those that numpy would broadcast, and anything that is not positions by vocabulary."""
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_positions(np.ones(reference), np.ones(candidate))


def test_concatenating_nothing_is_refused() -> None:
    """No comparisons give no figures."""
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])


@pytest.mark.parametrize(
    "reference",
    [np.zeros((1, 3)), np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])],
    ids=["everywhere", "at one position"],
)
def test_reference_of_zeros_is_not_an_agreement(reference: Array) -> None:
    """A relative error to nothing is no number: it must not look like a good figure, though both traces are equal."""
    with np.errstate(invalid="ignore"):
        figures = summarize(compare_positions(reference, reference))
    assert math.isnan(figures["worst_position_rel_l2"])
    if not reference.any():
        assert all(math.isnan(figures[name]) for name in ("rel_l2", "nmse", "cosine"))


@LAWS
@given(shrink=st.floats(1e-12, 1e-3), seed=st.integers(0, 2**31))
def test_a_faint_position_does_not_hide_the_others(shrink: float, seed: int) -> None:
    """Where nearly everything cancels, rounding is as large as elsewhere; it must not count without bound."""
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((20, 50))
    reference[7] *= shrink
    noise = 1e-6 * rng.standard_normal((20, 50))
    errors = compare_positions(reference, reference + noise)
    assert worst_position_rel_l2(errors) < 30e-6
    wrong = reference + noise
    wrong[3] = wrong[3][::-1]
    assert worst_position_rel_l2(compare_positions(reference, wrong)) > 0.1


def test_positions_of_ordinary_size_are_relative_to_themselves() -> None:
    """Half the size, twice the relative error."""
    reference = np.array([[2.0, 0.0], [1.0, 0.0]])
    errors = compare_positions(reference, reference + np.array([[0.0, 0.0], [0.0, 0.1]]))
    assert worst_position_rel_l2(errors) == pytest.approx(0.1)


@pytest.mark.parametrize("together", [1, 7, 50, 10**6])
def test_positions_are_looked_at_in_blocks_of_any_size(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate = logits(9, 7, 0), logits(9, 7, 1)
    expected = [compare_positions(reference[row : row + 1], candidate[row : row + 1]) for row in range(9)]
    monkeypatch.setattr(metrics, "TOGETHER", together)
    found = compare_positions(reference, candidate)
    for field in fields(PositionErrors):
        alone = [getattr(one, field.name)[0] for one in expected]
        np.testing.assert_array_equal(getattr(found, field.name), alone, err_msg=field.name)


def test_a_block_without_a_number_is_refused_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "TOGETHER", 7)
    candidate = logits(9, 7, 1)
    candidate[8, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        compare_positions(logits(9, 7, 0), candidate)


def test_the_margin_is_between_the_two_best_tokens() -> None:
    reference = np.array([[1.0, 5.0, 2.0, 4.0, 0.0, 3.0, -1.0], [5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(compare_positions(reference, reference).margin, [1.0, 0.0])
