"""Attention, its mask, and what the whole decoder owes to them: causality, padding, and prefill as repeated decode.

Everything runs in float64, where only the order of sums separates two right answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import registry
from models.authoring.config import AttentionConfig, DecoderConfig, NormConfig
from models.authoring.decoder import DecoderOnlyModel
from models.authoring.hf_config import HFConfig
from models.layers.attention import Attention, scaled_dot_product_attention, soft_cap
from models.layers.mask import causal_mask

EPS = torch.finfo(torch.float64).eps
#: Sums of at most a few hundred terms in another order, through three blocks: thousands of roundings in the worst
#: case, near a hundred in practice. A wrong formula is off by a thousandth at least.
SUMMATION_ORDER = {"rtol": 1e-12, "atol": 1e-12}
SLOTS = 24
#: Grouped (4 to 1, with frequency scaling), one shared head, all heads their own, biases on q, k and v; scaled
#: embeddings, windows and caps, parallel blocks, LongRoPE (whole and partial), QK-norm with layers that differ.
NAMES = [
    *("llama-3.2-1b", "tinyllama-1.1b", "smollm-1.7b", "qwen2.5-0.5b"),
    *("gemma-2b", "gemma-7b", "gemma-2-2b", "phi-2", "phi-3.5-mini", "phi-4-mini", "openelm-270m", "openelm-3b"),
]
PRESETS = pytest.mark.parametrize("name", NAMES)

seeds = st.integers(0, 2**31)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters, tables, masks and caches in ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomize(module: nn.Module, seed: int) -> None:
    """Every parameter drawn, gains and biases too, so that none is at a value that hides it."""
    generator = torch.Generator().manual_seed(seed)
    module.requires_grad_(requires_grad=False)
    for parameter in module.parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
        centre = 0.0 if parameter.ndim == 2 else 1.0
        parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))


def config_of(name: str, **changes: object) -> DecoderConfig:
    model = registry.get(name)
    return model.family.config_from(HFConfig({**model.preset.values(tiny=True), **changes}, name))


@cache
def tiny(name: str) -> DecoderOnlyModel:
    model = DecoderOnlyModel(config_of(name)).eval()
    randomize(model, seed=0)
    return model


def tokens_of(model: DecoderOnlyModel, count: int, seed: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (batch, count), generator=generator, dtype=torch.int32)


def run(
    model: DecoderOnlyModel, tokens: Tensor, cache: dict[str, Tensor], start: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits ``[B, T, V]`` and the new cache."""
    made = model(tokens, torch.arange(start, start + tokens.shape[1], dtype=torch.int32), cache)
    return made.pop("logits"), made


def attention(config: AttentionConfig, width: int, seed: int) -> Attention:
    module = Attention(config, width)
    randomize(module, seed)
    return module


def attend(module: Attention, x: Tensor) -> Tensor:
    """A prompt through one attention layer with an empty cache and rotation by one radian a position."""
    batch, count, _ = x.shape
    positions = torch.arange(count)
    half = module.config.head_dim // 2
    angles = positions.to(x.dtype)[:, None].expand(-1, half)
    empty = torch.zeros(batch, count, module.config.num_kv_heads, module.config.head_dim)
    mask = causal_mask(positions, count)
    return module(x, angles.cos(), angles.sin(), mask, positions, empty, empty)[0]


@PRESETS
@settings(deadline=None, max_examples=10)
@given(count=st.integers(2, SLOTS), data=st.data(), seed=seeds)
def test_later_tokens_never_change_earlier_logits(name: str, count: int, data: st.DataObject, seed: int) -> None:
    """Causality, bit for bit: blocked weights are exactly zero. The changed position itself does change."""
    model = tiny(name)
    at = data.draw(st.integers(0, count - 1))
    tokens = tokens_of(model, count, seed)
    changed = tokens.clone()
    changed[:, at:] = (tokens[:, at:] + 1 + tokens_of(model, count - at, seed + 1) % 7) % model.config.vocab_size
    (before, _), (after, _) = (run(model, t, model.empty_cache(SLOTS)) for t in (tokens, changed))
    assert torch.equal(before[:, :at], after[:, :at])
    assert (before[:, at] != after[:, at]).any()


