"""PaliGemma 1 and 2: SigLIP's tower, one linear projector, Gemma 1 or 2 over a prompt that sees itself both ways.

Papers: https://arxiv.org/abs/2407.07726, https://arxiv.org/abs/2412.03555. Original:
``PaliGemmaForConditionalGeneration`` in transformers. Its positions begin at 1; rotation knows only differences, so
here they begin at 0 as everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import cast

from models import gemma
from models.authoring.config import (
    AttentionConfig,
    BlockConfig,
    MLPConfig,
    NormConfig,
    SiglipConfig,
    StackConfig,
    VisionLanguageConfig,
)
from models.authoring.family import Family, Layout, Preset, decoder_sizes
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Flatten, Operation, Rename

_TEXT_READERS = {"gemma": gemma.read_gemma, "gemma2": gemma.read_gemma2}
#: What the classes of transformers take an absent size to be.
_TEXT_DEFAULTS = {
    "gemma": {**decoder_sizes(3072, 28, 16, 16, 24576), "vocab_size": 256000},
    "gemma2": {**decoder_sizes(2304, 26, 8, 4, 9216), "vocab_size": 256000},
}
_VISION_DEFAULTS = {
    "siglip_vision_model": {
        "hidden_size": 768,
        "image_size": 224,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_channels": 3,
        "num_hidden_layers": 12,
        "patch_size": 16,
    }
}


def read_config(source: HFConfig) -> VisionLanguageConfig:
    """``PaliGemmaConfig`` as this project's configuration."""
    source.ignore("hidden_size", "vocab_size", "_vocab_size")  # the text model's own are what counts
    source.ignore("ignore_index")  # training
    nested = source.nested("text_config", _TEXT_DEFAULTS)
    nested.ignore("num_image_tokens")  # follows from the picture's size
    text = _TEXT_READERS[nested.model_type](nested, bidirectional_prefix=True)
    nested.finish()
    projected = source.positive("projection_dim", 2048)
    source.require(projected == text.width, f"projection_dim {projected} is not the text model's width {text.width}")
    image_token = source.natural("image_token_index", source.natural("image_token_id", 256000))
    source.require(
        image_token < text.vocab_size, f"image_token_index {image_token} is beyond the {text.vocab_size} embeddings"
    )
    return VisionLanguageConfig(
        # The text part's own flag is of the same class's defaults and not asked by the original.
        text=replace(text, tied_head=source.take("tie_word_embeddings", bool, True)),
        vision=_vision(source.nested("vision_config", _VISION_DEFAULTS), projected),
        image_token=image_token,
        bidirectional_prefix=True,
    )


def _vision(source: HFConfig, projected: int) -> SiglipConfig:
    """``SiglipVisionConfig``, whose pooling head, if it had one, would not be asked."""
    source.expect("vision_use_head", False)
    source.ignore("num_image_tokens", "projection_dim", "projector_hidden_act", "vocab_size")  # nothing reads them
    width, heads = source.positive("hidden_size"), source.positive("num_attention_heads")
    image, patch = source.positive("image_size"), source.positive("patch_size")
    source.require(width % heads == 0, "hidden_size is not a multiple of num_attention_heads")
    source.require(image % patch == 0, f"image_size {image} is not a multiple of patch_size {patch}")
    norm = NormConfig(kind="layer", eps=source.number("layer_norm_eps", 1e-6, zero=True))
    head_dim = width // heads
    attention = AttentionConfig(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=True,
        output_bias=True,
        rotary=False,
    )
    mlp = MLPConfig(
        hidden=source.positive("intermediate_size"),
        activation=source.activation("hidden_act", "gelu_pytorch_tanh"),
        gated=False,
        bias=True,
    )
    block = BlockConfig(attention_norm=norm, attention=attention, mlp_norm=norm, mlp=mlp)
    config = SiglipConfig(
        image_size=image,
        patch_size=patch,
        channels=source.positive("num_channels"),
        width=width,
        stack=StackConfig(blocks=(block,) * source.layers("num_hidden_layers"), final_norm=norm),
        projected=projected,
    )
    source.finish()
    return config


_BLOCK = {
    "layer_norm1": "attention_norm",
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.o_proj",
    "layer_norm2": "mlp_norm",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}


def weight_map(config: VisionLanguageConfig) -> Iterator[Operation]:
    """Published tensors to parameters: Gemma's under ``language_model``, the tower's, the projector's."""
    for operation in gemma.weight_map(config.text):
        yield operation.renamed("language_model.{}".format, "text.{}".format)
    tower = cast("SiglipConfig", config.vision)  # the reader makes no other
    yield from _projector_and_tower(tower, "multi_modal_projector", "vision_tower.vision_model")


def saved_weight_map(config: VisionLanguageConfig, _names: Collection[str]) -> Iterator[Operation]:
    """What ``save_pretrained`` writes: the tower lacks a level."""
    for operation in weight_map(config):
        yield operation.renamed(lambda name: name.replace(".vision_model.", "."), _same)


