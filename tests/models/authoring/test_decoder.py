"""The decoder's own formulas: how a block adds up, what scales embeddings, what bounds logits, what is cached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import registry
from models.authoring.config import AttentionConfig, BlockConfig, DecoderConfig, MLPConfig, NormConfig
from models.authoring.decoder import Block, DecoderOnlyModel, cache_names
from models.authoring.hf_config import HFConfig
from models.layers.mask import causal_mask

EVERY_PRESET = pytest.mark.parametrize(
    "model", [model for model in registry.models() if not model.encodes], ids=lambda model: model.name
)
#: Sums of a few dozen float64 terms in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
WIDTH = 12

seeds = st.integers(0, 2**31)
norms = st.sampled_from(
    [
        NormConfig(kind="rms", eps=1e-6),
        NormConfig(kind="rms", eps=1e-6, gain_offset=1.0),
        NormConfig(kind="layer", eps=1e-5),
    ]
)
optional_norms = st.none() | norms


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def randomize(module: nn.Module, seed: int) -> None:
    """Every parameter drawn, gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    module.requires_grad_(requires_grad=False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)


def config_of(model: registry.Model, *, tiny: bool = True) -> DecoderConfig:
    return model.family.config_from(HFConfig(model.preset.values(tiny=tiny), model.name))


def drawn(config: DecoderConfig, seed: int = 0) -> DecoderOnlyModel:
    model = DecoderOnlyModel(config).eval()
    randomize(model, seed)
    return model


def logits_of(model: DecoderOnlyModel, count: int = 9) -> Tensor:
    tokens = torch.arange(count, dtype=torch.int32)[None] * 7 % model.config.vocab_size
    made: Tensor = model(tokens, torch.arange(count), model.empty_cache(count))["logits"]
    return made


def gain(norm: nn.Module, x: Tensor, config: NormConfig | None) -> Tensor:
    """A norm by its formula; nothing where none is configured."""
    if config is None:
        return x
    centred = x - x.mean(-1, keepdim=True) if config.kind == "layer" else x
    unit = centred / (centred.square().mean(-1, keepdim=True) + config.eps).sqrt()
    scaled = unit * (norm.weight + config.gain_offset)
    return scaled + norm.bias if config.kind == "layer" else scaled


@settings(deadline=None, max_examples=60)
@given(
    attention_norm=norms,
    mlp_norm=optional_norms,
    post_attention=optional_norms,
    post_mlp=optional_norms,
    gated=st.booleans(),
    seed=seeds,
)
def test_blocks_follow_their_formulas(
    attention_norm: NormConfig,
    mlp_norm: NormConfig | None,
    post_attention: NormConfig | None,
    post_mlp: NormConfig | None,
    gated: bool,
    seed: int,
) -> None:
    """Post-norms are on what is added; without an mlp_norm both halves read norm(x), and x gets their sum at once."""
    config = BlockConfig(
        attention_norm=attention_norm,
        attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=4, scale=0.5),
        mlp_norm=mlp_norm,
        mlp=MLPConfig(hidden=20, activation="gelu_tanh", gated=gated, bias=True),
        post_attention_norm=post_attention,
        post_mlp_norm=post_mlp,
    )
    block = Block(config, WIDTH)
    randomize(block, seed)
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(5)
    angles = positions[:, None] / torch.tensor([[1.0, 10.0]])
    cache = torch.zeros(2, 5, 2, 4)
    rest = (angles.cos(), angles.sin(), causal_mask(positions, 5), positions, cache, cache)
    ours, k_cache, v_cache = block(x, *rest)

    normed = gain(block.attention_norm, x, attention_norm)
    attended, k_expected, v_expected = block.attention(normed, *rest)
    torch.testing.assert_close((k_cache, v_cache), (k_expected, v_expected), **CLOSE)
    attended = gain(block.post_attention_norm, attended, post_attention)
    if mlp_norm is None:
        expected = x + attended + gain(block.post_mlp_norm, block.mlp(normed), post_mlp)
    else:
        middle = x + attended
        expected = middle + gain(block.post_mlp_norm, block.mlp(gain(block.mlp_norm, middle, mlp_norm)), post_mlp)
    torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.parametrize("name", ["phi-2", "gemma-2-2b"])
