"""Configurations: both spellings mean the same, the original library's own files are read, nothing is skipped over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import registry
from models.authoring.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    Llama3Scaling,
    LongRopeScaling,
    MLPConfig,
    NormConfig,
    RopeConfig,
)
from models.authoring.hf_config import HFConfig
from models.errors import ConfigError, UnknownModelError

SOURCE = "checkpoint/config.json"
EVERY_PRESET = pytest.mark.parametrize("model", list(registry.models()), ids=lambda model: model.name)
#: Every model_type that is read, and the family that reads it.
FAMILY_OF = {
    "llama": "llama",
    "qwen2": "qwen2",
    "gemma": "gemma",
    "gemma2": "gemma",
    "phi": "phi",
    "phi3": "phi",
    "openelm": "openelm",
}
TYPES = list(FAMILY_OF)
EACH_TYPE = pytest.mark.parametrize("family", TYPES)
#: OpenELM's keys are its own, and no library writes its files.
EACH_OF_THE_LIBRARY = pytest.mark.parametrize("family", [kind for kind in TYPES if kind != "openelm"])

SIZES = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
OPENELM_SIZES = {
    "vocab_size": 100,
    "model_dim": 48,
    "head_dim": 4,
    "num_transformer_layers": 3,
    "num_gqa_groups": 2,
    "ffn_dim_divisor": 16,
    "max_context_length": 512,
}
LLAMA_REST = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 20000.0}
GEMMA_REST = {"head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 20000.0}
REST: dict[str, dict[str, Any]] = {
    "llama": LLAMA_REST,
    "qwen2": LLAMA_REST,
    "gemma": {**GEMMA_REST, "hidden_act": "gelu"},
    "gemma2": {
        **GEMMA_REST,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 12,
        "sliding_window": 7,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 12.0,
    },
    "phi": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-4, "rope_theta": 20000.0},
    "phi3": {**LLAMA_REST, "pad_token_id": 0},
    "openelm": {
        "activation_fn_name": "swish",
        "ffn_multipliers": [0.5, 4.0],
        "qkv_multipliers": [0.5, 1.0],
        "rope_freq_constant": 20000,
    },
}
GEMMA_NORM = NormConfig(kind="rms", eps=1e-5, gain_offset=1.0)
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [1, 4.0, 9.0, 16.0],
    "original_max_position_embeddings": 64,
}


def sizes(family: str) -> dict[str, int]:
    return OPENELM_SIZES if family == "openelm" else SIZES


def scaling_of(family: str) -> tuple[str, dict[str, Any]]:
    """A scaling rule that the original has: Phi-3's knows no other than LongRoPE."""
    return ("longrope", LONGROPE) if family == "phi3" else ("llama3", LLAMA3)


def values(family: str, **changes: Any) -> dict[str, Any]:
    """A small configuration as published, with changes."""
    return {"model_type": family, **sizes(family), **REST.get(family, LLAMA_REST), **changes}


def spread(family: str) -> dict[str, Any]:
    """The same as keyword arguments of the library."""
    return {key: value for key, value in values(family).items() if key != "model_type"}


def read(given: Mapping[str, Any]) -> DecoderConfig:
    return registry.family(FAMILY_OF[str(given["model_type"])]).config_from(HFConfig(given, SOURCE))


def refused(given: Mapping[str, Any], *words: str) -> str:
    """The reason: one line with the file's name and every one of ``words``."""
    with pytest.raises(ConfigError) as caught:
        read(given)
    message = str(caught.value)
    assert message.startswith(SOURCE)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def without(given: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in keys}


