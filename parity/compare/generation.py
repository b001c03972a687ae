"""Free-running greedy generation against the reference: where it first differs, and whether that means anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parity.trace import Trace


@dataclass(frozen=True)
class Generation:
    """``matches`` of ``of`` tokens come before the first difference of their prompt."""

    rung: str
    matches: int
    of: int
    first_difference: dict[str, Any] | None


def compare_generation(rung: str, reference: Trace, candidate: Trace, noise: float) -> Generation:
    """Compare generated ids prompt by prompt, each up to its first difference.

    A difference is a *tie* where the reference's two best logits are closer than twice ``noise`` (the candidate's
    largest logit error: each of the two can have moved by that much), else a *defect*. The first defect is reported
    if there is one, otherwise the first tie.
    """
    matches = total = 0
    found: list[dict[str, Any]] = []
    for name, expected in reference.prompts.items():
        got = candidate.prompts[name].generated
        total += len(expected.generated)
        pairs = zip(expected.generated, got, strict=True)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        matches += len(expected.generated) if at is None else at
        if at is not None:
            kind = "tie" if expected.margins[at] <= 2 * noise else "defect"
            found.append({"at": at, "kind": kind, "prompt": name, "margin": expected.margins[at]})
    found.sort(key=lambda difference: difference["kind"] != "defect")
    return Generation(rung, matches, total, found[0] if found else None)
