"""Whole models against their originals: the same configuration and weights give the same float32 logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from models import registry
from models.errors import ConfigError

Pair = Callable[[Mapping[str, Any], int, int], tuple[Tensor, Tensor]]
EVERY_PRESET = pytest.mark.parametrize(
    "model", [model for model in registry.models() if not model.encodes], ids=lambda model: model.name
)
#: Two correct float32 models are each about 1e-6 from the exact result; a wrong formula is off by a thousandth.
CLOSE = 1e-5


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the original's norm."""
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all()
    assert float(theirs.std()) > 0.1
    return float((ours - theirs).norm() / theirs.norm())


def tiny(name: str, **changes: Any) -> dict[str, Any]:
    return {**registry.get(name).preset.values(tiny=True), **changes}


def without(given: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in keys}


@EVERY_PRESET
@pytest.mark.parametrize(("count", "slots"), [(1, 1), (20, 24), (32, 32), (33, 33), (40, 48)])
def test_logits_are_the_originals(model: registry.Model, count: int, slots: int, both_logits: Pair) -> None:
    """Short and long prompts: across Gemma 2's window, and on either side of LongRoPE's boundary of 32."""
    ours, theirs = both_logits(model.preset.values(tiny=True), count, slots)
    assert distance(ours, theirs) < CLOSE


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1 + k / 16 for k in range(8)],
    "long_factor": [1 + 2.0 * k for k in range(8)],
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "gemma biases": tiny("gemma-2b", attention_bias=True),
    "gemma untied": tiny("gemma-2b", tie_word_embeddings=False),
    "gemma eps": tiny("gemma-7b", rms_norm_eps=0.1),
    "gemma theta": tiny("gemma-7b", rope_theta=100.0),
    "gemma2 without a cap on scores": tiny("gemma-2-2b", attn_logit_softcapping=None),
    "gemma2 without a cap on logits": tiny("gemma-2-2b", final_logit_softcapping=None),
    "gemma2 without caps": tiny("gemma-2-2b", attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma2 low caps": tiny("gemma-2-2b", attn_logit_softcapping=0.5, final_logit_softcapping=0.25),
    "gemma2 default caps": without(tiny("gemma-2-2b"), "attn_logit_softcapping", "final_logit_softcapping"),
    "gemma2 biases": tiny("gemma-2-2b", attention_bias=True),
    "gemma2 untied": tiny("gemma-2-2b", tie_word_embeddings=False),
    "gemma2 default scale": without(tiny("gemma-2-2b"), "query_pre_attn_scalar"),
    "gemma2 window of one": tiny("gemma-2-2b", sliding_window=1),
    "gemma2 window as long as the prompt": tiny("gemma-2-2b", sliding_window=20),
    "gemma2 other way round": tiny("gemma-2-2b", layer_types=["full_attention", "sliding_attention"] * 2)
    | {"num_hidden_layers": 4},
    "gemma2 all sliding": tiny("gemma-2-2b", layer_types=["sliding_attention"] * 3),
    "gemma2 all full": tiny("gemma-2-2b", layer_types=["full_attention"] * 3),
    "phi default share": without(tiny("phi-2", hidden_size=96), "partial_rotary_factor"),
    "phi whole head": tiny("phi-2", partial_rotary_factor=1.0),
    "phi grouped": tiny("phi-2", num_key_value_heads=2),
    "phi tied": tiny("phi-2", tie_word_embeddings=True),
    "phi exact gelu": tiny("phi-2", hidden_act="gelu"),
    "phi3 window": tiny("phi-3.5-mini", sliding_window=5),
    "phi3 no window": tiny("phi-3.5-mini", sliding_window=None),
    "phi3 unscaled": tiny("phi-3.5-mini", rope_scaling=None),
    "phi3 attention factor": tiny("phi-3.5-mini", rope_scaling=LONGROPE | {"attention_factor": 0.75}),
    "phi3 factor": tiny("phi-3.5-mini", rope_scaling=LONGROPE | {"factor": 4.0}),
    "phi3 no extension": tiny("phi-3.5-mini", rope_scaling=LONGROPE | {"factor": 1.0}),
    "phi4 untied": tiny("phi-4-mini", tie_word_embeddings=False),
    "llama with longrope": tiny("llama-3.2-1b", rope_scaling=LONGROPE),
    "openelm stored lists": tiny("openelm-270m", num_query_heads=[4, 8, 6], num_kv_heads=[2, 8, 1]),
    "openelm stored widths": tiny("openelm-270m", ffn_multipliers=[0.7, 0.4, 3.3]),
    "openelm theta": tiny("openelm-3b", rope_freq_constant=100),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(("count", "slots"), [(20, 24), (40, 40)])
def test_variants_are_the_originals(variant: str, count: int, slots: int, both_logits: Pair) -> None:
    """Nothing depends on a preset's numbers: what a configuration may say otherwise, the original does likewise."""
    assert distance(*both_logits(VARIANTS[variant], count, slots)) < CLOSE


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_context_inside_the_rope_object_alone(spelling: str, both_logits: Pair) -> None:
    """A Phi-3 file without the outer key means 4096 to the original, whatever is inside: compute that, or refuse."""
    bare = without(tiny("phi-3.5-mini"), "rope_scaling", "original_max_position_embeddings")
    try:
        ours, theirs = both_logits({**bare, spelling: LONGROPE}, 40, 40)
    except ConfigError:
        return
    assert distance(ours, theirs) < CLOSE


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma-2-2b", {"attn_logit_softcapping": None}),
        ("gemma-2-2b", {"final_logit_softcapping": None}),
        ("gemma-2-2b", {"query_pre_attn_scalar": 16}),
        ("gemma-2-2b", {"sliding_window": 6}),
        ("gemma-2-2b", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("gemma-2b", {"rms_norm_eps": 1e-3}),
        ("phi-2", {"partial_rotary_factor": 0.5}),
        ("phi-2", {"hidden_act": "gelu"}),
        ("phi-3.5-mini", {"original_max_position_embeddings": 2048}),
        ("phi-4-mini", {"original_max_position_embeddings": 2048}),
        ("phi-4-mini", {"max_position_embeddings": 4096}),
        ("openelm-270m", {"rope_freq_constant": 100}),
    ],
    ids=str,
)
def test_comparison_would_show_it(name: str, changes: dict[str, Any], both_logits: Pair) -> None:
    """The tiny models feel every one of these: the comparisons above are not blind to them."""
    (ours, _), (_, theirs) = both_logits(tiny(name, **changes), 40, 40), both_logits(tiny(name), 40, 40)
    assert distance(ours, theirs) > 3 * CLOSE
