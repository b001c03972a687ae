"""T5: encoder and decoder with learned relative position bias, no scaling of scores, one table for everything.

Paper: https://arxiv.org/abs/1910.10683. Original: ``T5ForConditionalGeneration`` in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator

from models.authoring.config import (
    AttentionConfig,
    BlockConfig,
    EncoderDecoderConfig,
    MLPConfig,
    NormConfig,
    RelativeBiasConfig,
    StackConfig,
)
from models.authoring.family import Family, Preset
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Drop, Operation, Rename, Tie

#: Copies of the shared table that some files carry, and a bias table that the original has no use for.
COPIES = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def read_config(source: HFConfig) -> EncoderDecoderConfig:
    """``T5Config`` as this project's configuration."""
    source.expect("is_encoder_decoder", True)
    source.expect("is_decoder", False)
    source.expect("is_gated_act", False)
    source.expect("dense_act_fn", "relu")
    source.expect("feed_forward_proj", "relu")
    source.expect("tie_word_embeddings", True)
    source.expect("tie_encoder_decoder", False)
    source.expect("scale_decoder_outputs", True)
    source.ignore("dropout_rate", "classifier_dropout", "initializer_factor")  # training
    source.ignore("n_positions", "task_specific_params", "output_past")  # lengths and prefixes that nothing enforces
    width, heads = source.positive("d_model"), source.positive("num_heads")
    norm = NormConfig(kind="rms", eps=source.number("layer_norm_epsilon", 1e-6, zero=True))
    attention = AttentionConfig(
        num_heads=heads, num_kv_heads=heads, head_dim=source.positive("d_kv"), scale=1.0, rotary=False
    )
    mlp = MLPConfig(hidden=source.positive("d_ff"), activation="relu", gated=False)
    block = BlockConfig(attention_norm=norm, attention=attention, mlp_norm=norm, mlp=mlp)
    layers = source.layers("num_layers")
    stacks = {
        bidirectional: StackConfig(
            blocks=(block,) * count,
            final_norm=norm,
            relative_bias=RelativeBiasConfig(
                num_heads=heads,
                buckets=source.positive("relative_attention_num_buckets", 32),
                max_distance=source.positive("relative_attention_max_distance", 128),
                bidirectional=bidirectional,
            ),
        )
        for bidirectional, count in ((True, layers), (False, source.positive("num_decoder_layers", layers)))
    }
    # The original gives each decoder layer a cache slot by the number of encoder layers, and fails beyond it.
    source.require(source.positive("num_decoder_layers", layers) <= layers, "num_decoder_layers exceeds num_layers")
    return EncoderDecoderConfig(
        vocab_size=source.positive("vocab_size"),
        width=width,
        max_positions=MOST_POSITIONS,
        decoder_start=source.natural("decoder_start_token_id", 0),
        encoder=stacks[True],
        decoder=stacks[False],
        cross_norm=norm,
        cross_attention=attention,
        tied_head=True,
        head_scale=width**-0.5,
    )


#: There is no table of positions, and distances beyond the last bucket are all alike.
MOST_POSITIONS = 1 << 20

_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
_MLP = {"wi": "up_proj", "wo": "down_proj"}


def weight_map(config: EncoderDecoderConfig) -> Iterator[Operation]:
    """Published tensors to parameters: the same names for both stacks, whose blocks have two and three sub-layers."""
    yield Tie("shared.weight", "tokens.weight", "projection.weight", COPIES)
    yield Drop(UNUSED, "no code reads it")
    for stack, depth in (("encoder", len(config.encoder.blocks)), ("decoder", len(config.decoder.blocks))):
        yield Rename(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight")
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        yield Rename(f"{stack}.block.0.{bias}", f"{stack}.positions.bias.table.weight")
        for layer in range(depth):
            yield from _block(f"{stack}.block.{layer}.layer", f"{stack}.blocks.{layer}", cross=stack == "decoder")


def _block(source: str, target: str, *, cross: bool) -> Iterator[Operation]:
    parts = [("SelfAttention", "attention", _ATTENTION)]
    parts += [("EncDecAttention", "cross_attention", _ATTENTION)] if cross else []
    norms = ("attention_norm", "cross_norm", "mlp_norm") if cross else ("attention_norm", "mlp_norm")
    for i, (theirs, ours, names) in enumerate([*parts, ("DenseReluDense", "mlp", _MLP)]):
        yield Rename(f"{source}.{i}.layer_norm.weight", f"{target}.{norms[i]}.weight")
        for name, ours_name in names.items():
            yield Rename(f"{source}.{i}.{theirs}.{name}.weight", f"{target}.{ours}.{ours_name}.weight")


_T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_kv": 64,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "n_positions": 512,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "torch_dtype": "float32",
    "vocab_size": 32128,
}
#: Few and small buckets, so that short sources reach them all; heads x d_kv differs from the width.
_TINY = {
    "vocab_size": 320,
    "d_model": 96,
    "d_kv": 16,
    "d_ff": 256,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "num_heads": 5,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}


def _sizes(width: int, hidden: int, layers: int, heads: int) -> dict[str, int]:
    return {"d_model": width, "d_ff": hidden, "num_layers": layers, "num_decoder_layers": layers, "num_heads": heads}


FAMILY = Family(
    name="t5",
    readers={"t5": read_config},
    weight_map=weight_map,
    prompts="tasks",
    presets=(
        Preset(
            name="t5-small",
            repo="google-t5/t5-small",
            parameters=60_506_624,
            config={**_T5, **_sizes(512, 2048, 6, 8)},
            tiny=_TINY,
        ),
        Preset(
            name="t5-base",
            repo="google-t5/t5-base",
            parameters=222_903_552,
            config={**_T5, **_sizes(768, 3072, 12, 12)},
            tiny={**_TINY, "num_heads": 7, "num_decoder_layers": 2},
        ),
    ),
)
