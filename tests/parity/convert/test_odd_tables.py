"""Tables of four bits and an odd width: the runtime would read every other row wrongly, so they stay float."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from parity import isolated
from parity.convert.float_file import Export, FloatFile, convert
from parity.convert.quantize import quantize, summarize
from parity.convert.recipes import get_recipe
from parity.convert.stored import Numbers

HEADS, SIZE, HIDDEN, VOCABULARY = 2, 8, 24, 32


def checkpoint(folder: Path, width: int) -> Path:
    """A Llama of one layer, whose table of tokens is not its head."""
    random, inner = np.random.default_rng(0), HEADS * SIZE
    shapes = {
        "model.embed_tokens": (VOCABULARY, width),
        "lm_head": (VOCABULARY, width),
        **{f"model.layers.0.self_attn.{name}_proj": (inner, width) for name in "qkv"},
        "model.layers.0.self_attn.o_proj": (width, inner),
        "model.layers.0.mlp.gate_proj": (HIDDEN, width),
        "model.layers.0.mlp.up_proj": (HIDDEN, width),
        "model.layers.0.mlp.down_proj": (width, HIDDEN),
    }
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    tensors = {f"{name}.weight": random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    tensors |= {f"{name}.weight": np.ones(width, np.float32) for name in norms}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "head_dim": SIZE,
        "intermediate_size": HIDDEN,
        "max_position_embeddings": 64,
        "num_attention_heads": HEADS,
        "num_hidden_layers": 1,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": VOCABULARY,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=[15, 16])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, FloatFile]:
    isolated.prepare(converter=True)
    folder = tmp_path_factory.mktemp("tables")
    export = Export(prefill_lengths=(4,), cache_length=16)
    made = convert("llama", checkpoint(folder / "checkpoint", request.param), export, folder / "float.tflite")
    return request.param, made.value


@pytest.mark.parametrize(("recipe", "bits"), [("dynamic_int4", 4), ("dynamic_int8", 8)])
def test_only_the_table_stays_float_and_it_is_said(
    file: tuple[int, FloatFile], recipe: str, bits: int, tmp_path: Path
) -> None:
    """By its name, with what was asked for; of an even width, or of eight bits, nothing is kept from the recipe."""
    width, source = file
    path = tmp_path / "quantized.tflite"
    stored = quantize(source.path, source.names, get_recipe(recipe), path).value
    kept = width % 2 == 1 and bits == 4
    asked = f"int{bits} channelwise"
    exceptions = [{"weight": "embed.tokens", "asked": asked, "precision": "float32"}] if kept else []
    found = summarize(stored)["exceptions"]
    assert [{**row, "asked": asked} for row in found] == exceptions
    assert all(str(row["asked"]).startswith(f"int{bits}") for row in found)
    exact = {
        name: np.array_equal(numbers, original)
        for name, _, numbers, original in Numbers(path, source.path, source.names).read()
    }
    assert len(exact) == 9
    assert exact == {name: kept and name == "embed.tokens" for name in exact}
