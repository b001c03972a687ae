"""Phi-2, Phi-3.5-mini and Phi-4-mini.

Phi-2 (https://arxiv.org/abs/2309.05463) is a parallel block with one LayerNorm, partial rotary and biases everywhere.
Phi-3 (https://arxiv.org/abs/2404.14219) is Llama-shaped with fused projections and LongRoPE. Originals:
``PhiForCausalLM`` and ``Phi3ForCausalLM`` in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator

from models.authoring.config import AttentionConfig, BlockConfig, DecoderConfig, MLPConfig, NormConfig
from models.authoring.family import Family, Preset, decoder_sizes
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Operation, Rename, Split, per_layer
from models.llama import ROTARY_BUFFER, embedding_and_head


def read_phi(source: HFConfig) -> DecoderConfig:
    """``PhiConfig`` as this project's configuration."""
    source.expect("qk_layernorm", False)
    norm = NormConfig(kind="layer", eps=source.number("layer_norm_eps", 1e-5, zero=True))
    attention = _attention(source, bias=True)
    activation = source.activation("hidden_act")
    mlp = MLPConfig(hidden=source.positive("intermediate_size"), activation=activation, gated=False, bias=True)
    block = BlockConfig(attention_norm=norm, attention=attention, mlp_norm=None, mlp=mlp)
    return _decoder(source, block, norm, default_rotary=0.5, head_bias=True)


def read_phi3(source: HFConfig) -> DecoderConfig:
    """``Phi3Config`` as this project's configuration."""
    source.expect("attention_bias", False)
    source.expect("mlp_bias", False)
    source.expect("lm_head_bias", False)
    source.expect("full_attn_mod", 1)
    source.expect("interpolate_factor", 1)
    norm = NormConfig(kind="rms", eps=source.number("rms_norm_eps", 1e-5, zero=True))
    positions = source.positive("max_position_embeddings")
    window = source.positive("sliding_window") if source.has("sliding_window") else None
    source.ignore("sliding_window")  # absent or null
    attention = _attention(source, bias=False, window=window if window is not None and window < positions else None)
    activation = source.activation("hidden_act")
    mlp = MLPConfig(hidden=source.positive("intermediate_size"), activation=activation, gated=True)
    block = BlockConfig(attention_norm=norm, attention=attention, mlp_norm=norm, mlp=mlp)
    source.ignore("original_max_position_embeddings")  # read with the rotary embedding where that is LongRoPE
    return _decoder(source, block, norm, default_rotary=1.0, head_bias=False, original=4096)


def _attention(source: HFConfig, *, bias: bool, window: int | None = None) -> AttentionConfig:
    heads = source.positive("num_attention_heads")
    kv_heads = source.positive("num_key_value_heads", heads)
    source.require(heads % kv_heads == 0, "num_attention_heads is not a multiple of num_key_value_heads")
    head_dim = source.positive("head_dim", source.positive("hidden_size") // heads)
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=bias,
        output_bias=bias,
        window=window,
    )


def _decoder(
    source: HFConfig,
    block: BlockConfig,
    norm: NormConfig,
    *,
    default_rotary: float,
    head_bias: bool,
    original: int | None = None,
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=source.positive("vocab_size"),
        width=source.positive("hidden_size"),
        max_positions=source.positive("max_position_embeddings"),
        rope=source.rope(block.attention.head_dim, partial=default_rotary, original_default=original),
        blocks=(block,) * source.layers("num_hidden_layers"),
        final_norm=norm,
        tied_head=source.take("tie_word_embeddings", bool, False),
        head_bias=head_bias,
    )


def weight_map(config: DecoderConfig) -> Iterator[Operation]:
    """Published tensors to parameters: Phi-2's block is parallel, Phi-3's is not."""
    yield from embedding_and_head(config)
    rows = _phi3_layer if config.blocks[0].mlp_norm else _phi_layer
    if config.head_bias:
        yield Rename("lm_head.bias", "head.projection.bias")
    final = "model.norm" if config.final_norm.kind == "rms" else "model.final_layernorm"
    for kind in ("weight",) if config.final_norm.kind == "rms" else ("weight", "bias"):
        yield Rename(f"{final}.{kind}", f"head.norm.{kind}")
    yield from per_layer([*rows(config.blocks[0]), ROTARY_BUFFER], len(config.blocks))


def _phi_layer(_: BlockConfig) -> Iterator[Operation]:
    names = {
        "input_layernorm": "attention_norm",
        "self_attn.q_proj": "attention.q_proj",
        "self_attn.k_proj": "attention.k_proj",
        "self_attn.v_proj": "attention.v_proj",
        "self_attn.dense": "attention.o_proj",
        "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
    }
    for source, target in names.items():
        for kind in ("weight", "bias"):
            yield Rename(f"model.layers.{{}}.{source}.{kind}", f"blocks.{{}}.{target}.{kind}")


def _phi3_layer(block: BlockConfig) -> Iterator[Operation]:
    names = {
        "input_layernorm": "attention_norm",
        "self_attn.o_proj": "attention.o_proj",
        "post_attention_layernorm": "mlp_norm",
        "mlp.down_proj": "mlp.down_proj",
    }
    for source, target in names.items():
        yield Rename(f"model.layers.{{}}.{source}.weight", f"blocks.{{}}.{target}.weight")
    yield Split(
        "model.layers.{}.self_attn.qkv_proj.weight",
        tuple(f"blocks.{{}}.attention.{part}_proj.weight" for part in "qkv"),
        block.attention.fused_rows,
    )
    yield Split(
        "model.layers.{}.mlp.gate_up_proj.weight",
        ("blocks.{}.mlp.gate_proj.weight", "blocks.{}.mlp.up_proj.weight"),
        (block.mlp.hidden, block.mlp.hidden),
    )


