"""PaliGemma against its original: tower, projector, pictures among text, the prefix, the spellings of its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import registry
from models.authoring.config import VisionLanguageConfig
from models.authoring.hf_config import HFConfig
from models.authoring.vision_language import VisionLanguageModel, place_rows
from models.authoring.weight_map import load_weights, original_layout
from models.errors import ConfigError, UnknownModelError
from models.layers.mask import causal_mask
from models.paligemma import in_memory_weight_map

FAMILY = registry.family("paligemma")
BOTH = pytest.mark.parametrize("name", [preset.name for preset in FAMILY.presets])
#: Two correct float32 models are each about 1e-6 from the exact result; a wrong formula is off by a thousandth.
CLOSE = 1e-5
SLOTS = 64


def tiny(name: str, **changes: Any) -> dict[str, Any]:
    """A tiny preset; a change of ``text_config`` or ``vision_config`` is merged into it."""
    values = registry.get(name).preset.values(tiny=True)
    return {
        **values,
        **{key: {**values[key], **new} if isinstance(new, dict) else new for key, new in changes.items()},
    }


ONE, TWO = "paligemma-3b-224", "paligemma-2-3b-224"


def config_of(values: Mapping[str, Any]) -> VisionLanguageConfig:
    config = FAMILY.config_from(HFConfig(values, "config.json"))
    assert isinstance(config, VisionLanguageConfig)
    return config


def drawn(values: Mapping[str, Any]) -> VisionLanguageModel:
    """A model in which every parameter is random, and no gain or bias at a value that hides it."""
    config = config_of(values)
    model = FAMILY.build(config, device="meta")
    assert isinstance(model, VisionLanguageModel)
    table = list(FAMILY.weight_map(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, meta in original_layout(model, table).items():
        spread, centre = (meta[0].numel() ** -0.5, 0.0) if meta.ndim > 1 else (0.3, 1.0)
        tensors[name] = centre + spread * torch.randn(meta.shape, generator=generator)
    load_weights(model, table, tensors)
    return model


def original_of(model: VisionLanguageModel, values: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(**deepcopy(dict(values)))
    original = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    unplaced = original.load_state_dict(original_layout(model, in_memory_weight_map(model.config, ())), strict=False)
    assert not unplaced.unexpected_keys
    assert unplaced.missing_keys == (["lm_head.weight"] if model.config.text.tied_head else [])
    original.tie_weights()
    return original


def pictures(config: VisionLanguageConfig, count: int) -> Tensor:
    vision = config.vision
    shape = (count, vision.channels, vision.image_size, vision.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(model: VisionLanguageModel, prompt: Sequence[int], pixels: Tensor, further: Sequence[int]) -> dict[str, Tensor]:
    """``encoded`` ``[N, D]`` where there are pictures, and ``logits`` ``[T, V]`` at every position."""
    state = model.empty_cache(SLOTS)
    tokens = torch.tensor([prompt])
    state |= {"tokens": tokens, "input_pos": torch.arange(len(prompt)), "prefix_length": torch.tensor([len(prompt)])}
    entry = "prefill"
    if len(pixels):
        entry = "prefill_pixel"
        made = [model.entry("encode", 0)({"pixel_values": pixel[None]})["encoded"] for pixel in pixels]
        places = tokens[0] == model.config.image_token
        rows = torch.where(places, places.cumsum(0) - 1, -1)
        state |= {"encoded": torch.cat(made, dim=1), "image_rows": rows}
    state |= model.entry(entry, SLOTS)(state)
    logits = [state["logits"][0]]
    for position, token in enumerate(further, start=len(prompt)):
        state |= {"tokens": torch.tensor([[token]]), "input_pos": torch.tensor([position])}
        state |= model.entry("decode", SLOTS)(state)
        logits.append(state["logits"][0])
    return {"logits": torch.cat(logits), **({"encoded": state["encoded"][0]} if len(pixels) else {})}


def run_original(original: Any, prompt: Sequence[int], pixels: Tensor, further: Sequence[int]) -> dict[str, Tensor]:
    tokens = torch.tensor([prompt])
    seen = {"pixel_values": pixels} if len(pixels) else {}
    types = {"token_type_ids": torch.zeros_like(tokens), "attention_mask": torch.ones_like(tokens)}
    output = original(input_ids=tokens, use_cache=True, **seen, **types)
    logits = [output.logits[0]]
    for token in further:
        output = original(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits[0])
    made = {"encoded": original.get_image_features(**seen).pooler_output.flatten(0, 1)} if seen else {}
    return {"logits": torch.cat(logits), **made}


def distances(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative to the original's norm, for each output."""
    assert ours.keys() == theirs.keys()
    assert all(ours[name].shape == theirs[name].shape for name in ours)
    assert all(float(values.std()) > 0.05 for values in theirs.values())
    return {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours}


