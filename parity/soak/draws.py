"""What one draw is: weights, dimensions, prompts, order and threads, all from a seed, a number and a preset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import registry
from models.authoring.config import EncoderDecoderConfig, ModelConfig, VisionLanguageConfig
from models.authoring.session import image_lengths
from parity.inputs import CONTINUATION_TOKENS, Inputs, TokenizedPrompt, tokenized_prompt
from parity.ladder import PREFILL_LENGTH
from parity.soak.variants import resized

#: Prompts of a draw and tokens generated after each: at most. A draw with files has this many prompts and as many
#: forced tokens as a check: limits of quantized rungs are for averages over no fewer.
MOST_PROMPTS, MOST_GENERATED = 7, 6
#: Different pictures of a draw, and pictures of a prompt.
MOST_PICTURES = 2
#: Ids that tokenizers have for padding, beginnings, ends and unknown words.
_SPECIAL_IDS = (0, 1, 2, 3)
#: Samples of a sound, in steps of a hundredth of a second.
_HUNDREDTH, _LONGEST = 160, 120


@dataclass(frozen=True, kw_only=True)
class Draw:
    """``seed``, ``number`` and the preset's name say it all; ``files`` whether files are converted and run as well."""

    seed: int
    number: int
    preset: str
    files: bool

    @property
    def name(self) -> str:
        """Also what the weights are drawn from."""
        return f"{self.preset}-soak-{self.seed}-{self.number}"

    @property
    def command(self) -> str:
        """Runs this draw again, alone."""
        files = int(self.files)
        return f"parity soak --seed {self.seed} --draw {self.number} --model {self.preset} --files-every {files}"

    @property
    def model(self) -> registry.Model:
        """The preset with a tiny twin of other dimensions and another name, hence other weights."""
        found = registry.get(self.preset)
        values = resized(found.preset.values(tiny=True), self.random("dimensions"))
        return replace(found, preset=replace(found.preset, name=self.name, tiny=values))

    @property
    def dimensions(self) -> dict[str, Any]:
        """What of the tiny twin's configuration is other than usual, by its path."""
        usual = dict(_leaves(registry.get(self.preset).preset.values(tiny=True)))
        return {path: value for path, value in _leaves(self.model.preset.tiny) if usual.get(path) != value}

    @property
    def generate(self) -> int:
        """Tokens to generate freely after each prompt."""
        return int(self.random("generate").integers(1, MOST_GENERATED + 1))

    def random(self, what: str) -> np.random.Generator:
        """Numbers of their own for every question, so that an answer more or less changes no other."""
        digest = hashlib.sha256(f"{self.seed}/{self.number}/{self.preset}/{what}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def threads(self, rung: str) -> int:
        """One or two, for each rung."""
        return int(self.random(f"threads of {rung}").integers(1, 3))

    def shuffled(self, inputs: Inputs, rung: str) -> Inputs:
        """The prompts in the order in which this rung gets them."""
        order = self.random(f"order of {rung}").permutation(len(inputs.prompts))
        return replace(inputs, prompts=tuple(inputs.prompts[i] for i in order))

    def inputs(self, folder: Path, config: ModelConfig) -> Inputs:
        """Random prompts for the checkpoint ``folder``, which is only asked how it wants its pictures."""
        count = MOST_PROMPTS if self.files else int(self.random("prompts").integers(2, MOST_PROMPTS))
        prompts = tuple(_prompt(f"p{i}", folder, config, self, self.random(f"prompt {i}")) for i in range(count))
        return Inputs(self.name, self.command, "", "", prompts)


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def draws(seed: int, presets: Sequence[str], numbers: Sequence[int], files_every: int) -> Iterator[Draw]:
    """The draws of a run: the presets in turn. Of each preset every ``files_every``-th has files, 0 for none."""
    for number in numbers:
        turn, place = divmod(number, len(presets))
        files = files_every > 0 and (turn + place) % files_every == 0
        yield Draw(seed=seed, number=number, preset=presets[place], files=files)


def _prompt(name: str, folder: Path, config: ModelConfig, draw: Draw, random: np.random.Generator) -> TokenizedPrompt:
    forced = CONTINUATION_TOKENS if draw.files else int(random.integers(1, CONTINUATION_TOKENS))
    length = _length(config, max(forced, draw.generate), random)
    ids, continuation = _tokens(config, length, random), _tokens(config, forced, random)
    if isinstance(config, VisionLanguageConfig):
        media = _pictures(folder, config, draw, random)
        return tokenized_prompt(name, _among(ids, config, media, random), continuation, config, media)
    if isinstance(config, EncoderDecoderConfig) and config.stem:
        ids = ids[: int(random.integers(0, 4))]
        return tokenized_prompt(name, ids, continuation, config, _sound(config.stem.shortest, random))
    return tokenized_prompt(name, ids, continuation, config, {})


def _length(config: ModelConfig, more: int, random: np.random.Generator) -> int:
    """Often next to where something changes: a call's length, twice that, a window; ``more`` tokens will follow."""
    window = _window(config) or PREFILL_LENGTH
    near = (1, 2, PREFILL_LENGTH, 2 * PREFILL_LENGTH, window, 2 * window)
    if random.integers(2):
        length = max(1, near[int(random.integers(len(near)))] + int(random.integers(-1, 2)))
    else:
        length = int(random.integers(1, 2 * PREFILL_LENGTH + 8))
    if config.boundary is None or length + more <= config.boundary or length > config.boundary:
        return length
    # A session stays on one side of a boundary between frequencies: up to it, or from just beyond.
    return config.boundary - more if random.integers(2) else config.boundary + 1


def _window(config: ModelConfig) -> int | None:
    if isinstance(config, EncoderDecoderConfig):
        return None
    text = config.text if isinstance(config, VisionLanguageConfig) else config
    return next((block.attention.window for block in text.blocks if block.attention.window), None)


def _tokens(config: ModelConfig, count: int, random: np.random.Generator) -> list[int]:
    """Ids of any row of the table; or special ones only, one again and again, or two in turn."""
    pictured = isinstance(config, VisionLanguageConfig)
    kept = {config.image_token, config.video_token} if isinstance(config, VisionLanguageConfig) else set()
    known = np.asarray([token for token in range(config.vocab_size) if not pictured or token not in kept])
    special = np.asarray([*_SPECIAL_IDS, known[-1]])
    match int(random.integers(8)):
        case 0:
            chosen = random.choice(special, count)
        case 1:
            chosen = np.full(count, random.choice(known))
        case 2:
            chosen = np.resize(random.choice(known, 2), count)
        case _:
            chosen = np.where(random.random(count) < 0.1, random.choice(special, count), random.choice(known, count))
    return [int(token) for token in chosen]


def _pictures(folder: Path, config: VisionLanguageConfig, draw: Draw, random: np.random.Generator) -> dict[str, Any]:
    """None, one or two, as the checkpoint's own processor prepares them.

    A draw has no more than a few different ones: files have an encoder for every grid of patches.
    """
    from parity.media.images import ImageReader
    from parity.media.pictures import PICTURES

    shown = draw.random("pictures").choice(list(PICTURES), MOST_PICTURES, replace=False)
    names = [str(name) for name in random.choice(shown, int(random.integers(0, MOST_PICTURES + 1)))]
    return dict(ImageReader(folder, config).read("drawn", names, Path()))


def _among(
    ids: list[int], config: VisionLanguageConfig, media: dict[str, Any], random: np.random.Generator
) -> list[int]:
    """The ids with every picture's own somewhere among them, most often in front."""
    lengths = image_lengths(config, media) if media else []
    cuts = sorted(int(random.integers(len(ids))) if random.integers(4) == 0 else 0 for _ in lengths)
    made: list[int] = []
    for length, begin, end in zip(lengths, [0, *cuts], cuts, strict=False):
        made += [*ids[begin:end], *config.image_start, *[config.image_token] * length, *config.image_end]
    return [*made, *ids[cuts[-1] if cuts else 0 :]]


def _sound(shortest: int, random: np.random.Generator) -> dict[str, Any]:
    """A piece of one of the project's sounds."""
    from parity.media.sounds import SOUNDS, samples_of

    samples = samples_of(str(random.choice(list(SOUNDS))), Path())
    length = min(len(samples), max(shortest, _HUNDREDTH * int(random.integers(1, _LONGEST + 1))))
    begin = int(random.integers(len(samples) - length + 1))
    return {"input_values": samples[None, begin : begin + length]}