_TINY = {
    "vocab_size": 320,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_PHI2 = {
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 51200,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
_PHI3 = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "torch_dtype": "bfloat16",
}
_PHI35_SHORT = [
    *[1.0, 1.0199999809265137, 1.0299999713897705, 1.0299999713897705, *[1.0499999523162842] * 5],
    *[1.0699999332427979, 1.0999999046325684, 1.1099998950958252, 1.1599998474121094, 1.1599998474121094],
    *[1.1699998378753662, 1.2899998426437378, 1.339999794960022, 1.679999828338623, 1.7899998426437378],
    *[1.8199998140335083, 1.8499997854232788, 1.8799997568130493, 1.9099997282028198, 1.9399996995925903],
    *[1.9899996519088745, *[2.0199997425079346] * 6, *[2.0299997329711914] * 9, 2.0799996852874756],
    *[2.0899996757507324, 2.189999580383301, 2.2199995517730713, 2.5899994373321533, 2.729999542236328],
    *[2.749999523162842, 2.8399994373321533],
]
_PHI35_LONG = [
    *[1.0800000429153442, 1.1100000143051147, 1.1399999856948853, 1.340000033378601, 1.5899999141693115],
    *[1.600000023841858, 1.6200000047683716, 2.620000123977661, 3.2300000190734863, 3.2300000190734863],
    *[4.789999961853027, 7.400000095367432, 7.700000286102295, 9.09000015258789, 12.199999809265137],
    *[17.670000076293945, 24.46000099182129, 28.57000160217285, 30.420001983642578, 30.840002059936523],
    *[32.590003967285156, 32.93000411987305, 42.320003509521484, 44.96000289916992, 50.340003967285156],
    *[50.45000457763672, 57.55000305175781, 57.93000411987305, 58.21000289916992, 60.1400032043457],
    *[62.61000442504883, 62.62000274658203, 62.71000289916992, 63.1400032043457, 63.1400032043457],
    *[63.77000427246094, 63.93000411987305, 63.96000289916992, 63.970001220703125, 64.02999877929688],
    *[64.06999969482422, 64.08000183105469, 64.12000274658203, 64.41000366210938, 64.4800033569336],
    *[64.51000213623047, 64.52999877929688, 64.83999633789062],
]
_PHI4_LONG = [
    *[1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898],
    *[2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424],
    *[6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252],
    *[16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23],
    *[32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77],
]


def _longrope(short: list[float], long: list[float]) -> dict[str, object]:
    return {"rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": long}}


def _tiny_longrope(pairs: int) -> dict[str, object]:
    """An original context of 32, so that prompts lie on both sides; factors that float32 holds exactly."""
    short, long = [1 + k / 16 for k in range(pairs)], [1 + 2.0 * k for k in range(pairs)]
    lengths = {"max_position_embeddings": 2048, "original_max_position_embeddings": 32}
    return {**_longrope(short, long), **lengths, "sliding_window": 4096}


FAMILY = Family(
    name="phi",
    readers={"phi": read_phi, "phi3": read_phi3},
    weight_map=weight_map,
    presets=(
        Preset(
            name="phi-2",
            aliases=("phi2",),
            repo="microsoft/phi-2",
            parameters=2_779_683_840,
            config={**_PHI2, **decoder_sizes(2560, 32, 32, 32, 10240)},
            tiny={**_TINY, **decoder_sizes(120, 3, 6, 6, 384)},  # heads of 20, 8 of them rotated
        ),
        Preset(
            name="phi-3.5-mini",
            aliases=("phi3.5",),
            repo="microsoft/Phi-3.5-mini-instruct",
            parameters=3_821_079_552,
            config={
                **_PHI3,
                **decoder_sizes(3072, 32, 32, 32, 8192),
                **_longrope(_PHI35_SHORT, _PHI35_LONG),
                "vocab_size": 32064,
                "tie_word_embeddings": False,
                "bos_token_id": 1,
                "eos_token_id": 32000,
                "pad_token_id": 32000,
            },
            tiny={**_TINY, **decoder_sizes(96, 3, 6, 6, 256), **_tiny_longrope(8)},
            tiny_prompts="regimes",
        ),
        Preset(
            name="phi-4-mini",
            aliases=("phi4",),
            repo="microsoft/Phi-4-mini-instruct",
            parameters=3_836_021_760,
            config={
                **_PHI3,
                **decoder_sizes(3072, 32, 24, 8, 8192),
                **_longrope([1.0] * 48, _PHI4_LONG),
                "partial_rotary_factor": 0.75,
                "vocab_size": 200064,
                "tie_word_embeddings": True,
                "bos_token_id": 199999,
                "eos_token_id": 199999,
                "pad_token_id": 199999,
            },
            tiny={**_TINY, **decoder_sizes(96, 3, 6, 2, 256), **_tiny_longrope(6)},
            tiny_prompts="regimes",
        ),
    ),
)