def in_memory_weight_map(config: VisionLanguageConfig, names: Collection[str]) -> Iterator[Operation]:
    """As the modules of the original are called: all but the head under ``model``."""
    for operation in saved_weight_map(config, names):
        yield operation.renamed(_in_memory, _same)


def _in_memory(name: str) -> str:
    language_model, _, rest = name.partition("language_model.")
    if language_model:
        return f"model.{name}"
    return rest if rest.startswith("lm_head.") else f"model.language_model.{rest.removeprefix('model.')}"


def _same(name: str) -> str:
    return name


def _projector_and_tower(config: SiglipConfig, projector: str, tower: str) -> Iterator[Operation]:
    yield from _linear(f"{projector}.linear", "vision.projector")
    patches, stem = f"{tower}.embeddings.patch_embedding", "vision.stem"
    shape = (config.width, config.channels, config.patch_size, config.patch_size)
    yield Flatten(f"{patches}.weight", f"{stem}.patches.projection.weight", shape)
    yield Rename(f"{patches}.bias", f"{stem}.patches.projection.bias")
    yield Rename(f"{tower}.embeddings.position_embedding.weight", f"{stem}.positions")
    for layer in range(len(config.stack.blocks)):
        for theirs, ours in _BLOCK.items():
            yield from _linear(f"{tower}.encoder.layers.{layer}.{theirs}", f"vision.stack.blocks.{layer}.{ours}")
    yield from _linear(f"{tower}.post_layernorm", "vision.stack.norm")


def _linear(source: str, target: str) -> Iterator[Operation]:
    for part in ("weight", "bias"):
        yield Rename(f"{source}.{part}", f"{target}.{part}")


_BASE = {
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "model_type": "paligemma",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "ignore_index": -100,
    "image_token_index": 257152,
    "pad_token_id": 0,
}
_TEXT = {"num_image_tokens": 256, "vocab_size": 257216}
_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_image_tokens": 256,
    "patch_size": 14,
    "projector_hidden_act": "gelu_fast",
    "vision_use_head": False,
}
_PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "PaliGemmaProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
}
#: An image token beyond the tokenizer's ids, as published. Nine patches, whose width and whose feed-forward's, like the
#: published ones, are no multiples of 32; vision heads narrower than the text's.
_TINY = {"torch_dtype": "float32", "image_token_index": 325, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 96}
_TINY_TEXT = {"head_dim": 16, "max_position_embeddings": 2048, "num_image_tokens": 9, "vocab_size": 336}
_TINY_VISION = {
    **_VISION,
    "hidden_size": 64,
    "image_size": 42,
    "intermediate_size": 176,
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "num_image_tokens": 9,
    "projection_dim": 96,
}
_TINY_PROCESSOR = {"image_seq_length": 9, "size": {"height": 42, "width": 42}}

FAMILY = Family(
    name="paligemma",
    readers={"paligemma": read_config},
    weight_map=weight_map,
    layouts=(
        Layout(marks=frozenset({"vision_tower.post_layernorm.weight"}), weight_map=saved_weight_map),
        Layout(marks=frozenset({"model.vision_tower.post_layernorm.weight"}), weight_map=in_memory_weight_map),
    ),
    prompts="pictures",
    presets=(
        Preset(
            name="paligemma-3b-224",
            repo="google/paligemma-3b-pt-224",
            parameters=2_923_466_480,
            config={
                **_BASE,
                "hidden_size": 2048,
                "projection_dim": 2048,
                "text_config": {**_TEXT, **decoder_sizes(2048, 18, 8, 1, 16384), "model_type": "gemma"},
                "torch_dtype": "float32",
                "vision_config": {**_VISION, "projection_dim": 2048},
            },
            tiny={
                **_TINY,
                "hidden_size": 96,
                "text_config": {**_TINY_TEXT, **decoder_sizes(96, 3, 8, 1, 384), "model_type": "gemma"},
                "vision_config": _TINY_VISION,
            },
            processor=_PROCESSOR,
            tiny_processor=_TINY_PROCESSOR,
        ),
        Preset(
            name="paligemma-2-3b-224",
            repo="google/paligemma2-3b-pt-224",
            parameters=3_032_242_416,
            config={
                **_BASE,
                "hidden_size": 2304,
                "projection_dim": 2304,
                # The soft-caps, the window and the scale of scores are those of the class.
                "text_config": {**_TEXT, **decoder_sizes(2304, 26, 8, 4, 9216), "model_type": "gemma2"},
                "torch_dtype": "bfloat16",
                "vision_config": {**_VISION, "projection_dim": 2304},
            },
            # A window of five, which every picture alone is longer than.
            tiny={
                **_TINY,
                "hidden_size": 96,
                "text_config": {
                    **_TINY_TEXT,
                    **decoder_sizes(96, 3, 6, 3, 384),
                    "attn_logit_softcapping": 4.0,
                    "final_logit_softcapping": 20.0,
                    "model_type": "gemma2",
                    "query_pre_attn_scalar": 24,
                    "sliding_window": 5,
                },
                "vision_config": _TINY_VISION,
            },
            processor=_PROCESSOR,
            tiny_processor=_TINY_PROCESSOR,
        ),
    ),
)
