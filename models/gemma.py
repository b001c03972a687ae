"""Gemma 1 and 2: ``1 + w`` norms, scaled embeddings, tied head, tanh GELU; Gemma 2 adds post-norms, soft-caps, windows.

Papers: https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2408.00118. Originals: ``GemmaForCausalLM`` and
``Gemma2ForCausalLM`` in transformers; Kaggle's ``gemma_pytorch`` checkpoints are read as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from models.authoring.config import AttentionConfig, BlockConfig, DecoderConfig, MLPConfig, NormConfig
from models.authoring.family import Family, Layout, Preset, decoder_sizes
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Drop, Operation, Rename, Split, Tie, per_layer
from models.errors import CheckpointError
from models.llama import embedding_and_head, projections


def read_gemma(source: HFConfig, *, bidirectional_prefix: bool = False) -> DecoderConfig:
    """``GemmaConfig`` as this project's configuration.

    ``bidirectional_prefix`` says that it is the text part of a model whose prompts see themselves in both directions.
    """
    source.expect("use_bidirectional_attention", bidirectional_prefix)
    # The published ``hidden_act`` is the legacy word for the tanh form; ``hidden_activation``, where present, wins.
    source.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    source.expect("hidden_activation", "gelu_pytorch_tanh")
    head_dim = source.positive("head_dim", 256)
    attention = _attention(source, head_dim, kv_heads_default=16, scale=head_dim**-0.5)
    block = BlockConfig(attention_norm=_norm(source), attention=attention, mlp_norm=_norm(source), mlp=_mlp(source))
    return _decoder(source, (block,) * source.layers("num_hidden_layers"), final_softcap=None)


def read_gemma2(source: HFConfig, *, bidirectional_prefix: bool = False) -> DecoderConfig:
    """``Gemma2Config`` as this project's configuration; ``bidirectional_prefix`` as in ``read_gemma``."""
    source.expect("use_bidirectional_attention", bidirectional_prefix)
    source.expect("hidden_act", "gelu_pytorch_tanh")
    source.expect("hidden_activation", "gelu_pytorch_tanh")
    source.expect("cache_implementation", "hybrid")
    head_dim = source.positive("head_dim", 256)
    layers = source.layers("num_hidden_layers")
    window = source.positive("sliding_window", 4096)
    alternating = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)]
    kinds = source.layer_types(layers, alternating)
    scale = source.number("query_pre_attn_scalar", 256.0) ** -0.5
    softcap = source.optional_number("attn_logit_softcapping", 50.0)
    blocks = tuple(
        BlockConfig(
            attention_norm=_norm(source),
            attention=_attention(
                source,
                head_dim,
                kv_heads_default=4,
                scale=scale,
                softcap=softcap,
                window=window if kind == "sliding_attention" else None,
            ),
            post_attention_norm=_norm(source),
            mlp_norm=_norm(source),
            mlp=_mlp(source),
            post_mlp_norm=_norm(source),
        )
        for kind in kinds
    )
    return _decoder(source, blocks, final_softcap=source.optional_number("final_logit_softcapping", 30.0))


def _norm(source: HFConfig) -> NormConfig:
    return NormConfig(kind="rms", eps=source.number("rms_norm_eps", 1e-6, zero=True), gain_offset=1.0)


def _attention(
    source: HFConfig,
    head_dim: int,
    *,
    kv_heads_default: int,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> AttentionConfig:
    heads = source.positive("num_attention_heads")
    kv_heads = source.positive("num_key_value_heads", kv_heads_default)
    source.require(heads % kv_heads == 0, "num_attention_heads is not a multiple of num_key_value_heads")
    bias = source.take("attention_bias", bool, False)
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=scale,
        qkv_bias=bias,
        output_bias=bias,
        softcap=softcap,
        window=window,
    )


def _mlp(source: HFConfig) -> MLPConfig:
    return MLPConfig(hidden=source.positive("intermediate_size"), activation="gelu_tanh", gated=True)


def _decoder(source: HFConfig, blocks: tuple[BlockConfig, ...], *, final_softcap: float | None) -> DecoderConfig:
    width = source.positive("hidden_size")
    return DecoderConfig(
        vocab_size=source.positive("vocab_size"),
        width=width,
        max_positions=source.positive("max_position_embeddings", 8192),
        rope=source.rope(blocks[0].attention.head_dim),
        blocks=blocks,
        final_norm=_norm(source),
        tied_head=source.take("tie_word_embeddings", bool, True),
        embedding_scale=width**0.5,
        final_softcap=final_softcap,
    )


