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


def write(folder: Path, kind: str, *, shard_size: str = "50GB", **extra: object) -> Path:
    """Save a ``kind`` model with every tensor redrawn, in bfloat16, with the tiny tokenizer beside it."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

        configs = {"llama": LlamaConfig, "qwen2": Qwen2Config}
        classes = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}
        model = classes[kind](configs[kind](**SIZES, **extra))
        generator = torch.Generator().manual_seed(20)
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if name.endswith(".bias"):
                drawn = 0.2 * drawn
            elif parameter.ndim == 1:
                drawn = 1 + 0.1 * drawn
            elif "embed_tokens" not in name:
                drawn = drawn / math.sqrt(parameter.shape[-1])
            if "lm_head" in name:
                drawn = 3 * drawn  # a peaked distribution, as trained models have
            parameter.data = drawn
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard_size)
    for path in TOKENIZER.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
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
    """Verdict and cause of every edge."""
    return {edge["candidate"]: (edge["verdict"], edge["cause"]) for edge in report["edges"]}


PASSING = dict.fromkeys(("original", "reauthored", "float", "dynamic_int8"), ("PASS", None))


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"tie_word_embeddings": False}),
    ],
    ids=["llama", "qwen2"],
)
def test_odd_dimensions_pass_the_ladder(tmp_path, kind, extra) -> None:
    """A bfloat16 checkpoint of odd dimensions passes every default rung under the family's name."""
    folder = write(tmp_path / "odd", kind, **extra)
    code, report = check(folder, kind)
    assert outcome(report) == PASSING
    assert code == 0
    assert (report["model"], report["weights"]["kind"]) == (kind, "path")


def test_shards_pass_the_ladder(tmp_path) -> None:
    """The same in many shards under an index, with a head tied to the embedding."""
    folder = write(tmp_path / "odd", "llama", shard_size="100KB", tie_word_embeddings=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    assert (folder / "model.safetensors.index.json").is_file()
    code, report = check(folder, "llama", "--rung", "reauthored", "--rung", "float")
    assert outcome(report) == {name: PASSING[name] for name in ("original", "reauthored", "float")}
    assert code == 0
