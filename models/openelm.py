"""OpenELM: head counts and feed-forward widths that grow with depth, QK-norm before rotation, tied head.

Paper: https://arxiv.org/abs/2404.14619. The original is not in transformers; an independent reference stands in for it
in ``parity/runners``.
"""

from __future__ import annotations

from collections.abc import Iterator

from models.authoring.config import AttentionConfig, BlockConfig, DecoderConfig, MLPConfig, NormConfig, RopeConfig
from models.authoring.family import Family, Preset
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Operation, Rename, Split, Tie


def read_config(source: HFConfig) -> DecoderConfig:
    """The published ``OpenELMConfig`` as this project's configuration."""
    source.expect("ffn_with_glu", True)
    source.expect("normalize_qk_projections", True)
    source.expect("normalization_layer_name", "rms_norm")
    source.expect("share_input_output_layers", True)
    source.take("activation_fn_name", str)  # absent is no default here
    source.expect("activation_fn_name", "swish", "silu")
    source.expect("tie_word_embeddings", True)
    source.ignore("rope_max_length")  # how long a table the original keeps
    norm = NormConfig(kind="rms", eps=1e-6)  # fixed in the architecture
    head_dim = source.positive("head_dim")
    source.require(head_dim % 2 == 0, f"head_dim {head_dim} is odd, rotated channels come in pairs")
    layout = read_layout(source, head_dim)
    blocks = tuple(
        BlockConfig(
            attention_norm=norm,
            attention=AttentionConfig(
                num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=head_dim**-0.5, qk_norm=norm
            ),
            mlp_norm=norm,
            mlp=MLPConfig(hidden=hidden, activation="silu", gated=True),
        )
        for heads, kv_heads, hidden in layout
    )
    return DecoderConfig(
        vocab_size=source.positive("vocab_size"),
        width=source.positive("model_dim"),
        max_positions=source.positive("max_context_length"),
        rope=RopeConfig(theta=source.number("rope_freq_constant"), rotary_dim=head_dim),
        blocks=blocks,
        final_norm=norm,
        tied_head=True,
    )


