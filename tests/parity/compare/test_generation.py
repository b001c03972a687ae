"""Greedy generation: every step counts once, a tie is judged by the token that was chosen, ends are compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare.generation import compare_generation
from parity.compare.verdict import Edge, Verdict, with_generation
from parity.trace import BEST, PromptTrace, Steps, Trace

LAWS = settings(deadline=None, max_examples=60)
VOCABULARY = 9
NOTHING = np.zeros((1, 2))


def steps(ids: tuple[int, ...], margins: tuple[float, ...] = (0, 1, 2, 3, 4), ends: tuple[int, ...] = ()) -> Steps:
    """Each step chooses one of ``ids``, followed by the tokens after it, all at the same margins."""
    best = np.asarray([[(token + i) % VOCABULARY for i in range(BEST)] for token in ids], np.int32)
    gaps = np.asarray([margins] * len(ids), np.float32)
    return Steps(best.reshape(-1, BEST), gaps.reshape(-1, BEST), np.asarray([i in ends for i in range(len(ids))], bool))


def noise_of(noise: float) -> Callable[[str], float]:
    """The same for every prompt."""
    return lambda _: noise


def trace(**prompts: Steps) -> Trace:
    return Trace({name: PromptTrace(NOTHING, NOTHING, taken) for name, taken in prompts.items()})


def test_equal_generation() -> None:
    """Everything matches, nothing differs."""
    reference = trace(p=steps((1, 2, 3)), q=steps((4, 5), ends=(1,)))
    result = compare_generation("float", reference, reference, noise_of(0.1))
    assert (result.rung, result.matches, result.ties, result.defects, result.of) == ("float", 5, 0, 0, 5)
    assert result.first_difference is None


@pytest.mark.parametrize(
    ("margin", "noise", "kind"),
    [
        (0.125, 0.0626, "tie"),
        (0.125, 0.0625, "tie"),  # at exactly twice the noise both can have moved that far
        (0.125, 0.0624, "defect"),
        (0.0, 0.0, "tie"),
        (1e-9, 0.0, "defect"),
        (0.1, math.nan, "defect"),
        (math.nan, 1.0, "defect"),
    ],
)
def test_difference_is_a_tie_or_a_defect(margin: float, noise: float, kind: str) -> None:
    """A tie is within twice the noise; what is unknown is no excuse."""
    reference = trace(p=steps((1, 2, 3), (0, margin, 9, 9, 9)))
    result = compare_generation("float", reference, trace(p=steps((1, 3, 3))), noise_of(noise))
    assert result.first_difference is not None
    assert (result.first_difference["at"], result.first_difference["kind"]) == (1, kind)
    assert result.first_difference["prompt"] == "p"
    assert "chooses 3 instead of 2" in result.first_difference["cause"]
    assert (result.matches, result.ties, result.defects, result.of) == (2, kind == "tie", kind == "defect", 3)


@pytest.mark.parametrize(("chosen", "margin"), [(3, 0.01), (4, 2), (6, 4), (8, 4)])
def test_a_tie_is_judged_by_the_token_that_was_chosen(chosen: int, margin: float) -> None:
    """That the best two are close excuses none but those two; a token far down is at least as far as the last kept."""
    reference = trace(p=steps((2,), (0, 0.01, 2, 3, 4)))
    result = compare_generation("float", reference, trace(p=steps((chosen,))), noise_of(0.1))
    assert result.first_difference is not None
    assert result.first_difference["margin"] == pytest.approx(margin)
    assert result.first_difference["kind"] == ("tie" if margin < 1 else "defect")


@LAWS
@given(pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20), noise=st.floats(0, 5))
def test_every_step_counts_once(pairs: list[tuple[int, int]], noise: float) -> None:
    """What comes after a difference is compared as if there had been none."""
    reference, candidate = (steps(tuple(pair[side] for pair in pairs)) for side in (0, 1))
    result = compare_generation("float", trace(p=reference), trace(p=candidate), noise_of(noise))
    assert result.matches == sum(a == b for a, b in pairs)
    # Margins grow by one from each token to the next, up to the last that is kept.
    far = [min((b - a) % VOCABULARY, BEST - 1) for a, b in pairs if a != b]
    assert result.ties == sum(margin <= 2 * noise for margin in far)
    assert result.matches + result.ties + result.defects == result.of == len(pairs)
    assert result.changed == 0
    quantized = compare_generation("fp16", trace(p=reference), trace(p=candidate), None)
    assert (quantized.matches, quantized.changed) == (result.matches, len(far))
    assert (quantized.ties, quantized.defects) == (0, 0)
    assert (result.first_difference is None) == (result.matches == result.of)


def test_every_prompt_has_its_own_noise() -> None:
    """A prompt that amplifies rounding excuses nothing in another."""
    close = steps((1, 2), (0, 0.5, 9, 9, 9))
    reference, candidate = trace(calm=close, wild=close), trace(calm=steps((1, 3)), wild=steps((1, 3)))
    result = compare_generation("float", reference, candidate, {"calm": 1e-6, "wild": 0.25}.__getitem__)
    assert (result.matches, result.ties, result.defects) == (2, 1, 1)
    assert result.first_difference is not None
    assert (result.first_difference["prompt"], result.first_difference["kind"]) == ("calm", "defect")


@pytest.mark.parametrize("margin", [0.0, 1e-9, 0.125, 7.0])
def test_a_quantized_rung_has_changed_what_it_says(margin: float) -> None:
    """Never a tie and never a defect: the reference's own margin tells by how much."""
    reference = trace(p=steps((1, 2), (0, margin, 9, 9, 9)))
    result = compare_generation("dynamic_int8", reference, trace(p=steps((1, 3))), None)
    assert (result.matches, result.ties, result.defects, result.changed, result.of) == (1, 0, 0, 1, 2)
    assert result.first_difference is not None
    assert (result.first_difference["kind"], result.first_difference["at"]) == ("changed", 1)
    assert result.first_difference["margin"] == pytest.approx(margin)


