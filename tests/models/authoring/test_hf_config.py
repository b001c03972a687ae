"""Configurations: both spellings mean the same, the original library's own files are read, nothing is skipped over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import registry
from models.authoring.config import DecoderConfig, Llama3Scaling, RopeConfig
from models.authoring.hf_config import HFConfig
from models.errors import ConfigError, UnknownModelError

SOURCE = "checkpoint/config.json"
EVERY_PRESET = pytest.mark.parametrize("model", list(registry.models()), ids=lambda model: model.name)
FAMILIES = ["llama", "qwen2"]
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)

SIZES = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def values(family: str, **changes: Any) -> dict[str, Any]:
    """A small configuration as published, with changes."""
    return {"model_type": family, **SIZES, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 20000.0, **changes}


def read(given: Mapping[str, Any]) -> DecoderConfig:
    return registry.family(str(given["model_type"])).config_from(HFConfig(given, SOURCE))


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


# -- what is read


@EACH_FAMILY
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


@EACH_FAMILY
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


def test_key_value_heads_default_to_the_query_heads() -> None:
    """As in the original Llama."""
    assert read(without(values("llama"), "num_key_value_heads")).blocks[0].attention.num_kv_heads == 6


@pytest.mark.parametrize(("attention", "mlp"), [(True, False), (False, True), (True, True)])
def test_llama_biases(attention: bool, mlp: bool) -> None:
    """attention_bias is on all four projections, mlp_bias on all three."""
    block = read(values("llama", attention_bias=attention, mlp_bias=mlp)).blocks[0]
    assert (block.attention.qkv_bias, block.attention.output_bias, block.mlp.bias) == (attention, attention, mlp)


@pytest.mark.parametrize("theta", [10000.0, 10000, 500000.0])
@pytest.mark.parametrize("scaling", [None, "rope_type", "type", "both"])
@EACH_FAMILY
def test_old_and_new_spellings_mean_the_same(family: str, scaling: str | None, theta: float) -> None:
    """rope_theta beside rope_scaling, and rope_parameters with everything inside, give one configuration."""
    base = without(values(family), "rope_theta")
    naming = {name: "llama3" for name in ("rope_type", "type") if scaling in (name, "both")}
    inside = {**LLAMA3, **naming} if scaling else None
    old = {**base, "rope_theta": theta, "rope_scaling": inside, "torch_dtype": "bfloat16"}
    new = {
        **base,
        "rope_parameters": {"rope_theta": theta, **(inside or {"rope_type": "default"})},
        "dtype": "bfloat16",
    }
    mixed = {**base, "rope_theta": theta, "rope_parameters": inside, "torch_dtype": "bfloat16", "dtype": "bfloat16"}
    expected = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64)
    assert read(old).rope == RopeConfig(theta=theta, rotary_dim=8, scaling=expected if scaling else None)
    assert read(old) == read(new) == read(mixed)


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@EACH_FAMILY
def test_theta_inside_the_rope_object_wins(family: str, spelling: str) -> None:
    """Where both places have one, the original library takes the inner, and so must we."""
    from transformers import AutoConfig

    given = values(family, rope_theta=20000.0, **{spelling: {"rope_type": "default", "rope_theta": 70000.0}})
    assert read(given).rope.theta == AutoConfig.for_model(**given).rope_parameters["rope_theta"] == 70000.0


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_storage_dtype_changes_nothing(key: str, name: str) -> None:
    """The configuration describes the maths; how the weights are stored is the checkpoint's business."""
    assert read(values("llama", **{key: name})) == read(values("llama"))


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
    ],
}