def weight_map(config: DecoderConfig) -> Iterator[Operation]:
    """Published tensors to parameters: Llama's names, and Gemma 2's two more norms a layer."""
    yield from embedding_and_head(config)
    yield Rename("model.norm.weight", "head.norm.weight")
    yield from per_layer([*_norms(config), *projections(config.blocks[0])], len(config.blocks))


def kaggle_weight_map(config: DecoderConfig, names: Collection[str]) -> Iterator[Operation]:
    """``gemma_pytorch``'s tensors to parameters: the published names, but for the table and the fused q, k and v."""
    for name in names:
        leaf = name.rpartition(".")[2]
        if leaf == "weight_scaler":
            raise CheckpointError(f"{name} is of an int8 checkpoint, which is no original; take the one not quantized")
        if leaf in ("freqs_cis", "local_freqs_cis", "global_freqs_cis"):
            yield Drop(name, "recomputed from the configuration")
    yield Tie("embedder.weight", "embed.tokens.weight", "head.projection.weight", ("lm_head.weight",))
    yield Rename("model.norm.weight", "head.norm.weight")
    parts = tuple(f"blocks.{{}}.attention.{part}_proj.weight" for part in "qkv")
    fused = Split("model.layers.{}.self_attn.qkv_proj.weight", parts, config.blocks[0].attention.fused_rows)
    output = Rename("model.layers.{}.self_attn.o_proj.weight", "blocks.{}.attention.o_proj.weight")
    linears = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    mlp = [Rename(f"model.layers.{{}}.{name}.weight", f"blocks.{{}}.{name}.weight") for name in linears]
    yield from per_layer([*_norms(config), fused, output, *mlp], len(config.blocks))


def _norms(config: DecoderConfig) -> list[Operation]:
    """The norms of one layer; Gemma 2 uses the published name of Gemma 1's second norm for another."""
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    if config.blocks[0].post_attention_norm:
        norms |= {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "post_mlp_norm",
        }
    return [Rename(f"model.layers.{{}}.{a}.weight", f"blocks.{{}}.{b}.weight") for a, b in norms.items()]


_BASE = {
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 256000,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GEMMA = {**_BASE, "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu"}
_GEMMA2 = {
    **_BASE,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_TINY = {
    "vocab_size": 320,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILY = Family(
    name="gemma",
    readers={"gemma": read_gemma, "gemma2": read_gemma2},
    weight_map=weight_map,
    layouts=(
        Layout(
            marks=frozenset({"embedder.weight", "model.layers.0.self_attn.qkv_proj.weight"}),
            weight_map=kaggle_weight_map,
        ),
    ),
    # The Kaggle handles are from public examples; none could be asked for where this was written.
    presets=(
        Preset(
            name="gemma-2b",
            repo="google/gemma-2b",
            kaggle="google/gemma/pyTorch/2b",
            parameters=2_506_172_416,
            config={**_GEMMA, **decoder_sizes(2048, 18, 8, 1, 16384)},
            tiny={**_TINY, **decoder_sizes(96, 3, 8, 1, 384), "head_dim": 16},
        ),
        Preset(
            name="gemma-7b",
            repo="google/gemma-7b",
            kaggle="google/gemma/pyTorch/7b",
            parameters=8_537_680_896,
            config={**_GEMMA, **decoder_sizes(3072, 28, 16, 16, 24576)},
            # heads x head_dim is 4/3 of the width, as in the published model
            tiny={**_TINY, **decoder_sizes(96, 3, 8, 8, 256), "head_dim": 16},
        ),
        Preset(
            name="gemma-2-2b",
            aliases=("gemma2",),
            repo="google/gemma-2-2b",
            kaggle="google/gemma-2/pyTorch/gemma-2-2b-pt",
            parameters=2_614_341_888,
            config={**_GEMMA2, **decoder_sizes(2304, 26, 8, 4, 9216)},
            # A window of five and small caps, so that every prompt crosses and feels them.
            tiny={
                **_TINY,
                **decoder_sizes(96, 3, 6, 3, 384),
                "head_dim": 16,
                "query_pre_attn_scalar": 24,
                "sliding_window": 5,
                "attn_logit_softcapping": 4.0,
                "final_logit_softcapping": 20.0,
            },
        ),
    ),
)