def as_the_library(theirs: Any) -> DecoderConfig:
    """The library's own object, whose every default is filled in, as ours: no key is asked for, none can be lost."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind, heads = theirs.model_type, theirs.num_attention_heads
    gemma, phi2 = kind.startswith("gemma"), kind == "phi"
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // heads
    norm = NormConfig(
        kind="layer" if phi2 else "rms",
        eps=theirs.layer_norm_eps if phi2 else theirs.rms_norm_eps,
        gain_offset=1.0 if gemma else 0.0,
    )
    attention = AttentionConfig(
        num_heads=heads,
        num_kv_heads=theirs.num_key_value_heads,
        head_dim=head_dim,
        scale=getattr(theirs, "query_pre_attn_scalar", head_dim) ** -0.5,
        qkv_bias=kind in ("qwen2", "phi") or getattr(theirs, "attention_bias", False),
        output_bias=phi2 or getattr(theirs, "attention_bias", False),
        softcap=getattr(theirs, "attn_logit_softcapping", None),
    )
    name = getattr(theirs, "hidden_activation" if kind == "gemma2" else "hidden_act")
    mlp = MLPConfig(
        hidden=theirs.intermediate_size,
        activation={"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}.get(name, name),
        gated=not phi2,
        bias=phi2 or getattr(theirs, "mlp_bias", False),
    )
    post = norm if kind == "gemma2" else None
    windows = [None] * theirs.num_hidden_layers
    if kind == "gemma2":
        windows = [theirs.sliding_window if layer == "sliding_attention" else None for layer in theirs.layer_types]
    elif kind == "phi3" and theirs.sliding_window and theirs.sliding_window < theirs.max_position_embeddings:
        windows = [theirs.sliding_window] * theirs.num_hidden_layers
    rope = theirs.rope_parameters
    scaling: Llama3Scaling | LongRopeScaling | None = None
    if rope["rope_type"] == "llama3":
        scaling = Llama3Scaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_positions=rope["original_max_position_embeddings"],
        )
    elif rope["rope_type"] == "longrope":
        scaling = LongRopeScaling(
            short_factors=tuple(rope["short_factor"]),
            long_factors=tuple(rope["long_factor"]),
            original_max_positions=rope["original_max_position_embeddings"],
            attention_factor=ROPE_INIT_FUNCTIONS["longrope"](theirs, device="cpu")[1],
        )
    return DecoderConfig(
        vocab_size=theirs.vocab_size,
        width=theirs.hidden_size,
        max_positions=theirs.max_position_embeddings,
        rope=RopeConfig(
            theta=rope["rope_theta"],
            rotary_dim=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
            scaling=scaling,
        ),
        blocks=tuple(
            BlockConfig(
                attention_norm=norm,
                attention=replace(attention, window=window),
                mlp_norm=None if phi2 else norm,
                mlp=mlp,
                post_attention_norm=post,
                post_mlp_norm=post,
            )
            for window in windows
        ),
        final_norm=norm,
        tied_head=theirs.tie_word_embeddings,
        head_bias=phi2,
        embedding_scale=theirs.hidden_size**0.5 if gemma else 1.0,
        final_softcap=getattr(theirs, "final_logit_softcapping", None),
    )


# -- what is read


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_every_value_arrives(family: str) -> None:
    """Each published key lands in its field."""
    config = read(values(family, tie_word_embeddings=True, head_dim=10))
    assert (config.vocab_size, config.width, config.max_positions) == (100, 48, 512)
    assert config.rope == RopeConfig(theta=20000.0, rotary_dim=10)
    assert config.tied_head
    assert len(config.blocks) == 2
    block = config.blocks[0]
    assert config.blocks == (block, block)
    assert (block.attention.num_heads, block.attention.num_kv_heads, block.attention.head_dim) == (6, 2, 10)
    assert block.attention.scale == 10**-0.5
    assert block.attention.qkv_bias is (family == "qwen2")
    assert not block.attention.output_bias
    assert (block.mlp.hidden, block.mlp.activation, block.mlp.gated, block.mlp.bias) == (80, "silu", True, False)
    for norm in (block.attention_norm, block.mlp_norm, config.final_norm):
        assert (norm.kind, norm.eps) == ("rms", 1e-5)


def test_every_value_of_gemma_arrives() -> None:
    """Gains stored less one, the embedding scaled by the root of the width, tanh GELU, heads of their own size."""
    block = BlockConfig(
        attention_norm=GEMMA_NORM,
        attention=AttentionConfig(num_heads=6, num_kv_heads=2, head_dim=10, scale=10**-0.5),
        mlp_norm=GEMMA_NORM,
        mlp=MLPConfig(hidden=80, activation="gelu_tanh", gated=True),
    )
    assert read(values("gemma", head_dim=10)) == DecoderConfig(
        vocab_size=100,
        width=48,
        max_positions=512,
        rope=RopeConfig(theta=20000.0, rotary_dim=10),
        blocks=(block, block),
        final_norm=GEMMA_NORM,
        tied_head=True,
        embedding_scale=48**0.5,
    )


def test_every_value_of_gemma2_arrives() -> None:
    """Four norms a layer, two caps, a scale of its own, and a window in the layers of even number."""
    sliding = BlockConfig(
        attention_norm=GEMMA_NORM,
        attention=AttentionConfig(num_heads=6, num_kv_heads=2, head_dim=10, scale=12**-0.5, softcap=4.0, window=7),
        mlp_norm=GEMMA_NORM,
        mlp=MLPConfig(hidden=80, activation="gelu_tanh", gated=True),
        post_attention_norm=GEMMA_NORM,
        post_mlp_norm=GEMMA_NORM,
    )
    full = replace(sliding, attention=replace(sliding.attention, window=None))
    expected = DecoderConfig(
        vocab_size=100,
        width=48,
        max_positions=512,
        rope=RopeConfig(theta=20000.0, rotary_dim=10),
        blocks=(sliding, full, sliding),
        final_norm=GEMMA_NORM,
        tied_head=True,
        embedding_scale=48**0.5,
        final_softcap=12.0,
    )
    given = values("gemma2", head_dim=10, num_hidden_layers=3)
    assert read(given) == expected
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    assert read({**given, "layer_types": kinds}) == replace(expected, blocks=(full, full, sliding))


def test_every_value_of_phi_arrives() -> None:
    """A parallel block with one LayerNorm, biases everywhere, the head included, and two of eight channels in four."""
    norm = NormConfig(kind="layer", eps=1e-4)
    block = BlockConfig(
        attention_norm=norm,
        attention=AttentionConfig(
            num_heads=6, num_kv_heads=2, head_dim=8, scale=8**-0.5, qkv_bias=True, output_bias=True
        ),
        mlp_norm=None,
        mlp=MLPConfig(hidden=80, activation="gelu_tanh", gated=False, bias=True),
    )
    assert read(values("phi", partial_rotary_factor=0.25)) == DecoderConfig(
        vocab_size=100,
        width=48,
        max_positions=512,
        rope=RopeConfig(theta=20000.0, rotary_dim=2),
        blocks=(block, block),
        final_norm=norm,
        tied_head=False,
        head_bias=True,
    )


@pytest.mark.parametrize(("window", "heeded"), [(None, None), (7, 7), (511, 511), (512, None), (262144, None)])
def test_every_value_of_phi3_arrives(window: int | None, heeded: int | None) -> None:
    """LongRoPE over the rotated part, and a window where it is shorter than the context."""
    norm = NormConfig(kind="rms", eps=1e-5)
    block = BlockConfig(
        attention_norm=norm,
        attention=AttentionConfig(num_heads=6, num_kv_heads=2, head_dim=8, scale=8**-0.5, window=heeded),
        mlp_norm=norm,
        mlp=MLPConfig(hidden=80, activation="silu", gated=True),
    )
    scaling = LongRopeScaling(
        short_factors=(1.0, 2.0, 3.0),
        long_factors=(4.0, 5.0, 6.0),
        original_max_positions=64,
        attention_factor=pytest.approx(1.5**0.5, rel=1e-15),  # ln(512 / 64) is half of ln(64)
    )
    inside = {"type": "longrope", "short_factor": [1, 2, 3], "long_factor": [4, 5, 6]}
    changes = {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 64, "sliding_window": window}
    assert read(values("phi3", rope_scaling=inside, tie_word_embeddings=True, **changes)) == DecoderConfig(
        vocab_size=100,
        width=48,
        max_positions=512,
        rope=RopeConfig(theta=20000.0, rotary_dim=6, scaling=scaling),
        blocks=(block, block),
        final_norm=norm,
        tied_head=True,
    )


def test_every_value_of_openelm_arrives() -> None:
    """Heads and widths that grow with depth, one norm on each head of q and k, an eps that no file says."""
    norm = NormConfig(kind="rms", eps=1e-6)
    # 0.5, 0.75 and 1.0 of 48 channels in heads of 4, shared by two; 0.5, 2.25 and 4.0 of 48 in units of 16.
    blocks = tuple(
        BlockConfig(
            attention_norm=norm,
            attention=AttentionConfig(num_heads=heads, num_kv_heads=heads // 2, head_dim=4, scale=0.5, qk_norm=norm),
            mlp_norm=norm,
            mlp=MLPConfig(hidden=hidden, activation="silu", gated=True),
        )
        for heads, hidden in ((6, 32), (10, 112), (12, 192))
    )
    assert read(values("openelm")) == DecoderConfig(
        vocab_size=100,
        width=48,
        max_positions=512,
        rope=RopeConfig(theta=20000.0, rotary_dim=4),
        blocks=blocks,
        final_norm=norm,
        tied_head=True,
    )


OPTIONAL = (
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "query_pre_attn_scalar",
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "hidden_activation",
)


@pytest.mark.parametrize(
    ("family", "absent"),
    [(family, key) for family in TYPES if family != "openelm" for key in (None, *OPTIONAL)]
    + [("gemma", "hidden_act"), ("gemma", "max_position_embeddings"), ("gemma2", "max_position_embeddings")]
    + [("gemma", "head_dim"), ("gemma2", "head_dim"), ("llama", "num_key_value_heads"), ("phi", "num_key_value_heads")]
    + [("phi3", "num_key_value_heads")]
    + [
        pytest.param(family, "num_key_value_heads")
        for family, reason in (
            ("gemma", "bug: absent num_key_value_heads is 16 in GemmaConfig, here it is the query heads"),
            ("gemma2", "bug: absent num_key_value_heads is 4 in Gemma2Config, here it is the query heads"),
        )
    ],
)
def test_absent_keys_mean_what_the_library_takes_them_to_mean(family: str, absent: str | None) -> None:
    """Each by itself, and all at once."""
    from transformers import AutoConfig

    given = without(values(family, num_attention_heads=32, hidden_size=256), *([absent] if absent else OPTIONAL))
    assert read(given) == as_the_library(AutoConfig.for_model(**deepcopy(given)))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_defaults_are_the_originals(family: str) -> None:
    """A key that is absent means what the original library takes it to mean."""
    from transformers import AutoConfig

    optional = ("rms_norm_eps", "rope_theta", "tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim")
    given = without(values(family), *optional)
    config, theirs = read(given), AutoConfig.for_model(**given)
    assert config.final_norm.eps == theirs.rms_norm_eps
    assert config.rope.theta == theirs.rope_parameters["rope_theta"]
    assert config.tied_head is theirs.tie_word_embeddings
    assert config.blocks[0].attention.head_dim == getattr(theirs, "head_dim", 8) == 8
    assert config.blocks[0].attention.output_bias is getattr(theirs, "attention_bias", False)
    assert config.blocks[0].mlp.bias is getattr(theirs, "mlp_bias", False)


@pytest.mark.parametrize("family", ["llama", "phi", "phi3"])
def test_key_value_heads_default_to_the_query_heads(family: str) -> None:
    """As in the originals of these."""
    assert read(without(values(family), "num_key_value_heads")).blocks[0].attention.num_kv_heads == 6


@pytest.mark.parametrize(("attention", "mlp"), [(True, False), (False, True), (True, True)])
def test_llama_biases(attention: bool, mlp: bool) -> None:
    """attention_bias is on all four projections, mlp_bias on all three."""
    block = read(values("llama", attention_bias=attention, mlp_bias=mlp)).blocks[0]
    assert (block.attention.qkv_bias, block.attention.output_bias, block.mlp.bias) == (attention, attention, mlp)


@pytest.mark.parametrize("theta", [10000.0, 10000, 500000.0])
@pytest.mark.parametrize("scaling", [None, "rope_type", "type", "both"])
@EACH_OF_THE_LIBRARY
def test_old_and_new_spellings_mean_the_same(family: str, scaling: str | None, theta: float) -> None:
    """rope_theta beside rope_scaling, and rope_parameters with everything inside, give one configuration."""
    base = without(values(family), "rope_theta")
    kind, rule = scaling_of(family)
    if kind == "longrope":  # Phi-3's files say it outside
        base["original_max_position_embeddings"] = 64
    naming = {name: kind for name in ("rope_type", "type") if scaling in (name, "both")}
    inside = {**rule, **naming} if scaling else None
    old = {**base, "rope_theta": theta, "rope_scaling": inside, "torch_dtype": "bfloat16"}
    new = {
        **base,
        "rope_parameters": {"rope_theta": theta, **(inside or {"rope_type": "default"})},
        "dtype": "bfloat16",
    }
    mixed = {**base, "rope_theta": theta, "rope_parameters": inside, "torch_dtype": "bfloat16", "dtype": "bfloat16"}
    expected: Llama3Scaling | LongRopeScaling = Llama3Scaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64
    )
    if kind == "longrope":
        expected = LongRopeScaling(
            short_factors=(1.0, 1.5, 2.0, 2.5),
            long_factors=(1.0, 4.0, 9.0, 16.0),
            original_max_positions=64,
            attention_factor=math.sqrt(1 + math.log(8) / math.log(64)),
        )
    rotated = 4 if family == "phi" else 8  # half a head is PhiConfig's default
    assert read(old).rope == RopeConfig(theta=theta, rotary_dim=rotated, scaling=expected if scaling else None)
    assert read(old) == read(new) == read(mixed)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@EACH_OF_THE_LIBRARY
def test_theta_inside_the_rope_object_wins(family: str, spelling: str) -> None:
    """Where both places have one, the original library takes the inner, and so must we."""
    from transformers import AutoConfig

    given = values(family, rope_theta=20000.0, **{spelling: {"rope_type": "default", "rope_theta": 70000.0}})
    assert read(given).rope.theta == AutoConfig.for_model(**given).rope_parameters["rope_theta"] == 70000.0


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@EACH_TYPE
def test_storage_dtype_changes_nothing(family: str, key: str, name: str) -> None:
    """The configuration describes the maths; how the weights are stored is the checkpoint's business."""
    assert read(values(family, **{key: name})) == read(values(family))