def read_layout(source: HFConfig, head_dim: int) -> list[tuple[int, int, int]]:
    """Query heads, key/value heads and feed-forward width of every layer: the stored lists, or else the rule."""
    width, layers = source.positive("model_dim"), source.layers("num_transformer_layers")
    groups, divisor = source.positive("num_gqa_groups"), source.positive("ffn_dim_divisor")
    if source.has("num_query_heads") and source.has("num_kv_heads"):
        query = source.counts("num_query_heads", layers)
        shared = source.counts("num_kv_heads", layers)
        source.ignore("qkv_multipliers")  # what the lists were made from
    else:
        ramp = _ramp(source.numbers("qkv_multipliers", 2, why="a ramp"), layers)
        query = tuple(make_divisible(width * factor, head_dim * groups) // head_dim for factor in ramp)
        shared = tuple(heads // groups for heads in query)
    source.require(all(q % k == 0 for q, k in zip(query, shared, strict=True)), "query heads cannot be shared evenly")
    ends = len(source.take("ffn_multipliers", list)) == 2 != layers  # of the ramp, else one a layer
    found = len(source.take("ffn_multipliers", list))
    source.require(ends or found == layers, f"ffn_multipliers has {found} entries for {layers} layers")
    multipliers = source.numbers("ffn_multipliers", found, why="a ramp")
    if ends:
        multipliers = _ramp(multipliers, layers)
    hidden = tuple(make_divisible(factor * width, divisor) for factor in multipliers)
    return list(zip(query, shared, hidden, strict=True))


def _ramp(ends: tuple[float, ...], layers: int) -> tuple[float, ...]:
    """Even steps from the first to the last of ``ends``, rounded to two decimals as the original does before use.

    The original rounds as numpy does: the hundredfold to an integer, half to even.
    """
    first, last = ends
    step = (last - first) / max(1, layers - 1)
    return tuple(round((first + step * layer) * 100) / 100 for layer in range(layers))


def make_divisible(value: float, unit: int) -> int:
    """The multiple of ``unit`` nearest to ``value``, at least one, and never less than nine tenths of it."""
    nearest = max(unit, int(value + unit / 2) // unit * unit)
    return nearest + unit if nearest < 0.9 * value else nearest


def weight_map(config: DecoderConfig) -> Iterator[Operation]:
    """Published tensors to parameters; fused rows differ in number from layer to layer."""
    table = "transformer.token_embeddings.weight"
    yield Tie(table, "embed.tokens.weight", "head.projection.weight", ("lm_head.weight",))
    yield Rename("transformer.norm.weight", "head.norm.weight")
    names = {
        "attn_norm": "attention_norm",
        "attn.q_norm": "attention.q_norm",
        "attn.k_norm": "attention.k_norm",
        "attn.out_proj": "attention.o_proj",
        "ffn_norm": "mlp_norm",
        "ffn.proj_2": "mlp.down_proj",
    }
    for i, block in enumerate(config.blocks):
        layer = f"transformer.layers.{i}"
        for source, target in names.items():
            yield Rename(f"{layer}.{source}.weight", f"blocks.{i}.{target}.weight")
        qkv = tuple(f"blocks.{i}.attention.{part}_proj.weight" for part in "qkv")
        yield Split(f"{layer}.attn.qkv_proj.weight", qkv, block.attention.fused_rows)
        gate_up = (f"blocks.{i}.mlp.gate_proj.weight", f"blocks.{i}.mlp.up_proj.weight")
        yield Split(f"{layer}.ffn.proj_1.weight", gate_up, (block.mlp.hidden, block.mlp.hidden))


#: OpenELM was trained with this tokenizer and its repositories do not carry it.
_TOKENIZER = "meta-llama/Llama-2-7b-hf"
_BASE = {
    "architectures": ["OpenELMForCausalLM"],
    "model_type": "openelm",
    "activation_fn_name": "swish",
    "ffn_dim_divisor": 256,
    "ffn_multipliers": [0.5, 4.0],
    "ffn_with_glu": True,
    "max_context_length": 2048,
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "num_gqa_groups": 4,
    "qkv_multipliers": [0.5, 1.0],
    "rope_freq_constant": 10000,
    "rope_max_length": 4096,
    "share_input_output_layers": True,
    "torch_dtype": "float32",
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _sizes(width: int, layers: int, head_dim: int) -> dict[str, int]:
    return {"model_dim": width, "num_transformer_layers": layers, "head_dim": head_dim}


def _tiny(width: int, layers: int) -> dict[str, object]:
    """A few layers whose head counts and widths differ."""
    return {**_sizes(width, layers, 8), "ffn_dim_divisor": 32, "vocab_size": 320}


FAMILY = Family(
    name="openelm",
    readers={"openelm": read_config},
    weight_map=weight_map,
    presets=(
        Preset(
            name="openelm-270m",
            repo="apple/OpenELM-270M",
            tokenizer=_TOKENIZER,
            parameters=271_527_168,
            config={**_BASE, **_sizes(1280, 16, 64)},
            tiny=_tiny(96, 3),
        ),
        Preset(
            name="openelm-450m",
            repo="apple/OpenELM-450M",
            tokenizer=_TOKENIZER,
            parameters=457_179_136,
            config={**_BASE, **_sizes(1536, 20, 64)},
            tiny=_tiny(96, 4),
        ),
        Preset(
            name="openelm-1.1b",
            repo="apple/OpenELM-1_1B",
            tokenizer=_TOKENIZER,
            parameters=1_079_891_456,
            config={**_BASE, **_sizes(2048, 28, 64)},
            tiny=_tiny(128, 3),
        ),
        Preset(
            name="openelm-3b",
            repo="apple/OpenELM-3B",
            tokenizer=_TOKENIZER,
            parameters=3_036_647_424,
            config={**_BASE, **_sizes(3072, 36, 128)},
            tiny=_tiny(128, 4),
        ),
    ),
)