@PRESETS
@settings(deadline=None, max_examples=5)
@given(count=st.integers(2, 16), seed=seeds)
def test_prefill_is_repeated_decode(name: str, count: int, seed: int) -> None:
    """A prompt at once and token by token give the same logits and the same cache."""
    model = tiny(name)
    tokens = tokens_of(model, count, seed)
    at_once, filled = run(model, tokens, model.empty_cache(SLOTS))
    steps, cache = [], model.empty_cache(SLOTS)
    for position in range(count):
        logits, cache = run(model, tokens[:, position : position + 1], cache, position)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), at_once, **SUMMATION_ORDER)
    for part, expected in filled.items():
        torch.testing.assert_close(cache[part], expected, **SUMMATION_ORDER)


@PRESETS
def test_prefill_in_pieces(name: str) -> None:
    """Where a prompt is cut does not matter."""
    model = tiny(name)
    tokens = tokens_of(model, 16, seed=3)
    whole, _ = run(model, tokens, model.empty_cache(SLOTS))
    first, cache = run(model, tokens[:, :5], model.empty_cache(SLOTS))
    second, _ = run(model, tokens[:, 5:], cache, start=5)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, **SUMMATION_ORDER)


@PRESETS
@settings(deadline=None, max_examples=5)
@given(count=st.integers(1, 12), padding=st.integers(1, 10), seed=seeds)
def test_padding_to_the_right_changes_nothing_visible(name: str, count: int, padding: int, seed: int) -> None:
    """Logits of the real positions, and of the decode that follows over the padding, are as without it."""
    model = tiny(name)
    tokens = tokens_of(model, count, seed)
    plain, cache = run(model, tokens, model.empty_cache(SLOTS))
    padded, padded_cache = run(model, nn.functional.pad(tokens, (0, padding)), model.empty_cache(SLOTS))
    torch.testing.assert_close(padded[:, :count], plain, **SUMMATION_ORDER)
    following = tokens_of(model, 1, seed + 1)
    expected, _ = run(model, following, cache, start=count)
    torch.testing.assert_close(run(model, following, padded_cache, start=count)[0], expected, **SUMMATION_ORDER)


@PRESETS
def test_stale_slots_are_invisible(name: str) -> None:
    """Whatever finite values an earlier prompt left in the cache, the logits are the same bits."""
    model = tiny(name)
    tokens = tokens_of(model, 6, seed=1)
    stale = {part: 100 * random(*empty.shape, seed=2) for part, empty in model.empty_cache(SLOTS).items()}
    assert torch.equal(run(model, tokens, stale)[0], run(model, tokens, model.empty_cache(SLOTS))[0])


@PRESETS
@pytest.mark.parametrize("slots", [16, 17, 32, 64])
def test_cache_length_changes_nothing_visible(name: str, slots: int) -> None:
    """Logits do not depend on how much room is left, but for LongRoPE, whose regime the room decides."""
    model = tiny(name)
    tokens = tokens_of(model, 16, seed=4)
    expected, _ = run(model, tokens, model.empty_cache(SLOTS))
    found, _ = run(model, tokens, model.empty_cache(slots))
    boundary = model.config.rope.boundary
    assert boundary in (None, 32)
    if boundary is not None and slots > boundary:
        assert float((found - expected).abs().max()) > 1e-3
        expected, _ = run(model, tokens, model.empty_cache(boundary + 1))
    torch.testing.assert_close(found, expected, **SUMMATION_ORDER)


@PRESETS
@pytest.mark.parametrize(("count", "slots"), [(24, 32), (40, 40)])
def test_long_prefill_is_repeated_decode(name: str, count: int, slots: int) -> None:
    """Several windows long, and in LongRoPE's other regime, whose frequencies every step of the session has."""
    model = tiny(name)
    tokens = tokens_of(model, count, seed=7)
    at_once, filled = run(model, tokens, model.empty_cache(slots))
    steps, cache = [], model.empty_cache(slots)
    for position in range(count):
        logits, cache = run(model, tokens[:, position : position + 1], cache, position)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), at_once, **SUMMATION_ORDER)
    assert all(torch.allclose(cache[part], filled[part], **SUMMATION_ORDER) for part in filled)