SHORT_AND_LONG = {key: LONGROPE[key] for key in ("short_factor", "long_factor")}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {},
        {"dtype": "bfloat16"},
        {"num_key_value_heads": None},
        {"head_dim": 16},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
        {"rope_scaling": {"type": "llama3", **LLAMA3}, "rope_theta": 500000.0},
        {"bos_token_id": None, "eos_token_id": [3, 4], "pad_token_id": 5},
        {"num_labels": 3, "use_cache": False, "attention_dropout": 0.1, "initializer_range": 0.05, "pretraining_tp": 2},
    ],
    "qwen2": [
        {},
        {"dtype": "bfloat16"},
        {"num_key_value_heads": 6},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
        {"sliding_window": 128, "max_window_layers": 1, "use_sliding_window": False},
        {"bos_token_id": 1, "eos_token_id": [3, 4]},
        {"num_labels": 3, "use_cache": False, "attention_dropout": 0.1, "initializer_range": 0.05},
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 500000.0, **LONGROPE}},
    ],
    "gemma": [
        {},
        {"dtype": "bfloat16"},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"head_dim": 10},
        {"use_bidirectional_attention": False},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
        {"bos_token_id": 1, "eos_token_id": [3, 4], "num_labels": 3, "use_cache": False, "attention_dropout": 0.1},
    ],
    "gemma2": [
        {},
        {"dtype": "bfloat16"},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"attn_logit_softcapping": 7.5, "final_logit_softcapping": 2.5},
        {"query_pre_attn_scalar": 144},
        {"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": ["full_attention", "full_attention"]},
        {"cache_implementation": "hybrid"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ],
    "phi": [
        {},
        {"dtype": "float16"},
        {"partial_rotary_factor": 0.25},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.75}},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": None},
        {"hidden_act": "gelu"},
        {"qk_layernorm": False, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    ],
    "phi3": [
        {},
        {"dtype": "bfloat16"},
        {"num_key_value_heads": None},
        {"tie_word_embeddings": True},
        {"sliding_window": 9},
        {"sliding_window": 2047},
        {"sliding_window": None},
        {"original_max_position_embeddings": 64},
        {"original_max_position_embeddings": 64, "rope_parameters": {"rope_type": "longrope", **LONGROPE}},
        {"original_max_position_embeddings": 64, "rope_scaling": {"type": "longrope", **LONGROPE}},
        {
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]},
        },
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "longrope", "factor": 4.0, **LONGROPE},
        },
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "longrope", "attention_factor": 1.25, **LONGROPE},
        },
        {"original_max_position_embeddings": 512, "rope_scaling": {"type": "longrope", **SHORT_AND_LONG}},
        {"bos_token_id": None, "eos_token_id": [3, 4], "num_labels": 3, "use_cache": False, "resid_pdrop": 0.1},
    ],
}


