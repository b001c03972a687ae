"""One figure has one spelling."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.spelling import DASH, figure, limit_spelled, percent, spelled


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (4.19e-12, "4.2e-12"), (0.00923, "0.00923"), (0.0015, "0.00150"), (155.2, "155"), (999.7, "1000"),
     (49520.4, "49520"), (1.2e7, "1.2e7"), (-0.5, "-0.500"), (None, DASH), (math.nan, DASH), (True, DASH)],
)  # fmt: skip
def test_figure(value: object, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1, "100%"), (0.99999, "99.9%"), (0.976, "97.6%"), (1e-9, "0.1%"), (0, "0%"), (None, DASH)]
)
def test_percent_does_not_round_to_all_or_none(value: object, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("flips", 0.127, "12.7%"), ("perplexity_ratio", 1.00043, "1.0004"), ("perplexity_ratio", 14.0, "14.0"),
     ("kl_typical", 0.0383, "0.0383"), ("floor_ratio", 0.5, "0.500"), ("rel_l2", 2.13e-15, "2.1e-15"),
     ("anything", None, DASH)],
)  # fmt: skip
def test_a_figure_is_spelled_by_what_it_is(metric: str, value: object, text: str) -> None:
    assert spelled(metric, value) == text


@pytest.mark.parametrize(
    ("metric", "bound", "text"),
    [("floor_ratio", 3.0, "≤ 3"), ("flips", 0.05, "≤ 5%"), ("top1_agreement", 0.925, "≥ 92.5%"),
     ("cosine", 0.9, "≥ 0.9"), ("perplexity_ratio", [0.955, 1.045], "0.955 to 1.045"),
     ("kl_typical", None, f"≤ {DASH}"), ("kl_mean", [], f"≤ {DASH}")],
)  # fmt: skip
def test_a_limit_is_never_rounded(metric: str, bound: object, text: str) -> None:
    assert limit_spelled(metric, bound) == text


@given(
    st.none() | st.floats() | st.booleans() | st.text() | st.lists(st.floats()), st.sampled_from(("flips", "kl_mean"))
)
def test_whatever_is_spelled_is_a_short_word(value: object, metric: str) -> None:
    assert 0 < len(spelled(metric, value)) < 350
    assert "nan" not in spelled(metric, value)
    assert "inf" not in limit_spelled(metric, value)
