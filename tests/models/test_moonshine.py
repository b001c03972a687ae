"""Moonshine against its original: audio of several lengths, padding, the cache, what a configuration may say."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import registry
from models.authoring.config import EncoderDecoderConfig
from models.authoring.encoder_decoder import EncoderDecoderModel
from models.authoring.hf_config import HFConfig
from models.authoring.session import session_inputs
from models.authoring.weight_map import load_weights, original_layout
from models.errors import ConfigError

FAMILY = registry.family("moonshine")
#: Two correct float32 models are each about 1e-6 from the exact result; a wrong formula is off by a thousandth.
CLOSE = 1e-5
TOKENS = [1, 9, 8, 7, 300, 5]


def tiny(name: str = "moonshine-tiny", **changes: Any) -> dict[str, Any]:
    return {**registry.get(name).preset.values(tiny=True), **changes}


def without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def read(values: Mapping[str, Any]) -> EncoderDecoderConfig:
    config = FAMILY.config_from(HFConfig(values, "config.json"))
    assert isinstance(config, EncoderDecoderConfig)
    return config


def drawn(values: Mapping[str, Any]) -> tuple[EncoderDecoderModel, dict[str, Tensor]]:
    """A model and the published tensors it was loaded from, every one of them random."""
    config = read(values)
    model = FAMILY.build(config, device="meta")
    assert isinstance(model, EncoderDecoderModel)
    table = list(FAMILY.weight_map(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, meta in original_layout(model, table).items():
        loud = 5.0 if "conv1" in name else 1.0  # samples are small
        spread, centre = (loud * meta[0].numel() ** -0.5, 0.0) if meta.ndim > 1 else (0.3, 1.0)
        tensors[name] = centre + spread * torch.randn(meta.shape, generator=generator)
    load_weights(model, table, tensors)
    return model, tensors


def audio(samples: int, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


def encode(model: EncoderDecoderModel, heard: Tensor, samples: int | None = None) -> dict[str, Tensor]:
    """What ``encode`` gives, and how many rows of it are real; only the first ``samples`` count."""
    samples = heard.shape[1] if samples is None else samples
    assert model.config.stem is not None
    given = {"samples": samples, "encoder_rows": model.config.stem.rows(samples)}
    constants = {name: torch.tensor([value], dtype=torch.int32) for name, value in given.items()}
    with torch.no_grad():
        return {**model.entry("encode", 0)({"audio": heard, **constants}), **constants}


def decode(model: EncoderDecoderModel, made: Mapping[str, Tensor], tokens: list[int]) -> Tensor:
    """Logits ``[T, V]``, one token at a time through the cache."""
    state = {**model.empty_cache(32), **made}
    logits = []
    for position, token in enumerate(tokens):
        state |= {"tokens": torch.tensor([[token]]), "input_pos": torch.tensor([position])}
        with torch.no_grad():
            state |= model.entry("decode", 32)(state)
        logits.append(state["logits"][0, 0])
    return torch.stack(logits)


def originals(values: Mapping[str, Any], tensors: Mapping[str, Tensor], heard: Tensor) -> tuple[Tensor, Tensor]:
    """The original's encoder rows ``[rows, D]`` and logits ``[T, V]``."""
    from transformers import AutoConfig, MoonshineForConditionalGeneration

    config = AutoConfig.for_model(**deepcopy(dict(values)))
    original = MoonshineForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    unplaced = original.load_state_dict(tensors, strict=False)
    assert not unplaced.unexpected_keys
    assert unplaced.missing_keys == (["proj_out.weight"] if config.tie_word_embeddings else [])
    original.tie_weights()
    with torch.no_grad():
        output = original(input_values=heard, decoder_input_ids=torch.tensor([TOKENS]))
    return output.encoder_last_hidden_state[0], output.logits[0]


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert float(theirs.std()) > 0.1
    return float((ours - theirs).norm() / theirs.norm())


