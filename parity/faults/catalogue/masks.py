"""Masks and cache: who sees whom, and what is kept where."""

from __future__ import annotations

from models.authoring.config import EncoderDecoderConfig, VisionLanguageConfig
from parity.faults.fault import SIGNATURES, Fault, Subject
from parity.faults.planting import Rewrite

MASK = "models.layers.mask"
CACHE = "models.layers.kv_cache"
VISIBLE = "    visible = slots[None, :] <= positions[:, None]\n"
WRITTEN = "    updated[:, start : start + count] = new\n"


def _causal(subject: Subject) -> str:
    return subject.causal


def _causal_prompt(subject: Subject) -> str | None:
    """Where prompts are taken in several tokens that must not see those after them."""
    return None if _prefix(subject) else subject.prompted


def _prefix(subject: Subject) -> str | None:
    both_ways = isinstance(subject.config, VisionLanguageConfig) and subject.config.bidirectional_prefix
    return subject.causal if both_ways else None


def _windowed_prefix(subject: Subject) -> str | None:
    return subject.windowed if _prefix(subject) else None


FAULTS = (
    Fault(
        name="one future position leaks",
        group="masks and cache",
        what="A token also sees the one after it.",
        at=_causal,
        rewrites=(Rewrite(MASK, VISIBLE, "    visible = slots[None, :] <= positions[:, None] + 1\n"),),
    ),
    Fault(
        name="no causal mask",
        group="masks and cache",
        what="The tokens of a prompt all see each other.",
        at=_causal_prompt,
        rewrites=(Rewrite(MASK, VISIBLE, "    visible = (slots <= positions[-1])[None].expand(len(positions), -1)\n"),),
    ),
    Fault(
        name="empty slots are seen",
        group="masks and cache",
        what="The cache is not masked beyond the current position.",
        at=_causal,
        rewrites=(
            Rewrite(
                MASK,
                VISIBLE,
                "    visible = (slots[None, :] <= positions[:, None]) | (slots > positions[-1])[None, :]\n",
            ),
        ),
    ),
    Fault(
        name="window off by one",
        group="masks and cache",
        what="A window reaches one position further back.",
        at=lambda subject: subject.windowed,
        rewrites=(
            Rewrite(
                MASK,
                "slots[None, :] > positions[:, None] - window",
                "slots[None, :] >= positions[:, None] - window",
            ),
        ),
    ),
    Fault(
        name="window in the other layers",
        group="masks and cache",
        what="The layers that look through a window and those that see everything are swapped.",
        at=lambda subject: subject.windowed,
        rewrites=(Rewrite("models.gemma", "layer % 2 == 0", "layer % 2 == 1"),),
    ),
    Fault(
        name="window dropped",
        group="masks and cache",
        what="Every layer sees everything.",
        at=lambda subject: subject.windowed,
        rewrites=(Rewrite(MASK, "    if window is not None:", "    if False:"),),
    ),
    Fault(
        name="prefix made causal",
        group="masks and cache",
        what="The tokens of a prompt with a picture see only those before them.",
        at=_prefix,
        rewrites=(
            Rewrite(
                "models.authoring.vision_language",
                'prefix = self.config.bidirectional_prefix and name != "decode"',
                'prefix = self.config.bidirectional_prefix and name == "decode"',
            ),
        ),
    ),
    Fault(
        name="prefix within the window only",
        group="masks and cache",
        what="Where layers have windows, a prompt does not see all of itself.",
        at=_windowed_prefix,
        rewrites=(Rewrite(MASK, "    if prefix is not None:", "    if prefix is not None and window is None:"),),
    ),
    Fault(
        name="cache slot off by one",
        group="masks and cache",
        what="Keys and values are written one slot too far on.",
        at=_causal,
        rewrites=(
            Rewrite(
                CACHE,
                WRITTEN,
                "    start = min(start + 1, cache.shape[1] - count)\n    updated[:, start : start + count] = new\n",
            ),
        ),
    ),
    Fault(
        name="stale cache",
        group="masks and cache",
        what="What a decoded token adds is not kept.",
        at=_causal,
        rewrites=(Rewrite(CACHE, WRITTEN, "    if count > 1:\n        updated[:, start : start + count] = new\n"),),
    ),
    Fault(
        name="prompt cached back to front",
        group="masks and cache",
        what="A prompt of several tokens is written back to front.",
        at=lambda subject: subject.prompted,
        rewrites=(Rewrite(CACHE, WRITTEN, "    updated[:, start : start + count] = new.flip(1)\n"),),
    ),
    Fault(
        name="padding is seen",
        group="masks and cache",
        what="An encoder that is given more room than the source needs lets the rest be seen.",
        at=lambda subject: SIGNATURES if isinstance(subject.config, EncoderDecoderConfig) else None,
        edge="float",
        rewrites=(
            Rewrite(
                MASK,
                "torch.arange(length, dtype=count.dtype) < count, 0.0, BLOCKED)",
                "torch.arange(length, dtype=count.dtype) < count, 0.0, 0.0)",
            ),
        ),
    ),
)
