"""What only certain prompts show: bugs at the edges of calls, of windows, of the cache, of a batch."""

from __future__ import annotations

from collections.abc import Callable

from models.authoring.config import DecoderConfig, Llama3Scaling
from parity.faults.catalogue.masks import CACHE, MASK, WRITTEN
from parity.faults.catalogue.positions import ROPE
from parity.faults.fault import OUTSIDE, Fault, Subject
from parity.faults.planting import Rewrite

DRIVER = "parity.runners.driver"


def _text_alone(stage: str | None = None) -> Callable[[Subject], str | None]:
    """Where prompts are text and nothing else, in one set of frequencies whatever their length."""

    def at(subject: Subject) -> str | None:
        plain = isinstance(subject.config, DecoderConfig) and subject.config.boundary is None
        return (subject.causal if stage is None else stage) if plain else None

    return at


def _beyond_training(subject: Subject) -> str | None:
    scaled = isinstance(subject.config, DecoderConfig) and isinstance(subject.config.rope.scaling, Llama3Scaling)
    return subject.causal if scaled else None


def _windowed(subject: Subject) -> str | None:
    return subject.windowed if isinstance(subject.config, DecoderConfig) else None


FAULTS = (
    Fault(
        name="later chunk one position off",
        group="positions",
        what="The second piece of a prompt begins at the last position of the first.",
        at=_text_alone(OUTSIDE),
        arguments=("--prompts", "signatures"),
        rewrites=(
            Rewrite(
                DRIVER,
                "positions = np.arange(self.position, end, dtype=np.int32)",
                "positions = np.arange(self.position - bool(chunk.start), end - bool(chunk.start), dtype=np.int32)",
            ),
        ),
    ),
    Fault(
        name="answers read from the padding",
        group="runtime and inputs",
        what="Of a call that is longer than what it was given, the last logits are read.",
        at=_text_alone(OUTSIDE),
        arguments=("--prompts", "padding"),
        rewrites=(
            Rewrite(DRIVER, "        return logits[: chunk.count]\n", "        return logits[-chunk.count :]\n"),
        ),
    ),
    Fault(
        name="positions end with the original context",
        group="positions",
        what="Positions beyond the length that the model was first trained on are all taken for the last of it.",
        at=_beyond_training,
        tiny_only="others were trained on more positions than a check has",
        arguments=("--prompts", "beyond"),
        rewrites=(
            Rewrite(
                ROPE,
                "positions = positions.to(frequencies.dtype)",
                "positions = positions.to(frequencies.dtype).clamp(max=63)",
            ),
        ),
    ),
    Fault(
        name="second turn forgets the first answer",
        group="masks and cache",
        what="The tokens of a second turn are put where the answer to the first was.",
        at=_text_alone(OUTSIDE),
        arguments=("--prompts", "turns"),
        rewrites=(
            Rewrite(
                DRIVER,
                "    def extend(self, tokens: Sequence[int]) -> Logits:\n",
                "    def extend(self, tokens: Sequence[int]) -> Logits:\n"
                "        self.position = len(self.prompt.prompt)\n",
            ),
        ),
    ),
    Fault(
        name="last slot never written",
        group="masks and cache",
        what="What would go to the last slot of the cache is moved back by one.",
        at=_text_alone(),
        arguments=("--prompts", "full"),
        rewrites=(
            Rewrite(
                CACHE,
                WRITTEN,
                "    start = min(start, cache.shape[1] - 1 - count)\n    updated[:, start : start + count] = new\n",
            ),
        ),
    ),
    Fault(
        name="batch shares the first row's keys",
        group="masks and cache",
        what="Every row of a batch has the keys and values of the first.",
        at=_text_alone(OUTSIDE),
        arguments=("--prompts", "batch"),
        rewrites=(Rewrite(CACHE, WRITTEN, "    updated[:, start : start + count] = new[:1]\n"),),
    ),
    Fault(
        name="unknown tokens are nothing",
        group="runtime and inputs",
        what="The token for unknown words is embedded as zeros.",
        at=_text_alone("embed"),
        arguments=("--prompts", "special"),
        rewrites=(
            Rewrite(
                "models.authoring.decoder",
                "        hidden = self.tokens(tokens)\n",
                "        hidden = self.tokens(tokens) * (tokens != 0)[..., None]\n",
            ),
        ),
    ),
    Fault(
        name="window begins with the chunk",
        group="masks and cache",
        what="In later pieces of a prompt, a window is shorter by one.",
        at=_windowed,
        arguments=("--prompts", "window"),
        rewrites=(
            Rewrite(
                MASK,
                "slots[None, :] > positions[:, None] - window",
                "slots[None, :] > positions[:, None] - window + ((positions[0] > 0) & (len(positions) > 1))",
            ),
        ),
    ),
)