@pytest.mark.parametrize(
    ("family", "options"), [(family, options) for family, cases in OPTIONS.items() for options in cases]
)
def test_what_the_original_library_writes_is_read(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """save_pretrained's file, whatever was set, gives the configuration of the library's own object."""
    from transformers import AutoConfig

    # The epsilon and the activation are not the library's defaults, so that a lost key shows.
    given = {**spread(family), EPSILON[family]: 1e-3}
    del given["rope_theta"]
    if family not in ("gemma", "gemma2"):
        given["hidden_act"] = "relu"
    theirs = AutoConfig.for_model(family, **{**given, **deepcopy(options)})
    theirs.save_pretrained(tmp_path)
    config = registry.family(FAMILY_OF[family]).config_from(HFConfig.load(tmp_path))
    assert config == as_the_library(theirs)


@EVERY_PRESET
@pytest.mark.parametrize("tiny", [True, False])
def test_presets_survive_the_original_library(
    model: registry.Model, tiny: bool, tmp_path: Path, openelm_lists: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> None:
    """A preset read here, and read by the original library, written in its new spelling and read here, are equal."""
    from transformers import AutoConfig

    published = deepcopy(model.preset.values(tiny=tiny))
    config = model.family.config_from(HFConfig(published, "config.json"))
    if model.family.name == "openelm":  # as its own configuration class writes it, with every layer's numbers
        lists = openelm_lists(published)
        widths = lists.pop("widths")
        assert [block.mlp.hidden for block in config.blocks] == widths
        assert [block.attention.num_heads for block in config.blocks] == lists["num_query_heads"]
        (tmp_path / "config.json").write_text(json.dumps({**published, **lists}))
    else:
        theirs = AutoConfig.for_model(**deepcopy(published))
        if not model.encodes:
            assert config == as_the_library(theirs)
        theirs.save_pretrained(tmp_path)
    assert model.family.config_from(HFConfig.load(tmp_path)) == config


@EACH_OF_THE_LIBRARY
def test_what_save_pretrained_of_a_model_writes_is_read(family: str, tmp_path: Path) -> None:
    """The file beside a model's weights also holds its class and dtype; folder and weights load together."""
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs = AutoConfig.for_model(family, **{**spread(family), "pad_token_id": 0})
    AutoModelForCausalLM.from_config(theirs).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {"architectures", "dtype"} <= written.keys()
    loaded = registry.family(FAMILY_OF[family]).load(tmp_path)
    assert loaded.config == as_the_library(theirs) == read(values(family))


PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolLM-135M": {
        **values("llama"),
        "_name_or_path": "/fsx/loubna/checkpoints/cosmo2_1T/500000",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "initializer_range": 0.02,
        "is_llama_config": True,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
        "transformers_version": "4.42.3",
        "use_cache": True,
    },
    "Qwen2.5-1.5B": {
        **values("qwen2"),
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "initializer_range": 0.02,
        "max_window_layers": 28,
        "sliding_window": 131072,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "gemma-2b": {
        **values("gemma"),
        "architectures": ["GemmaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "hidden_activation": None,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.0.dev0",
        "use_cache": True,
    },
    "gemma-2-2b": {
        **values("gemma2"),
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": 1,
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        "transformers_version": "4.42.4",
        "use_cache": True,
    },
    "phi-2": {
        **values("phi"),
        "_name_or_path": "microsoft/phi-2",
        "architectures": ["PhiForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 50256,
        "embd_pdrop": 0.0,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "qk_layernorm": False,
        "resid_pdrop": 0.1,
        "rope_scaling": None,
        "torch_dtype": "float16",
        "transformers_version": "4.37.0",
        "use_cache": True,
    },
    "Phi-4-mini-instruct": {
        **values("phi3"),
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "bos_token_id": 199999,
        "embd_pdrop": 0.0,
        "eos_token_id": 199999,
        "full_attn_mod": 1,
        "initializer_range": 0.02,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "pad_token_id": 199999,
        "partial_rotary_factor": 1.0,
        "resid_pdrop": 0.0,
        "sliding_window": 262144,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0",
        "use_cache": True,
    },
    "OpenELM-270M": {
        **values("openelm"),
        "architectures": ["OpenELMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_openelm.OpenELMConfig"},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "ffn_multipliers": [0.5, 2.25, 4.0],
        "ffn_with_glu": True,
        "initializer_range": 0.02,
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "num_kv_heads": [3, 5, 6],
        "num_query_heads": [6, 10, 12],
        "rope_max_length": 4096,
        "share_input_output_layers": True,
        "torch_dtype": "float32",
        "transformers_version": "4.39.3",
        "use_cache": True,
    },
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_keys_of_published_files_are_understood(name: str) -> None:
    """The further keys of these files change nothing."""
    given = PUBLISHED[name]
    tied = given.get("tie_word_embeddings", given["model_type"] in ("gemma", "gemma2", "openelm"))
    assert read(given) == replace(read(values(str(given["model_type"]))), tied_head=tied)


# -- what is refused


@EACH_TYPE
@settings(deadline=None, max_examples=30)
@given(key=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).map("new_".__add__))
def test_unknown_key_is_refused_by_name(family: str, key: str) -> None:
    """Whatever it is, harmless-looking values included, it may change the maths."""
    for value in (None, False, 0, "x", [], {}):
        refused(values(family, **{key: value}), f"{key} = {value!r}", "not understood")


@pytest.mark.parametrize(
    "key", ["logits_soft_cap", "quantization_config", "residual_multiplier", "rope_local_base_freq"]
)
@EACH_TYPE
def test_other_architectures_keys_are_refused_by_name(family: str, key: str) -> None:
    """Real keys that do change the maths elsewhere."""
    refused(values(family, **{key: 2.0}), key)


@pytest.mark.parametrize(
    ("family", "key"),
    [("qwen2", key) for key in ("attention_bias", "mlp_bias", "rope_interleaved")]
    + [
        (family, key)
        for family in TYPES
        if family != "gemma2"
        for key in ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
    ]
    + [(family, "qk_layernorm") for family in TYPES if family != "phi"]
    + [(family, "lm_head_bias") for family in TYPES if family != "phi3"]
    + [(family, "sliding_window") for family in ("llama", "gemma", "phi", "openelm")]
    + [(family, "layer_types") for family in ("llama", "gemma", "phi", "phi3", "openelm")]
    + [(family, "num_gqa_groups") for family in TYPES if family != "openelm"]
    + [("openelm", key) for key in ("rope_theta", "rope_scaling", "hidden_act", *SIZES) if key != "vocab_size"],
)
def test_another_familys_keys_are_refused_by_name(family: str, key: str) -> None:
    """A key that one family understands is still unknown to the others."""
    refused(values(family, **{key: True}), key)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "rope_interleaved", True),
        ("llama", "is_llama_config", False),
        ("qwen2", "use_sliding_window", True),
        ("qwen2", "use_mrope", True),
        ("qwen2", "layer_types", ["full_attention", "sliding_attention"]),
        ("qwen2", "layer_types", ["full_attention"]),
        ("qwen2", "layer_types", []),
        ("llama", "hidden_act", "gelu_fast"),
        ("qwen2", "hidden_act", "SiLU"),
        ("llama", "hidden_act", ""),
        ("gemma", "hidden_act", "silu"),
        ("gemma", "hidden_act", "gelu_fast"),
        ("gemma", "hidden_activation", "gelu"),
        ("gemma", "hidden_activation", ""),
        ("gemma", "use_bidirectional_attention", True),
        ("gemma2", "hidden_act", "gelu"),
        ("gemma2", "hidden_activation", "gelu"),
        ("gemma2", "hidden_activation", "gelu_fast"),
        ("gemma2", "cache_implementation", "static"),
        ("gemma2", "use_bidirectional_attention", True),
        ("phi", "hidden_act", "gelu_fast"),
        ("phi", "qk_layernorm", True),
        ("phi3", "hidden_act", "gelu_fast"),
        ("phi3", "attention_bias", True),
        ("phi3", "mlp_bias", True),
        ("phi3", "lm_head_bias", True),
        ("phi3", "full_attn_mod", 2),
        ("phi3", "interpolate_factor", 2),
        ("openelm", "activation_fn_name", "gelu_fast"),
        ("openelm", "ffn_with_glu", False),
        ("openelm", "normalize_qk_projections", False),
        ("openelm", "normalization_layer_name", "layer_norm"),
        ("openelm", "share_input_output_layers", False),
        ("openelm", "tie_word_embeddings", False),
    ],
)
def test_values_that_change_the_maths_are_refused(family: str, key: str, value: Any) -> None:
    """A known key with a value that is not supported: the message names both."""
    refused(values(family, **{key: value}), key, repr(value))


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "su", "proportional", "mrope", "", "LLAMA3"])
@pytest.mark.parametrize("naming", ["rope_type", "type"])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@EACH_OF_THE_LIBRARY
def test_other_rope_types_are_refused(family: str, spelling: str, naming: str, kind: str) -> None:
    """In either place, under either name, with the parameters that would belong to it."""
    given = values(family, **{spelling: {naming: kind, "factor": 4.0, "original_max_position_embeddings": 64}})
    refused(given, "rope_type", repr(kind))


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_nothing_inside_the_rope_object_is_skipped_over(spelling: str) -> None:
    """An unknown key there is refused by name too, also with the default type, also if inert outside."""
    for kind in ({"rope_type": "default"}, {"rope_type": "llama3", **LLAMA3}, {}):
        for key in ("attention_factor", "mrope_section", "use_cache", "short_factor"):
            refused(values("llama", **{spelling: {**kind, key: 1.0}}), key)
    for kind in ({"rope_type": "longrope", **LONGROPE},):
        for key in ("low_freq_factor", "short_mscale", "use_cache"):
            refused(values("llama", **{spelling: {**kind, key: 1.0}}), key)
    refused(values("llama", **{spelling: {"rope_type": "default", "factor": 8.0}}), "factor")


