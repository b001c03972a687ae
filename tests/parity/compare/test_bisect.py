"""From errors to a stage: pure, and closed against what is not finite."""

from __future__ import annotations

import numpy as np
import pytest

from parity.compare.bisect import (
    Measured,
    Place,
    RowErrors,
    StageErrors,
    Tally,
    broken_stages,
    compare_rows,
    conclude,
    judge_floats,
    together,
    with_signatures,
    with_stored,
)
from parity.compare.floor import IN_FLOAT64
from parity.compare.limits import PORT_LIMITS, STAGE_LIMITS, UNIT_ROUNDOFF
from parity.report.stages import Plot, finding, to_html, to_json
from parity.trace import SIGNATURES

STAGES = ("embed", "block_0", "block_1", "block_2", "head")
FLOOR = 1e-7


def measured(**errors: float) -> dict[Place, Measured]:
    """All stages in prefill and decode at the floor, but those named (``decode_block_1``, or in both phases)."""
    found = {}
    for phase in ("prefill", "decode"):
        for stage in STAGES:
            error = errors.get(f"{phase}_{stage}", errors.get(stage, FLOOR))
            found[Place(phase, stage)] = Measured(error, error)
    return found


def judged(**errors: float):
    rows = judge_floats(measured(**errors), measured(), measured(), STAGE_LIMITS)
    return conclude("float", "reauthored", ["it"], rows)


def test_rows_are_compared_in_units_of_the_reference() -> None:
    expected = np.asarray([[3.0, 4.0], [0.0, 10.0]])
    errors = compare_rows(expected, expected + np.asarray([[0.0, 0.5], [0.0, 0.0]]))
    assert errors.rel_l2 == pytest.approx(0.5 / np.sqrt(125))
    assert errors.worst_row == pytest.approx(0.1)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far_off(broken: float) -> None:
    """Whether it was expected or came: it never compares as equal."""
    fine, off = np.ones((2, 3)), np.ones((2, 3))
    off[1, 1] = broken
    for expected, got in ((fine, off), (off, fine), (off, off)):
        errors = compare_rows(expected, got)
        assert errors.rel_l2 == errors.worst_row == np.inf


def test_nothing_but_zeros_is_met_exactly_or_not_at_all() -> None:
    zeros = np.zeros((2, 2))
    assert compare_rows(zeros, zeros).rel_l2 == 0
    assert compare_rows(zeros, zeros + 1e-12).rel_l2 == np.inf


def test_what_blocks_does_not_hide_what_is_added_beside_it() -> None:
    """A mask that carries a bias: the blocked entries are 38 orders of magnitude larger, and equal."""
    low = np.float32(-0.4 * np.finfo(np.float32).max)
    assert compare_rows(np.asarray([[low, 1.0]]), np.asarray([[low, 1.1]])).rel_l2 == pytest.approx(0.1)
    assert compare_rows(np.asarray([[low, 1.0]]), np.asarray([[0.0, 1.0]])).rel_l2 == pytest.approx(1.0)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((0, 3), (0, 3))])
def test_nothing_to_compare_is_no_success(shapes) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_rows(*map(np.zeros, shapes))


def test_a_stage_is_as_far_off_as_its_worst_output() -> None:
    tally = Tally()
    place = Place("prefill", "embed")
    tally.add(place, "hidden", RowErrors(np.asarray([0.0]), np.asarray([1.0])))
    tally.add(place, "mask", RowErrors(np.asarray([0.25]), np.asarray([1.0])))
    tally.add(place, "mask", RowErrors(np.asarray([0.0]), np.asarray([3.0])))
    assert tally.measured() == {place: Measured(0.25, 0.5)}


def test_sound_stages_are_not_named() -> None:
    found = judged(block_1=7.9 * FLOOR)
    assert (found.first, found.phase) == (None, None)
    assert found.remark.startswith("no stage is off")
    assert "it is rounding that adds up" in found.remark
    assert all(row.floor == FLOOR for row in found.stages)


def test_a_floor_below_unit_roundoff_counts_as_that() -> None:
    exact = {place: Measured(0.0, 0.0) for place in measured()}
    (row, *_) = judge_floats(measured(), measured(), exact, STAGE_LIMITS)
    assert row.floor == UNIT_ROUNDOFF
    assert not row.bad


@pytest.mark.parametrize(
    ("errors", "first", "phase", "remark"),
    [
        ({"block_1": 1.0}, "block_1", "prefill", "exactly one block is off, block_1"),
        ({"block_0": 1.0, "block_1": 1.0, "block_2": 1.0}, "block_0", "prefill", "every block is off"),
        ({"block_0": 1.0, "block_2": 1.0}, "block_0", "prefill", "2 of 3 are off (block_0, block_2)"),
        ({"head": 1.0}, "head", "prefill", "head alone is off"),
        ({"embed": 1.0, "head": 1.0}, "embed", "prefill", "embed is off first"),
        ({"decode_block_2": 1.0}, "block_2", "decode", "only in decode"),
        ({"block_1": float("nan")}, "block_1", "prefill", "exactly one"),
        ({"block_1": float("inf")}, "block_1", "prefill", "exactly one"),
    ],
)
def test_the_first_bad_stage_and_how_far_it_reaches(errors, first: str, phase: str, remark: str) -> None:
    found = judged(**errors)
    assert (found.first, found.phase) == (first, phase)
    assert remark in found.remark
    assert first in finding(found)