@pytest.mark.parametrize(
    ("family", "options"), [(family, options) for family, cases in OPTIONS.items() for options in cases]
)
def test_what_the_original_library_writes_is_read(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """save_pretrained's file, whatever was set, gives the configuration of the library's own object."""
    from transformers import AutoConfig

    # rms_norm_eps and the activation are not the library's defaults, so that a lost key shows.
    theirs = AutoConfig.for_model(family, **{**SIZES, "rms_norm_eps": 1e-3, "hidden_act": "relu", **options})
    theirs.save_pretrained(tmp_path)
    config = registry.family(family).config_from(HFConfig.load(tmp_path))
    block = config.blocks[0]
    assert config.vocab_size == theirs.vocab_size
    assert config.width == theirs.hidden_size
    assert config.max_positions == theirs.max_position_embeddings
    assert len(config.blocks) == theirs.num_hidden_layers
    assert config.tied_head is theirs.tie_word_embeddings
    assert config.final_norm.eps == theirs.rms_norm_eps
    assert block.attention.num_heads == theirs.num_attention_heads
    assert block.attention.num_kv_heads == theirs.num_key_value_heads
    assert block.attention.head_dim == getattr(theirs, "head_dim", 8)
    assert block.attention.output_bias is getattr(theirs, "attention_bias", False)
    assert block.mlp.hidden == theirs.intermediate_size
    assert block.mlp.bias is getattr(theirs, "mlp_bias", False)
    assert block.mlp.activation == {"gelu_pytorch_tanh": "gelu_tanh"}.get(theirs.hidden_act, theirs.hidden_act)
    rope = theirs.rope_parameters
    assert config.rope.theta == rope["rope_theta"]
    assert (config.rope.scaling is None) == (rope["rope_type"] == "default")
    if config.rope.scaling:
        assert config.rope.scaling.factor == rope["factor"]
        assert config.rope.scaling.original_max_positions == rope["original_max_position_embeddings"]


@EVERY_PRESET
@pytest.mark.parametrize("tiny", [True, False])
def test_presets_survive_the_original_library(model: registry.Model, tiny: bool, tmp_path: Path) -> None:
    """A preset read here, and read by the original library, written in its new spelling and read here, are equal."""
    from transformers import AutoConfig

    published = model.preset.values(tiny=tiny)
    AutoConfig.for_model(**published).save_pretrained(tmp_path)
    assert model.family.config_from(HFConfig.load(tmp_path)) == read(published)


@EACH_FAMILY
def test_what_save_pretrained_of_a_model_writes_is_read(family: str, tmp_path: Path) -> None:
    """The file beside a model's weights also holds its class and dtype; folder and weights load together."""
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {"architectures", "dtype"} <= written.keys()
    assert registry.family(family).load(tmp_path).config.vocab_size == 100


PUBLISHED = {
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
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_keys_of_published_files_are_understood(name: str) -> None:
    """The further keys of these files change nothing."""
    given = PUBLISHED[name]
    assert read(given) == replace(read(values(str(given["model_type"]))), tied_head=True)


# -- what is refused


@EACH_FAMILY
@settings(deadline=None, max_examples=30)
@given(key=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).map("new_".__add__))
def test_unknown_key_is_refused_by_name(family: str, key: str) -> None:
    """Whatever it is, harmless-looking values included, it may change the maths."""
    for value in (None, False, 0, "x", [], {}):
        refused(values(family, **{key: value}), f"{key} = {value!r}", "not understood")


@pytest.mark.parametrize(
    "key", ["attn_logit_softcapping", "quantization_config", "residual_multiplier", "rope_local_base_freq"]
)
@EACH_FAMILY
def test_other_architectures_keys_are_refused_by_name(family: str, key: str) -> None:
    """Real keys that do change the maths elsewhere."""
    refused(values(family, **{key: 2.0}), key)


@pytest.mark.parametrize("family", ["qwen2"])
@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias", "rope_interleaved"])
def test_another_familys_keys_are_refused_by_name(family: str, key: str) -> None:
    """A key that one family understands is still unknown to the other."""
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
    ],
)
def test_values_that_change_the_maths_are_refused(family: str, key: str, value: Any) -> None:
    """A known key with a value that is not supported: the message names both."""
    refused(values(family, **{key: value}), key, repr(value))


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic", "longrope", "proportional", "mrope", "", "LLAMA3"])
@pytest.mark.parametrize("naming", ["rope_type", "type"])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@EACH_FAMILY
def test_other_rope_types_are_refused(family: str, spelling: str, naming: str, kind: str) -> None:
    """In either place, under either name, with the parameters that would belong to it."""
    given = values(family, **{spelling: {naming: kind, "factor": 4.0, "original_max_position_embeddings": 64}})
    refused(given, "rope_type", repr(kind))


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_nothing_inside_the_rope_object_is_skipped_over(spelling: str) -> None:
    """An unknown key there is refused by name too, also with the default type, also if inert outside."""
    for kind in ({"rope_type": "default"}, {"rope_type": "llama3", **LLAMA3}, {}):
        for key in ("attention_factor", "mrope_section", "use_cache"):
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