@pytest.mark.parametrize("key", list(LLAMA3))
def test_incomplete_llama3_scaling_is_refused(key: str) -> None:
    """Each of its four numbers must be there."""
    refused(values("llama", rope_scaling={"rope_type": "llama3", **without(LLAMA3, key)}), f"{key} is missing")


@pytest.mark.parametrize("value", ["llama3", 2.0, [], True])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_rope_that_is_no_object_is_refused(spelling: str, value: Any) -> None:
    """A string, a number, a list."""
    refused(values("llama", **{spelling: value}), spelling, "expected an object")


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, [2], {}])
@pytest.mark.parametrize(
    ("family", "key"),
    [(family, key) for family in TYPES for key in sizes(family)]
    + [("gemma2", "sliding_window"), ("phi3", "sliding_window")],
)
def test_sizes_must_be_positive_integers(family: str, key: str, value: Any) -> None:
    """Zero, negative, a fraction, text, a boolean, a list, an object: refused with the key's name."""
    refused(values(family, **{key: value}), key)


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize(
    ("family", "key"),
    [
        (family, key)
        for family in TYPES
        for key in sorted(sizes(family).keys() - {"num_key_value_heads"} | {"hidden_act"})
        if key not in (*(["max_position_embeddings", "hidden_act"] if "gemma" in family else []),)
        and (family, key) != ("openelm", "hidden_act")
    ]
    + [("openelm", key) for key in REST["openelm"]],
)
def test_required_keys_must_be_there(family: str, key: str, null: bool) -> None:
    """Absent or null, a size is not guessed."""
    given = values(family)
    refused({**given, key: None} if null else without(given, key), key)


