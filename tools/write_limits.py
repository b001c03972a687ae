"""Write docs/limits.md from the table of limits, so that the two cannot differ (a test holds them together).

python tools/write_limits.py docs/limits.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from parity.compare.limits import (
    ENCODER_LIMITS,
    FLOAT_LIMITS,
    ORIGINAL_LIMITS,
    OWN_LOSS_LIMITS,
    RECIPE_LIMITS,
    SIBLING_RATIO,
    STORED_LIMITS,
    Limit,
)

HEADER = """\
# Limits

Written by `python tools/write_limits.py docs/limits.md` from `parity/compare/limits.py`, the only place with
thresholds.

## Float rungs

The unit is the original's own rounding. The original runs once in float64 (the oracle) and once in float32; the
relative L2 distance between their logits is the noise floor of this model on these prompts. `floor_ratio` is a rung's
distance to the oracle over that floor, for prefill and for decode separately; the larger of the two is judged.

Every rung decodes token by token. Only the oracle takes what is forced after a prompt in one call on its filled cache:
in float64 that is the same to 1e-13, which a test holds every preset to, and costs a fraction.

Where the original happens to be exact, or nearly (one token, weights that are powers of two), its own distance says
nothing of what another correct evaluation loses. No floor, neither over all positions nor at the worst one, counts as
less than u sqrt(n): u = 2^-24 is float32's unit roundoff, n the number of roundings that every value goes through in a
row, counted from the model's configuration. They are two additions a block (three in a decoder that reads an encoder),
the scale of the embedding, the last norm, the head, its bias, scale or soft-cap; for an encoder, what makes its stream,
its blocks, its last norm, its projector. Independent roundings of mean zero add up as the root of their number, not as
their number ([Higham and Mary 2019](https://doi.org/10.1137/18M1226312)). Over the tiny presets this is 0.22 to 0.79 of
the measured floor, but for what T5 makes of its start token, 1.21 (small) and 0.99 (base): a floor that is measured at
eight positions, all of them of one token. At full size it is 0.60 to 0.94, and 1.09 for T5 small. A port that rounds as
an ordinary original does (up to 4.5 times the least floor) is within the limit of 8 beside an original that is exact.

At the worst position, the error is relative to the position's own logits, or to a tenth of the typical ones (root mean
square) where its own are smaller: where nearly everything cancels, rounding is as large as elsewhere, and a floor
relative to what is left would have no bound and hide a mistake at every other position.
"""

ORIGINAL = """
A rung also fails when it generates something else. The oracle generates freely; every other rung is led along what the
oracle said, and its own choice is recorded at each step, so one difference does not make all that follows different.
Another choice is a *tie*, and says nothing, where the oracle's own choice is ahead of the rung's by at most twice the
rung's largest logit error on the forced positions; else it is a *defect*. Choosing the same token is a defect too where
one of the two takes it for the end of the text. The oracle's end tokens are those of its own library, ours are read
from the checkpoint folder by our own reader. Ties and defects of quantized rungs are counted and not judged.

The original itself is held to:
"""

QUANTIZED = """
## Quantized rungs

Quantization changes the numbers on purpose; what must stay is the distribution of the next token. KL is KL(oracle ||
rung) in nats; `top1_agreement_clear` leaves out positions where the oracle's two best logits are within 0.1, and
`perplexity_ratio` is over the forced continuations. Each limit is about three times the worst KL that was measured,
twice the worst loss of agreement, three times the worst change of perplexity: far from what a sound file does, far
below what a broken one does.

For orientation, published figures for trained models: a good 8-bit export has a perplexity ratio near 1.0004; good
4-bit formats have a mean KL of 0.01 to 0.05 and agree on 90 to 95 % of best tokens. The tiny presets have a few hundred
rows and a few dozen channels, so less averages out in them; at full size the same drawing gives 0.05 to 0.08 at 4 bits
([measured](performance.md)).

A set of prompts that is too small to notice what a limit forbids is an ERROR ([how that is known](statistics.md)).

A model may lose more to a recipe than the presets that these limits were measured on: rounded activations cost more
where they have outliers, and add up over the layers. So a rung that is outside of its limits in nothing but these
figures, below a `reauthored` or `float` rung that was run and is sound, is held to what its **recipe by itself** loses.
The re-authored model is run on the same prompts with every weight rounded as the file has it and, for a dynamic recipe,
whatever is multiplied with a weight rounded to eight bits as the runtime does; nothing of the quantizer, the converter
or the runtime is in it. Not where the file has fewer bits than the recipe wanted, the recipe moves weights on purpose,
or the prompts are too few. The rung may then lose, of what counts as loss (disagreement, not agreement):

{own}

Its perplexity may differ by what the recipe's own does and by what these prompts would notice as a change. A limit
never becomes narrower in this way, and never wider than that of the next coarser recipe of this page. The report has
the recipe's figures as `own_loss` of the edge, and such a limit with them as its reason.

A recipe that is not in the table is held to the plainest recipe with the same weight bits (16, 8 or 4). For fewer bits
no limits are known, and the verdict is ERROR.
"""


STORED = """\
## What is stored of weights

Every recipe that rounds is also held to what can be read off the file without running it, weight by weight:
"""

ENCODERS = """\
## Encoders of quantized rungs

What an encoder makes is no distribution; it is judged by its relative distance to the oracle's. On float rungs it is
held to the limits above, in units of the original's own rounding of the same rows.
"""

STAGES = """\
## Stages

`parity bisect` measures every stage by itself, fed what the reference's stages made before it. A stage of a float rung
is held to the limits of float rungs, in units of what float32 costs the reference's own stage on the same inputs. The
stages of sound tiny presets of every kind lie between 0 and 2.7 (1.2 at most before the conversion), their worst rows
below 2.7.

A stage of a quantized rung may lose as much as its recipe allows a whole encoder, above: an encoder is a few stages
that hand on rows of the stream, and rounding adds up along them, so a stage by itself can only lose less. Where all
keep to that, one is still named if it stands out among its siblings:
"""


def rows(limits: Sequence[Limit]) -> Iterator[str]:
    """A Markdown table of limits."""
    yield "| metric | limit | reason |"
    yield "|---|---|---|"
    for limit in limits:
        bound = limit.bound
        shown = f"{bound[0]:g} to {bound[1]:g}" if isinstance(bound, list) else f"{bound:g}"
        word = "" if isinstance(bound, list) else "at least " if limit.bound == limit.least else "at most "
        yield f"| `{limit.metric}` | {word}{shown} | {limit.reason} |"


def document() -> str:
    """The whole page."""
    quantized = QUANTIZED.format(own="\n".join(rows(OWN_LOSS_LIMITS)))
    lines = [HEADER, *rows(FLOAT_LIMITS), ORIGINAL, *rows(ORIGINAL_LIMITS), quantized]
    for recipe, limits in RECIPE_LIMITS.items():
        lines += [f"### `{recipe}`", "", *rows(limits), ""]
    lines += [STORED, *rows(STORED_LIMITS), "", ENCODERS]
    for recipe, limits in ENCODER_LIMITS.items():
        lines += [f"### `{recipe}`, what the encoder made", "", *rows(limits), ""]
    lines += [STAGES, *rows([SIBLING_RATIO])]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