def test_order_of_a_block_matters(name: str) -> None:
    """Phi-2's parallel block is not its sequential twin, nor are Gemma 2's post-norms idle."""
    config = config_of(registry.get(name))
    model = drawn(config)
    changed = DecoderOnlyModel(config).eval()
    changed.load_state_dict(model.state_dict())
    for block in changed.blocks:
        if name == "phi-2":
            block.parallel = False
            block.mlp_norm = block.attention_norm
        else:
            block.post_attention_norm, block.post_mlp_norm = nn.Identity(), nn.Identity()
    with torch.no_grad():
        assert float((logits_of(model) - logits_of(changed)).abs().max()) > 1e-3


@EVERY_PRESET
def test_embedding_is_scaled_by_what_is_configured(model: registry.Model) -> None:
    """Rows of the table times the scale, which is the root of the width in Gemma and 1 elsewhere."""
    for tiny in (True, False):
        config = config_of(model, tiny=tiny)
        assert config.embedding_scale == (config.width**0.5 if model.family.name == "gemma" else 1.0)
    built = drawn(config_of(model))
    tokens, positions = torch.tensor([[3, 1, 4, 1]]), torch.arange(4)
    hidden = built.embed(tokens, positions, positions, cache_length=4)[0]
    assert torch.equal(hidden, built.embed.tokens.weight[tokens] * built.config.embedding_scale)


@settings(deadline=None, max_examples=10)
@given(scale=st.floats(0.01, 100), seed=seeds)
def test_embedding_scale_is_a_scaled_table(scale: float, seed: int) -> None:
    """In an untied model, the same as a table multiplied beforehand; the head's table is not scaled."""
    config = replace(config_of(registry.get("tinyllama-1.1b")), embedding_scale=scale)
    scaled = drawn(config, seed)
    plain = DecoderOnlyModel(replace(config, embedding_scale=1.0)).eval()
    plain.load_state_dict(scaled.state_dict())
    plain.requires_grad_(requires_grad=False).embed.tokens.weight.mul_(scale)
    assert torch.equal(logits_of(scaled), logits_of(plain))


@pytest.mark.parametrize("name", ["gemma-2b", "gemma-2-2b"])
def test_tied_head_reads_the_table_unscaled(name: str) -> None:
    """The scale is on the way in alone."""
    model = drawn(replace(config_of(registry.get(name)), final_softcap=None))
    x = torch.randn(1, 3, model.config.width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.head(x), model.head.norm(x) @ model.embed.tokens.weight.T, **CLOSE)


@settings(deadline=None, max_examples=10)
@given(cap=st.floats(0.1, 50), seed=seeds)
def test_logits_are_capped_last(cap: float, seed: int) -> None:
    """cap * tanh(logits / cap) of the model without the cap, so never beyond it."""
    config = replace(config_of(registry.get("gemma-2-2b")), final_softcap=cap)
    model = drawn(config, seed)
    plain = DecoderOnlyModel(replace(config, final_softcap=None)).eval()
    plain.load_state_dict(model.state_dict())
    plain.requires_grad_(requires_grad=False)
    capped, free = logits_of(model), logits_of(plain)
    torch.testing.assert_close(capped, cap * torch.tanh(free / cap), **CLOSE)
    assert float(capped.abs().max()) <= cap


def test_head_bias_is_added_to_the_logits() -> None:
    """Phi-2's: each token's logit by its own."""
    model = drawn(config_of(registry.get("phi-2")))
    before = logits_of(model)
    shift = torch.linspace(-1, 1, model.config.vocab_size)
    model.head.projection.bias.add_(shift)
    torch.testing.assert_close(logits_of(model) - before, shift.expand_as(before), rtol=0, atol=1e-12)
    assert {m.name for m in registry.models() if not m.encodes and config_of(m).head_bias} == {"phi-2"}


@EVERY_PRESET
def test_cache_has_each_layers_shape(model: registry.Model) -> None:
    """``[B, S, K, H]`` with the layer's own K, k before v, layers in order; a run gives the same shapes back."""
    built = drawn(config_of(model))
    cache = built.empty_cache(11, batch=2)
    assert list(cache) == [name for i in range(len(built.config.blocks)) for name in cache_names(i)]
    for i, block in enumerate(built.config.blocks):
        for name in cache_names(i):
            assert cache[name].shape == (2, 11, block.attention.num_kv_heads, block.attention.head_dim)
            assert not cache[name].any()
    made = built(torch.zeros(2, 5, dtype=torch.int32), torch.arange(5), cache)
    assert {name: made[name].shape for name in cache} == {name: value.shape for name, value in cache.items()}
    assert list(made) == ["logits", *cache]
