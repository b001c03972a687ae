"""The least noise floor: what it counts, that it is sane beside what was recorded, and what it does if it decides."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from models import registry
from models.authoring.config import DecoderConfig, ModelConfig
from models.authoring.hf_config import HFConfig
from parity.compare.comparison import Comparison
from parity.compare.limits import FLOAT_LIMITS, UNIT_ROUNDOFF, limits_for
from parity.compare.roundings import encoder_roundings, least_floors, logit_roundings
from parity.compare.verdict import NoiseFloor, Verdict
from parity.golden import GoldenStore, Reference
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.base import Runner, answer
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.trace import PHASES, Trace

PRESETS = [model.name for model in registry.models()]


def config_of(name: str, *, tiny: bool = True) -> ModelConfig:
    model = registry.get(name)
    return model.family.config_from(HFConfig(model.preset.values(tiny=tiny), name))


@pytest.mark.parametrize(
    ("name", "logits", "encoder"),
    [
        ("smollm-135m", 2 * 3 + 2, 0),
        ("gemma-2-2b", 2 * 3 + 2 + 2, 0),  # the embedding's scale, the final soft-cap
        ("phi-2", 2 * 3 + 2 + 1, 0),  # a parallel block adds twice as well; the head's bias
        ("t5-small", 3 * 3 + 2 + 1, 2 * 3 + 1),
        ("moonshine-tiny", 3 * 2 + 2, 4 + 2 * 3 + 1),
        ("paligemma-3b-224", 2 * 3 + 2 + 1, 2 * 3 + 6),
        ("qwen2.5-vl-3b", 2 * 3 + 2, 2 * 3 + 6),
    ],
)
def test_what_is_counted(name: str, logits: int, encoder: int) -> None:
    """By hand, from what each architecture does with its stream."""
    config = config_of(name)
    assert (logit_roundings(config), encoder_roundings(config)) == (logits, encoder)
    assert ("encoder" in least_floors(config)) == bool(encoder)


@settings(deadline=None)
@given(layers=st.integers(1, 200))
def test_the_floor_grows_as_the_root_of_the_depth(layers: int) -> None:
    """Never below one rounding, never the certain bound of all of them, and larger with every layer."""
    config = config_of("smollm-135m")
    assert isinstance(config, DecoderConfig)
    deep, deeper = (
        least_floors(replace(config, blocks=config.blocks[:1] * count))["prefill"] for count in (layers, layers + 1)
    )
    assert UNIT_ROUNDOFF < deep < deeper < UNIT_ROUNDOFF * (2 * layers + 4)
    assert deep == pytest.approx(UNIT_ROUNDOFF * math.sqrt(2 * layers + 2))


@pytest.mark.parametrize("name", PRESETS)
def test_the_least_is_near_what_was_recorded(name: str) -> None:
    """A quarter more than a recorded floor at the most, so that it loosens no limit that matters.

    And no port that rounds as an ordinary original does fails beside one that happens to be exact.
    """
    (sidecar,) = (GoldenStore.default().folder / name / "tiny").glob("*.json")
    recorded = json.loads(sidecar.read_text())["noise_floor"]["rel_l2"]
    limit = next(limit.most for limit in FLOAT_LIMITS if limit.metric == "floor_ratio")
    for phase, least in least_floors(config_of(name)).items():
        assert least < 1.25 * recorded[phase]
        assert recorded[phase] < limit * least


# -- an original that is exact

WIDTH, HEADS, SIZE, VOCABULARY = 16, 2, 8, 32
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": 8,
    "max_position_embeddings": 64,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 2,
    "num_key_value_heads": HEADS,
    "rms_norm_eps": 0.0,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": VOCABULARY,
}
#: Over one token, or two, attention without scores is a mean that powers of two hold.
INPUTS = Inputs("exact", "", "", "", tuple(TokenizedPrompt(f"p{i}", (3 * i + 1,), (5 * i + 2,)) for i in range(4)))
ALIKE = Inputs("alike", "", "", "", (TokenizedPrompt("same", (7,) * 9, (7,) * 5), TokenizedPrompt("one", (9,), (9,))))


def exact_weights() -> dict[str, np.ndarray]:
    """A stream of signs, of which every layer turns some: all that is ever added or multiplied is a power of two."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "model.embed_tokens.weight": random.choice([-1.0, 1.0], (VOCABULARY, WIDTH)),
        "model.norm.weight": np.full(WIDTH, 2.0),
        "lm_head.weight": random.choice([-1.0, -0.5, 0.0, 0.25, 2.0], (VOCABULARY, WIDTH)),
    }
    for layer in range(2):
        order = random.permutation(WIDTH)
        block = {
            "input_layernorm": np.ones(WIDTH),
            "post_attention_layernorm": np.ones(WIDTH),
            "self_attn.q_proj": np.zeros((WIDTH, WIDTH)),
            "self_attn.k_proj": np.eye(WIDTH),
            "self_attn.v_proj": np.eye(WIDTH)[order],
            # Back in order, and either nothing or twice the sign taken away.
            "self_attn.o_proj": np.diag(random.choice([0.0, -2.0], WIDTH)) @ np.eye(WIDTH)[order].T,
            "mlp.gate_proj": random.choice([-1.0, 1.0], (8, WIDTH)),
            "mlp.up_proj": random.choice([-1.0, 1.0], (8, WIDTH)),
            "mlp.down_proj": np.zeros((WIDTH, 8)),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": value for name, value in block.items()}
    return {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}


def checkpoint(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def trace_of(runner: Runner, inputs: Inputs) -> Trace:
    trace, _ = answer(runner, inputs, 0, None, lambda _done, _total: None)
    return trace


def verdict_of(reference: Reference, folder: Path, inputs: Inputs) -> Verdict:
    trace = trace_of(Reauthored("llama", folder, (64,)), inputs)
    comparison = Comparison.of("reauthored", trace, reference, inputs)
    return comparison.judged(lambda _: limits_for("reauthored"))[-1].verdict


def reference_of(folder: Path, inputs: Inputs) -> Reference:
    oracle, original = (trace_of(Original(folder, precision), inputs) for precision in ("float64", "float32"))
    config = registry.family("llama").config_from(HFConfig.load(folder))
    return Reference("original64", oracle, NoiseFloor.measure(oracle, original, least_floors(config)))


def test_beside_an_exact_original_a_port_passes_and_a_fault_fails(tmp_path: Path) -> None:
    """The original makes no error at all: the floor is the least, a rounding port is within it, a mistake is not."""
    weights = exact_weights()
    folder = checkpoint(tmp_path / "exact", weights)
    oracle, original = (trace_of(Original(folder, precision), INPUTS) for precision in ("float64", "float32"))
    for name, prompt in oracle.prompts.items():
        assert np.array_equal(prompt.prefill, original.prompts[name].prefill)
        assert np.array_equal(prompt.decode, original.prompts[name].decode)
    reference = reference_of(folder, INPUTS)
    assert reference.floor.rel_l2["prefill"] == pytest.approx(UNIT_ROUNDOFF * math.sqrt(6))
    assert verdict_of(reference, folder, INPUTS) is Verdict.PASS

    rounded = {name: value * np.float32(1 + 2.0**-22) for name, value in weights.items()}
    assert verdict_of(reference, checkpoint(tmp_path / "rounded", rounded), INPUTS) is Verdict.PASS
    once = dict.fromkeys(PHASES, UNIT_ROUNDOFF)  # as if the whole model rounded once
    assert verdict_of(replace(reference, floor=NoiseFloor(once, once)), tmp_path / "rounded", INPUTS) is Verdict.FAIL

    names = "model.layers.{}.self_attn.o_proj.weight"
    swapped = {**weights, names.format(0): weights[names.format(1)], names.format(1): weights[names.format(0)]}
    assert verdict_of(reference, checkpoint(tmp_path / "swapped", swapped), INPUTS) is Verdict.FAIL
    nudged = {**weights, "lm_head.weight": weights["lm_head.weight"] * np.float32(1 + 1e-5)}
    assert verdict_of(reference, checkpoint(tmp_path / "nudged", nudged), INPUTS) is Verdict.FAIL


def test_the_same_token_again_and_again(tmp_path: Path) -> None:
    """Every position says the same; the floor is that of rounding, a fault is seen."""
    weights = exact_weights()
    folder = checkpoint(tmp_path / "exact", weights)
    reference = reference_of(folder, ALIKE)
    assert verdict_of(reference, folder, ALIKE) is Verdict.PASS
    values = "model.layers.1.self_attn.v_proj.weight"
    turned = {**weights, values: weights[values][::-1].copy()}
    assert verdict_of(reference, checkpoint(tmp_path / "turned", turned), ALIKE) is Verdict.FAIL
