"""Checkpoints of no preset's dimensions, written by transformers itself, pass the ladder by path."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import parity

TOKENIZER = Path(parity.__file__).parent / "assets" / "tiny_tokenizer"
#: Seven query heads on one key/value head, five layers, a prime vocabulary beyond the tokenizer's.
SIZES = {
    "hidden_size": 84,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "num_hidden_layers": 5,
    "intermediate_size": 202,
    "vocab_size": 1003,
    "max_position_embeddings": 777,
}


#: What each original is called in transformers, and what makes it odd beyond the sizes.
LLAMA = ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True})
QWEN2 = ("Qwen2", {"tie_word_embeddings": False})
GEMMA = ("Gemma", {"head_dim": 20})
GEMMA2 = (
    "Gemma2",
    {
        "head_dim": 20,
        "query_pre_attn_scalar": 28,
        "sliding_window": 6,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 15.0,
        "layer_types": [f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full", "sliding")],
    },
)
PHI = ("Phi", {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}})
PHI3 = (
    "Phi3",
    {
        "hidden_size": 112,
        "tie_word_embeddings": False,
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 32,
            "short_factor": [1.0, 1.1, 1.2, 1.4, 1.7, 2.1],
            "long_factor": [1.0, 2.0, 4.5, 7.0, 9.0, 11.0],
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
)
#: Its keys are in objects of their own, as transformers writes them; windows of three rows, two blocks that see all.
QWEN_VL = (
    "Qwen2_5_VL",
    {
        "text_config": {
            **SIZES,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [1, 3, 2]},
        },
        "vision_config": {
            "depth": 4,
            "fullatt_block_indexes": [0, 2],
            "hidden_size": 60,
            "intermediate_size": 77,
            "num_heads": 5,
            "out_hidden_size": 84,
            "patch_size": 7,
            "window_size": 42,
        },
        "image_token_id": 1000,
        "video_token_id": 999,
        "vision_start_token_id": 501,
        "vision_end_token_id": 502,
        "tie_word_embeddings": True,
    },
)
#: Beside its weights: what makes pictures patches of seven.
QWEN_VL_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "max_pixels": 5000,
    "merge_size": 2,
    "min_pixels": 400,
    "patch_size": 7,
    "temporal_patch_size": 2,
}
#: Its keys are its own.
T5 = (
    "T5",
    {
        "d_model": 84,
        "d_kv": 10,
        "d_ff": 202,
        "num_heads": 7,
        "num_layers": 5,
        "num_decoder_layers": 3,
        "vocab_size": 1003,
        "relative_attention_num_buckets": 12,
        "relative_attention_max_distance": 33,
        "decoder_start_token_id": 3,
    },
)
#: Likewise. Seven heads of 14 are narrower than the stream; no processor lies beside it.
MOONSHINE = (
    "Moonshine",
    {
        "hidden_size": 102,
        "intermediate_size": 202,
        "encoder_num_hidden_layers": 2,
        "decoder_num_hidden_layers": 3,
        "encoder_num_attention_heads": 7,
        "decoder_num_attention_heads": 7,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "vocab_size": 1003,
        "decoder_start_token_id": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.45},
    },
)


def write(folder: Path, kind: str, *, shard_size: str = "50GB", **extra: object) -> Path:
    """Save a ``kind`` model with every tensor redrawn, in bfloat16, with the tiny tokenizer beside it."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        flat = kind not in ("T5", "Moonshine", "Qwen2_5_VL")
        config = getattr(transformers, f"{kind}Config")(**({**SIZES, **extra} if flat else extra))
        task = "CausalLM" if flat else "ConditionalGeneration"
        model = getattr(transformers, f"{kind}For{task}")(config)
        generator = torch.Generator().manual_seed(20)
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith(".bias"):
                drawn = 0.2 * drawn
            elif parameter.ndim == 1:
                drawn = (0.0 if kind.startswith("Gemma") else 1.0) + 0.1 * drawn
            elif "lm_head" in name or "proj_out" in name or (config.tie_word_embeddings and "embed_tokens" in name):
                drawn = 3 * drawn / math.sqrt(parameter.shape[-1])  # a peaked distribution, as trained models have
            elif "shared" in name:
                drawn = 3 * drawn  # what the head reads is divided by the root of its width
            elif ".q." in name:
                drawn = drawn / math.sqrt(parameter.shape[-1] * config.d_kv)  # scores are not
            elif "embed_tokens" not in name:
                drawn = drawn / math.sqrt(parameter[0].numel())
            parameter.data = drawn
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard_size)
    if kind == "Qwen2_5_VL":
        (folder / "preprocessor_config.json").write_text(json.dumps(QWEN_VL_PROCESSOR))
    for path in TOKENIZER.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    return folder