def test_a_quantized_rung_that_ends_elsewhere_has_a_defect() -> None:
    """It says the same, and stops where the reference goes on: that is no matter of precision."""
    expected, got = steps((2, 3)), steps((4, 3), ends=(1,))
    result = compare_generation("dynamic_int8", trace(p=expected), trace(p=got), None)
    assert (result.defects, result.changed) == (1, 1)
    assert result.first_difference is not None
    assert result.first_difference["kind"] == "defect"


@pytest.mark.parametrize("order", [("p", "q"), ("q", "p")])
def test_a_defect_is_reported_before_a_tie(order: tuple[str, str]) -> None:
    """Whichever prompt comes first, a tie does not hide a defect."""
    tie, defect = steps((1, 2), (0, 0.01, 9, 9, 9)), steps((3, 4))
    reference = trace(**dict(zip(order, (tie, defect), strict=True)))
    candidate = trace(**dict(zip(order, (steps((1, 3)), steps((3, 8))), strict=True)))
    result = compare_generation("float", reference, candidate, noise_of(0.1))
    assert result.first_difference is not None
    assert (result.first_difference["kind"], result.first_difference["at"]) == ("defect", 1)
    assert result.first_difference["prompt"] == order[1]
    assert (result.matches, result.ties, result.defects, result.of) == (2, 1, 1, 4)


@pytest.mark.parametrize(
    ("reference", "candidate", "said"),
    [
        ((1,), (), "3 ends the text for the reference, the rung goes on"),
        ((), (1,), "3 ends the text for the rung, the reference goes on"),
    ],
)
def test_ends_are_compared(reference: tuple[int, ...], candidate: tuple[int, ...], said: str) -> None:
    """The same token is no match where only one of the two stops there, however large the noise."""
    expected, got = steps((2, 3), ends=reference), steps((2, 3), ends=candidate)
    result = compare_generation("float", trace(p=expected), trace(p=got), noise_of(99.0))
    assert (result.matches, result.ties, result.defects) == (1, 0, 1)
    assert result.first_difference is not None
    assert (result.first_difference["at"], result.first_difference["cause"]) == (1, said)


@pytest.mark.parametrize("ids", [(1, 2), (1, 2, 3, 4), ()])
def test_generation_of_another_length_is_refused(ids: tuple[int, ...]) -> None:
    """Too few tokens or too many are never counted as agreement."""
    with pytest.raises(ValueError, match="of the 3 tokens of prompt p"):
        compare_generation("float", trace(p=steps((1, 2, 3))), trace(p=steps(ids)), noise_of(0.1))


@pytest.mark.parametrize(
    ("rung", "chosen", "verdict"),
    [
        ("float", 8, Verdict.FAIL),
        ("reauthored", 8, Verdict.FAIL),
        ("float", 3, Verdict.PASS),
        ("dynamic_int8", 8, Verdict.PASS),
    ],
)
def test_a_defect_fails_float_rungs_only(rung: str, chosen: int, verdict: Verdict) -> None:
    """Not a tie, and not a rung that was made to lose precision."""
    noise = None if rung == "dynamic_int8" else noise_of(0.1)
    result = compare_generation(rung, trace(p=steps((2,), (0, 0.01, 9, 9, 9))), trace(p=steps((chosen,))), noise)
    edge = with_generation(Edge(reference="original64", candidate=rung, verdict=Verdict.PASS), result)
    assert edge.verdict is verdict
    assert edge.cause == (
        "greedy generation, token 0 of p: chooses 8 instead of 2, which the reference prefers by 9"
        if verdict is Verdict.FAIL
        else None
    )
