"""What the rest of the project knows of a model: entry points over named tensors, and an explicit cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.authoring.config import AttentionConfig, ModelConfig
from models.authoring.stage import Stage, run_stages


@dataclass(frozen=True)
class Entry:
    """One entry point: its stages in order, and which of the tensors they make the caller is given."""

    stages: Sequence[Stage]
    outputs: Sequence[str]

    @property
    def inputs(self) -> list[str]:
        """The tensors that the stages read and none of them has made before, in order of use."""
        made: set[str] = set()
        needed: dict[str, None] = {}
        for stage in self.stages:
            needed.update(dict.fromkeys(name for name in stage.inputs if name not in made))
            made.update(stage.outputs)
        return list(needed)

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = run_stages(self.stages, dict(tensors))
        return {name: made[name] for name in self.outputs}


class Model(nn.Module, ABC):
    """A re-authored model.

    Entry points: ``decode`` always; ``prefill`` where a prompt can be taken in pieces of several tokens, and
    ``prefill_pixel`` where it may hold rows that an encoder made; ``encode`` where there is an encoder, with a suffix
    where its inputs come in several shapes.

    Tensors that entry points share have the same name: ``tokens`` int ``[B, T]``, ``input_pos`` int ``[T]``,
    ``kv_cache_k_{i}`` and ``kv_cache_v_{i}`` ``[B, S, K, H]``, ``logits`` ``[B, T, V]``, ``encoded`` ``[B, rows, D]``;
    and ``rope_pos`` int ``[axes, T]`` where tokens are rotated by other positions than those of their cache slots.
    """

    config: ModelConfig

    @abstractmethod
    def entry(self, name: str, cache_length: int, *, logits: bool = True) -> Entry:
        """The entry point ``name`` over a cache of ``cache_length`` slots.

        ``logits=False`` leaves them out (a prefill that only fills the cache).
        """

    @abstractmethod
    def empty_cache(self, cache_length: int, batch: int = 1) -> dict[str, Tensor]:
        """Zero-filled cache tensors for ``cache_length`` positions, in layer order, k before v."""


def cache_names(layer: int) -> tuple[str, str]:
    """The names of a layer's key and value cache tensors."""
    return f"kv_cache_k_{layer}", f"kv_cache_v_{layer}"


def cross_names(layer: int) -> tuple[str, str]:
    """The names of the keys and values that an encoder gave to a decoder layer."""
    return f"cross_k_{layer}", f"cross_v_{layer}"


def empty_cache(layers: Sequence[AttentionConfig], cache_length: int, batch: int) -> dict[str, Tensor]:
    """Zeros for every layer's keys and values, by name."""
    return {
        name: torch.zeros((batch, cache_length, layer.num_kv_heads, layer.head_dim))
        for i, layer in enumerate(layers)
        for name in cache_names(i)
    }