ROPE = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.45}
VARIANTS = {
    "tiny": tiny(),
    "base": tiny("moonshine-base"),
    "new spelling": {**without(tiny(), "rope_theta", "rope_scaling", "partial_rotary_factor"), "rope_parameters": ROPE},
    "default share": without(tiny(), "partial_rotary_factor"),
    "whole head": tiny(partial_rotary_factor=1.0),
    "biases": tiny(attention_bias=True),
    "untied": tiny(tie_word_embeddings=False),
    "head size given": tiny(head_dim=20),
    "other activations": tiny(encoder_hidden_act="silu", decoder_hidden_act="gelu"),
    "deeper decoder": tiny(encoder_num_hidden_layers=1, decoder_num_hidden_layers=3),
    "unpadded heads": tiny(pad_head_dim_to_multiple_of=None),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("samples", [895, 8000, 16127])
def test_numbers_are_the_originals(variant: str, samples: int) -> None:
    """From the shortest audio that makes a row to a second; whatever a configuration may say."""
    model, tensors = drawn(VARIANTS[variant])
    heard = audio(samples)
    rows, logits = originals(VARIANTS[variant], tensors, heard)
    made = encode(model, heard)
    assert distance(made["encoded"][0], rows) < CLOSE
    assert distance(decode(model, made, TOKENS), logits) < CLOSE


@pytest.mark.parametrize("name", ["moonshine-tiny", "moonshine-base"])
@pytest.mark.parametrize("samples", [895, 895 + 383, 895 + 384, 9001])
@pytest.mark.parametrize("padding", [1, 63, 384, 20000])
def test_padding_changes_nothing_visible(name: str, samples: int, padding: int) -> None:
    """Real rows and logits are those of the unpadded audio, here and in the original, whatever the padding holds."""
    model, tensors = drawn(tiny(name))
    heard = audio(samples)
    rows, logits = originals(tiny(name), tensors, heard)
    exact = encode(model, heard)
    for filling in (torch.zeros(1, padding), audio(padding, seed=2)):
        padded = encode(model, torch.cat([heard, filling], 1), samples)
        made = padded["encoded"][0, : len(rows)]
        assert distance(made, exact["encoded"][0]) < CLOSE
        assert distance(made, rows) < CLOSE
        assert distance(decode(model, padded, TOKENS), logits) < CLOSE


def test_statistics_without_a_mask_would_show() -> None:
    """Padding that is taken for audio changes every row: the test above is not blind."""
    model, _ = drawn(tiny())
    heard = audio(9001)
    exact, wrong = encode(model, heard), encode(model, torch.cat([heard, torch.zeros(1, 20000)], 1))
    count = exact["encoded"].shape[1]
    assert distance(wrong["encoded"][0, :count], exact["encoded"][0]) > 0.01


@pytest.mark.parametrize("samples", [895, 896, 1278, 1279, 5000, 16000, 16127, 48123])
def test_rows_are_counted_as_the_original_makes_them(samples: int) -> None:
    """One sample less than the shortest makes none."""
    model, tensors = drawn(tiny())
    stem = model.config.stem
    assert stem is not None
    assert stem.rows(samples) == len(originals(tiny(), tensors, audio(samples))[0])
    assert (stem.rows(stem.shortest - 1), stem.rows(stem.shortest), stem.rows(0)) == (0, 1, 0)


def test_session_gives_audio_and_counts() -> None:
    """The host's part: samples as float32, how many there are, and how many rows that makes."""
    heard = np.linspace(-1, 1, 8000)[None]
    given = session_inputs(read(tiny()), [1], {"input_values": heard}, 20)
    (call,) = given.calls
    assert (call.entry, call.rows, given.prefill) == ("encode", 19, None)
    assert {name: (value.dtype.str, value.shape) for name, value in call.tensors.items()} == {
        "audio": ("<f4", (1, 8000)),
        "samples": ("<i4", (1,)),
        "encoder_rows": ("<i4", (1,)),
    }
    assert (call.tensors["samples"].tolist(), call.tensors["encoder_rows"].tolist()) == ([8000], [19])
    assert given.constant["encoder_rows"].tolist() == [19]


def test_cross_attention_cache_equals_recomputation() -> None:
    """The keys and values that ``encode`` gives are those that each layer would make of the encoder's rows."""
    model, _ = drawn(tiny())
    made = encode(model, audio(9001))
    for i, block in enumerate(model.decoder.blocks):
        with torch.no_grad():
            key, value = block.cross_attention.keys_and_values(made["encoded"])
        assert torch.equal(made[f"cross_k_{i}"], key)
        assert torch.equal(made[f"cross_v_{i}"], value)


def test_cross_attention_is_not_rotated() -> None:
    """Logits do not depend on the order in which the encoder's rows are offered."""
    model, _ = drawn(tiny())
    made = encode(model, audio(9001))
    turned = {name: value.flip(1) if name.startswith("cross_") else value for name, value in made.items()}
    assert distance(decode(model, turned, TOKENS), decode(model, made, TOKENS)) < CLOSE


def test_what_is_heard_matters_and_the_future_does_not() -> None:
    """Other audio gives other logits; a later decoder token changes no earlier one."""
    model, _ = drawn(tiny())
    made = encode(model, audio(9001))
    assert distance(decode(model, encode(model, audio(9001, seed=5)), TOKENS), decode(model, made, TOKENS)) > 0.01
    first, second = decode(model, made, [1, 5, 6]), decode(model, made, [1, 5, 99])
    assert torch.equal(first[:2], second[:2])


@pytest.mark.parametrize("name", ["moonshine-tiny", "moonshine-base"])
def test_tiny_keeps_every_quirk(name: str) -> None:
    """Shrunk are sizes alone; a part of the head passes unrotated, and the heads together are not the width."""
    full, small = (read(registry.get(name).preset.values(tiny=tiny)) for tiny in (False, True))
    assert small.stem == full.stem
    assert small.cross_norm == full.cross_norm
    assert small.tied_head == full.tied_head
    assert small.max_positions == full.max_positions
    for ours, theirs in ((small.encoder, full.encoder), (small.decoder, full.decoder)):
        assert ours.rope == replace(theirs.rope, rotary_dim=16)
        shares = [stack.rope.rotary_dim / stack.blocks[0].attention.head_dim for stack in (ours, theirs)]
        assert shares[0] == shares[1] < 1
        a, b = ours.blocks[0], theirs.blocks[0]
        assert (a.mlp.activation, a.mlp.gated, a.mlp.bias) == (b.mlp.activation, b.mlp.gated, b.mlp.bias)
        assert a.attention_norm == b.attention_norm == small.decoder.final_norm
        assert a.attention.num_heads * a.attention.head_dim < small.width
    assert (full.encoder.rope.rotary_dim, full.encoder.blocks[0].attention.scale ** -2) == (
        32,
        pytest.approx({"moonshine-tiny": 36, "moonshine-base": 52}[name]),
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decoder_num_attention_heads": 4}, "decoder_num_attention_heads"),
        ({"encoder_num_key_value_heads": 1}, "encoder_num_key_value_heads"),
        ({"decoder_num_key_value_heads": 1}, "decoder_num_key_value_heads"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder"),
        ({"encoder_hidden_act": "tanh"}, "encoder_hidden_act"),
        ({"partial_rotary_factor": 0.3}, "rotated channels"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"mystery": 1}, "mystery"),
    ],
)
def test_what_would_change_the_maths_is_refused(change: dict[str, Any], named: str) -> None:
    """By the key's name."""
    with pytest.raises(ConfigError, match=named):
        read(tiny(**change))


def test_defaults_are_the_librarys() -> None:
    """A configuration that says nothing is the class's own, apart from the scaling that neither has."""
    from transformers import MoonshineConfig

    bare = read({"model_type": "moonshine"})
    assert bare == read(MoonshineConfig().to_dict())
    assert bare.encoder.rope is not None
    assert bare.encoder.rope.rotary_dim == 32
