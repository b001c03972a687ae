"""Write docs/limits.md from the tables of limits, so that the two cannot differ (a test holds them together).

python tools/write_limits.py docs/limits.md
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from parity.compare.budgets import TIERS, default_budget
from parity.compare.floor import CONFIDENCE, FIRST_DRAWS, ILL_CONDITIONED, MOST_DRAWS
from parity.compare.limits import ENCODER_LIMITS, LIMITS, STAGE_LIMITS, STORED_LIMITS, Limit
from parity.compare.sampling import OUTLIER, TYPICAL_CONFIDENCE
from parity.spelling import limit_spelled

HEADER = """\
# Limits

Written by `python tools/write_limits.py docs/limits.md` from `parity/compare/limits.py` and
`parity/compare/budgets.py`, the only places with thresholds.

Every edge answers one question, and has the limits of that question.

| question | asked of | against |
|---|---|---|
| port | `reauthored64`, our model in float64 | the original in float64, the oracle |
| rounding | `original`, `reauthored`, `float` | the oracle |
| fidelity | a quantized file | PyTorch with the numbers that the file stores |
| quality | a quantized file | the oracle |

The first three ask whether something computes what it should. Their unit is the noise floor, and no figure of theirs
depends on how good a model is. The last one asks what a recipe costs, and has a budget.
"""

FLOOR = f"""
## The noise floor

The re-authored model is run in float32 several times, and every sum is given a random error as large as adding its
terms one after the other would make it. A position's floor is the root mean square of the distances of these *draws*
to the same model in float64. So whatever amplifies rounding at a position amplifies the draws as well, and a ratio to
the floor means the same at a calm position as at a chaotic one. A prompt whose typical floor is {ILL_CONDITIONED:g}
times that of the typical prompt is called *ill-conditioned*.

There are {FIRST_DRAWS} draws, and up to {MOST_DRAWS} where a verdict depends on them: a ratio is decided when it
keeps or breaks its limit wherever the true floor lies, with {CONFIDENCE:.1%} confidence.

No floor counts as less than u sqrt(n), relative: u = 2^-24 is float32's unit roundoff, n the number of roundings that
every value goes through in a row, counted from the model's configuration. An evaluation that happens to be exact (one
token, weights that are powers of two) says nothing of what another one loses. The roundings are two additions a block
(three in a decoder that reads an encoder), the scale of the embedding, the last norm, the head, its bias, scale or
soft-cap; for an encoder, what makes its stream, its blocks, its last norm, its projector. Independent roundings of
mean zero add up as the root of their number ([Higham and Mary 2019](https://doi.org/10.1137/18M1226312)).

`floor_ratio` is the median over all positions, the larger of prefill and decode. `worst_position_ratio` is that of
the single worst position, so that one wrong position cannot hide among hundreds.
"""

QUESTIONS = {
    "port": """
## Port

The exact port is our model in float64, its tables and constants too. Its floor is float32's times 2^-29.
""",
    "rounding": """
## Rounding
""",
    "fidelity": """
## Fidelity

The reference is the re-authored model with every weight as the file stores it, and with activations rounded as the
runtime does where the recipe asks for that. The floor is of that model.
""",
}

GENERATION = """
A float rung also fails when it generates something else. The oracle generates freely; every other rung is led along
what the oracle said, and its own choice is recorded at each step, so one difference does not make all that follows
different. Another choice is a *tie*, and says nothing, where the oracle prefers its own by no more than rounding can
move two logits of that prompt, by the floor; never by the candidate's own error. Else it is a *defect*. Choosing the
same token is a defect too where one of the two takes it for the end of the text. The oracle's end tokens are those of
its own library, ours are read from the checkpoint folder by our own reader. A quantized rung has *changed* its
choice, which is counted and not judged.
"""

STORED = """
What can be read off the file without running it is judged as well, weight by weight:
"""

QUALITY = f"""
## Quality

A recipe changes the numbers on purpose. How much a model may lose is not a fact about the port, so it is a *budget*:
a tier, a project's own, or `--budget`.

`kl_typical` is what the median prompt loses, in nats per position: KL(oracle || rung). A prompt that amplifies
rounding decides for itself and for nobody else; one that loses more than {OUTLIER:g} times what the typical one does
is named as an *outlier*. `flips` is the share of positions with another best token, without those where the oracle's
two best logits are within 0.1. Both are held against the worse end of their interval: a budget is kept when other
prompts like these would keep it, the typical one with {TYPICAL_CONFIDENCE:.0%} confidence or more, which takes
{math.ceil(-math.log2(1 - TYPICAL_CONFIDENCE))} prompts.

Unless told otherwise a recipe is held to the tier of its smallest weights:
{{defaults}}.

What the recipe loses by itself, in PyTorch and without any file, is in the report as `own_loss` of the edge, and
never widens a limit. So "over budget" and "the file does what it says" can both be true, and the report says both.
"""

ENCODERS = """
## What encoders make

What an encoder makes is no distribution. Under port, rounding and fidelity it has the limits above, at each of its
rows. What a recipe may cost it is a relative distance to the oracle's rows. A recipe that is not in the table is held
to the plainest one with the same weight bits (16, 8 or 4). For fewer bits no limits are known, and the verdict is
ERROR.
"""

STAGES = """
## Stages

`parity bisect` measures every stage by itself, fed what the reference's stages made before it, in units of the noise
that float32 has in that stage on the same inputs (float64, for the exact port). A stage of a quantized rung is
compared with the same stage in PyTorch with the numbers that its file stores.
"""


def rows(limits: Sequence[Limit]) -> Iterator[str]:
    """A Markdown table of limits."""
    yield "| metric | limit | reason |"
    yield "|---|---|---|"
    for limit in limits:
        yield f"| `{limit.metric}` | {limit_spelled(limit.metric, limit.bound)} | {limit.reason} |"


def defaults() -> str:
    """Which tier a recipe has by its bits."""
    return ", ".join(f"`{default_budget(bits).name}` for {words}" for bits, words in _WORDS.items())


_WORDS = {16: "16 bits", 8: "8", 4: "4 and fewer"}


def document() -> str:
    """The whole page."""
    lines = [HEADER.rstrip("\n"), FLOOR.rstrip("\n")]
    for question, words in QUESTIONS.items():
        lines += [words, *rows(LIMITS[question])]  # type: ignore[index]
        lines += [GENERATION.rstrip("\n")] if question == "rounding" else []
    lines += [STORED, *rows(STORED_LIMITS), QUALITY.format(defaults=defaults()).rstrip("\n")]
    for tier in TIERS.values():
        lines += ["", f"### `{tier.name}`", "", *rows(tier.limits)]
    lines += [ENCODERS, "| recipe | `rel_l2` | reason |", "|---|---|---|"]
    for recipe, limits in ENCODER_LIMITS.items():
        lines += [f"| `{recipe}` | {limit_spelled(at.metric, at.bound)} | {at.reason} |" for at in limits]
    lines += [STAGES, *rows(STAGE_LIMITS)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
