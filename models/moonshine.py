"""Moonshine: speech to text from raw samples, interleaved partial rotary positions, no rotation across.

Paper: https://arxiv.org/abs/2410.15608. Original: ``MoonshineForConditionalGeneration`` in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from models.authoring.config import (
    AttentionConfig,
    AudioStemConfig,
    BlockConfig,
    EncoderDecoderConfig,
    MLPConfig,
    NormConfig,
    StackConfig,
)
from models.authoring.family import Family, Preset
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Operation, Rename, Split, Tie

#: LayerNorm and GroupNorm of the original are left at PyTorch's own epsilon; no key says otherwise.
EPS = 1e-5


def read_config(source: HFConfig) -> EncoderDecoderConfig:
    """``MoonshineConfig`` as this project's configuration."""
    source.expect("is_encoder_decoder", True)
    source.ignore("pad_head_dim_to_multiple_of")  # zeros for a faster kernel, cut off again
    width = source.positive("hidden_size", 288)
    heads = source.positive("encoder_num_attention_heads", 8)
    _require_equal_heads(source, heads)
    head_dim = source.positive("head_dim", width // heads)
    norm = NormConfig(kind="layer", eps=EPS, bias=False)
    attention = AttentionConfig(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=source.take("attention_bias", bool, False),
    )
    hidden = source.positive("intermediate_size", 1152)
    rope = replace(source.rope(head_dim, partial=0.9), interleaved=True)
    source.require(rope.scaling is None, "scaled frequencies are not supported")
    stacks = {}
    for side, activation, gated in (("encoder", "gelu", False), ("decoder", "silu", True)):
        mlp = MLPConfig(
            hidden=hidden,
            activation=source.activation(f"{side}_hidden_act", activation),
            gated=gated,
            bias=True,
        )
        block = BlockConfig(attention_norm=norm, attention=attention, mlp_norm=norm, mlp=mlp)
        layers = source.layers(f"{side}_num_hidden_layers", 6)
        stacks[side] = StackConfig(blocks=(block,) * layers, final_norm=norm, rope=rope)
    return EncoderDecoderConfig(
        vocab_size=source.positive("vocab_size", 32768),
        width=width,
        max_positions=source.positive("max_position_embeddings", 512),
        decoder_start=source.natural("decoder_start_token_id", 1),
        encoder=stacks["encoder"],
        decoder=stacks["decoder"],
        cross_norm=norm,
        cross_attention=replace(attention, rotary=False),
        tied_head=source.take("tie_word_embeddings", bool, True),
        stem=AudioStemConfig(kernels=(127, 7, 3), strides=(64, 3, 2), norm_eps=EPS),
    )


def _require_equal_heads(source: HFConfig, heads: int) -> None:
    """The original can be built with other numbers, but one stack's then overwrite the other's, and it does not run."""
    for key in ("decoder_num_attention_heads", "encoder_num_key_value_heads", "decoder_num_key_value_heads"):
        default = 8 if key == "decoder_num_attention_heads" else heads
        found = source.positive(key, default)
        source.require(
            found == heads, f"{key} is {found}, and encoder_num_attention_heads, which must equal it, {heads}"
        )


#: The norm before each sub-block; the decoder's cross-attention takes the name that the encoder has for its MLP's.
_NORMS = {
    "encoder": {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
    "decoder": {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "cross_norm",
        "final_layernorm": "mlp_norm",
    },
}
_ATTENTIONS = {
    "encoder": {"self_attn": "attention"},
    "decoder": {"self_attn": "attention", "encoder_attn": "cross_attention"},
}


def weight_map(config: EncoderDecoderConfig) -> Iterator[Operation]:
    """Published tensors to parameters."""
    table, head = "model.decoder.embed_tokens.weight", "proj_out.weight"
    if config.tied_head:
        yield Tie(table, "tokens.weight", "projection.weight", (head,))
    else:
        yield Rename(table, "tokens.weight")
        yield Rename(head, "projection.weight")
    for name, target in _stem():
        yield Rename(f"model.encoder.{name}", f"stem.{target}")
    yield Rename("model.encoder.layer_norm.weight", "encoder.norm.weight")
    yield Rename("model.decoder.norm.weight", "decoder.norm.weight")
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        for layer, block in enumerate(stack.blocks):
            yield from _block(side, block, f"model.{side}.layers.{layer}", f"{side}.blocks.{layer}")


def _stem() -> Iterator[tuple[str, str]]:
    for number in (1, 2, 3):
        for leaf in ("weight",) if number == 1 else ("weight", "bias"):
            yield f"conv{number}.{leaf}", f"convolutions.{number - 1}.{leaf}"
    yield "groupnorm.weight", "norm.weight"
    yield "groupnorm.bias", "norm.bias"


def _block(side: str, block: BlockConfig, source: str, target: str) -> Iterator[Operation]:
    for name, norm in _NORMS[side].items():
        yield Rename(f"{source}.{name}.weight", f"{target}.{norm}.weight")
    for name, attention in _ATTENTIONS[side].items():
        for part in "qkvo":
            biased = block.attention.qkv_bias and part != "o"
            for leaf in ("weight", "bias") if biased else ("weight",):
                yield Rename(f"{source}.{name}.{part}_proj.{leaf}", f"{target}.{attention}.{part}_proj.{leaf}")
    for leaf in ("weight", "bias"):
        first = f"{source}.mlp.fc1.{leaf}"
        if block.mlp.gated:  # the second half is the one that is activated
            halves = (f"{target}.mlp.up_proj.{leaf}", f"{target}.mlp.gate_proj.{leaf}")
            yield Split(first, halves, (block.mlp.hidden,) * 2)
        else:
            yield Rename(first, f"{target}.mlp.up_proj.{leaf}")
        yield Rename(f"{source}.mlp.fc2.{leaf}", f"{target}.mlp.down_proj.{leaf}")


_MOONSHINE = {
    "architectures": ["MoonshineForConditionalGeneration"],
    "model_type": "moonshine",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "decoder_hidden_act": "silu",
    "decoder_start_token_id": 1,
    "encoder_hidden_act": "gelu",
    "eos_token_id": 2,
    "is_encoder_decoder": True,
    "max_position_embeddings": 194,
    "pad_head_dim_to_multiple_of": 8,
    "pad_token_id": 2,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "vocab_size": 32768,
}
#: Samples as they are, 16 000 a second.
_PROCESSOR = {
    "do_normalize": False,
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}


def _sizes(width: int, hidden: int, layers: int, heads: int) -> dict[str, int]:
    both = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads}
    sizes = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in both.items()}
    return {"hidden_size": width, "intermediate_size": hidden, **sizes}


#: Head sizes of half the published ones (18 and 26), so that 16 channels rotate; the heads together are narrower than
#: the stream, and the decoder is shallower than the encoder.
_TINY = {"vocab_size": 320, "decoder_num_hidden_layers": 2}

FAMILY = Family(
    name="moonshine",
    readers={"moonshine": read_config},
    weight_map=weight_map,
    prompts="speech",
    presets=(
        Preset(
            name="moonshine-tiny",
            repo="UsefulSensors/moonshine-tiny",
            parameters=27_092_736,
            config={**_MOONSHINE, **_sizes(288, 1152, 6, 8), "partial_rotary_factor": 0.9},
            tiny={**_sizes(128, 256, 3, 7), **_TINY},
            processor=_PROCESSOR,
        ),
        Preset(
            name="moonshine-base",
            repo="UsefulSensors/moonshine-base",
            parameters=61_513_920,
            config={**_MOONSHINE, **_sizes(416, 1664, 8, 8), "partial_rotary_factor": 0.62},
            tiny={**_sizes(160, 320, 3, 6), **_TINY},
            processor=_PROCESSOR,
        ),
    ),
)