def test_window_forgets() -> None:
    """Where every layer slides, a token out of every layer's reach changes nothing; within reach it does."""
    model = DecoderOnlyModel(config_of("gemma-2-2b", layer_types=["sliding_attention"] * 3, sliding_window=3)).eval()
    randomize(model, seed=0)
    tokens = tokens_of(model, 12, seed=8)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % model.config.vocab_size
    before, after = (run(model, t, model.empty_cache(SLOTS))[0] for t in (tokens, changed))
    reach = 3 * (3 - 1)  # layers times the positions that each looks back
    assert (before[:, reach] != after[:, reach]).any()
    assert torch.equal(before[:, reach + 1 :], after[:, reach + 1 :])


@PRESETS
def test_rows_of_a_batch_do_not_see_each_other(name: str) -> None:
    """Each row of a batch is what it is alone."""
    model = tiny(name)
    tokens = tokens_of(model, 7, seed=5, batch=3)
    together, _ = run(model, tokens, model.empty_cache(SLOTS, batch=3))
    alone = [run(model, row[None], model.empty_cache(SLOTS))[0] for row in tokens]
    torch.testing.assert_close(together, torch.cat(alone), **SUMMATION_ORDER)


@PRESETS
def test_prefill_without_logits_fills_the_same_cache(name: str) -> None:
    """Leaving the head out changes nothing else."""
    model = tiny(name)
    tokens, positions = tokens_of(model, 7, seed=6), torch.arange(7)
    with_head = model(tokens, positions, model.empty_cache(SLOTS))
    without = model(tokens, positions, model.empty_cache(SLOTS), logits=False)
    assert list(with_head) == ["logits", *without]
    assert all(torch.equal(without[part], with_head[part]) for part in without)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_and_plain_give_the_same_bits(name: str, dtype: torch.dtype) -> None:
    """Marks for the converter change no number in PyTorch."""
    with default_dtype(dtype):
        plain, fused = (DecoderOnlyModel(config_of(name), fused=fused).eval() for fused in (False, True))
        randomize(plain, seed=0)
        fused.load_state_dict(plain.state_dict())
        fused.requires_grad_(requires_grad=False)
        tokens = tokens_of(plain, 9, seed=1)
        results = []
        for model in (plain, fused):
            logits, filled = run(model, tokens, model.empty_cache(SLOTS))
            results.append([logits, run(model, tokens[:, :1], filled, start=9)[0], *filled.values()])
    assert all(a.dtype is dtype and torch.equal(a, b) for a, b in zip(*results, strict=True))


@settings(deadline=None, max_examples=25)
@given(kv_heads=st.integers(1, 4), group=st.integers(1, 4), bias=st.booleans(), seed=seeds)
def test_grouped_is_multi_head_with_repeated_heads(kv_heads: int, group: int, bias: bool, seed: int) -> None:
    """Each key/value head copied for every query head of its block gives multi-head attention of the same numbers."""
    head_dim, width = 6, 10
    grouped_config = AttentionConfig(
        num_heads=kv_heads * group, num_kv_heads=kv_heads, head_dim=head_dim, scale=0.3, qkv_bias=bias
    )
    grouped = attention(grouped_config, width, seed)
    multi = attention(replace(grouped_config, num_kv_heads=kv_heads * group), width, seed + 1)
    multi.q_proj, multi.o_proj = grouped.q_proj, grouped.o_proj
    for name in ("k_proj", "v_proj"):
        for kind in ("weight", "bias") if bias else ("weight",):
            rows = getattr(getattr(grouped, name), kind).unflatten(0, (kv_heads, head_dim))
            getattr(getattr(multi, name), kind).copy_(rows.repeat_interleave(group, dim=0).flatten(0, 1))
    x = random(2, 5, width, seed=seed + 2)
    torch.testing.assert_close(attend(grouped, x), attend(multi, x), **SUMMATION_ORDER)