@pytest.mark.parametrize("key", list(SIZES))
@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, [2], {}])
@EACH_FAMILY
def test_sizes_must_be_positive_integers(family: str, key: str, value: Any) -> None:
    """Zero, negative, a fraction, text, a boolean, a list, an object: refused with the key's name."""
    refused(values(family, **{key: value}), key)


@pytest.mark.parametrize("key", sorted(SIZES.keys() - {"num_key_value_heads"} | {"hidden_act"}))
@pytest.mark.parametrize("null", [True, False])
@EACH_FAMILY
def test_required_keys_must_be_there(family: str, key: str, null: bool) -> None:
    """Absent or null, a size is not guessed."""
    given = values(family)
    refused({**given, key: None} if null else without(given, key), key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", True),
        ("rms_norm_eps", []),
        ("rope_theta", "10000"),
        ("rope_theta", True),
        ("rope_theta", [1e4]),
        ("head_dim", 8.0),
        ("head_dim", 0),
        ("tie_word_embeddings", 1),
        ("tie_word_embeddings", "true"),
        ("hidden_act", 3),
        ("hidden_act", ["silu"]),
    ],
)
@EACH_FAMILY
def test_wrong_types_are_refused(family: str, key: str, value: Any) -> None:
    """A value of another type is not converted."""
    refused(values(family, **{key: value}), key, repr(value))


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
@pytest.mark.parametrize("value", [1, 0, "false", 0.0])
def test_biases_must_be_booleans(key: str, value: Any) -> None:
    """Numbers and text are not truth values."""
    refused(values("llama", **{key: value}), key, repr(value))


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 4), (6, 5), (2, 4), (7, 2)])
@EACH_FAMILY
def test_heads_must_be_a_multiple_of_kv_heads(family: str, heads: int, kv_heads: int) -> None:
    """Otherwise query heads cannot be shared out evenly."""
    refused(values(family, num_attention_heads=heads, num_key_value_heads=kv_heads), "num_key_value_heads")


@pytest.mark.parametrize("head_dim", [1, 3, 7])
def test_odd_heads_are_refused(head_dim: int) -> None:
    """Rotation takes channels in pairs."""
    refused(values("llama", head_dim=head_dim), "rotated channels")


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.5, 0.4])
def test_rotary_shares_that_cannot_be_are_refused(factor: float) -> None:
    """None of the head, more than the head, an odd number of its eight channels: also where a part may be rotated."""
    source = HFConfig({"partial_rotary_factor": factor}, "config.json")
    with pytest.raises(ConfigError, match=r"rotated channels|partial_rotary_factor"):
        source.rope(8, partial=True)


@pytest.mark.parametrize("inside", [True, False])
@EACH_FAMILY
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
    ("family", "other"), [("llama", "qwen2"), ("qwen2", "llama"), ("llama", "mistral"), ("qwen2", "")]
)
def test_model_type_of_another_family(family: str, other: str) -> None:
    """A family reads its own model_type alone, however alike the keys are, and names both."""
    with pytest.raises(UnknownModelError) as caught:
        registry.family(family).config_from(HFConfig(values(other), SOURCE))
    message = str(caught.value)
    assert SOURCE in message
    assert repr(other) in message
    assert repr(family) in message
    assert "\n" not in message