NUMBERS = ["1e-5", True, [1e4], {}]
POSITIVE = {
    "llama": ("rope_theta",),
    "qwen2": ("rope_theta",),
    "gemma": ("rope_theta",),
    "gemma2": ("rope_theta", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    "phi": ("rope_theta", "partial_rotary_factor"),
    "phi3": ("rope_theta", "partial_rotary_factor"),
    "openelm": ("rope_freq_constant",),
}
EPSILON = {"phi": "layer_norm_eps", **dict.fromkeys(("llama", "qwen2", "gemma", "gemma2", "phi3"), "rms_norm_eps")}


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [(family, key, value) for family, keys in POSITIVE.items() for key in keys for value in NUMBERS]
    + [(family, key, value) for family, key in EPSILON.items() for value in NUMBERS]
    + [(family, "head_dim", value) for family in TYPES for value in (8.0, 0)]
    + [
        (family, "tie_word_embeddings", value)
        for family in TYPES
        for value in ((1, "true") if family != "openelm" else (0, "true"))
    ]
    + [(family, "hidden_act", value) for family in TYPES if family != "openelm" for value in (3, ["silu"])]
    + [("openelm", "activation_fn_name", value) for value in (3, ["silu"])]
    + [("gemma2", "layer_types", value) for value in ("full_attention", 2, {})]
    + [("openelm", key, value) for key in ("qkv_multipliers", "ffn_multipliers") for value in ("x", 1.5, {})],
)
def test_wrong_types_are_refused(family: str, key: str, value: Any) -> None:
    """A value of another type is not converted."""
    refused(values(family, **{key: value}), key, repr(value))


@pytest.mark.parametrize(
    ("family", "key"),
    [("llama", "attention_bias"), ("llama", "mlp_bias"), ("gemma", "attention_bias"), ("gemma2", "attention_bias")],
)
@pytest.mark.parametrize("value", [1, 0, "false", 0.0])
def test_biases_must_be_booleans(family: str, key: str, value: Any) -> None:
    """Numbers and text are not truth values."""
    refused(values(family, **{key: value}), key, repr(value))


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 4), (6, 5), (2, 4), (7, 2)])
@EACH_OF_THE_LIBRARY
def test_heads_must_be_a_multiple_of_kv_heads(family: str, heads: int, kv_heads: int) -> None:
    """Otherwise query heads cannot be shared out evenly."""
    refused(values(family, num_attention_heads=heads, num_key_value_heads=kv_heads), "num_key_value_heads")


@pytest.mark.parametrize("head_dim", [1, 3, 7])
@pytest.mark.parametrize(
    "family",
    [
        *(family for family in TYPES if family not in ("phi", "openelm")),
        pytest.param(
            "openelm",
        ),
    ],
)
def test_odd_heads_are_refused(family: str, head_dim: int) -> None:
    """Rotation takes channels in pairs."""
    refused(values(family, head_dim=head_dim), "rotated channels")


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.5, 0.4])
def test_rotary_shares_that_cannot_be_are_refused(factor: float) -> None:
    """None of the head, more than the head, an odd number of its eight channels: also where a part may be rotated."""
    source = HFConfig({"partial_rotary_factor": factor}, "config.json")
    with pytest.raises(ConfigError, match=r"rotated channels|partial_rotary_factor"):
        source.rope(8, partial=1.0)
    for family in ("phi", "phi3"):
        share = {"partial_rotary_factor": factor}
        for changes in (share, {"rope_parameters": share}):
            message = refused(values(family, **changes))
            assert "rotated channels" in message or "partial_rotary_factor" in message


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gemma2"])
def test_partial_rotary_is_refused_where_the_original_ignores_it(family: str, inside: bool) -> None:
    """Half-rotated heads are not what the original computes."""
    share = {"partial_rotary_factor": 0.5}
    refused(values(family, **({"rope_parameters": share} if inside else share)), "partial_rotary_factor")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 0.0},
        {"rope_theta": -1e4},
        {"rope_theta": float("nan")},
        {"rope_theta": float("inf")},
        {"rms_norm_eps": -1.0},
        {"rms_norm_eps": float("nan")},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": 0.0}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": -8.0}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 0.5}},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    """Thetas and factors are positive and finite, the bands in order: the rest gives NaN or a model nobody trained."""
    refused(values("llama", **changes))


