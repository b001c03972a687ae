"""Greedy generation against the reference's, token id by token id: where a rung chooses otherwise, and what that means.

The reference generates freely. Every other rung is led along what the reference said, and at each step its own choice
is recorded: so one difference does not make all that follows different, and every step is a comparison of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parity.trace import Steps, Trace


@dataclass(frozen=True)
class Generation:
    """Of ``of`` steps, ``matches`` have the reference's token; the others are ``ties``, ``defects`` or ``changed``."""

    rung: str
    matches: int
    ties: int
    defects: int
    changed: int
    of: int
    first_difference: dict[str, Any] | None


#: The more serious a difference, the sooner it is reported.
_GRAVITY = ("defect", "changed", "tie")


def compare_generation(
    rung: str, reference: Trace, candidate: Trace, noise: Callable[[str], float] | None
) -> Generation:
    """Compare choices step by step; the gravest difference is reported, the first of its kind.

    ``noise`` is what float32 evaluation does to any logit of a prompt, by its id: the floor's, never the candidate's
    own error. A different choice is a *tie* where the reference's own is ahead by at most twice that, as two logits
    that are closer can change places; else it is a *defect*. A rung without ``noise`` is quantized: it has *changed*
    the choice, and the reference's margin tells by how much. A choice that is not among those which the reference keeps
    counts as far away as the last of them. The same choice is a defect where one of the two takes it for the end of the
    text, and the other does not.
    """
    total = 0
    found: list[dict[str, Any]] = []
    for name, prompt in reference.prompts.items():
        expected, got = prompt.steps, candidate.prompts[name].steps
        if len(expected) != len(got):
            raise ValueError(f"{rung} was led along {len(got)} of the {len(expected)} tokens of prompt {name}")
        total += len(expected)
        tie = None if noise is None else 2 * noise(name)
        differences = (_difference(expected, got, at, name, tie) for at in range(len(expected)))
        found += [difference for difference in differences if difference]
    counts = {kind: sum(difference["kind"] == kind for difference in found) for kind in _GRAVITY}
    first = min(found, key=lambda difference: _GRAVITY.index(difference["kind"]), default=None)
    return Generation(rung, total - len(found), counts["tie"], counts["defect"], counts["changed"], total, first)


def _difference(expected: Steps, got: Steps, at: int, prompt: str, tie: float | None) -> dict[str, Any] | None:
    """How the two differ at step ``at`` of a prompt; nothing if they do not."""
    ours, theirs = got.chosen[at], expected.chosen[at]
    margin = expected.margin(at, ours)
    where = {"at": at, "prompt": prompt, "margin": margin}
    if ours != theirs:
        kind = "changed" if tie is None else "tie" if margin <= tie else "defect"
        cause = f"chooses {ours} instead of {theirs}, which the reference prefers by {margin:.3g}"
    elif got.ends[at] != expected.ends[at]:
        kind = "defect"
        stops, goes_on = ("reference", "rung") if expected.ends[at] else ("rung", "reference")
        cause = f"{theirs} ends the text for the {stops}, the {goes_on} goes on"
    else:
        return None
    return {**where, "kind": kind, "cause": cause}
