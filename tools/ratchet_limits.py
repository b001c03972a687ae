"""Keep limits from being loosened in passing: tests/parity/compare/limits.json is what they were when last agreed on.

python tools/ratchet_limits.py tests/parity/compare/limits.json [--removed LIMIT REASON]

The test beside that file fails while it differs from the tables in parity/compare/limits.py and budgets.py. This tool
writes it anew, unless a limit is looser than before and its reason is not: then the reason comes first. A limit that is
taken away stays in the file with the reason that is given here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.compare.budgets import TIERS, default_budget
from parity.compare.limits import ENCODER_LIMITS, LIMITS, STAGE_LIMITS, STORED_LIMITS, Limit, encoder_limits

#: Weight precisions by which recipes are judged that have no limits of their own.
BITS = (16, 8, 4, 2)

Committed = dict[str, dict[str, Any]]


def in_force() -> Committed:
    """Every limit as it is today, by what it is a limit on and its metric."""
    return {f"{what}/{limit.metric}": entry(limit) for what, limits in _all() for limit in limits}


def _all() -> Iterator[tuple[str, Sequence[Limit]]]:
    yield from LIMITS.items()
    yield "stored", STORED_LIMITS
    yield "stage", STAGE_LIMITS
    yield from ((f"tier {name}", tier.limits) for name, tier in TIERS.items())
    yield from ((f"{bits} bit recipes", default_budget(bits).limits) for bits in BITS)
    yield from ((f"{recipe}/encoder", limits) for recipe, limits in ENCODER_LIMITS.items())
    yield from ((f"other {bits} bit recipes/encoder", encoder_limits("", bits)) for bits in BITS)


def entry(limit: Limit) -> dict[str, Any]:
    """The bounds, null where there is none, and a hash of the reason."""
    least, most = (None if math.isinf(bound) else bound for bound in (limit.least, limit.most))
    return {"least": least, "most": most, "reason": hashlib.sha256(limit.reason.encode()).hexdigest()[:16]}


def refusals(committed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What may not be, one sentence for each: limits that are looser or gone, without a reason that is new."""
    found = []
    for name, before in committed.items():
        today = now.get(name)
        if "removed" in before:
            continue
        if today is None:
            found.append(f"{name} is gone; put it back, or run tools/ratchet_limits.py with --removed {name!r} and why")
        elif _looser(before, today) and today["reason"] == before["reason"]:
            found.append(
                f"{name} went from {_bounds(before)} to {_bounds(today)} with the same reason; tighten it again, "
                "or write the measurement that asks for it into its reason and run tools/ratchet_limits.py"
            )
    return found


def _looser(before: Mapping[str, Any], today: Mapping[str, Any]) -> bool:
    (least, most), (least_now, most_now) = _bounds(before), _bounds(today)
    return least_now < least or most_now > most


def _bounds(values: Mapping[str, Any]) -> tuple[float, float]:
    least, most = values["least"], values["most"]
    return -math.inf if least is None else least, math.inf if most is None else most


def renewed(committed: Committed, now: Committed, removed: Mapping[str, str]) -> Committed:
    """What the file should hold from now on.

    Raises:
        ValueError: a limit is looser or gone without a reason of its own, or is there though it was called removed.
    """
    if present := [name for name in removed if name in now or name not in committed]:
        raise ValueError(f"{present[0]} is no limit that was there and is gone")
    kept = {**committed, **{name: {"removed": why} for name, why in removed.items()}}
    if wrong := refusals(kept, now):
        raise ValueError("\n".join(wrong))
    return {**{name: before for name, before in kept.items() if "removed" in before}, **now}


def document(committed: Committed) -> str:
    """The file's text, one limit a line."""
    lines = (f" {json.dumps(name)}: {json.dumps(committed[name])}" for name in sorted(committed))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Rewrite the file, or end with what is wrong."""
    parser = argparse.ArgumentParser(description="Agree on the limits as they are in parity/compare.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--removed", nargs=2, action="append", default=[], metavar=("LIMIT", "REASON"))
    arguments = parser.parse_args()
    before = json.loads(arguments.file.read_text(encoding="utf-8")) if arguments.file.is_file() else {}
    try:
        after = renewed(before, in_force(), dict(arguments.removed))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    arguments.file.write_text(document(after), encoding="utf-8")


if __name__ == "__main__":
    main()
