"""The oracle is really float64: it agrees with an independent computation that shares no code with either side."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from models import registry
from parity.inputs import Inputs, TokenizedPrompt
from parity.pipeline import Request, prepared
from parity.progress import Reporter
from parity.runners.base import answer
from parity.runners.original import Original
from parity.runners.precision import everything_float64
from parity.weights import resolve
from parity.weights.published import published

TOKENS = [1, 17, 200, 45, 45, 90, 3, 311, 64, 128, 255, 8, 30, 77, 19, 260, 5, 140, 33, 34]


def independent_llama(folder: Path, config: dict, tokens: list[int]) -> np.ndarray:
    """A Llama forward in plain numpy float64, written from the architecture's description. Logits ``[T, V]``."""
    weights = {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    frequencies = np.array([config["rope_theta"] ** (-2 * k / head_dim) for k in range(head_dim // 2)])
    scaling = config.get("rope_scaling")
    if scaling:
        low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
        high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
        for k, frequency in enumerate(frequencies):
            wavelength = 2 * math.pi / frequency
            if wavelength > low:
                frequencies[k] = frequency / scaling["factor"]
            elif wavelength >= high:
                smooth = (scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]) / (
                    scaling["high_freq_factor"] - scaling["low_freq_factor"]
                )
                frequencies[k] = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * gain

    def rotate(x: np.ndarray) -> np.ndarray:  # [T, heads, head_dim]
        angles = np.arange(len(tokens))[:, None, None] * frequencies
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        w = {k.split(f"layers.{layer}.")[1]: v for k, v in weights.items() if f"layers.{layer}." in k}
        h = norm(x, w["input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"self_attn.{part}_proj.weight"].T + w.get(f"self_attn.{part}_proj.bias", 0.0)).reshape(
                len(tokens), -1, head_dim
            )
            for part in "qkv"
        )
        q, k = rotate(q), rotate(k)
        attended = np.zeros_like(q)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            for t in range(len(tokens)):
                scores = k[: t + 1, shared] @ q[t, head] / math.sqrt(head_dim)
                probabilities = np.exp(scores - scores.max())
                attended[t, head] = probabilities @ v[: t + 1, shared] / probabilities.sum()
        x = x + attended.reshape(len(tokens), -1) @ w["self_attn.o_proj.weight"].T
        h = norm(x, w["post_attention_layernorm.weight"])
        gate = h @ w["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, weights["model.norm.weight"]) @ head.T


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", ["llama-3.2-1b", "tinyllama-1.1b", "deepseek"])
def test_oracle_equals_an_independent_float64_computation(name: str) -> None:
    """Prefill and decode agree to float64 rounding: 1e-13 is 500 units of it, far below anything float32 could give."""
    model = registry.get(name)
    folder = resolve(model, "tiny").folder
    expected = independent_llama(folder, model.preset.values(tiny=True), TOKENS)
    with Original(folder, "float64").open() as session:
        prefill = session.prefill(TokenizedPrompt("prompt", tuple(TOKENS[:12]), ()), len(TOKENS)).logits
        decode = np.stack([session.decode(token) for token in TOKENS[12:]])
    assert prefill.dtype == decode.dtype == np.float64
    assert distance(np.concatenate([prefill, decode]), expected) < 1e-13


class OneByOne(Original):
    """Each token of a continuation in a call of its own, as every other rung is run."""

    at_once = False


@pytest.mark.parametrize("model", [*registry.models()], ids=lambda model: model.name)
def test_a_continuation_at_once_is_what_it_is_one_by_one(model: registry.Model, tmp_path: Path) -> None:
    """On the filled cache of every preset: masks, windows, positions and frequencies do not depend on the calls.

    So the oracle is what the original means by a token that follows, not by several at once.
    """
    request = Request(model=model)
    ladder = prepared(request, 0, tmp_path, Reporter(Console(stderr=True), quiet=True), _longest)
    with published(model.family.name, ladder.weights.folder, tmp_path, ladder.reporter) as folder:
        calls: list[tuple[int, int]] = []
        together, _ = answer(Original(folder, "float64"), ladder.inputs, 0, None, lambda *call: calls.append(call))
        apart, _ = answer(OneByOne(folder, "float64"), ladder.inputs, 0, None, lambda *_: None)
    assert calls[-1] == (2 * len(ladder.inputs.prompts), 2 * len(ladder.inputs.prompts))
    for name, expected in apart.prompts.items():
        found = together.prompts[name]
        assert found.decode.shape == expected.decode.shape
        assert len(found.decode) > 1
        assert np.array_equal(found.prefill, expected.prefill)
        assert distance(found.decode, expected.decode) < 1e-13


def _longest(inputs: Inputs) -> Inputs:
    """Two prompts: the one with the longest continuation, and the longest."""
    chosen = [
        max(inputs.prompts, key=lambda each: len(each.continuation)),
        max(inputs.prompts, key=lambda each: each.prefilled),
    ]
    return replace(inputs, prompts=tuple({prompt.id: prompt for prompt in chosen}.values()))


def test_double_alone_is_not_an_oracle() -> None:
    """``model.double()`` keeps float32 islands: that is why the dispatch mode exists."""
    from transformers import AutoModelForCausalLM

    model = registry.get("llama-3.2-1b")
    folder = resolve(model, "tiny").folder
    expected = independent_llama(folder, model.preset.values(tiny=True), TOKENS)
    naive = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = naive(torch.tensor([TOKENS])).logits[0].numpy()
    assert 1e-9 < distance(logits, expected) < 1e-4


def test_float64_mode_leaves_nothing_behind() -> None:
    """Inside, float32 casts and factories give float64; outside, everything is as it was."""
    with everything_float64():
        assert torch.ones(2).to(torch.float32).dtype == torch.float64
        assert torch.zeros(2, dtype=torch.float32).dtype == torch.float64
        assert torch.arange(3).float().dtype == torch.float64
        assert torch.ones(2).softmax(-1, dtype=torch.float32).dtype == torch.float64
        assert torch.arange(3).dtype == torch.int64
    assert torch.ones(2).dtype == torch.float32
    assert torch.ones(2).double().to(torch.float32).dtype == torch.float32
