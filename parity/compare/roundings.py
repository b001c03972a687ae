"""How many roundings in a row every value of a model's output has been through, at the least.

``u = 2^-24`` is float32's unit roundoff. After ``n`` roundings in a row whose errors are independent, of mean zero and
of at most ``u`` each, a relative error is bounded by ``c u sqrt(n)`` with a probability that grows fast with ``c``
(Higham and Mary 2019, https://doi.org/10.1137/18M1226312), where the certain bound is ``n u``. With ``c =
1`` this is the size of the error that any float32 evaluation of the same sums must be allowed, in whatever order it
adds, be the original's own by chance (or because all its values are powers of two) smaller, or nothing.

What counts is the path that no evaluation gets around, the residual stream: what makes it, two or three additions a
block, its last norm, the head. A norm and a matrix product count as one rounding each, the least that they can be; the
roundings inside the blocks' branches are left out, because how much of them is heard depends on the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from models.authoring.config import (
    DecoderConfig,
    EncoderDecoderConfig,
    ModelConfig,
    SiglipConfig,
    VisionLanguageConfig,
    WindowedVisionConfig,
)
from parity.compare.limits import UNIT_ROUNDOFF
from parity.trace import PHASES

#: The last norm, and the product with the head.
_NORM_AND_HEAD = 2


def least_floors(config: ModelConfig) -> Mapping[str, float]:
    """The least that a noise floor counts as, relative, for each phase; the encoder, where there is one, is a phase."""
    counts = dict.fromkeys(PHASES, logit_roundings(config))
    if encoder := encoder_roundings(config):
        counts["encoder"] = encoder
    return {phase: UNIT_ROUNDOFF * math.sqrt(count) for phase, count in counts.items()}


def logit_roundings(config: ModelConfig) -> int:
    """From a token's row to its logits. What comes from an encoder is read through branches, and left out."""
    match config:
        case DecoderConfig():
            extras = (config.embedding_scale != 1.0, config.head_bias, config.final_softcap is not None)
            return 2 * len(config.blocks) + _NORM_AND_HEAD + sum(extras)
        case EncoderDecoderConfig():
            # Attention to itself, attention to the encoder, feed-forward.
            return 3 * len(config.decoder.blocks) + _NORM_AND_HEAD + (config.head_scale != 1.0)
        case VisionLanguageConfig():
            return logit_roundings(config.text)


def encoder_roundings(config: ModelConfig) -> int:
    """From what an encoder is given to its rows; 0 where there is none."""
    match config:
        case DecoderConfig():
            return 0
        case EncoderDecoderConfig():
            # Three convolutions, the first of which is normalized.
            stem = len(config.stem.kernels) + 1 if config.stem else 0
            return stem + 2 * len(config.encoder.blocks) + 1
        case VisionLanguageConfig(vision=SiglipConfig(stack=stack)):
            # Patches, their positions; the last norm, the projector; the biases of both products.
            return 2 * len(stack.blocks) + 6
        case VisionLanguageConfig(vision=WindowedVisionConfig(blocks=blocks)):
            # Patches; the last norm, the merger's two products and their biases.
            return 2 * len(blocks) + 6
    raise AssertionError(config)
