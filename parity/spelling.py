"""How figures are spelled: one figure, one spelling, in every rendering and in every cause."""

from __future__ import annotations

import math

#: What stands where there is no figure, or none that means anything.
DASH = "—"
#: Figures that are better when larger: a lone bound of theirs is the least they may be.
LARGER_IS_BETTER = frozenset({"cosine", "top1_agreement", "top1_agreement_clear", "top5_overlap"})
#: Figures that are parts of a whole.
SHARES = frozenset({"top1_agreement", "top1_agreement_clear", "top5_overlap", "flips", "typical_confidence"})


def spelled(metric: str, value: object) -> str:
    """A figure as it is always shown: a share in percent, a ratio of perplexities by ``ratio``, else by ``figure``."""
    if metric in SHARES:
        return percent(value)
    return ratio(value) if metric == "perplexity_ratio" else figure(value)


def limit_spelled(metric: str, bound: object) -> str:
    """A limit as it is always shown, never rounded: ``≤ 8``, ``≤ 25%``, ``≥ 90%``, ``0.955 to 1.045``."""
    ends = [_exactly(metric, end) for end in (bound if isinstance(bound, (list, tuple)) else [bound])]
    if len(ends) > 1:
        return " to ".join(ends)
    return f"{'≥' if metric in LARGER_IS_BETTER else '≤'} {ends[0] if ends else DASH}"


def _exactly(metric: str, bound: object) -> str:
    found = number(bound)
    if found is None or not math.isfinite(found * 100):
        return DASH
    return f"{found * 100:.9g}%" if metric in SHARES else f"{found:.9g}"


def number(value: object) -> float | None:
    """``value`` if it is a finite number; a record read back has null for those that were not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def figure(value: object) -> str:
    """Three significant digits; very small and very large ones as ``4.2e-12``."""
    found = number(value)
    if found is None:
        return DASH
    size = abs(found)
    if size == 0:
        return "0"
    if 1e-3 <= size < 999.5:
        return f"{found:#.3g}".rstrip(".")
    if 1 <= size < 99_999.5:
        return f"{found:.0f}"
    mantissa, exponent = f"{found:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: object) -> str:
    """One decimal. 100% means all of them, and 0% none: rounding never says so of a share that is only near."""
    found = number(value)
    if found is None or not math.isfinite(found * 100):
        return DASH
    if found in (0, 1):
        return f"{found:.0%}"
    return f"{min(max(found, 0.001), 0.999):.1%}" if 0 < found < 1 else f"{found:.1%}"


def ratio(value: object) -> str:
    """Four decimals while it is near one: perplexities differ little."""
    found = number(value)
    return figure(found) if found is None or not 0.1 <= found < 10 else f"{found:.4f}"


def seconds(value: object) -> str:
    """As many decimals as matter to a person who waits."""
    found = number(value)
    return DASH if found is None else f"{found:.{2 if found < 1 else 1 if found < 100 else 0}f}"


def whole(value: object) -> str:
    """No decimals."""
    found = number(value)
    return DASH if found is None else f"{found:.0f}"