def test_heads_are_shared_in_blocks_not_in_turns() -> None:
    """Query heads 0 and 1 read key/value head 0: the value of head n is n, and a single slot is visible."""
    value = torch.arange(2.0)[None, None, :, None].expand(1, 1, 2, 4)
    out = scaled_dot_product_attention(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 4), value, torch.zeros(1), scale=1.0)
    assert out[0, 0, :, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


@settings(deadline=None, max_examples=25)
@given(
    kv_heads=st.integers(1, 3), group=st.integers(1, 3), count=st.integers(1, 8), scale=st.floats(0.05, 2.0), seed=seeds
)
def test_attention_equals_torch(kv_heads: int, group: int, count: int, scale: float, seed: int) -> None:
    """The numbers of torch's own grouped attention, with any scale, at the end of a cache of eight slots."""
    query = random(2, count, kv_heads * group, 4, seed=seed)
    key, value = random(2, 2, 8, kv_heads, 4, seed=seed + 1)
    mask = causal_mask(torch.arange(8 - count, 8), 8)
    theirs = nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask, scale=scale, enable_gqa=True
    )
    ours = scaled_dot_product_attention(query, key, value, mask, scale=scale)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), **SUMMATION_ORDER)


def with_biases() -> Attention:
    config = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=6, scale=0.4, qkv_bias=True, output_bias=True)
    return attention(config, 10, seed=0)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_biases_are_used(name: str) -> None:
    """A changed bias of any projection changes the result."""
    module, x = with_biases(), random(1, 5, 10, seed=1)
    before = attend(module, x)
    getattr(module, name).bias.add_(random(getattr(module, name).bias.shape[0], seed=2))
    assert float((attend(module, x) - before).abs().max()) > 1e-3


def test_biases_are_what_a_constant_channel_would_add() -> None:
    """Moving the biases into weights on a channel that is always 1 gives the same result."""
    module, x = with_biases(), random(2, 5, 10, seed=1)
    config = replace(module.config, qkv_bias=False)
    same = attention(config, 11, seed=3)
    for name in ("q_proj", "k_proj", "v_proj"):
        ours = getattr(module, name)
        getattr(same, name).weight.copy_(torch.cat([ours.weight, ours.bias[:, None]], dim=1))
    # The output is 11 wide now: its last channel is not compared.
    same.o_proj.weight[:10], same.o_proj.bias[:10] = module.o_proj.weight, module.o_proj.bias
    widened = nn.functional.pad(x, (0, 1), value=1.0)
    torch.testing.assert_close(attend(same, widened)[..., :10], attend(module, x), **SUMMATION_ORDER)


@pytest.mark.parametrize(("qkv", "output"), [(False, False), (True, False), (False, True), (True, True)])
def test_biases_exist_where_configured(qkv: bool, output: bool) -> None:
    """q, k and v together, the output by itself."""
    config = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=4, scale=0.5, qkv_bias=qkv, output_bias=output)
    biases = {name for name, _ in Attention(config, 8).named_parameters() if name.endswith("bias")}
    assert biases == {f"{p}_proj.bias" for p in ("qkv" if qkv else "") + ("o" if output else "")}


caps = st.floats(1e-2, 1e3)


@settings(deadline=None, max_examples=60)
@given(cap=caps, scale=st.floats(1e-3, 1e6), dtype=st.sampled_from([torch.float32, torch.float64]), seed=seeds)
def test_soft_cap_is_never_exceeded(cap: float, scale: float, dtype: torch.dtype, seed: int) -> None:
    """However large the score, in either precision; order and sign are kept, infinities included."""
    x = (random(200, seed=seed) * scale * cap).to(dtype).sort().values
    x = torch.cat([x.new_tensor([-torch.inf]), x, x.new_tensor([torch.inf])])
    capped = soft_cap(x, cap)
    assert capped.dtype is dtype
    assert (capped.abs() <= x.new_tensor(cap)).all()
    assert (capped.diff() >= 0).all()
    assert torch.equal(capped.sign(), x.sign())
    assert torch.equal(soft_cap(-x, cap), -capped)
    assert capped[-1] == x.new_tensor(cap)


