"""OpenELM's layers: heads and widths as published for each size, by the rule and by the stored lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models import registry
from models.authoring.config import DecoderConfig
from models.authoring.hf_config import HFConfig
from models.openelm import make_divisible

Lists = Callable[[Mapping[str, Any]], dict[str, list[Any]]]

#: Query heads (runs of equal ones) and feed-forward widths, layer by layer, as published.
TABLE: dict[str, tuple[list[tuple[int, int]], str]] = {
    "openelm-270m": (
        [(12, 5), (16, 7), (20, 4)],
        "768 1024 1280 1536 1792 2048 2560 2816 3072 3328 3584 3840 4352 4608 4864 5120",
    ),
    "openelm-450m": (
        [(12, 3), (16, 7), (20, 6), (24, 4)],
        "768 1024 1280 1536 1792 2304 2560 2816 3072 3328 3584 3840 4096 4352 4608 5120 5376 5632 5888 6144",
    ),
    "openelm-1.1b": (
        [(16, 3), (20, 7), (24, 8), (28, 6), (32, 4)],
        """1024 1280 1536 1792 2048 2304 2560 2816 3072 3328 3584 3840 4096 4608 4608 5120 5376 5632 5888 6144
        6400 6656 6912 7168 7424 7680 7936 8192""",
    ),
    "openelm-3b": (
        [(12, 4), (16, 14), (20, 12), (24, 6)],
        """1536 1792 2048 2560 2816 3072 3328 3584 4096 4352 4608 4864 5120 5632 5888 6144 6400 6656 7168 7424
        7680 7936 8192 8704 8960 9216 9472 9728 10240 10496 10752 11008 11264 11776 12032 12288""",
    ),
}
EACH = pytest.mark.parametrize("name", list(TABLE))


def read(values: Mapping[str, Any]) -> DecoderConfig:
    return registry.family("openelm").config_from(HFConfig(values, "config.json"))


def layout(config: DecoderConfig) -> list[tuple[int, int, int]]:
    """Query heads, key/value heads, width of every layer."""
    return [(b.attention.num_heads, b.attention.num_kv_heads, b.mlp.hidden) for b in config.blocks]


def published(name: str) -> list[tuple[int, int, int]]:
    runs, widths = TABLE[name]
    heads = [count for count, layers in runs for _ in range(layers)]
    return [(count, count // 4, int(width)) for count, width in zip(heads, widths.split(), strict=True)]


def test_every_size_is_in_the_table() -> None:
    """All four."""
    assert [preset.name for preset in registry.family("openelm").presets] == list(TABLE)


@EACH
def test_layers_are_as_published(name: str) -> None:
    """The presets say the two ends of each ramp; the rule makes the table of them."""
    assert layout(read(registry.get(name).preset.values())) == published(name)


@EACH
def test_stored_lists_say_the_same(name: str, openelm_lists: Lists) -> None:
    """The published files hold a list entry for every layer; they give the same model as the ramps."""
    values = registry.get(name).preset.values()
    stored = {key: entries for key, entries in openelm_lists(values).items() if key != "widths"}
    assert read({**values, **stored}) == read(values)


@EACH
def test_stored_lists_win_over_the_rule(name: str) -> None:
    """Where they differ from what the ramps would give, the file's own layers are meant."""
    values = registry.get(name).preset.values()
    layers = values["num_transformer_layers"]
    stored = {
        "num_query_heads": [6 + 2 * (layer % 3) for layer in range(layers)],
        "num_kv_heads": [2 if layer % 3 else 3 for layer in range(layers)],
        "ffn_multipliers": [4.0 - 3.0 * layer / layers for layer in range(layers)],
    }
    found = layout(read({**values, **stored}))
    assert [heads for heads, _, _ in found] == stored["num_query_heads"]
    assert [kv_heads for _, kv_heads, _ in found] == stored["num_kv_heads"]
    width = values["model_dim"]
    for (_, _, hidden), factor in zip(found, stored["ffn_multipliers"], strict=True):
        assert hidden % 256 == 0
        assert abs(hidden - factor * width) <= 128 or hidden == 256
    assert found != published(name)


@pytest.mark.parametrize("tiny", [True, False])
@EACH
def test_cache_shapes_differ_by_layer(name: str, tiny: bool) -> None:
    """Each layer caches its own key and value heads; in every size and in its tiny twin there are several kinds."""
    model = registry.get(name)
    config = read(model.preset.values(tiny=tiny))
    built = model.family.build(config) if tiny else model.family.build(config, device="meta")
    shapes = [tuple(tensor.shape) for tensor in built.empty_cache(3).values()]
    expected = [(1, 3, b.attention.num_kv_heads, b.attention.head_dim) for b in config.blocks for _ in "kv"]
    assert shapes == expected
    assert len(set(shapes)) > 1
    assert len({heads for heads, _, _ in layout(config)}) > 1
    assert len({hidden for _, _, hidden in layout(config)}) > 1


@settings(deadline=None, max_examples=200)
@given(value=st.floats(0.1, 1e5), unit=st.integers(1, 512))
def test_make_divisible(value: float, unit: int) -> None:
    """A positive multiple, nearest to the value unless that is below nine tenths of it."""
    found = make_divisible(value, unit)
    assert found % unit == 0
    assert found >= max(unit, 0.9 * value - 1e-9)
    assert found <= max(unit, value + unit)
    if value >= 5 * unit:  # half a unit is then at most a tenth
        assert abs(found - value) <= unit / 2 + 1


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(8, 200).map(lambda count: 16 * count),
    layers=st.integers(2, 40),
    head_dim=st.sampled_from([8, 16, 64, 128]),
    groups=st.integers(1, 8),
    divisor=st.sampled_from([1, 16, 256]),
    ends=st.tuples(st.floats(0.25, 1), st.floats(1, 4)),
)
def test_rule_is_the_published_one(
    openelm_lists: Lists, width: int, layers: int, head_dim: int, groups: int, divisor: int, ends: tuple[float, float]
) -> None:
    """Nothing in it is tuned to the four sizes: even steps, rounded to two decimals before use; ties are left out."""
    values = {
        **registry.get("openelm-270m").preset.values(),
        "model_dim": width,
        "num_transformer_layers": layers,
        "head_dim": head_dim,
        "num_gqa_groups": groups,
        "ffn_dim_divisor": divisor,
        "qkv_multipliers": [ends[0], 1.0],
        "ffn_multipliers": [0.5, ends[1]] if layers != 2 else [0.5, 4.0],
    }
    for first, last in (values["qkv_multipliers"], values["ffn_multipliers"]):
        hundredths = [100 * (first + (last - first) * layer / (layers - 1)) for layer in range(layers)]
        assume(all(abs(step % 1 - 0.5) > 1e-6 for step in hundredths))
    lists = openelm_lists(values)
    expected = list(zip(lists["num_query_heads"], lists["num_kv_heads"], lists["widths"], strict=True))
    assert layout(read(values)) == expected


@pytest.mark.parametrize(("layers", "width"), [(21, 1152), (21, 1408), (21, 1792)])
def test_steps_that_end_in_five_are_rounded_as_the_original_does(layers: int, width: int, openelm_lists: Lists) -> None:
    """Of a size nobody published, from the ramps' ends alone: 21 layers from 0.5 to 1 step by 0.025."""
    values = {
        **registry.get("openelm-270m").preset.values(),
        "num_transformer_layers": layers,
        "model_dim": width,
    }
    lists = openelm_lists(values)
    expected = list(zip(lists["num_query_heads"], lists["num_kv_heads"], lists["widths"], strict=True))
    assert layout(read(values)) == expected
