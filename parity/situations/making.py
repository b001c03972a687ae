"""What the prompts of a situation are made from, and the making of one."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.authoring.config import DecoderConfig, EncoderDecoderConfig, ModelConfig, VisionLanguageConfig
from models.authoring.session import Tensors, session_inputs
from parity.inputs import Material, TokenizedPrompt

#: Forced tokens after a prompt, unless the situation is about how many there are.
DECODED = 8
#: Positions that a prompt is made long for; what lies beyond would take a check minutes.
REACHABLE = 512

#: The prompts of a situation, or why it does not apply to the model.
Made = list[TokenizedPrompt] | str


@dataclass(frozen=True, kw_only=True)
class Makings:
    """A model's configuration and its tokenizer's ``material``.

    ``lengths`` are those of the prefill signatures, ascending; ``slots`` those of the caches, known once all other
    situations are made.
    """

    config: ModelConfig
    material: Material
    lengths: tuple[int, ...]
    slots: tuple[int, ...] = ()

    @property
    def text_config(self) -> DecoderConfig:
        """The decoder that tokens are prefilled into.

        Raises:
            TypeError: the decoder of an encoder-decoder is not prefilled.
        """
        match self.config:
            case DecoderConfig():
                return self.config
            case VisionLanguageConfig():
                return self.config.text
            case EncoderDecoderConfig():
                raise TypeError("the decoder of an encoder-decoder is not prefilled")

    @property
    def whole(self) -> bool:
        """Whether a prompt goes in one call, because its tokens all see each other."""
        return isinstance(self.config, VisionLanguageConfig) and self.config.bidirectional_prefix

    @property
    def pictured(self) -> TokenizedPrompt | None:
        """The shortest prompt with a picture, for models that see."""
        if not isinstance(self.config, VisionLanguageConfig):
            return None
        seen = (prompt for inputs in self.material.sets for prompt in inputs.prompts if prompt.media)
        return min(seen, key=lambda prompt: len(prompt.prompt), default=None)

    def text(self, count: int, seed: str) -> tuple[int, ...]:
        """``count`` ids of natural text, from another place for every ``seed``."""
        ids = self.material.text
        start = zlib.crc32(seed.encode()) % len(ids)
        return tuple(ids[(start + i) % len(ids)] for i in range(count))

    def opening(self, count: int, seed: str) -> tuple[int, ...]:
        """A prompt of exactly ``count`` ids, begun as the tokenizer begins one."""
        return (*self.material.begins, *self.text(count, seed))[:count]

    def prompt(
        self, name: str, count: int, *, decoded: int = DECODED, seed: str | None = None, pictured: bool = False
    ) -> TokenizedPrompt:
        """A prompt of ``count`` tokens and ``decoded`` forced ones, called ``situation/label``.

        Prompts of one ``seed`` begin alike. A ``pictured`` one begins with a picture where the model sees and ``count``
        leaves room for it.
        """
        seed = name if seed is None else seed
        said = self.text(decoded, f"{seed} goes on")
        shown = self.pictured if pictured else None
        if shown and len(shown.prompt) <= count:
            ids = (*shown.prompt, *self.text(count - len(shown.prompt), seed))
            made = replace(shown, id=name, prompt=ids, continuation=said)
        else:
            made = TokenizedPrompt(name, self.opening(count, seed), said)
        return replace(made, situation=name.partition("/")[0], generates=False)

    def source(self, name: str, media: Tensors, continuation: tuple[int, ...]) -> TokenizedPrompt:
        """A session of an encoder-decoder: what it reads, and what it is forced to write.

        Raises:
            TypeError: the model is no encoder-decoder.
        """
        if not isinstance(self.config, EncoderDecoderConfig):
            raise TypeError("only an encoder-decoder reads a source")
        begin = (self.config.decoder_start,)
        rows = sum(call.rows for call in session_inputs(self.config, begin, media, 1).calls)
        situation = name.partition("/")[0]
        return TokenizedPrompt(name, begin, continuation, media, rows, situation, generates=False)


def fitting(config: ModelConfig, prompts: list[TokenizedPrompt]) -> list[TokenizedPrompt]:
    """The prompts that the model can be asked, each whole on one side of its boundary between frequencies.

    A continuation that would cross it is cut there; a prompt that leaves nothing to continue, or has a second turn that
    would cross it, is left out, as one with more positions than the model knows.
    """
    found = []
    for prompt in prompts:
        room = prompt.decoded
        if config.boundary is not None and len(prompt.prompt) <= config.boundary < prompt.positions:
            room = 0 if prompt.turn else config.boundary - len(prompt.prompt)
        if room > 0 and prompt.positions <= config.max_positions:
            cut = prompt.positions > len(prompt.prompt) + room and not prompt.turn
            found.append(replace(prompt, continuation=prompt.continuation[:room]) if cut else prompt)
    return found


def cycled(values: NDArray[np.generic], count: int) -> NDArray[np.generic]:
    """``count`` values ``[1, count]``: those of ``[1, n]``, from the beginning again where they end."""
    return np.resize(values, (1, count))
