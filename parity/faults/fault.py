"""What a fault is, what it can be planted in, and what the command line must then say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from models.authoring.config import (
    BlockConfig,
    DecoderConfig,
    EncoderDecoderConfig,
    MLPConfig,
    ModelConfig,
    RopeConfig,
    SiglipConfig,
    VisionLanguageConfig,
    WindowedVisionConfig,
)
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Operation
from models.registry import Model
from parity.compare.limits import EXACT, UNQUANTIZED, Question, question_of
from parity.faults.planting import Rewrite

T = TypeVar("T")

#: The weights that faults are planted in unless told otherwise.
TINY = "tiny"

Group = Literal[
    "weights", "positions", "masks and cache", "arithmetic", "conversion", "quantization", "runtime and inputs"
]


@dataclass(frozen=True)
class Subject:
    """A model to plant faults in: its tiny twin, or what other ``weights`` are, whose checkpoint is in ``folder``."""

    model: Model
    weights: str = TINY
    folder: Path | None = None

    @cached_property
    def config(self) -> ModelConfig:
        """Of the tiny twin, or of the checkpoint."""
        tiny = HFConfig(self.model.preset.values(tiny=True), self.model.name)
        return self.model.family.config_from(HFConfig.load(self.folder) if self.folder else tiny)

    @property
    def name(self) -> str:
        """What it is called where there are others."""
        return self.model.name if self.weights == TINY else f"{self.model.name} {self.weights}"

    @cached_property
    def operations(self) -> list[Operation]:
        """Its weight map."""
        return list(self.model.family.weight_map(self.config))

    @property
    def mlps(self) -> list[MLPConfig]:
        """Of every block, and of a merger."""
        return list(_parts(self.config, MLPConfig))

    @property
    def text(self) -> DecoderConfig | None:
        """The decoder-only model, alone or under a tower."""
        config = self.config
        if isinstance(config, VisionLanguageConfig):
            return config.text
        return config if isinstance(config, DecoderConfig) else None

    @property
    def vision(self) -> SiglipConfig | WindowedVisionConfig | None:
        """The tower."""
        return self.config.vision if isinstance(self.config, VisionLanguageConfig) else None

    @property
    def stacks(self) -> list[tuple[str, tuple[BlockConfig, ...], RopeConfig | None]]:
        """In the order they are run: what the stages of a stack's blocks are called, the blocks, how they rotate."""
        config = self.config
        if isinstance(config, DecoderConfig):
            return [("block", config.blocks, config.rope)]
        if isinstance(config, EncoderDecoderConfig):
            sides = {"encoder": config.encoder, "decoder": config.decoder}
            return [(name, side.blocks, side.rope) for name, side in sides.items()]
        tower = config.vision.stack if isinstance(config.vision, SiglipConfig) else config.vision
        return [("vision", tower.blocks, tower.rope), ("block", config.text.blocks, config.text.rope)]

    def block(self, test: Callable[[BlockConfig], bool] = lambda _: True) -> str | None:
        """The stage of the first block that passes the test."""
        found = (f"{name}_{i}" for name, blocks, _ in self.stacks for i, block in enumerate(blocks) if test(block))
        return next(found, None)

    @property
    def rotated(self) -> str | None:
        """The stage of the first block whose heads are rotated."""
        return next((f"{name}_0" for name, _, rope in self.stacks if rope), None)

    @property
    def capped(self) -> str | None:
        """The stage of the first block whose scores are bounded."""
        return self.block(lambda block: block.attention.softcap is not None)

    @property
    def windowed(self) -> str | None:
        """The stage of the first block whose attention reaches back over a window only."""
        return self.block(lambda block: block.attention.window is not None)

    @property
    def sequential(self) -> str | None:
        """The stage of the first block whose feed-forward comes after attention, with a norm of its own."""
        return self.block(lambda block: block.mlp_norm is not None)

    @property
    def prompted(self) -> str | None:
        """The stage of the first block that has a cache, where prompts are taken in calls of several tokens."""
        return self.causal if self.text else None

    @property
    def causal(self) -> str:
        """The stage of the first block that has a cache."""
        return f"{self.stacks[-1][0]}_0"

    @property
    def entrance(self) -> str:
        """The stage that everything begins with."""
        return "embed" if isinstance(self.config, DecoderConfig) else "stem"

    @property
    def embedding(self) -> str:
        """The stage that looks tokens up first."""
        reads_tokens = isinstance(self.config, EncoderDecoderConfig) and self.config.stem is None
        return "stem" if reads_tokens else "embed"


def _parts(node: Any, kind: type[T]) -> Iterator[T]:
    if isinstance(node, kind):
        yield node
    if is_dataclass(node):
        for field in fields(node):
            yield from _parts(getattr(node, field.name), kind)
    elif isinstance(node, tuple):
        for item in node:
            yield from _parts(item, kind)


#: The stage of what is wrong with an exported file as a whole, each of its stages being right.
SIGNATURES = "signatures"
#: Of what is wrong around the model.
OUTSIDE = ""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A porting bug and what must be said of it.

    ``at`` names the stage that its error starts in, for each model that can have it; none where a model cannot.
    ``edge`` is the rung to blame: all before it are right. Where ``outcome`` is ERROR nothing can be concluded, no
    stage is named, and the cause must hold the words ``says``. ``arguments`` go to ``parity check``. ``tiny_only`` says
    why it is planted in tiny models alone, where that is so.
    """

    name: str
    group: Group
    what: str
    rewrites: tuple[Rewrite, ...]
    at: Callable[[Subject], str | None]
    edge: str = EXACT
    outcome: Literal["FAIL", "ERROR"] = "FAIL"
    says: str = ""
    arguments: tuple[str, ...] = ()
    tiny_only: str = ""

    def stage(self, subject: Subject) -> str | None:
        """The stage that its error starts in; ``None`` where it cannot be planted."""
        return None if self.tiny_only and subject.weights != TINY else self.at(subject)

    @property
    def question(self) -> Question:
        """The question that its rung must fail: a quantized one does not do what it says, whatever it costs."""
        return question_of(self.edge) if self.edge in UNQUANTIZED else "fidelity"

    @property
    def options(self) -> list[str]:
        """What ``parity check`` is told, besides the model, to run the edge and those before it."""
        above = (EXACT, "reauthored", "float")
        before = above[: above.index(self.edge)] if self.edge in above else above
        rungs = [option for rung in (*before, self.edge) for option in ("--rung", rung)]
        # What sound code made would hide a fault in making it. The originals run nothing of a port.
        port = self.edge == EXACT and all(rewrite.module.startswith("models.") for rewrite in self.rewrites)
        return [*rungs, *self.arguments, *([] if port else ["--no-cache"])]
