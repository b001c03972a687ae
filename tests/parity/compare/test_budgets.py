"""Budgets: tiers that get wider, limits of one's own that mean what they say, and nonsense that is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.compare.budgets import TIERS, Budget, default_budget, own_budget
from parity.compare.limits import ENCODER_LIMITS
from parity.compare.limits import encoder_limits as encoder
from parity.errors import UsageError

MOST = ["kl_typical", "kl_mean", "kl_p99", "kl_max", "flips", "rel_l2"]
LEAST = ["top1_agreement", "top1_agreement_clear", "top5_overlap", "cosine"]


def test_tiers_get_wider() -> None:
    """From lossless to compact, each in every figure; each says why."""
    assert list(TIERS) == ["lossless", "good", "compact"]
    for finer, coarser in pairwise(TIERS.values()):
        for one, other in zip(finer.limits, coarser.limits, strict=True):
            assert one.metric == other.metric
            assert one.most < other.most
    for name, tier in TIERS.items():
        assert tier.name == name
        assert {limit.metric for limit in tier.limits} == {"kl_typical", "flips"}
        assert [limit.metric for limit in tier.limits if limit.optional] == ["flips"]
        assert all(name in limit.reason for limit in tier.limits)


@pytest.mark.parametrize(
    ("bits", "tier"),
    [(32, "lossless"), (16, "lossless"), (15, "good"), (8, "good"), (7, "compact"), (4, "compact"), (2, "compact")],
)
def test_the_tier_of_a_recipe_follows_from_its_smallest_weights(bits: int, tier: str) -> None:
    """Fewer bits than four are not forgiven more than four."""
    assert default_budget(bits) is TIERS[tier]


def test_recipes_of_ones_own_have_encoder_limits_by_their_bits() -> None:
    assert encoder("mine", 8) == ENCODER_LIMITS["dynamic_int8"]
    assert encoder("mine", 16) == ENCODER_LIMITS["fp16"]
    assert encoder("dynamic_int4", None) == ENCODER_LIMITS["dynamic_int4"]
    assert encoder("mine", 3) == encoder("mine", None) == ()


@pytest.mark.parametrize("metric", MOST)
@given(value=st.floats(0, 1e6))
def test_a_loss_is_allowed_up_to_what_is_written(metric: str, value: float) -> None:
    (limit,) = own_budget({metric: value}, "--budget").limits
    assert limit.holds(value)
    assert not limit.holds(math.nextafter(value, math.inf))
    assert not limit.optional, "what was asked for is held to"


@pytest.mark.parametrize("metric", LEAST)
@given(value=st.floats(0, 1))
def test_an_agreement_is_asked_for_at_least(metric: str, value: float) -> None:
    (limit,) = own_budget({metric: value}, "--budget").limits
    assert limit.holds(value)
    assert limit.holds(1.0)
    assert value == 0 or not limit.holds(math.nextafter(value, -math.inf))


@given(value=st.floats(1, 1e3))
def test_a_perplexity_ratio_is_as_far_below_as_above(value: float) -> None:
    (limit,) = own_budget({"perplexity_ratio": value}, "--budget").limits
    assert limit.holds(1.0)
    assert limit.holds(value)
    assert not limit.holds(value * 1.001)
    assert not limit.holds(0.999 / value)


def test_several_limits_are_all_held() -> None:
    budget = own_budget({"kl_typical": 0.1, "flips": 0, "top5_overlap": 1}, "there")
    assert isinstance(budget, Budget)
    assert [limit.metric for limit in budget.limits] == ["kl_typical", "flips", "top5_overlap"]
    assert all("there" in limit.reason for limit in budget.limits)
    assert budget.name == "there"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "holds no limit"),
        ({"kl_typcal": 0.1}, "did you mean kl_typical?"),
        ({"zzz": 0.1}, "there are kl_typical, kl_mean"),
        ({"floor_ratio": 100.0}, "no metric is called 'floor_ratio'"),
        ({"kl_mean": -0.1}, "kl_mean = -0.1 is no limit"),
        ({"kl_mean": math.nan}, "kl_mean = nan is no limit"),
        ({"kl_mean": math.inf}, "kl_mean = inf is no limit"),
        ({"kl_mean": "0.1"}, "kl_mean = 0.1 is no limit"),
        ({"kl_mean": True}, "kl_mean = True is no limit"),
        ({"kl_mean": None}, "kl_mean = None is no limit"),
        ({"kl_mean": [0.1]}, "kl_mean = [0.1] is no limit"),
        ({"cosine": 1.5}, "cosine = 1.5 is no share"),
        ({"perplexity_ratio": 0.9}, "give a number of 1 or more"),
        ({"kl_typical": 0.1, "flips": -1}, "flips = -1 is no limit"),
    ],
)
def test_what_is_no_budget_is_refused_in_one_line(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        own_budget(values, "HERE")
    assert said in str(refused.value)
    assert str(refused.value).startswith("HERE")
    assert "\n" not in str(refused.value)
