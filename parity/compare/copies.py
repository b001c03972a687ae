"""Rungs that did not compute: their numbers are, bit for bit, those of something else.

A runner that is wired to the wrong file, a cache of answers, or a conversion that hands out what it should be compared
to would pass every limit with the best of figures. Floating point gives it away. Sums in another order, or with rounded
weights, do not come out equal over thousands of logits: measured on all tiny presets with all six recipes, no rung ever
gave the numbers of another or the oracle's rounded to float32. The re-authored model may give the original's all the
same: both are PyTorch, and a port may well call the same operators in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from parity.compare.verdict import Edge, Verdict

#: Weights of so many bits may lose nothing: published ones often are float16, or fit it.
LOSSLESS_BITS = 16


@dataclass(frozen=True)
class Numbers:
    """What a rung gave: ``digest`` of its logits as float32, of ``file`` (its SHA-256; none for a PyTorch model).

    ``bits`` is the smallest precision of its weights.
    """

    rung: str
    digest: str
    file: str | None = None
    bits: int = 32


def copied(candidate: Numbers, reference: str, others: Iterable[Numbers], *, noisy: bool) -> str | None:
    """Why ``candidate`` cannot have computed its numbers itself, if they are of ``reference`` or of other rungs.

    ``reference`` is the digest of the reference rounded to float32. Nothing is concluded where the original itself is
    not ``noisy``: a model that is exact on its inputs gives the same numbers however it is computed.
    """
    if not noisy:
        return None
    if candidate.digest == reference:
        return f"{candidate.rung} gave the reference's own numbers, which no float32 computation does; run it again"
    if candidate.file is None:
        return None
    same = [other.rung for other in others if candidate.digest == other.digest and not _alike(candidate, other)]
    return f"{candidate.rung} gave the very numbers of {same[0]}, bit for bit; see what file it ran" if same else None


def _alike(candidate: Numbers, other: Numbers) -> bool:
    """Whether two files have reason to give the same numbers.

    Two recipes can come to the same file (blocks of 128 where only 32 fit); 16 bits can hold the weights exactly.
    """
    if other.file is None:
        return False
    return candidate.file == other.file or min(candidate.bits, other.bits) >= LOSSLESS_BITS


def denouncing(edges: Sequence[Edge], cause: str | None) -> list[Edge]:
    """A rung's edges, all of them ERRORs if it copied."""
    return [replace(edge, verdict=Verdict.ERROR, cause=cause) for edge in edges] if cause else list(edges)