def prompt_of(config: VisionLanguageConfig, kind: str) -> tuple[list[int], int]:
    """A prompt and how many pictures are in it."""
    picture, words = [config.image_token] * config.vision.rows, [1, 9, 80, 7, 60, 100, 33, 12]
    return {
        "picture first": ([*picture, *words], 1),
        "picture inside": ([*words[:3], *picture, *words[3:]], 1),
        "two pictures": ([*picture, *words[:2], *picture, *words[2:]], 2),
        "picture alone": (picture, 1),
        "text only": (words * 2, 0),
        "one token": ([1], 0),
    }[kind]


VARIANTS = {
    "1": tiny(ONE),
    "2": tiny(TWO),
    "1 untied": tiny(ONE, tie_word_embeddings=False),
    "2 untied": tiny(TWO, tie_word_embeddings=False),
    # Not one: of a window of one the original's cache keeps everything, and its decode sees it.
    "2 window of two": tiny(TWO, text_config={"sliding_window": 2}),
    "2 all sliding": tiny(TWO, text_config={"layer_types": ["sliding_attention"] * 3}),
    "2 without caps": tiny(TWO, text_config={"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "2 class defaults": {
        **tiny(TWO),
        "text_config": {
            key: value
            for key, value in tiny(TWO)["text_config"].items()
            if key in ("model_type", "hidden_size", "head_dim", "intermediate_size", "num_hidden_layers", "vocab_size")
        },
    },
    "exact gelu": tiny(ONE, vision_config={"hidden_act": "gelu"}),
    "eps": tiny(ONE, vision_config={"layer_norm_eps": 0.1}),
    "one patch": tiny(TWO, vision_config={"image_size": 14}),
    "grey": tiny(ONE, vision_config={"num_channels": 1}),
    "one head": tiny(ONE, vision_config={"num_attention_heads": 1}),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("kind", ["picture first", "text only"])
def test_numbers_are_the_originals(variant: str, kind: str) -> None:
    """Rows and logits, the prompt and a continuation through the cache, all longer than the window of five."""
    values = VARIANTS[variant]
    model = drawn(values)
    prompt, count = prompt_of(model.config, kind)
    given = prompt, pictures(model.config, count), [5, 6, 70, 8, 90, 10, 11]
    with torch.no_grad():
        found = distances(run(model, *given), run_original(original_of(model, values), *given))
    assert max(found.values()) < CLOSE, found


@BOTH
@pytest.mark.parametrize("kind", ["picture inside", "two pictures", "picture alone", "one token"])
def test_pictures_may_stand_anywhere(name: str, kind: str) -> None:
    """Before, between and without words; more than one; and no picture before a single token."""
    model = drawn(tiny(name))
    prompt, count = prompt_of(model.config, kind)
    given = prompt, pictures(model.config, count), [5, 6, 70]
    with torch.no_grad():
        found = distances(run(model, *given), run_original(original_of(model, tiny(name)), *given))
    assert max(found.values()) < CLOSE, found


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (ONE, {"vision_config": {"hidden_act": "gelu"}}),
        (ONE, {"vision_config": {"layer_norm_eps": 1e-3}}),
        (TWO, {"text_config": {"sliding_window": 6}}),
        (TWO, {"text_config": {"attn_logit_softcapping": None}}),
    ],
    ids=str,
)
def test_comparison_would_show_it(name: str, changes: dict[str, Any]) -> None:
    """The tiny models feel every one of these: the comparisons above are not blind to them."""
    logits = []
    for values in (tiny(name), tiny(name, **changes)):
        model = drawn(values)
        prompt, count = prompt_of(model.config, "picture first")
        with torch.no_grad():
            logits.append(run(model, prompt, pictures(model.config, count), [5, 6, 70, 8, 90, 10])["logits"])
    assert float((logits[0] - logits[1]).norm() / logits[0].norm()) > 3 * CLOSE


@BOTH
def test_every_spelling_loads(name: str, tmp_path: Path) -> None:
    """Published, written by a model that began without files, and as the original's modules are called."""
    values = tiny(name)
    model = drawn(values)
    original = original_of(model, values)
    original.save_pretrained(tmp_path / "saved")
    original.save_pretrained(tmp_path / "modules", save_original_format=False)
    (tmp_path / "published").mkdir()
    save_file(
        original_layout(model, FAMILY.weight_map(model.config)),
        tmp_path / "published" / "model.safetensors",
        {"format": "pt"},
    )
    (tmp_path / "published" / "config.json").write_text(json.dumps(values))
    marks = {
        "published": "vision_tower.vision_model.post_layernorm.weight",
        "saved": "vision_tower.post_layernorm.weight",
        "modules": "model.vision_tower.post_layernorm.weight",
    }
    for spelling, mark in marks.items():
        folder = tmp_path / spelling
        assert mark in load_file(folder / "model.safetensors")
        loaded = FAMILY.load(folder)
        assert loaded.config == model.config
        for parameter, expected in model.named_parameters():
            assert torch.equal(loaded.get_parameter(parameter), expected), parameter