@pytest.mark.parametrize("value", [0, 0.0, -1.0, -0.0, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in POSITIVE.items() for key in keys])
def test_numbers_must_be_positive_and_finite(family: str, key: str, value: float) -> None:
    """A cap, a scale, a theta or a share of 0, below it, or no number: the original would give NaN or worse."""
    refused(values(family, **{key: value}), key, "expected a finite positive number")


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
@pytest.mark.parametrize(("family", "key"), list(EPSILON.items()))
def test_epsilons_must_be_numbers_of_at_least_zero(family: str, key: str, value: float) -> None:
    """Zero is a choice; less, or no number, is not."""
    assert read(values(family, **{key: 0})).final_norm.eps == 0.0
    refused(values(family, **{key: value}), key)


@pytest.mark.parametrize("kinds", [[], ["full_attention"], ["full_attention"] * 3, ["sliding_attention"] * 12])
def test_layer_types_of_the_wrong_length_are_refused(kinds: list[str]) -> None:
    """One a layer: the message says how many there are and how many layers."""
    refused(values("gemma2", layer_types=kinds), "layer_types", f"{len(kinds)} entries for 2 layers")


@pytest.mark.parametrize("kind", ["chunked_attention", "linear_attention", "full", "", "FULL_ATTENTION", None, 1, []])
def test_unknown_layer_types_are_refused(kind: Any) -> None:
    """The message names the kind."""
    refused(values("gemma2", layer_types=["full_attention", kind]), "layer_types", repr(kind))


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_null_cap_is_no_cap(key: str) -> None:
    """An explicit null switches a cap off, alone; absence means the library's 50 and 30."""
    capped, off = read(values("gemma2")), read(values("gemma2", **{key: None}))
    absent = read(without(values("gemma2"), key))
    if key.startswith("final"):
        assert off == replace(capped, final_softcap=None)
        assert absent == replace(capped, final_softcap=30.0)
    else:
        for config, cap in ((off, None), (absent, 50.0)):
            assert [block.attention.softcap for block in config.blocks] == [cap, cap]
            same = tuple(replace(b, attention=replace(b.attention, softcap=4.0)) for b in config.blocks)
            assert replace(config, blocks=same) == capped


@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
@pytest.mark.parametrize("length", [0, 1, 3, 5, 8])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@EACH_OF_THE_LIBRARY
def test_factor_lists_of_the_wrong_length_are_refused(family: str, spelling: str, length: int, key: str) -> None:
    """One factor a rotated pair: the message names the list, both lengths, and the rotated size."""
    rope = {"type": "longrope", **LONGROPE, "partial_rotary_factor": 1.0, key: [1.5] * length}
    outer = {"original_max_position_embeddings": 64} if family == "phi3" else {}
    why = f"{key} has {length} entries, a rotated size of 8 asks for 4"
    refused(values(family, **{spelling: rope}, **outer), why)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_factor_lists_are_of_the_rotated_size(share: float) -> None:
    """Not of the head: as many factors as the head has pairs are too many where a part is rotated."""
    rope = {"type": "longrope", **SHORT_AND_LONG}
    given = values("phi3", rope_scaling=rope, partial_rotary_factor=share, original_max_position_embeddings=64)
    pairs = int(4 * share)
    refused(given, f"short_factor has 4 entries, a rotated size of {2 * pairs} asks for {pairs}")


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), "1", True, None, [1.0]])
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_factors_must_be_positive_numbers(key: str, value: Any) -> None:
    """Each of them: a frequency is divided by it."""
    rope = {"type": "longrope", **LONGROPE, key: [1.0, 2.0, value, 4.0]}
    refused(values("phi3", rope_scaling=rope, original_max_position_embeddings=64), key)


@pytest.mark.parametrize("value", [None, 4.0, "x", {}])
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_factors_must_be_lists(key: str, value: Any) -> None:
    """Absent, null, one number for all: not guessed."""
    rope = {"type": "longrope", **LONGROPE, key: value}
    refused(values("phi3", rope_scaling=rope, original_max_position_embeddings=64), key)
    refused(values("phi3", rope_scaling=without(rope, key), original_max_position_embeddings=64), f"{key} is missing")


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("inner", "outer"), [(64, 32), (32, 64), (64, 4096)])
def test_two_original_contexts_that_differ_are_refused(spelling: str, inner: int, outer: int) -> None:
    """Inside and outside the rope object: the boundary would depend on who reads it. Equal ones are fine."""
    rope = {"type": "longrope", **LONGROPE, "original_max_position_embeddings": inner}
    given = values("phi3", **{spelling: rope}, original_max_position_embeddings=outer)
    refused(given, "original_max_position_embeddings", "given twice")
    scaling = read({**given, "original_max_position_embeddings": inner}).rope.scaling
    assert scaling is not None
    assert scaling.original_max_positions == inner


def test_longrope_without_an_original_context_is_refused() -> None:
    """Neither inside nor outside: the boundary is not guessed (Phi-3 alone has a default for it)."""
    refused(values("llama", rope_scaling={"type": "longrope", **SHORT_AND_LONG}), "original_max_position_embeddings")


@pytest.mark.parametrize("value", [0, -1, 64.0, "64", True])
@pytest.mark.parametrize("inside", [True, False])
def test_original_context_must_be_a_positive_integer(inside: bool, value: Any) -> None:
    """In either place."""
    key = "original_max_position_embeddings"
    place = {"rope_scaling": {"type": "longrope", **SHORT_AND_LONG, **({key: value} if inside else {})}}
    refused(values("phi3", **place, **({} if inside else {key: value})), key)


@pytest.mark.parametrize("key", ["attention_factor", "factor"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "1"])
def test_longropes_numbers_must_be_positive(key: str, value: Any) -> None:
    """They scale every score."""
    rope = {"type": "longrope", **LONGROPE, key: value}
    refused(values("phi3", rope_scaling=rope, original_max_position_embeddings=64), key)


