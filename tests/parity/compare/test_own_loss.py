"""Limits that follow from what a recipe loses by itself: wider than the table's where it does, but not without end."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.compare.limits import ENCODER_LIMITS, OWN_LOSSES, RECIPE_LIMITS, Limit, following, limits_for, own_loss_of

LOSS = {
    "kl_mean": 0.05,
    "kl_p99": 0.5,
    "top1_agreement_clear": 0.9,
    "perplexity_ratio": 0.95,
    "perplexity_noticed": 0.1,
}


def held(rung: str, loss: dict[str, float], output: str = "logits", bits: int | None = None) -> dict[str, Limit]:
    limits = limits_for(rung, bits, output, stored=output == "logits")
    return {limit.metric: limit for limit in following(limits, loss, rung, bits, output)}


def test_each_figure_has_its_room() -> None:
    """One and a half times the KL and the disagreement, twice the tail, and what prompts notice of a perplexity."""
    limits = held("dynamic_int8", LOSS)
    assert limits["kl_mean"].most == pytest.approx(0.075)
    assert limits["kl_p99"].most == pytest.approx(1.0)
    assert limits["top1_agreement_clear"].least == pytest.approx(0.85)
    assert limits["perplexity_ratio"].bound == pytest.approx([0.95 / 1.1, 1.1 / 0.95], rel=0.01)
    assert limits["weight_steps"].most == 0.51, "what is stored is no matter of loss"
    assert "comes to 0.05; a file may lose 1.5 times as much" in limits["kl_mean"].reason
    assert "Without that the limit is 0.027" in limits["kl_mean"].reason
    assert held("dynamic_int8", LOSS | {"perplexity_ratio": 1 / 0.95})["perplexity_ratio"].bound == (
        limits["perplexity_ratio"].bound
    )


def test_encoders_follow_too() -> None:
    assert held("weight_only_int8", {"rel_l2": 0.05}, "encoder")["rel_l2"].most == pytest.approx(0.075)


@pytest.mark.parametrize("rung", RECIPE_LIMITS)
def test_a_recipe_that_loses_little_is_held_to_the_table(rung: str) -> None:
    """With the table's own reasons, on these very prompts."""
    nothing = {"kl_mean": 0.0, "kl_p99": 0.0, "top1_agreement_clear": 1.0, "perplexity_ratio": 1.0}
    limits = tuple(held(rung, nothing | {"perplexity_noticed": 0.0}).values())
    table = limits_for(rung, stored=True)
    assert [(each.metric, each.bound, each.reason) for each in limits] == [
        (each.metric, each.bound, each.reason) for each in table
    ]
    assert rung == "dynamic_int4" or not any(each.sampled for each in limits)
    assert tuple(held(rung, {}).values()) == limits_for(rung, stored=True)


@given(
    kl=st.floats(0, 100),
    tail=st.floats(0, 100),
    agreement=st.floats(0, 1),
    ratio=st.floats(1e-3, 1e3),
    noticed=st.floats(0, 1e6),
)
@pytest.mark.parametrize(("rung", "coarser"), list(pairwise(RECIPE_LIMITS)))
def test_no_limit_is_narrower_than_the_tables_or_wider_than_a_coarser_recipes(
    rung: str, coarser: str, kl: float, tail: float, agreement: float, ratio: float, noticed: float
) -> None:
    loss = {"kl_mean": kl, "kl_p99": tail, "top1_agreement_clear": agreement, "perplexity_ratio": ratio}
    limits = held(rung, loss | {"perplexity_noticed": noticed})
    table = {limit.metric: limit for limit in limits_for(rung, stored=True)}
    most = {limit.metric: limit for limit in limits_for(coarser, stored=True)}
    assert limits.keys() == table.keys()
    for name, limit in limits.items():
        assert most[name].least <= limit.least <= table[name].least
        assert table[name].most <= limit.most <= most[name].most


def test_the_coarsest_recipe_has_none_to_follow() -> None:
    assert tuple(held("dynamic_int4", LOSS).values()) == limits_for("dynamic_int4", stored=True)


def test_recipes_of_ones_own_follow_by_their_bits() -> None:
    assert held("mine", LOSS, bits=8) == held("dynamic_int8", LOSS)
    assert held("mine", LOSS, bits=3) == {}


@pytest.mark.parametrize("table", [RECIPE_LIMITS, ENCODER_LIMITS])
def test_recipes_stand_from_the_finest_to_the_coarsest(table: dict[str, tuple[Limit, ...]]) -> None:
    """Or the next one would be no bound."""
    for finer, coarser in pairwise(table.values()):
        for one, other in zip(finer, coarser, strict=True):
            assert other.least <= one.least
            assert one.most <= other.most


def test_what_is_measured_of_a_recipe_is_what_its_limits_ask_for() -> None:
    """Without a perplexity where the prompts say nothing of it."""
    metrics = {**LOSS, "rel_l2": 0.1, "kl_max": 3.0, "detectable": {"perplexity_ratio": 0.1}}
    limits = limits_for("dynamic_int8", stored=True)
    assert own_loss_of(metrics, limits) == LOSS
    for unusable in ({"detectable": {"perplexity_ratio": math.inf}}, {"perplexity_ratio": 0.0}, {"detectable": {}}):
        assert own_loss_of(metrics | unusable, limits).keys() == {"kl_mean", "kl_p99", "top1_agreement_clear"}
    assert own_loss_of({"rel_l2": 0.1, "detectable": {}}, limits_for("fp16", output="encoder")) == {"rel_l2": 0.1}
    assert {limit.metric for limit in limits if limit.sampled or "perplexity" in limit.metric} <= OWN_LOSSES