def test_one_wrong_row_among_many_counts() -> None:
    own = measured()
    own[Place("decode", "block_1")] = Measured(FLOOR, 17 * FLOOR)
    assert conclude("float", "x", [], judge_floats(own, own, measured(), STAGE_LIMITS)).first == "block_1"


def test_errors_pile_up_within_a_phase() -> None:
    """What leaves a stage enters the next; each phase begins with nothing."""
    chained = {place: Measured((i + 1) * FLOOR, FLOOR) for i, place in enumerate(measured())}
    rows = judge_floats(measured(), chained, measured(), STAGE_LIMITS)
    assert [row.entering for row in rows[:5]] == [0.0, *(row.leaving for row in rows[:4])]
    assert rows[5].entering == 0.0


def test_signatures_are_blamed_only_where_every_stage_is_right() -> None:
    figures = {"entering": 1.0, "own": 1.0, "leaving": 1.0, "floor": 1.0, "limit": 8.0}
    sound, off = (StageErrors(stage=SIGNATURES, phase="decode", bad=bad, **figures) for bad in (False, True))
    assert with_signatures(judged(), [sound]).first is None
    found = with_signatures(judged(), [off])
    assert (found.first, found.phase, found.stages[-1].entering) == (SIGNATURES, "decode", 0.0)
    assert with_signatures(judged(head=1.0), [off]).first == "head"


@pytest.mark.parametrize("times", [7.9, 8.1])
@pytest.mark.parametrize("error", ["rel_l2", "worst_row"])
def test_a_stage_is_held_to_its_own_noise(error: str, times: float) -> None:
    """Over all its rows, and at the worst of them, which may be twice as far off."""
    own = measured()
    by = times * FLOOR * (2 if error == "worst_row" else 1)
    own[Place("decode", "block_1")] = Measured(**{"rel_l2": FLOOR, "worst_row": FLOOR, error: by})
    found = conclude("float", "x", [], judge_floats(own, own, measured(), STAGE_LIMITS))
    assert found.first == (None if times < 8 else "block_1")


def test_stages_of_the_exact_port_are_held_to_float64() -> None:
    """The same floors, as much smaller as its roundoff is: float32's rounding is a fault there."""
    exact = {place: Measured(FLOOR * IN_FLOAT64, FLOOR * IN_FLOAT64) for place in measured()}
    rows = judge_floats(exact, exact, measured(), PORT_LIMITS, IN_FLOAT64)
    assert conclude("reauthored64", "original64", [], rows).first is None
    assert all(row.ratio == pytest.approx(1) for row in rows)
    off = {**exact, Place("prefill", "block_2"): Measured(1e-12, 1e-12)}
    rows = judge_floats(off, off, measured(), PORT_LIMITS, IN_FLOAT64)
    assert conclude("reauthored64", "original64", [], rows).first == "block_2"
    rows = judge_floats(measured(), measured(), measured(), PORT_LIMITS, IN_FLOAT64)
    assert all(row.bad for row in rows)


def test_the_floor_of_several_draws_is_their_root_mean_square() -> None:
    place = Place("prefill", "embed")
    found = together([{place: Measured(3e-7, 1e-7)}, {place: Measured(4e-7, 7e-7)}])
    assert found[place].rel_l2 == pytest.approx(np.sqrt(12.5) * 1e-7)
    assert found[place].worst_row == pytest.approx(5e-7)


def test_a_weight_that_is_not_stored_as_rounded_is_named_whatever_comes_of_it() -> None:
    """Half a step is what rounding costs; a step that is twice as large as it need be is no rounding either."""
    sound = {"weight_steps": 0.5, "weight_coarseness": 1.0}
    stored = [
        ("embed.tokens", sound),
        ("blocks.1.attention.q_proj", sound),
        ("blocks.1.attention.q_proj", {**sound, "weight_steps": 9.0}),
        ("blocks.2.mlp.up_proj", {**sound, "weight_coarseness": 40.0}),
        ("norm_of_nothing", {**sound, "weight_steps": 9.0}),
    ]
    broken = broken_stages(stored)
    assert broken == {"block_1": "blocks.1.attention.q_proj", "block_2": "blocks.2.mlp.up_proj"}
    good = conclude("int8", "int8 in PyTorch", ["p"], judge_floats(measured(), measured(), measured(), STAGE_LIMITS))
    found = with_stored(good, broken)
    assert (good.first, found.first, found.phase) == (None, "block_1", "prefill")
    assert "blocks.1.attention.q_proj is not stored as rounding would have it" in found.remark
    assert {row.stage for row in found.stages if row.bad} == {"block_1", "block_2"}
    assert with_stored(good, {}) == good


def test_everything_is_drawn_whatever_the_figures() -> None:
    """Nothing, and infinity, lie at the ends of the axis; JSON has null for them."""
    found = judged(embed=0.0, block_1=float("inf"))
    about = {"model": "<model>", "weights": "tiny"}
    page = to_html([found], about)
    assert "&lt;model&gt;" in page
    assert "<model>" not in page
    assert "first bad stage: block_1" in page
    assert "nan" not in page.lower().replace("finance", "")
    document = to_json([found], about)
    assert document["verdict"] == "FAIL"
    assert document["rungs"][0]["stages"][2]["own"] is None
    plot = Plot.of("prefill", [row for row in found.stages if row.phase == "prefill"])
    heights = [point.own for point in plot.points]
    assert (heights[0], heights[2]) == (0.0, 1.0)