def test_original_context_of_one_is_refused_or_read() -> None:
    """The attention factor divides by its logarithm."""
    rope = {"type": "longrope", **LONGROPE, "original_max_position_embeddings": 1}
    refused(values("phi3", rope_scaling=rope, original_max_position_embeddings=1), "original_max_position_embeddings")


OPENELM_LISTS = {"num_query_heads": [6, 10, 12], "num_kv_heads": [3, 5, 6], "ffn_multipliers": [0.5, 2.25, 4.0]}


@pytest.mark.parametrize("key", list(OPENELM_LISTS))
@pytest.mark.parametrize("length", [0, 1, 4, 6])
def test_openelm_lists_of_the_wrong_length_are_refused(key: str, length: int) -> None:
    """One entry a layer: the message names the list, its length, and the layers."""
    assert read(values("openelm", **OPENELM_LISTS)) == read(values("openelm"))
    changed = {**OPENELM_LISTS, key: (OPENELM_LISTS[key] * 2)[:length]}
    refused(values("openelm", **changed), f"{key} has {length} entries for 3 layers")


@pytest.mark.parametrize("value", [0, -6, 6.0, "6", True, None, [6]])
@pytest.mark.parametrize("key", ["num_query_heads", "num_kv_heads"])
def test_openelm_heads_must_be_positive_integers(key: str, value: Any) -> None:
    """In every layer."""
    changed = {**OPENELM_LISTS, key: [*OPENELM_LISTS[key][:2], value]}
    refused(values("openelm", **changed), key)


def test_openelm_heads_that_cannot_be_shared_are_refused() -> None:
    """In any layer, as stored."""
    refused(values("openelm", **{**OPENELM_LISTS, "num_kv_heads": [3, 4, 6]}), "shared")


@pytest.mark.parametrize("key", ["num_query_heads", "num_kv_heads"])
def test_openelm_half_of_the_lists_is_refused(key: str) -> None:
    """Query heads without key and value heads, or the reverse, are not completed by the rule in silence."""
    refused(without(values("openelm", **OPENELM_LISTS), key), "num_")


@pytest.mark.parametrize(
    ("key", "ends"),
    [
        (key, ends)
        for key in ("qkv_multipliers", "ffn_multipliers")
        for ends in (
            *(["0.5", 4.0], [None, None], [True, True], [[0.5], [1.0]]),
            *([0.5, float("nan")], [0.5, float("inf")]),
        )
    ]
    + [
        ("ffn_multipliers", []),
        ("ffn_multipliers", [0.5]),
        ("ffn_multipliers", [0.5] * 4),
        ("qkv_multipliers", []),
        ("qkv_multipliers", [0.5]),
        ("qkv_multipliers", [0.5, 0.6, 1.0]),
    ],
    ids=str,
)
def test_openelm_multipliers_that_cannot_be_are_refused(key: str, ends: list[Any]) -> None:
    """Two ends of a ramp, finite numbers: anything else is refused by name, with no traceback."""
    refused(values("openelm", **{key: ends}), key)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, True])
def test_openelm_stored_multipliers_that_cannot_be_are_refused(value: Any) -> None:
    """One for each layer, a finite number."""
    refused(values("openelm", **{**OPENELM_LISTS, "ffn_multipliers": [0.5, value, 4.0]}), "ffn_multipliers")


def test_contradicting_spellings_are_refused() -> None:
    """Two rope objects that do not say the same."""
    both = {
        "rope_scaling": {"rope_type": "llama3", **LLAMA3},
        "rope_parameters": {"rope_type": "llama3", **LLAMA3, "factor": 32.0},
    }
    refused(values("llama", **both), "rope_scaling")


# -- files and model types


def load_refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        HFConfig.load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("exists", [True, False])
def test_missing_file(tmp_path: Path, exists: bool) -> None:
    """No config.json, or not even the folder."""
    assert "config.json" in load_refused(tmp_path if exists else tmp_path / "absent")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"model_type": "llama"',
        b"not json",
        b"\xff\xfe\x00",
        b'{"model_type": "llama",}',
        b"\xef\xbb\xbf{}",
    ],
    ids=repr,
)
def test_file_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    """Empty, cut short, other text, other bytes."""
    (tmp_path / "config.json").write_bytes(content)
    assert "cannot be read" in load_refused(tmp_path)


@pytest.mark.parametrize(
    "content", ["null", "[]", "3", '"llama"', "{}", '{"model_type": null}', '{"model_type": ["llama"]}']
)
def test_file_that_is_no_model_configuration(tmp_path: Path, content: str) -> None:
    """Not an object, or an object without a model_type."""
    (tmp_path / "config.json").write_text(content)
    assert "has no model_type" in load_refused(tmp_path)


def test_folder_in_the_files_place(tmp_path: Path) -> None:
    """A folder called config.json."""
    (tmp_path / "config.json").mkdir()
    assert "cannot be read" in load_refused(tmp_path)


def test_file_nested_beyond_the_parsers_depth(tmp_path: Path) -> None:
    """A hostile file is refused like any other that cannot be parsed."""
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert load_refused(tmp_path)


def test_key_that_breaks_the_line() -> None:
    """A message stays one line whatever the file calls its keys."""
    refused(values("llama", **{"a\nb": 1}))


@pytest.mark.parametrize(
    ("family", "other"),
    [(family, other) for family in registry.FAMILIES for other in TYPES if FAMILY_OF[other] != family]
    + [(family, other) for family in registry.FAMILIES for other in ("mistral", "gemma3", "phimoe", "")],
)
def test_model_type_of_another_family(family: str, other: str) -> None:
    """A family reads its own model types alone, however alike the keys are, and names both."""
    with pytest.raises(UnknownModelError) as caught:
        registry.family(family).config_from(HFConfig(values(other), SOURCE))
    message = str(caught.value)
    assert SOURCE in message
    assert repr(other) in message
    assert family in message
    assert all(repr(kind) in message for kind, name in FAMILY_OF.items() if name == family)
    assert "\n" not in message


def test_every_model_type_is_tested() -> None:
    """The families read these and no others."""
    read_here = {kind: name for name in FAMILY_OF.values() for kind in registry.family(name).readers}
    assert read_here == FAMILY_OF