@BOTH
def test_patches_permuted_with_their_positions_permute_the_rows(name: str) -> None:
    """Attention knows no order: where a patch is, it knows only from the position added to it."""
    model = drawn(tiny(name))
    vision = model.config.vision
    pixels = pictures(model.config, 1)
    order = torch.randperm(vision.rows, generator=torch.Generator().manual_seed(2))
    side, patch = vision.image_size // vision.patch_size, vision.patch_size
    patches = pixels.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 1, 3, 5)
    moved = patches.flatten(1, 2)[:, order].unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5).reshape(pixels.shape)
    with torch.no_grad():
        rows = model.entry("encode", 0)({"pixel_values": pixels})["encoded"]
        model.vision.stem.positions.copy_(model.vision.stem.positions[order])
        permuted = model.entry("encode", 0)({"pixel_values": moved})["encoded"]
    torch.testing.assert_close(permuted, rows[:, order], rtol=0, atol=2e-5)
    assert float((permuted - rows).abs().max()) > 0.1


@BOTH
def test_text_without_a_prefix_is_the_text_model(name: str) -> None:
    """The same weights give the same logits bit for bit, once with a causal prompt, once with a prompt of one token."""
    model = drawn(tiny(name))
    tokens = [1, 9, 80, 7, 60, 100, 33, 12, 5, 6]
    with torch.no_grad():
        alone = model.text(torch.tensor([tokens]), torch.arange(len(tokens)), model.empty_cache(SLOTS))["logits"][0]
        one_by_one = run(model, tokens[:1], torch.empty(0), tokens[1:])["logits"]
        both_ways = run(model, tokens, torch.empty(0), [])["logits"]
        model.config = replace(model.config, bidirectional_prefix=False)
        causal = run(model, tokens, torch.empty(0), [])["logits"]
    assert torch.equal(causal, alone)
    torch.testing.assert_close(one_by_one, alone, rtol=0, atol=2e-5)
    assert float((both_ways - alone).abs().max()) > 0.1


LAWS = settings(deadline=None, max_examples=80)


@LAWS
@given(
    start=st.integers(0, 20),
    count=st.integers(1, 20),
    window=st.none() | st.integers(1, 8),
    prefix=st.integers(0, 40),
)
def test_prefix_mask(start: int, count: int, window: int | None, prefix: int) -> None:
    """Two positions within the prefix always see each other; everybody else sees what they would without it."""
    positions = torch.arange(start, start + count)
    plain = causal_mask(positions, 48, window)[0, 0]
    mask = causal_mask(positions, 48, window, torch.tensor([prefix], dtype=torch.int32))[0, 0]
    inside = (positions < prefix)[:, None] & (torch.arange(48) < prefix)[None]
    assert (mask[inside] == 0).all()
    assert torch.equal(mask[~inside], plain[~inside])


@LAWS
@given(places=st.lists(st.integers(-1, 4), min_size=1, max_size=12))
def test_rows_take_the_places_of_tokens(places: list[int]) -> None:
    """Unchanged where a row is named, and nothing else changes."""
    hidden, encoded = torch.rand(1, len(places), 3), torch.rand(1, 5, 3)
    placed = place_rows(hidden, encoded, torch.tensor(places, dtype=torch.int32))[0]
    for position, row in enumerate(places):
        assert torch.equal(placed[position], hidden[0, position] if row < 0 else encoded[0, row])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_token_index": 336}, "image_token_index 336 is beyond the 336 embeddings"),
        ({"projection_dim": 64}, "projection_dim 64 is not the text model's width 96"),
        ({"vision_config": {"image_size": 43}}, "image_size 43 is not a multiple of patch_size 14"),
        ({"vision_config": {"num_attention_heads": 5}}, "hidden_size is not a multiple of num_attention_heads"),
        ({"vision_config": {"vision_use_head": True}}, "vision_use_head = True changes the maths"),
        ({"vision_config": {"novel": 1}}, "vision_config: novel = 1 is not understood"),
        ({"text_config": {"novel": 1}}, "text_config: novel = 1 is not understood"),
        ({"text_config": {"model_type": "llama"}}, "text_config is of model_type 'llama', not gemma or gemma2"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "not siglip_vision_model"),
        ({"text_config": {"use_bidirectional_attention": False}}, "use_bidirectional_attention = False"),
        ({"text_config": None}, "text_config is missing"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(changes: dict[str, Any], said: str) -> None:
    """By name, and before any weight is read."""
    with pytest.raises((ConfigError, UnknownModelError)) as caught:
        config_of(tiny(ONE, **changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_defaults_are_the_originals() -> None:
    """What a nested configuration leaves out is what transformers takes it to be."""
    from transformers import Gemma2Config, GemmaConfig, SiglipVisionConfig

    from models.paligemma import _TEXT_DEFAULTS, _VISION_DEFAULTS

    classes = {"gemma": GemmaConfig(), "gemma2": Gemma2Config(), "siglip_vision_model": SiglipVisionConfig()}
    for kind, defaults in {**_TEXT_DEFAULTS, **_VISION_DEFAULTS}.items():
        assert {key: getattr(classes[kind], key) for key in defaults} == defaults
