"""Qwen 2.5-VL: Qwen 2.5 over three axes of positions, and a tower that takes pictures of any grid.

Paper: https://arxiv.org/abs/2502.13923. Original: ``Qwen2_5_VLForConditionalGeneration`` in transformers. Video, whose
frames would stand on the axis of time, is out of scope: only still pictures, and a prompt with its token is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import cast

from models import llama
from models.authoring.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    MLPConfig,
    NormConfig,
    VisionLanguageConfig,
    WindowedVisionConfig,
)
from models.authoring.family import Family, Layout, Preset, decoder_sizes
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Flatten, Operation, Rename, Split

#: Fixed in the tower, whatever the configuration says of the text.
_NORM = NormConfig(kind="rms", eps=1e-6)


def read_config(source: HFConfig) -> VisionLanguageConfig:
    """``Qwen2_5_VLConfig`` as this project's configuration; the text's keys at the top or in their own object."""
    tied = source.take("tie_word_embeddings", bool, False)
    if source.has("text_config"):
        nested = source.nested("text_config", {"qwen2_5_vl_text": {}})
        text = _text(nested)
        # An older file says it inside.
        tied = tied or nested.take("tie_word_embeddings", bool, False)
        nested.finish()
    else:
        text = _text(source)
    tokens = {
        name: source.natural(f"{name}_token_id", default)
        for name, default in (("image", 151655), ("video", 151656), ("vision_start", 151652), ("vision_end", 151653))
    }
    source.ignore("vision_token_id")  # nothing reads it
    for name, token in tokens.items():
        source.require(token < text.vocab_size, f"{name}_token_id {token} is beyond the {text.vocab_size} embeddings")
    vision = _vision(source.nested("vision_config", {"qwen2_5_vl_vision": {}, "qwen2_5_vl": {}}))
    source.require(vision.projected == text.width, f"out_hidden_size {vision.projected} is not the text's {text.width}")
    return VisionLanguageConfig(
        text=replace(text, tied_head=tied),
        vision=vision,
        image_token=tokens["image"],
        image_start=(tokens["vision_start"],),
        image_end=(tokens["vision_end"],),
        video_token=tokens["video"],
    )


def _text(source: HFConfig) -> DecoderConfig:
    """``Qwen2_5_VLTextConfig``, wherever its keys are."""
    source.expect("use_sliding_window", False)
    source.ignore("sliding_window", "max_window_layers")  # without effect unless use_sliding_window
    source.expect("layer_types", ["full_attention"] * source.layers("num_hidden_layers"))
    width, heads = source.positive("hidden_size"), source.positive("num_attention_heads")
    source.require(width % heads == 0, "hidden_size is not a multiple of num_attention_heads")
    source.expect("head_dim", width // heads)
    rope = source.rope(
        width // heads, default_theta=1000000.0, plain=("default", "mrope"), default_sections=[16, 24, 24]
    )
    return llama.read_decoder(source, qkv_bias=True, output_bias=False, mlp_bias=False, kv_heads_default=8, rope=rope)


def _vision(source: HFConfig) -> WindowedVisionConfig:
    """``Qwen2_5_VLVisionConfig``."""
    source.ignore("tokens_per_second")  # of video
    source.ignore("spatial_patch_size")  # nothing reads it
    channels = source.positive("in_channels", 3)
    source.expect("in_chans", channels)  # the published word, which the original does not read
    width, heads = source.positive("hidden_size"), source.positive("num_heads")
    head_dim = width // heads
    source.require(width % heads == 0, "hidden_size is not a multiple of num_heads")
    source.require(head_dim % 4 == 0, f"heads of {head_dim} have no even half for rows and another for columns")
    patch, merge = source.positive("patch_size"), source.positive("spatial_merge_size", 2)
    window = source.positive("window_size") // merge // patch
    source.require(window > 0, "window_size is less than a square of merged patches")
    attention = AttentionConfig(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=True,
        output_bias=True,
    )
    mlp = MLPConfig(
        hidden=source.positive("intermediate_size"), activation=source.activation("hidden_act"), gated=True, bias=True
    )
    block = BlockConfig(attention_norm=_NORM, attention=attention, mlp_norm=_NORM, mlp=mlp)
    config = WindowedVisionConfig(
        patch_size=patch,
        channels=channels,
        time=source.positive("temporal_patch_size", 2),
        merge=merge,
        window=window,
        whole_blocks=source.indexes("fullatt_block_indexes"),
        width=width,
        rope=source.rope(head_dim // 2, plain=("axial",)),
        blocks=(block,) * source.layers("depth"),
        norm=_NORM,
        merger=MLPConfig(hidden=width * merge**2, activation="gelu", gated=False, bias=True),
        projected=source.positive("out_hidden_size"),
    )
    source.finish()
    return config


def weight_map(config: VisionLanguageConfig) -> Iterator[Operation]:
    """Published tensors to parameters: Qwen 2.5's names for the text, the tower's under ``visual``."""
    for operation in llama.weight_map(config.text):
        yield operation.renamed(_same, "text.{}".format)
    yield from _tower(cast("WindowedVisionConfig", config.vision))  # the reader makes no other


def in_memory_weight_map(config: VisionLanguageConfig, _names: Collection[str]) -> Iterator[Operation]:
    """As the modules of the original are called: all but the head under ``model``."""
    for operation in weight_map(config):
        yield operation.renamed(_in_memory, _same)


def _in_memory(name: str) -> str:
    top, _, rest = name.partition(".")
    return {"model": f"model.language_model.{rest}", "visual": f"model.{name}"}.get(top, name)


def _same(name: str) -> str:
    return name


_LINEAR = {
    "attn.proj": "attention.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}


def _tower(config: WindowedVisionConfig) -> Iterator[Operation]:
    shape = (config.width, config.channels, config.time, config.patch_size, config.patch_size)
    yield Flatten("visual.patch_embed.proj.weight", "vision.patches.weight", shape)
    for layer, block in enumerate(config.blocks):
        theirs, ours = f"visual.blocks.{layer}", f"vision.blocks.{layer}"
        yield Rename(f"{theirs}.norm1.weight", f"{ours}.attention_norm.weight")
        yield Rename(f"{theirs}.norm2.weight", f"{ours}.mlp_norm.weight")
        for part in ("weight", "bias"):
            fused = tuple(f"{ours}.attention.{letter}_proj.{part}" for letter in "qkv")
            yield Split(f"{theirs}.attn.qkv.{part}", fused, block.attention.fused_rows)
            for name, target in _LINEAR.items():
                yield Rename(f"{theirs}.{name}.{part}", f"{ours}.{target}.{part}")
    yield Rename("visual.merger.ln_q.weight", "vision.merger.norm.weight")
    for part in ("weight", "bias"):
        yield Rename(f"visual.merger.mlp.0.{part}", f"vision.merger.up_proj.{part}")
        yield Rename(f"visual.merger.mlp.2.{part}", f"vision.merger.down_proj.{part}")


_PROCESSOR = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor",
    "temporal_patch_size": 2,
}
_VISION = {
    "depth": 32,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "hidden_act": "silu",
    "hidden_size": 1280,
    "in_chans": 3,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
}
#: Windows of two by two rows and a full block in the middle. As published, a patch has no multiple of 32 values, and
#: the tower's feed-forward no multiple of 32 channels; the tokens of pictures are beyond the tokenizer's.
_TINY_VISION = {
    **_VISION,
    "depth": 3,
    "fullatt_block_indexes": [1],
    "hidden_size": 96,
    "intermediate_size": 180,
    "num_heads": 3,
    "out_hidden_size": 160,
    "patch_size": 6,
    "spatial_patch_size": 6,
    "window_size": 24,
}

FAMILY = Family(
    name="qwen2_5_vl",
    readers={"qwen2_5_vl": read_config},
    weight_map=weight_map,
    layouts=(Layout(marks=frozenset({"model.visual.merger.ln_q.weight"}), weight_map=in_memory_weight_map),),
    prompts="grids",
    presets=(
        Preset(
            name="qwen2.5-vl-3b",
            repo="Qwen/Qwen2.5-VL-3B-Instruct",
            parameters=3_754_622_976,
            config={
                "architectures": ["Qwen2_5_VLForConditionalGeneration"],
                "model_type": "qwen2_5_vl",
                **decoder_sizes(2048, 36, 16, 2, 11008),
                "bos_token_id": 151643,
                "eos_token_id": 151645,
                "hidden_act": "silu",
                "image_token_id": 151655,
                "max_position_embeddings": 128000,
                "max_window_layers": 70,
                "rms_norm_eps": 1e-6,
                "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
                "rope_theta": 1000000.0,
                "sliding_window": 32768,
                "tie_word_embeddings": True,
                "torch_dtype": "bfloat16",
                "use_sliding_window": False,
                "video_token_id": 151656,
                "vision_config": _VISION,
                "vision_end_token_id": 151653,
                "vision_start_token_id": 151652,
                "vision_token_id": 151654,
                "vocab_size": 151936,
            },
            tiny={
                **decoder_sizes(160, 3, 10, 2, 384),
                "bos_token_id": 1,
                "eos_token_id": 2,
                "image_token_id": 325,
                "max_position_embeddings": 2048,
                "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
                "torch_dtype": "float32",
                "video_token_id": 326,
                "vision_config": _TINY_VISION,
                "vision_end_token_id": 323,
                "vision_start_token_id": 322,
                "vision_token_id": 324,
                "vocab_size": 336,
            },
            processor=_PROCESSOR,
            tiny_processor={"max_pixels": 3456, "min_pixels": 144, "patch_size": 6},
        ),
    ),
)
