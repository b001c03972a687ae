"""Qwen 2.5: the Llama decoder with biases on q, k and v.

Paper: https://arxiv.org/abs/2412.15115. Original: ``Qwen2ForCausalLM`` in transformers. Also carries
DeepSeek-R1-Distill-Qwen, whose theta is 1e4 and whose head is untied.
"""

from __future__ import annotations

from models.authoring.config import DecoderConfig
from models.authoring.family import Family, Preset, decoder_sizes
from models.authoring.hf_config import HFConfig
from models.llama import read_decoder, weight_map


def read_config(source: HFConfig) -> DecoderConfig:
    """``Qwen2Config`` as this project's configuration."""
    source.expect("use_sliding_window", False)
    source.ignore("sliding_window", "max_window_layers")  # without effect unless use_sliding_window
    source.expect("layer_types", ["full_attention"] * source.layers("num_hidden_layers"))
    source.expect("use_mrope", False)
    # The biases are fixed in the architecture, not configurable.
    return read_decoder(source, qkv_bias=True, output_bias=False, mlp_bias=False, kv_heads_default=32)


_BASE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}
# The published vocabularies are padded beyond the tokenizer, and so are the tiny ones (320 tokens).
_TINY = {
    "vocab_size": 336,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


FAMILY = Family(
    name="qwen2",
    readers={"qwen2": read_config},
    weight_map=weight_map,
    presets=(
        Preset(
            name="qwen2.5-0.5b",
            repo="Qwen/Qwen2.5-0.5B",
            parameters=494_032_768,
            config={**_BASE, **decoder_sizes(896, 24, 14, 2, 4864)},
            tiny={**_TINY, **decoder_sizes(112, 3, 14, 2, 320)},
        ),
        Preset(
            name="qwen2.5-1.5b",
            repo="Qwen/Qwen2.5-1.5B",
            parameters=1_543_714_304,
            config={**_BASE, **decoder_sizes(1536, 28, 12, 2, 8960), "max_position_embeddings": 131072},
            tiny={**_TINY, **decoder_sizes(96, 3, 12, 2, 320)},
        ),
        Preset(
            name="qwen2.5-3b",
            repo="Qwen/Qwen2.5-3B",
            parameters=3_085_938_688,
            config={**_BASE, **decoder_sizes(2048, 36, 16, 2, 11008)},
            tiny={**_TINY, **decoder_sizes(128, 3, 16, 2, 384)},
        ),
        Preset(
            name="deepseek-r1-distill-qwen-1.5b",
            aliases=("deepseek",),
            repo="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
            parameters=1_777_088_000,
            config={
                **_BASE,
                **decoder_sizes(1536, 28, 12, 2, 8960),
                "max_position_embeddings": 131072,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
                "bos_token_id": 151646,
            },
            tiny={**_TINY, **decoder_sizes(96, 3, 12, 2, 320)},
        ),
    ),
)
