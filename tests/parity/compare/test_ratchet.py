"""Limits get tighter by themselves and looser only for a new reason: the ratchet, and that it holds."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.compare.budgets import TIERS, default_budget
from parity.compare.limits import ENCODER_LIMITS, LIMITS, Limit, encoder_limits, limits_for

ROOT = Path(__file__).parents[3]
FILE = Path(__file__).with_name("limits.json")
RATCHET = runpy.run_path(str(ROOT / "tools" / "ratchet_limits.py"))
LAWS = settings(deadline=None, max_examples=100)
BEFORE = Limit(metric="m", reason="measured in May", least=0.5, most=2.0)
ONE_SIDED = Limit(metric="m", reason="measured in May", most=2.0)


def refusals(before: Limit, after: Limit | None) -> list[str]:
    now = {} if after is None else {"table/m": RATCHET["entry"](after)}
    found: list[str] = RATCHET["refusals"]({"table/m": RATCHET["entry"](before)}, now)
    return found


def test_no_limit_is_looser_than_was_agreed_on() -> None:
    """A looser limit needs a measurement in its reason; a limit does not just disappear."""
    committed = json.loads(FILE.read_text(encoding="utf-8"))
    assert RATCHET["refusals"](committed, RATCHET["in_force"]()) == []


def test_what_was_agreed_on_is_what_is_in_force() -> None:
    """After a limit or its reason changed: python tools/ratchet_limits.py tests/parity/compare/limits.json."""
    committed = json.loads(FILE.read_text(encoding="utf-8"))
    assert FILE.read_text(encoding="utf-8") == RATCHET["document"](
        RATCHET["renewed"](committed, RATCHET["in_force"](), {})
    )


def test_every_limit_is_held() -> None:
    """Those of all questions, of all tiers and the one that a precision is held to, of what encoders make."""
    held = RATCHET["in_force"]()
    groups = {
        **LIMITS,
        "stored": limits_for("fidelity", stored=True)[len(LIMITS["fidelity"]) :],
        **{f"tier {name}": tier.limits for name, tier in TIERS.items()},
        **{f"{bits} bit recipes": default_budget(bits).limits for bits in (16, 8, 4, 2)},
        **{f"{recipe}/encoder": encoder_limits(recipe) for recipe in ENCODER_LIMITS},
        **{f"other {bits} bit recipes/encoder": encoder_limits("", bits) for bits in (16, 8, 4)},
    }
    expected = {f"{what}/{limit.metric}": limit for what, limits in groups.items() for limit in limits}
    assert {name: found for name, found in held.items() if not name.startswith("stage/")} == {
        name: RATCHET["entry"](limit) for name, limit in expected.items()
    }
    assert held["8 bit recipes/kl_typical"] == held["tier good/kl_typical"]
    assert held["stage/floor_ratio"]["most"] is not None


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        (BEFORE, {"most": 2.0001}),
        (BEFORE, {"least": 0.4999}),
        (BEFORE, {"least": 0.6, "most": 3.0}),
        (BEFORE, {"most": math.inf}),
        (BEFORE, {"least": -math.inf}),
        (ONE_SIDED, {"most": 2.1}),
    ],
)
def test_looser_for_the_same_reason_is_refused(before: Limit, changes: dict[str, float]) -> None:
    """On either side, or on one while the other is tightened; a new reason makes it fine."""
    after = replace(before, **changes)
    (said,) = refusals(before, after)
    assert "table/m" in said
    assert "tools/ratchet_limits.py" in said
    assert refusals(before, replace(after, reason="measured in June")) == []


@pytest.mark.parametrize("changes", [{}, {"most": 1.9}, {"least": 0.6}, {"reason": "in other words"}])
def test_tighter_and_explained_is_fine(changes: dict[str, float]) -> None:
    """And so is nothing at all."""
    assert refusals(BEFORE, replace(BEFORE, **changes)) == []
    assert refusals(ONE_SIDED, replace(ONE_SIDED, **changes)) == []


@LAWS
@given(bounds=st.lists(st.tuples(st.floats(0, 1), st.floats(1, 9)), min_size=2, max_size=6))
def test_without_a_new_reason_it_only_gets_tighter(bounds: list[tuple[float, float]]) -> None:
    """Whatever is tried one after the other, and whichever of it the tool writes."""
    limits = [replace(BEFORE, least=least, most=most) for least, most in bounds]
    committed = {"a": RATCHET["entry"](limits[0])}
    for limit in limits[1:]:
        before = committed["a"]
        now = {"a": RATCHET["entry"](limit)}
        if RATCHET["refusals"](committed, now):
            with pytest.raises(ValueError, match="same reason"):
                RATCHET["renewed"](committed, now, {})
        else:
            committed = RATCHET["renewed"](committed, now, {})
        assert committed["a"]["least"] >= before["least"]
        assert committed["a"]["most"] <= before["most"]


def test_a_limit_goes_only_with_a_reason() -> None:
    """Which stays in the file; the limit may come back, and what was never there cannot go."""
    committed, name = {"table/m": RATCHET["entry"](BEFORE)}, "table/m"
    (said,) = refusals(BEFORE, None)
    assert "is gone" in said
    with pytest.raises(ValueError, match="is gone"):
        RATCHET["renewed"](committed, {}, {})
    gone = RATCHET["renewed"](committed, {}, {name: "the rung is no more"})
    assert gone == {name: {"removed": "the rung is no more"}}
    assert RATCHET["renewed"](gone, {}, {}) == gone
    assert RATCHET["renewed"](gone, committed, {}) == committed
    for wrong in (name, "another"):
        with pytest.raises(ValueError, match="no limit that was there and is gone"):
            RATCHET["renewed"](committed, committed, {wrong: "why not"})


def test_the_tool_refuses_and_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Exit code 1 and the reason; with nothing to refuse it writes what is committed here."""
    path = tmp_path / "limits.json"
    command = [sys.executable, ROOT / "tools" / "ratchet_limits.py", path]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    assert run().returncode == 0
    agreed = {name: at for name, at in json.loads(FILE.read_text(encoding="utf-8")).items() if "removed" not in at}
    assert path.read_text() == RATCHET["document"](agreed)
    tighter = json.loads(path.read_text())
    tighter["tier good/kl_typical"]["most"] /= 2
    path.write_text(json.dumps(tighter))
    done = run()
    assert done.returncode == 1
    assert "tier good/kl_typical went from" in done.stderr
    assert json.loads(path.read_text()) == tighter