def write_paligemma(folder: Path, text: tuple[str, dict[str, Any]], *, published: bool) -> Path:
    """Save a PaliGemma of sixteen small patches around ``text``, every tensor redrawn, with tokenizer and processor.

    The library writes the tower one level less deep than the files that were ``published``.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        kind, extra = text
        sizes = {"hidden_size": 60, "num_attention_heads": 5, "num_hidden_layers": 2, "intermediate_size": 130}
        config = transformers.PaliGemmaConfig(
            text_config=getattr(transformers, f"{kind}Config")(**{**SIZES, **extra}),
            vision_config=transformers.SiglipVisionConfig(**sizes, image_size=48, patch_size=12, vision_use_head=False),
            projection_dim=SIZES["hidden_size"],
            image_token_index=1000,
        )
        model = transformers.PaliGemmaForConditionalGeneration(config)
        generator = torch.Generator().manual_seed(20)
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith(".bias"):
                drawn = 0.2 * drawn
            elif parameter.ndim == 1:
                drawn = (0.0 if "language_model" in name else 1.0) + 0.1 * drawn
            else:
                drawn = (3 if "embed_tokens" in name else 1) * drawn / math.sqrt(parameter[0].numel())
            parameter.data = drawn
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(folder)
    if published:
        weights = folder / "model.safetensors"
        tensors = {
            name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in load_file(weights).items()
        }
        save_file(tensors, weights, {"format": "pt"})
    for path in TOKENIZER.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 48, "width": 48}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def check(folder: Path, family: str, *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of ``parity check FAMILY --weights FOLDER``."""
    report = folder.parent / "report.json"
    command = [sys.executable, "-m", "parity", "check", family, "--weights", folder, "--json", report, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert report.is_file(), done.stderr
    return done.returncode, json.loads(report.read_text())


def outcome(report: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """Verdict and cause of every rung: of two questions and outputs, the worse."""
    return {
        edge["candidate"]: (edge["verdict"], edge["cause"])
        for edge in sorted(report["edges"], key=lambda edge: edge["verdict"] != "PASS")
    }


PASSING = dict.fromkeys(("original", "reauthored64", "reauthored", "float", "dynamic_int8"), ("PASS", None))


@pytest.mark.parametrize(
    ("family", "prompts", "original"),
    [
        ("llama", "short", LLAMA),
        ("qwen2", "short", QWEN2),
        ("gemma", "short", GEMMA),
        ("gemma", "short", GEMMA2),
        ("phi", "short", PHI),
        ("phi", "regimes", PHI3),
        ("t5", "tasks", T5),
        ("moonshine", "speech", MOONSHINE),
        ("qwen2_5_vl", "grids", QWEN_VL),
    ],
    ids=["llama", "qwen2", "gemma", "gemma2", "phi", "phi3", "t5", "moonshine", "qwen2_5_vl"],
)
def test_odd_dimensions_pass_the_ladder(tmp_path, family, prompts, original) -> None:
    """A bfloat16 checkpoint of odd dimensions passes every unquantized rung under the family's name."""
    kind, extra = original
    folder = write(tmp_path / "odd", kind, **extra)
    rungs = ("reauthored64", "reauthored", "float")
    named = [word for rung in rungs for word in ("--rung", rung)]
    code, report = check(folder, family, "--prompts", prompts, *named)
    assert outcome(report) == {rung: PASSING[rung] for rung in ("original", *rungs)}
    assert code == 0
    assert (report["model"], report["weights"]["kind"]) == (family, "path")


@pytest.mark.parametrize(
    ("text", "published"), [(GEMMA, False), (GEMMA2, True)], ids=["gemma saved", "gemma2 published"]
)
def test_odd_paligemma_passes_the_ladder(tmp_path, text, published) -> None:
    """Tower, projector and text of odd dimensions, in the library's spelling and in the published one."""
    folder = write_paligemma(tmp_path / "odd", text, published=published)
    code, report = check(folder, "paligemma", "--prompts", "pictures")
    assert outcome(report) == PASSING
    assert code == 0
    encoded = [edge["candidate"] for edge in report["edges"] if edge["output"] == "encoder"]
    assert encoded == [*PASSING, "dynamic_int8"], "a recipe is asked two questions"


def test_shards_pass_the_ladder(tmp_path) -> None:
    """The same in many shards under an index, with a head tied to the embedding."""
    folder = write(tmp_path / "odd", "Llama", shard_size="100KB", tie_word_embeddings=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    assert (folder / "model.safetensors.index.json").is_file()
    code, report = check(folder, "llama", "--rung", "reauthored", "--rung", "float")
    assert outcome(report) == {name: PASSING[name] for name in ("original", "reauthored", "float")}
    assert code == 0
