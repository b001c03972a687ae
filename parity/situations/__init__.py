"""Situations that hide bugs: named prompts that are made for a model, and how each of them is driven.

A prompt set is the same text for every model. What breaks a port are often not words but lengths: a prompt that fills
a signature exactly, a window that is left in decode, the last slot of the cache. Those depend on the configuration and
on the export, so the prompts are made from natural text when the model is known. A situation that does not apply says
why; it is never left out in silence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.authoring.config import DecoderConfig, EncoderDecoderConfig, ModelConfig
from parity.convert.float_file import default_cache_length
from parity.errors import PromptError
from parity.inputs import Inputs, Material, TokenizedPrompt, read_material, read_prompts
from parity.ladder import PREFILL_LENGTH, cache_lengths, crosses
from parity.situations import prefilled, sourced
from parity.situations.making import REACHABLE, Made, Makings, fitting

#: Every situation that applies, and the model's own prompt sets.
ALL = "all"
#: The prefill beside the usual one. No multiple of it, so that the two cut a prompt in different places.
OTHER_PREFILL_LENGTH = 24


@dataclass(frozen=True)
class Situation:
    """What makes its prompts for models that are given a prompt, and for those whose encoder reads a source."""

    prefilled: Callable[[Makings], Made]
    sourced: Callable[[Makings], Made]

    def make(self, makings: Makings) -> Made:
        """The prompts that fit the model, or why there are none."""
        kind = self.sourced if isinstance(makings.config, EncoderDecoderConfig) else self.prefilled
        made = kind(makings)
        if isinstance(made, str):
            return made
        found = fitting(makings.config, made)
        return found or f"none of its prompts fits {makings.config.max_positions} positions"


#: The last one counts on the cache that the others need.
SITUATIONS: Mapping[str, Situation] = {
    "signatures": Situation(prefilled.signatures, sourced.no_prefill),
    "edges": Situation(prefilled.edges, sourced.edges),
    "padding": Situation(prefilled.padding, sourced.padding),
    "beyond": Situation(prefilled.beyond, sourced.beyond),
    "window": Situation(prefilled.window, sourced.no_window),
    "turns": Situation(prefilled.turns, sourced.no_prefill),
    "batch": Situation(prefilled.batch, sourced.no_batch),
    "repeated": Situation(prefilled.repeated, sourced.repeated),
    "special": Situation(prefilled.special, sourced.special),
    "full": Situation(prefilled.full, sourced.full),
}


def is_made(prompt_set: str) -> bool:
    """Whether a prompt set is made for the model instead of read from a file."""
    return prompt_set == ALL or prompt_set in SITUATIONS


def inputs_of(
    prompt_set: str,
    own: str,
    folder: Path,
    config: ModelConfig,
    *,
    prefill_lengths: Sequence[int],
    cache_length: int | None,
    generate: int,
) -> Inputs:
    """The prompts of a situation, or of all that apply, for the checkpoint in ``folder``.

    ``own`` is the prompt set that the model is checked on by default; with all situations it is one of them, as are the
    sets that any decoder-only model can be given.

    Raises:
        PromptError: the situation does not apply, or the tokenizer makes no prompts of the material.
    """
    plain = isinstance(config, DecoderConfig)
    sets = dict.fromkeys((*(("short", "long") if plain else ()), own)) if prompt_set == ALL or not plain else {}
    material = read_material(read_prompts("long"), [read_prompts(name) for name in sets], folder, config)
    return make(
        prompt_set, material, config, prefill_lengths=prefill_lengths, cache_length=cache_length, generate=generate
    )


def make(
    prompt_set: str,
    material: Material,
    config: ModelConfig,
    *,
    prefill_lengths: Sequence[int] = (),
    cache_length: int | None = None,
    generate: int = 0,
) -> Inputs:
    """``inputs_of`` from material that has been read."""
    makings = Makings(config=config, material=material, lengths=(PREFILL_LENGTH,))
    makings = replace(makings, lengths=tuple(sorted(prefill_lengths)) or _prefill_lengths(makings))
    prompts: list[TokenizedPrompt] = []
    left_out: dict[str, str] = {}

    def add(name: str, made: Made) -> None:
        if isinstance(made, str):
            left_out[name] = made
        else:
            prompts.extend(made)

    if prompt_set == ALL:
        for inputs in material.sets:
            add(inputs.name, _as_situation(inputs, config, generate))
    for name in SITUATIONS if prompt_set == ALL else (prompt_set,):
        if name == "full":
            makings = replace(makings, slots=_slots(makings, prompts, cache_length, generate))
        add(name, SITUATIONS[name].make(makings))
    if not prompts:
        raise PromptError(f"{prompt_set} does not apply: {left_out[prompt_set]}; choose another prompt set")
    return Inputs(
        prompt_set,
        prompt_set,
        _sha256(prompts),
        material.tokenizer_sha256,
        tuple(prompts),
        () if isinstance(config, EncoderDecoderConfig) else makings.lengths,
        left_out,
    )


def _prefill_lengths(makings: Makings) -> tuple[int, ...]:
    """Two that cut a prompt in different places; where prompts are not cut, two that hold them all."""
    if not makings.whole:
        return (PREFILL_LENGTH, OTHER_PREFILL_LENGTH)
    longest = max(len(prompt.prompt) for inputs in makings.material.sets for prompt in inputs.prompts)
    length = default_cache_length(longest, PREFILL_LENGTH)
    return (length, length + PREFILL_LENGTH)


def _as_situation(inputs: Inputs, config: ModelConfig, generate: int) -> Made:
    """A prompt set as one situation of several, or why the model cannot be asked it."""
    for prompt in inputs.prompts:
        if prompt.until(generate) > config.max_positions:
            return f"{prompt.id} needs {prompt.until(generate)} positions, the model knows {config.max_positions}"
        if crosses(config.boundary, prompt, generate):
            return f"{prompt.id} begins within {config.boundary} positions and ends beyond, where frequencies differ"
    return [replace(prompt, id=f"{inputs.name}/{prompt.id}", situation=inputs.name) for prompt in inputs.prompts]


def _slots(
    makings: Makings, prompts: Sequence[TokenizedPrompt], cache_length: int | None, generate: int
) -> tuple[int, ...]:
    """The caches that the other prompts need; without any, the smallest there would be on each side of a boundary."""
    if prompts:
        return tuple(cache_lengths(makings.config, prompts, cache_length, generate))
    if cache_length is not None:
        return (cache_length,)
    boundary = makings.config.boundary
    least = default_cache_length(max(makings.lengths) + generate + 1)
    lengths = [least if boundary is None else min(least, boundary)]
    if boundary is not None and boundary <= REACHABLE:
        lengths.append(default_cache_length(boundary + least))
    return tuple(min(length, makings.config.max_positions) for length in lengths)


def _sha256(prompts: Sequence[TokenizedPrompt]) -> str:
    """Of everything that was made: ids and how they are driven. Values of pictures and sounds count elsewhere."""
    return hashlib.sha256(json.dumps([_plain(prompt) for prompt in prompts]).encode()).hexdigest()


def _plain(prompt: TokenizedPrompt) -> dict[str, Any]:
    whole = {name: value.tolist() for name, value in prompt.media.items() if np.issubdtype(value.dtype, np.integer)}
    return {**vars(prompt), "media": whole}