@settings(deadline=None, max_examples=60)
@given(cap=caps, share=st.floats(1e-6, 1e-2), seed=seeds)
def test_soft_cap_is_the_identity_near_zero(cap: float, share: float, seed: int) -> None:
    """tanh(u) = u - u^3/3 + ...: at a share u of the cap the score loses at most a third of u^2 of itself."""
    x = torch.rand(50, generator=torch.Generator().manual_seed(seed)) * share * cap
    lost = x - soft_cap(x, cap)
    assert (lost >= -4 * EPS * x).all()
    assert (lost <= x * (share**2 / 3 + 4 * EPS)).all()
    assert torch.equal(soft_cap(torch.zeros(3), cap), torch.zeros(3))


@settings(deadline=None, max_examples=25)
@given(cap=st.floats(0.1, 10), scale=st.floats(0.05, 2), seed=seeds)
def test_scores_are_scaled_then_capped_then_masked(cap: float, scale: float, seed: int) -> None:
    """softmax(cap * tanh(q k * scale / cap) + mask) v, one head and query at a time, block-wise shared heads."""
    query, key, value = (random(2, 5, heads, 4, seed=seed + i) * 3 for i, heads in enumerate((6, 2, 2)))
    mask = causal_mask(torch.arange(5), 5, 3)
    ours = scaled_dot_product_attention(query, key, value, mask, scale=scale, softcap=cap)
    for head in range(6):
        scores = torch.einsum("bth,bsh->bts", query[:, :, head], key[:, :, head // 3]) * scale
        weights = (cap * torch.tanh(scores / cap)).masked_fill(mask[0] != 0, -torch.inf).softmax(-1)
        expected = torch.einsum("bts,bsh->bth", weights, value[:, :, head // 3])
        torch.testing.assert_close(ours[:, :, head], expected, **SUMMATION_ORDER)


def test_huge_cap_is_no_cap() -> None:
    """And without a cap the numbers are those of before there were any."""
    query, key, value = (random(1, 5, 2, 4, seed=i) for i in range(3))
    mask = causal_mask(torch.arange(5), 5)
    without = scaled_dot_product_attention(query, key, value, mask, scale=0.5)
    huge = scaled_dot_product_attention(query, key, value, mask, scale=0.5, softcap=1e6)
    torch.testing.assert_close(huge, without, **SUMMATION_ORDER)
    small = scaled_dot_product_attention(query, key, value, mask, scale=0.5, softcap=0.1)
    assert float((small - without).abs().max()) > 1e-2


def test_heads_are_normalized_before_they_are_rotated() -> None:
    """rope(norm(q)), not norm(rope(q)); every head by itself, with one gain for all; values are left alone."""
    norm = NormConfig(kind="rms", eps=1e-6)
    config = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=6, scale=0.4, qk_norm=norm)
    module, x = attention(config, 10, seed=0), random(2, 5, 10, seed=1)
    assert module.q_norm.weight.shape == module.k_norm.weight.shape == (6,)
    positions = torch.arange(5)
    angles = positions[:, None].to(x.dtype).expand(-1, 3)
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]

    def rotated(heads: Tensor) -> Tensor:
        turned = torch.complex(heads[..., :3], heads[..., 3:]) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    def normed(heads: Tensor, gain: Tensor) -> Tensor:
        return heads / (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    projected = {part: (x @ getattr(module, f"{part}_proj").weight.T).unflatten(-1, (-1, 6)) for part in "qkv"}
    mask = causal_mask(positions, 5)

    def whole(query: Tensor, key: Tensor) -> Tensor:
        attended = scaled_dot_product_attention(query, key, projected["v"], mask, scale=0.4)
        return attended.flatten(2) @ module.o_proj.weight.T

    right = whole(
        rotated(normed(projected["q"], module.q_norm.weight)), rotated(normed(projected["k"], module.k_norm.weight))
    )
    other = whole(
        normed(rotated(projected["q"]), module.q_norm.weight), normed(rotated(projected["k"]), module.k_norm.weight)
    )
    torch.testing.assert_close(attend(module, x), right, **SUMMATION_ORDER)
    assert float((right - other).abs().max()) > 1e-3  # the gains differ from channel to channel


def test_without_a_head_norm_there_is_none() -> None:
    """No parameter for it, and the cache holds rotated keys as they were projected."""
    module = with_biases()
    assert not {name for name, _ in module.named_parameters() if "norm" in name}
