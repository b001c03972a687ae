"""Which presets stand for all architectures, and tiny configurations of other sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from models import registry
from models.authoring.hf_config import HFConfig

#: Names, in any ``config.json``, of how many layers there are.
_LAYERS = (
    "num_hidden_layers",
    "num_transformer_layers",
    "encoder_num_hidden_layers",
    "decoder_num_hidden_layers",
    "num_layers",
    "depth",
)
MOST_LAYERS = 4
#: Sizes that nothing else depends on: feed-forward widths, and what OpenELM's layout follows from.
_CHOICES = {
    **dict.fromkeys(("intermediate_size", "d_ff"), range(96, 385, 8)),
    "model_dim": (64, 96, 128),
    "num_gqa_groups": (2, 4),
}
_SMALL_WINDOW = 64
#: Query heads for each key/value head, and how many of those.
_GROUPS, _KV_HEADS = (1, 2, 3, 4), (1, 2, 3)
#: No stream narrower than this: the subspace that drawn weights live in must fit.
_LEAST_WIDTH = 48


def variants() -> list[str]:
    """The smallest preset of every architecture: of every family, and of every way its typed fields are filled."""
    found: dict[object, registry.Model] = {}
    for model in sorted(registry.models(), key=lambda model: model.preset.parameters):
        config = model.family.config_from(HFConfig(model.preset.values(tiny=True), model.name))
        found.setdefault((model.family.name, *_shape(config)), model)
    smallest = {model.name for model in found.values()}
    return [model.name for model in registry.models() if model.name in smallest]


def _shape(value: object) -> tuple[object, ...]:
    """What is there, without how large: two sizes of one architecture have the same."""
    if is_dataclass(value):
        return (type(value), *(_shape(getattr(value, field.name)) for field in fields(value)))
    if isinstance(value, tuple):
        return tuple(dict.fromkeys(map(_shape, value)))
    return (value,) if isinstance(value, (bool, str)) else (type(value),)


def resized(values: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """A ``config.json`` of the same architecture with other numbers of layers, heads and tokens."""
    made = {key: _resized(key, value, random) for key, value in sorted(values.items())}
    if "num_decoder_layers" in made:  # the original has no cache for more of them than encoder layers
        made["num_decoder_layers"] = int(random.integers(1, made["num_layers"] + 1))
    if "d_kv" in made:  # the size of its heads is independent of the width
        made["num_heads"] = int(random.integers(2, 9))
    if "fullatt_block_indexes" in made:
        made["fullatt_block_indexes"] = [int(random.integers(made["depth"]))]
    if {"hidden_size", "num_attention_heads", "num_key_value_heads"} <= made.keys():
        made |= _heads(made, random)
    if "out_hidden_size" in made.get("vision_config", {}):
        made["vision_config"]["out_hidden_size"] = made["hidden_size"]
    return made


def _resized(key: str, value: Any, random: np.random.Generator) -> Any:
    if key in _LAYERS:
        return int(random.integers(1, MOST_LAYERS + 1))
    if key in _CHOICES:
        return int(random.choice(_CHOICES[key]))
    if key == "vocab_size":  # special ids stay within
        return value + 8 * int(random.integers(0, 9))
    if key == "sliding_window" and value <= _SMALL_WINDOW:  # a larger one is there to have no effect
        return int(random.integers(2, 21))
    return resized(value, random) if key in ("text_config", "vision_config") else value


def _heads(values: Mapping[str, Any], random: np.random.Generator) -> dict[str, int]:
    """Other numbers of heads of the same size: the width follows, unless the heads' size is independent of it."""
    every = values["num_attention_heads"] == values["num_key_value_heads"]
    size = values.get("head_dim", values["hidden_size"] // values["num_attention_heads"])
    options = [
        {"num_attention_heads": kv * group, "num_key_value_heads": kv * group if every else kv, "hidden_size": width}
        for kv, group, width in _options(values, size)
    ]
    return options[int(random.integers(len(options)))]


def _options(values: Mapping[str, Any], size: int) -> Iterator[tuple[int, int, int]]:
    for kv in _KV_HEADS:
        for group in _GROUPS:
            width = values["hidden_size"] if "head_dim" in values else kv * group * size
            # Some originals insist that the heads divide the width, even where their size does not follow from it.
            if width >= _LEAST_WIDTH and width % (kv * group) == 0 and kv * group > 1:
                yield kv, group, width
