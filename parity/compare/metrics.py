"""How far apart two traces are. Pure functions, float64 inside, no thresholds, no files.

``reference`` and ``candidate`` are logits ``[P, V]`` at the same positions. Everything is computed per position first
(``compare_positions``) and summarized over any set of positions afterwards (``summarize``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Logits = NDArray[np.floating]

#: Below this distance between the reference's two best logits, which of them wins says little.
NEAR_TIE = 0.1
#: A position whose reference is shorter than this part of the typical one (root mean square) is measured against this
#: part of it. Rounding is as large as what was added, not as what is left: where nearly all of it cancels, the error
#: relative to the rest has no bound, and a floor taken there would hide mistakes at every other position.
FAINT = 0.1
#: Logits that are looked at together, whole positions of them: what is worked out on the way stays in the processor's
#: cache, and takes no memory however long a prompt is.
TOGETHER = 1 << 18


@dataclass(frozen=True)
class PositionErrors:
    """Per position ``[P]``. Squares and sums are over the vocabulary; KL is in nats."""

    squared_error: Array
    squared_reference: Array
    squared_candidate: Array
    product: Array
    abs_error_sum: Array
    abs_error_max: Array
    kl: Array
    same_top1: NDArray[np.bool_]
    top5_overlap: Array
    margin: Array
    vocabulary: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kl)


def compare_positions(reference: Logits, candidate: Logits) -> PositionErrors:
    """Everything that is measured at each position.

    Raises:
        ValueError: different shapes, no positions, or values that are not finite. Nothing is ever mapped to zero.
    """
    if reference.shape != candidate.shape or reference.ndim != 2:
        raise ValueError(f"shapes {reference.shape} and {candidate.shape} cannot be compared")
    if not reference.size:
        raise ValueError("nothing to compare")
    rows = max(1, TOGETHER // reference.shape[1])
    starts = range(0, len(reference), rows)
    return concatenate(_compare(reference[start : start + rows], candidate[start : start + rows]) for start in starts)


def _compare(reference: Logits, candidate: Logits) -> PositionErrors:
    ref, cand = reference.astype(np.float64), candidate.astype(np.float64)
    if not (np.isfinite(ref).all() and np.isfinite(cand).all()):
        raise ValueError("NaN or infinity in the logits")
    error = cand - ref
    log_p = log_softmax(ref)
    best, others = _best(ref), _best(cand)
    return PositionErrors(
        squared_error=np.square(error).sum(axis=1),
        squared_reference=np.square(ref).sum(axis=1),
        squared_candidate=np.square(cand).sum(axis=1),
        product=(ref * cand).sum(axis=1),
        abs_error_sum=np.abs(error).sum(axis=1),
        abs_error_max=np.abs(error).max(axis=1),
        kl=_kl(log_p, log_softmax(cand)),
        same_top1=ref.argmax(axis=1) == cand.argmax(axis=1),
        top5_overlap=np.asarray(
            [len(np.intersect1d(a, b, assume_unique=True)) / len(a) for a, b in zip(best, others, strict=True)]
        ),
        margin=_margin(np.take_along_axis(ref, best, axis=1)),
        vocabulary=np.full(len(ref), ref.shape[1]),
    )


def _best(logits: Array) -> NDArray[np.intp]:
    """The ids of the five best tokens, or of all if there are fewer; the very best ones last."""
    first = max(0, logits.shape[1] - 5)
    best = np.argpartition(logits, first, axis=1)[:, first:]
    return np.take_along_axis(best, np.take_along_axis(logits, best, axis=1).argsort(axis=1), axis=1)


def concatenate(parts: Iterable[PositionErrors]) -> PositionErrors:
    """The positions of several comparisons as one."""
    parts = list(parts)
    names = [field.name for field in fields(PositionErrors)]
    return PositionErrors(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def log_softmax(logits: Array) -> Array:
    """Natural log of the softmax over the last axis, stable for any finite input."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kl_divergence(reference: Array, candidate: Array) -> Array:
    """KL(reference || candidate) of the next-token distributions, nats, per position."""
    return _kl(log_softmax(reference), log_softmax(candidate))


def _kl(log_p: Array, log_q: Array) -> Array:
    """It cannot be negative; rounding of the order of 1e-17 is cut off."""
    result: Array = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=-1), 0.0)
    return result


def entropy(logits: Array) -> Array:
    """Entropy of the next-token distribution, nats, per position."""
    log_p = log_softmax(logits.astype(np.float64))
    result: Array = -(np.exp(log_p) * log_p).sum(axis=-1)
    return result


def _margin(best: Array) -> Array:
    """Between the two best of logits that are sorted, the best last."""
    if best.shape[1] == 1:
        return np.full(len(best), np.inf)
    result: Array = best[:, -1] - best[:, -2]
    return result


def rel_l2(errors: PositionErrors) -> float:
    """``||candidate - reference|| / ||reference||`` over all positions."""
    return float(np.sqrt(errors.squared_error.sum() / errors.squared_reference.sum()))


def worst_position_rel_l2(errors: PositionErrors) -> float:
    """The largest relative L2 error of any single position, faint ones relative to ``FAINT`` of the typical norm.

    A reference of nothing but zeros stays no number, or infinity: it was no answer.
    """
    squared = errors.squared_reference
    counted = np.where(squared > 0, np.maximum(squared, FAINT**2 * squared.mean()), 0.0)
    return float(np.sqrt((errors.squared_error / counted).max()))


def distances(errors: PositionErrors) -> dict[str, Any]:
    """How far apart two outputs of any meaning are, over a set of positions."""
    return {
        "positions": len(errors),
        "rel_l2": rel_l2(errors),
        "worst_position_rel_l2": worst_position_rel_l2(errors),
        "nmse": float(errors.squared_error.sum() / errors.squared_reference.sum()),
        "max_abs": float(errors.abs_error_max.max()),
        "mean_abs": float(errors.abs_error_sum.sum() / errors.vocabulary.sum()),
        "cosine": float(
            errors.product.sum() / np.sqrt(errors.squared_reference.sum() * errors.squared_candidate.sum())
        ),
    }


def summarize(errors: PositionErrors) -> dict[str, Any]:
    """The report's figures over a set of positions (``perplexity_ratio`` and ``floor_ratio`` come from elsewhere)."""
    clear = errors.margin >= NEAR_TIE
    return {
        **distances(errors),
        "kl_mean": float(errors.kl.mean()),
        "kl_p99": float(np.quantile(errors.kl, 0.99)),
        "kl_max": float(errors.kl.max()),
        "top1_agreement": float(errors.same_top1.mean()),
        "top1_agreement_clear": float(errors.same_top1[clear].mean()) if clear.any() else None,
        "near_ties": int((~clear).sum()),
        "top5_overlap": float(errors.top5_overlap.mean()),
    }


def negative_log_likelihood(logits: Logits, tokens: NDArray[np.integer]) -> Array:
    """Nats that the model pays for each of ``tokens`` ``[P]`` under ``logits`` ``[P, V]``."""
    log_p = log_softmax(logits.astype(np.float64))
    result: Array = -log_p[np.arange(len(tokens)), tokens]
    return result
