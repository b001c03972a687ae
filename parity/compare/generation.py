"""Greedy generation against the reference's, token id by token id: where a rung chooses otherwise, and what that means.

The reference generates freely. Every other rung is led along what the reference said, and at each step its own choice
is recorded: so one difference does not make all that follows different, and every step is a comparison of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parity.trace import Steps, Trace


@dataclass(frozen=True)
class Generation:
    """Of ``of`` steps, ``matches`` have the reference's token; each of the others is one of ``ties`` or ``defects``."""

    rung: str
    matches: int
    ties: int
    defects: int
    of: int
    first_difference: dict[str, Any] | None


def compare_generation(rung: str, reference: Trace, candidate: Trace, noise: float) -> Generation:
    """Compare choices step by step; the first defect is reported if there is one, otherwise the first tie.

    A different choice is a *tie* where the reference's own choice is ahead of the candidate's by at most twice
    ``noise``, else a *defect*. The noise is the candidate's largest logit error on the forced positions: two logits
    that are further apart than twice that cannot have changed places unless the candidate is worse here than it was
    there. A candidate's choice that is not among those which the reference keeps counts as far away as the last of
    them. The same choice is a defect where one of the two takes it for the end of the text, and the other does not.
    """
    total = 0
    found: list[dict[str, Any]] = []
    for name, prompt in reference.prompts.items():
        expected, got = prompt.steps, candidate.prompts[name].steps
        if len(expected) != len(got):
            raise ValueError(f"{rung} was led along {len(got)} of the {len(expected)} tokens of prompt {name}")
        total += len(expected)
        differences = (_difference(expected, got, at, name, noise) for at in range(len(expected)))
        found += [difference for difference in differences if difference]
    defects = sum(difference["kind"] == "defect" for difference in found)
    first = min(found, key=lambda difference: difference["kind"] != "defect", default=None)
    return Generation(rung, total - len(found), len(found) - defects, defects, total, first)


def _difference(expected: Steps, got: Steps, at: int, prompt: str, noise: float) -> dict[str, Any] | None:
    """How the two differ at step ``at`` of a prompt; nothing if they do not."""
    ours, theirs = got.chosen[at], expected.chosen[at]
    margin = expected.margin(at, ours)
    where = {"at": at, "prompt": prompt, "margin": margin}
    if ours != theirs:
        kind = "tie" if margin <= 2 * noise else "defect"
        cause = f"chooses {ours} instead of {theirs}, which the reference prefers by {margin:.4g}"
    elif got.ends[at] != expected.ends[at]:
        kind = "defect"
        stops, goes_on = ("reference", "rung") if expected.ends[at] else ("rung", "reference")
        cause = f"{theirs} ends the text for the {stops}, the {goes_on} goes on"
    else:
        return None
    return {**where, "kind": kind, "cause": cause}
