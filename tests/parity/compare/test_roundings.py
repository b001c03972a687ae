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
from parity.compare.floor import NoiseFloor
from parity.compare.limits import PORT_LIMITS, ROUNDING_LIMITS, UNIT_ROUNDOFF, Limit
from parity.compare.measuring import compare_prompts
from parity.compare.roundings import encoder_roundings, least_floors, logit_roundings
from parity.compare.verdict import Verdict
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.base import Runner, answer
from parity.runners.original import Original
from parity.runners.precision import Precision
from parity.runners.reauthored import Reauthored
from parity.trace import Trace
from parity.weights import resolve
from tests.made_floors import LEAST, drawn_floor, floor_of
from tests.prompt_kinds import prompt

#: One of each kind, and of each place where a stream may be rounded.
PRESETS = ["smollm-135m", "gemma-2-2b", "phi-2", "t5-small", "moonshine-tiny", "paligemma-3b-224", "qwen2.5-vl-3b"]


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
def test_the_least_is_below_what_is_drawn(name: str) -> None:
    """At nearly every position, so that it loosens no limit that matters; and not so far that it means nothing."""
    model = registry.get(name)
    folder = resolve(model, "tiny").folder
    config = model.family.config_from(HFConfig.load(folder))
    inputs = Inputs("ids", "", "", "", (prompt(config),))
    ours = Reauthored(model.family.name, folder, (64,), precision="float64")
    exact = trace_of(ours, inputs)
    noisy = replace(ours, name="noise", precision="float32", noisy=True, at_once=True)
    floor = drawn_floor(noisy, config, inputs, exact)
    none = replace(floor, least=dict.fromkeys(floor.least, 0.0))
    for phase, prompts in compare_prompts(exact, exact).items():
        for at, errors in prompts.items():
            drawn = none.of(at, phase, errors) / np.sqrt(errors.squared_reference)
            assert floor.least[phase] < 1.25 * np.median(drawn)
            assert np.median(drawn) < 100 * floor.least[phase]


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


def floor_around(oracle: Trace, folder: Path, inputs: Inputs) -> NoiseFloor:
    config = registry.family("llama").config_from(HFConfig.load(folder))
    noisy = Reauthored("llama", folder, (64,), name="noise", at_once=True, noisy=True)
    return drawn_floor(noisy, config, inputs, oracle)


def verdict_of(
    oracle: Trace,
    floor: NoiseFloor,
    folder: Path,
    inputs: Inputs,
    limits: tuple[Limit, ...] = ROUNDING_LIMITS,
    precision: Precision = "float32",
) -> Verdict:
    comparison = Comparison(
        reference="original64",
        candidate="reauthored",
        question="rounding",
        expected=oracle,
        trace=trace_of(Reauthored("llama", folder, (64,), precision=precision), inputs),
        inputs=inputs,
        given=inputs,
    )
    return comparison.judged(lambda _: limits, floor)[-1].verdict


def test_beside_an_exact_original_a_port_passes_and_a_fault_fails(tmp_path: Path) -> None:
    """The original makes no error at all: what others may lose is drawn, a port is within it, a mistake is not."""
    weights = exact_weights()
    folder = checkpoint(tmp_path / "exact", weights)
    oracle, original = (trace_of(Original(folder, precision), INPUTS) for precision in ("float64", "float32"))
    assert oracle.digest == original.digest
    floor = floor_around(oracle, folder, INPUTS)
    assert verdict_of(oracle, floor, folder, INPUTS) is Verdict.PASS
    assert verdict_of(oracle, floor.in_float64, folder, INPUTS, PORT_LIMITS, "float64") is Verdict.PASS

    rounded = {name: value * np.float32(1 + 2.0**-22) for name, value in weights.items()}
    off = checkpoint(tmp_path / "rounded", rounded)
    assert verdict_of(oracle, floor, off, INPUTS) is Verdict.PASS
    once = floor_of(oracle, oracle, least=LEAST)  # as if the whole model rounded once
    assert verdict_of(oracle, once, off, INPUTS) is Verdict.FAIL
    # In float64 the same is no rounding, but another model.
    assert verdict_of(oracle, floor.in_float64, off, INPUTS, PORT_LIMITS, "float64") is Verdict.FAIL

    names = "model.layers.{}.self_attn.o_proj.weight"
    swapped = {**weights, names.format(0): weights[names.format(1)], names.format(1): weights[names.format(0)]}
    assert verdict_of(oracle, floor, checkpoint(tmp_path / "swapped", swapped), INPUTS) is Verdict.FAIL
    nudged = {**weights, "lm_head.weight": weights["lm_head.weight"] * np.float32(1 + 1e-5)}
    assert verdict_of(oracle, floor, checkpoint(tmp_path / "nudged", nudged), INPUTS) is Verdict.FAIL


def test_the_same_token_again_and_again(tmp_path: Path) -> None:
    """Every position says the same; the floor is that of rounding, a fault is seen."""
    weights = exact_weights()
    folder = checkpoint(tmp_path / "exact", weights)
    oracle = trace_of(Original(folder, "float64"), ALIKE)
    floor = floor_around(oracle, folder, ALIKE)
    assert verdict_of(oracle, floor, folder, ALIKE) is Verdict.PASS
    values = "model.layers.1.self_attn.v_proj.weight"
    turned = {**weights, values: weights[values][::-1].copy()}
    assert verdict_of(oracle, floor, checkpoint(tmp_path / "turned", turned), ALIKE) is Verdict.FAIL
