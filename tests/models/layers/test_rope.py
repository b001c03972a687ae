"""Laws of rotary position embedding, in float64, where they hold to rounding; and the original's llama3 frequencies."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import registry
from models.authoring.config import Llama3Scaling, LongRopeScaling, RopeConfig
from models.authoring.hf_config import HFConfig
from models.layers.rope import RopeTables, apply_rope, factors, inverse_frequencies

LAWS = settings(deadline=None, max_examples=40)
EPS = torch.finfo(torch.float64).eps
LONGEST = 8192

seeds = st.integers(0, 2**31)
positions = st.integers(0, LONGEST)
thetas = st.sampled_from([1e4, 1e5, 5e5, 1e6])


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotate(x: torch.Tensor, at: list[int], config: RopeConfig) -> torch.Tensor:
    """``x`` ``[B, T, N, H]`` rotated at positions ``at``, everything in float64."""
    angles = torch.tensor(at, dtype=torch.float64)[:, None] * inverse_frequencies(config)
    return apply_rope(x, angles.cos(), angles.sin())


def rope_of(name: str, *, tiny: bool) -> RopeConfig:
    model = registry.get(name)
    return model.family.config_from(HFConfig(model.preset.values(tiny=tiny), name)).rope


def unscaled(rope: RopeConfig) -> torch.Tensor:
    return inverse_frequencies(replace(rope, scaling=None))


@st.composite
def heads(draw: st.DrawFn) -> tuple[int, int]:
    """Head dim H and rotated size R <= H, both even."""
    head_dim = 2 * draw(st.integers(1, 32))
    return head_dim, 2 * draw(st.integers(1, head_dim // 2))


@pytest.fixture
def default_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@LAWS
@given(sizes=heads(), at=positions, theta=thetas, seed=seeds)
def test_norms_are_preserved(sizes: tuple[int, int], at: int, theta: float, seed: int) -> None:
    """A rotation changes no vector's length, nor that of any rotated pair of channels."""
    head_dim, rotary_dim = sizes
    x = random(2, 1, 3, head_dim, seed=seed)
    turned = rotate(x, [at], RopeConfig(theta=theta, rotary_dim=rotary_dim))
    # cos^2 + sin^2 is 1 to two roundings, each product and sum adds one.
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=8 * EPS, atol=0)
    half = rotary_dim // 2
    pairs = [t[..., :rotary_dim].unflatten(-1, (2, half)).norm(dim=-2) for t in (turned, x)]
    torch.testing.assert_close(*pairs, rtol=8 * EPS, atol=0)


@LAWS
@given(
    sizes=heads(), query_at=positions, key_at=positions, shift=st.integers(-LONGEST, LONGEST), theta=thetas, seed=seeds
)
def test_scores_depend_on_relative_position_only(
    sizes: tuple[int, int], query_at: int, key_at: int, shift: int, theta: float, seed: int
) -> None:
    """Moving query and key by the same distance leaves their product alone."""
    head_dim, rotary_dim = sizes
    config = RopeConfig(theta=theta, rotary_dim=rotary_dim)
    query, key = random(2, 1, 1, 1, head_dim, seed=seed)
    here = (rotate(query[None], [query_at], config) * rotate(key[None], [key_at], config)).sum()
    moved = (rotate(query[None], [query_at + shift], config) * rotate(key[None], [key_at + shift], config)).sum()
    # An angle of up to 2 * LONGEST is rounded to EPS of itself, four of them enter.
    tolerance = 4 * 2 * LONGEST * EPS * query.norm() * key.norm()
    assert abs(here - moved) <= tolerance


def test_scores_do_depend_on_relative_position() -> None:
    """The law above is not satisfied by doing nothing: another distance gives another product."""
    config = RopeConfig(theta=1e4, rotary_dim=16)
    query, key = random(1, 1, 1, 16, seed=0), random(1, 1, 1, 16, seed=1)
    products = [float((rotate(query, [at], config) * rotate(key, [0], config)).sum()) for at in range(8)]
    assert len({round(product, 6) for product in products}) == 8


@LAWS
@given(sizes=heads(), at=st.lists(positions, min_size=1, max_size=4), theta=thetas, seed=seeds)
def test_partial_rotary_leaves_the_tail_untouched(
    sizes: tuple[int, int], at: list[int], theta: float, seed: int
) -> None:
    """Channels from R on come out bit for bit; the first R are those of a head of R channels."""
    head_dim, rotary_dim = sizes
    config = RopeConfig(theta=theta, rotary_dim=rotary_dim)
    x = random(1, len(at), 2, head_dim, seed=seed)
    turned = rotate(x, at, config)
    assert turned.shape == x.shape
    assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])
    assert torch.equal(turned[..., :rotary_dim], rotate(x[..., :rotary_dim], at, config))


@LAWS
@given(sizes=heads(), at=st.lists(positions, min_size=1, max_size=4), theta=thetas, seed=seeds)
def test_pairs_are_halves_turned_by_the_angle(sizes: tuple[int, int], at: list[int], theta: float, seed: int) -> None:
    """Channels c and c + R/2 are one complex number, multiplied by exp(i * position * theta^(-2c/R))."""
    head_dim, rotary_dim = sizes
    half = rotary_dim // 2
    x = random(1, len(at), 2, head_dim, seed=seed)
    turned = rotate(x, at, RopeConfig(theta=theta, rotary_dim=rotary_dim))
    frequency = torch.tensor([theta ** (-2 * c / rotary_dim) for c in range(half)], dtype=torch.float64)
    angles = torch.tensor(at, dtype=torch.float64)[:, None, None] * frequency
    expected = torch.complex(x[..., :half], x[..., half:rotary_dim]) * torch.exp(1j * angles)
    # The frequency may differ by a few roundings of its power, and the angle is at most LONGEST.
    close = {"rtol": 0, "atol": 8 * LONGEST * EPS * float(x.abs().max())}
    torch.testing.assert_close(turned[..., :half], expected.real, **close)
    torch.testing.assert_close(turned[..., half:rotary_dim], expected.imag, **close)


def test_position_zero_is_the_identity() -> None:
    """Nothing is turned at position 0."""
    x = random(1, 1, 2, 16, seed=0)
    assert torch.equal(rotate(x, [0], RopeConfig(theta=1e4, rotary_dim=16)), x)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.2-3b"])
@pytest.mark.parametrize("tiny", [True, False])
def test_llama3_bands(name: str, tiny: bool) -> None:
    """All three bands occur: high frequencies are kept, low ones divided by the factor, those between blended."""
    rope = rope_of(name, tiny=tiny)
    assert rope.scaling is not None
    plain, scaled = unscaled(rope), inverse_frequencies(rope)
    wavelength = 2 * torch.pi / plain
    kept = wavelength < rope.scaling.original_max_positions / rope.scaling.high_freq_factor
    divided = wavelength > rope.scaling.original_max_positions / rope.scaling.low_freq_factor
    blended = ~(kept | divided)
    assert kept.any()
    assert divided.any()
    assert blended.any()
    assert torch.equal(scaled[kept], plain[kept])
    assert torch.equal(scaled[divided], plain[divided] / rope.scaling.factor)
    assert (scaled[blended] < plain[blended]).all()
    assert (scaled[blended] > plain[blended] / rope.scaling.factor).all()


def original_llama3(rope: RopeConfig) -> torch.Tensor:
    """The frequencies that transformers computes, in its float32."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert rope.scaling is not None
    config = LlamaConfig(
        hidden_size=4 * rope.rotary_dim,
        num_attention_heads=4,
        head_dim=rope.rotary_dim,
        # transformers warns where the two contexts and the factor do not agree
        max_position_embeddings=int(rope.scaling.original_max_positions * rope.scaling.factor),
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": rope.theta,
            "factor": rope.scaling.factor,
            "low_freq_factor": rope.scaling.low_freq_factor,
            "high_freq_factor": rope.scaling.high_freq_factor,
            "original_max_position_embeddings": rope.scaling.original_max_positions,
        },
    )
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    assert attention_factor == 1.0  # nothing else is scaled
    return frequencies.double()


@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.2-3b"])
@pytest.mark.parametrize("tiny", [True, False])
def test_llama3_equals_the_original(name: str, tiny: bool) -> None:
    """The presets' frequencies are transformers' own, which are float32: 1e-6 relative is its rounding of the power."""
    rope = rope_of(name, tiny=tiny)
    torch.testing.assert_close(inverse_frequencies(rope), original_llama3(rope), rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=25)
@given(
    pairs=st.integers(2, 64),
    theta=st.sampled_from([1e4, 1e5, 5e5]),
    factor=st.sampled_from([2.0, 8.0, 32.0]),
    high=st.sampled_from([2.0, 4.0]),
    context=st.sampled_from([64, 1000, 8192]),
)
def test_llama3_equals_the_original_for_other_values(
    pairs: int, theta: float, factor: float, high: float, context: int
) -> None:
    """Nothing in the rule is tuned to the presets' numbers."""
    scaling = Llama3Scaling(factor=factor, low_freq_factor=1.0, high_freq_factor=high, original_max_positions=context)
    rope = RopeConfig(theta=theta, rotary_dim=2 * pairs, scaling=scaling)
    plain, ours = unscaled(rope), inverse_frequencies(rope)
    turns = context * plain / (2 * torch.pi)
    blended = (turns > 1 - 1e-5) & (turns < high * (1 + 1e-5))
    # Float32 in the original: 1e-6 for the power, as above. In the blend that error e of the frequency f also shifts
    # the weights, by e * high / (high - 1) <= 2e, and they weigh f.
    tolerance = torch.where(blended, 3e-6 * plain, 1e-6 * ours)
    assert ((ours - original_llama3(rope)).abs() <= tolerance).all()


@pytest.mark.parametrize(
    "model", [model for model in registry.models() if not model.encodes], ids=lambda model: model.name
)
def test_unscaled_equals_the_original(model: registry.Model) -> None:
    """Every preset without scaling has transformers' default frequencies; those with it have them underneath."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = rope_of(model.name, tiny=False)
    config = LlamaConfig(
        hidden_size=4 * rope.rotary_dim, num_attention_heads=4, rope_parameters={"rope_theta": rope.theta}
    )
    original, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    # The original rounds the exponent and the power to float32: ln(1e6) * 2^-24 + 2^-24 is just under 1e-6.
    torch.testing.assert_close(unscaled(rope), original.double(), rtol=1e-6, atol=0)


def test_tables_are_float32_and_survive_the_meta_device() -> None:
    """A model built without memory still has its frequencies: they are in no checkpoint."""
    rope = rope_of("llama-3.2-1b", tiny=True)
    with torch.device("meta"):
        tables = RopeTables(rope)
    assert tables.frequencies.dtype is torch.float32
    assert torch.equal(tables.frequencies, inverse_frequencies(rope).float())
    assert "frequencies" not in tables.state_dict()


@pytest.mark.usefixtures("default_float64")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tables_are_the_angles_of_the_positions(dtype: torch.dtype) -> None:
    """Row t holds the cosines and sines of position t's angles, whatever the integer dtype and the first position."""
    rope = rope_of("llama-3.2-1b", tiny=True)
    cos, sin = RopeTables(rope)(torch.arange(5, 9, dtype=dtype))
    angles = torch.arange(5, 9, dtype=torch.float64)[:, None] * inverse_frequencies(rope)
    assert cos.shape == sin.shape == (4, rope.rotary_dim // 2)
    assert torch.equal(cos, angles.cos())
    assert torch.equal(sin, angles.sin())


@st.composite
def longropes(draw: st.DrawFn) -> RopeConfig:
    """LongRoPE with both lists drawn, which differ in every place."""
    pairs = draw(st.integers(1, 16))
    short = draw(st.lists(st.floats(0.5, 4), min_size=pairs, max_size=pairs))
    long = draw(st.lists(st.floats(5, 80), min_size=pairs, max_size=pairs))
    scaling = LongRopeScaling(
        short_factors=tuple(short),
        long_factors=tuple(long),
        original_max_positions=draw(st.integers(2, 5000)),
        attention_factor=draw(st.floats(0.25, 4)),
    )
    return RopeConfig(theta=draw(thetas), rotary_dim=2 * pairs, scaling=scaling)


def tables(config: RopeConfig, at: list[int], cache_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = RopeTables(config).double()(torch.tensor(at), cache_length=cache_length)
    return cos, sin


@pytest.mark.usefixtures("default_float64")
@LAWS
@given(pairs=st.integers(1, 16), theta=thetas, at=st.lists(positions, min_size=1, max_size=4), slots=positions)
def test_longrope_of_ones_is_plain(pairs: int, theta: float, at: list[int], slots: int) -> None:
    """Every factor 1 and the attention factor 1: the same bits as without scaling, in both regimes."""
    ones = LongRopeScaling(
        short_factors=(1.0,) * pairs, long_factors=(1.0,) * pairs, original_max_positions=4096, attention_factor=1.0
    )
    config = RopeConfig(theta=theta, rotary_dim=2 * pairs, scaling=ones)
    plain = tables(replace(config, scaling=None), at, slots)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tables(config, at, slots), plain, strict=True))


@pytest.mark.usefixtures("default_float64")
@LAWS
@given(config=longropes(), at=st.lists(positions, min_size=1, max_size=4), past=st.booleans())
def test_longrope_scales_cosines_and_sines(config: RopeConfig, at: list[int], past: bool) -> None:
    """Tables are those of the divided frequencies, times the attention factor, which both regimes share."""
    assert isinstance(config.scaling, LongRopeScaling)
    slots = config.scaling.original_max_positions + past
    divisors = config.scaling.long_factors if past else config.scaling.short_factors
    frequencies = unscaled(config) / torch.tensor(divisors, dtype=torch.float64)
    assert torch.equal(inverse_frequencies(config, slots), frequencies)
    angles = torch.tensor(at, dtype=torch.float64)[:, None] * frequencies
    cos, sin = tables(config, at, slots)
    assert torch.equal(cos, angles.cos() * config.scaling.attention_factor)
    assert torch.equal(sin, angles.sin() * config.scaling.attention_factor)
    # The scores of two rotated vectors are scaled by the square; 0 and 1e-12 beside it is the sum's rounding.
    size = torch.full_like(cos, config.scaling.attention_factor**2)
    torch.testing.assert_close(cos**2 + sin**2, size, rtol=8 * EPS, atol=0)


@LAWS
@given(config=longropes(), less=st.integers(0, 5000), more=st.integers(1, 5000))
def test_longrope_regime_changes_just_past_the_boundary(config: RopeConfig, less: int, more: int) -> None:
    """A session of the boundary's length or less is short, of one more or longer is long, whatever the positions."""
    scaling = config.scaling
    assert isinstance(scaling, LongRopeScaling)
    boundary = scaling.original_max_positions
    assert config.boundary == boundary
    assert factors(scaling, boundary) == factors(scaling, max(0, boundary - less)) == scaling.short_factors
    assert factors(scaling, boundary + 1) == factors(scaling, boundary + more) == scaling.long_factors
    module, at = RopeTables(config), torch.arange(3)
    (short, _), (long, _) = (module(at, cache_length=slots) for slots in (boundary, boundary + 1))
    assert torch.equal(module(at, cache_length=max(0, boundary - less))[0], short)
    assert torch.equal(module(at, cache_length=boundary + more)[0], long)
    assert torch.equal(module.frequencies, inverse_frequencies(config, boundary).float())
    assert torch.equal(module.long_frequencies, inverse_frequencies(config, boundary + 1).float())
    assert not torch.equal(short, long)


def test_only_longrope_has_a_boundary() -> None:
    """The regime of every other preset does not depend on the session."""
    for model in (model for model in registry.models() if not model.encodes):
        rope = rope_of(model.name, tiny=False)
        assert (rope.boundary is None) == (model.name not in ("phi-3.5-mini", "phi-4-mini"))
        if rope.boundary is None:
            assert torch.equal(inverse_frequencies(rope, 1), inverse_frequencies(rope, 10**6))


@pytest.mark.parametrize("name", ["phi-3.5-mini", "phi-4-mini"])
@pytest.mark.parametrize("tiny", [True, False])
def test_longrope_equals_the_original(name: str, tiny: bool) -> None:
    """The presets' frequencies and attention factor are transformers' own, on either side of the boundary."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_of(name, tiny=tiny)
    assert isinstance(rope.scaling, LongRopeScaling)
    config = AutoConfig.for_model(**deepcopy(registry.get(name).preset.values(tiny=tiny)))
    boundary = rope.scaling.original_max_positions
    found = []
    for length in (1, boundary, boundary + 1, 4 * boundary):
        theirs, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=length)
        # Float32 in the original, as above, and one more rounding for the factor.
        torch.testing.assert_close(inverse_frequencies(rope, length), theirs.double(), rtol=2e-6, atol=0)
        assert rope.scaling.attention_factor == attention_factor
        found.append(theirs)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("name", ["phi-3.5-mini", "phi-4-mini"])
def test_published_attention_factor(name: str) -> None:
    """From 4096 to 131072 positions: sqrt(1 + ln 32 / ln 4096) = sqrt(17 / 12)."""
    scaling = rope_of(name, tiny=False).scaling
    assert isinstance(scaling, LongRopeScaling)
    assert scaling.attention_factor == pytest.approx((17 / 12) ** 0.5, rel=1e-15)
    assert scaling.original_max_positions == 4096
    assert len(scaling.short_factors) == len(scaling.long_factors) == 48


def test_longrope_survives_the_meta_device() -> None:
    """Both sets of frequencies are there in a model built without memory, and in no checkpoint."""
    rope = rope_of("phi-3.5-mini", tiny=False)
    with torch.device("meta"):
        module = RopeTables(rope)
    assert torch.equal(module.frequencies, inverse_frequencies(rope, 4096).float())
    assert torch.equal(module.long_frequencies, inverse_frequencies(rope, 4097).float())
    assert not module.state_dict()


@pytest.mark.parametrize(("name", "rotated", "head_dim"), [("phi-2", 32, 80), ("phi-4-mini", 96, 128)])
@pytest.mark.parametrize("tiny", [True, False])
@pytest.mark.parametrize("slots", [16, 8192])
def test_partial_rotary_of_the_presets(name: str, rotated: int, head_dim: int, tiny: bool, slots: int) -> None:
    """The tail comes out bit for bit, unscaled too; what is rotated has frequencies of its own size, not the head's."""
    model = registry.get(name)
    config = model.family.config_from(HFConfig(model.preset.values(tiny=tiny), name))
    size, part = config.blocks[0].attention.head_dim, config.rope.rotary_dim
    assert part / size == rotated / head_dim
    assert tiny or (part, size) == (rotated, head_dim)
    x = random(1, 6, 2, size, seed=0).float()
    cos, sin = RopeTables(config.rope)(torch.arange(6), cache_length=slots)
    turned = apply_rope(x, cos, sin)
    assert cos.shape == (6, part // 2)
    assert torch.equal(turned[..., part:], x[..., part:])
    assert (turned[:, 1:, :, :part] != x[:, 1:, :, :part]).any(dim=1).all()
    assert unscaled(config.rope)[1] == pytest.approx(config.rope.theta ** (-2 / part), rel=1e-12)


def interleaved(x: torch.Tensor, at: list[int], config: RopeConfig) -> torch.Tensor:
    """``x`` ``[B, T, N, H]`` with neighbours rotated together."""
    angles = torch.tensor(at, dtype=torch.float64)[:, None] * inverse_frequencies(config)
    return apply_rope(x, angles.cos(), angles.sin(), interleaved=True)


@LAWS
@given(sizes=heads(), at=st.lists(positions, min_size=1, max_size=4), theta=thetas, seed=seeds)
def test_interleaved_is_half_split_under_a_permutation(
    sizes: tuple[int, int], at: list[int], theta: float, seed: int
) -> None:
    """Even channels first, then odd ones, then the tail: bit for bit the same rotation."""
    head_dim, rotary_dim = sizes
    config = RopeConfig(theta=theta, rotary_dim=rotary_dim)
    x = random(2, len(at), 3, head_dim, seed=seed)
    order = [*range(0, rotary_dim, 2), *range(1, rotary_dim, 2), *range(rotary_dim, head_dim)]
    assert torch.equal(interleaved(x, at, config)[..., order], rotate(x[..., order], at, config))


@LAWS
@given(sizes=heads(), at=st.lists(positions, min_size=1, max_size=4), theta=thetas, seed=seeds)
def test_interleaved_turns_each_pair_of_neighbours(
    sizes: tuple[int, int], at: list[int], theta: float, seed: int
) -> None:
    """A complex number each, times a unit one: lengths stay, and channels from R on."""
    head_dim, rotary_dim = sizes
    config = RopeConfig(theta=theta, rotary_dim=rotary_dim)
    x = random(1, len(at), 2, head_dim, seed=seed)
    turned = interleaved(x, at, config)
    pairs, expected = (
        torch.view_as_complex(value[..., :rotary_dim].reshape(*value.shape[:-1], -1, 2).contiguous())
        for value in (turned, x)
    )
    angles = torch.tensor(at, dtype=torch.float64)[:, None] * inverse_frequencies(config)
    unit = torch.polar(torch.ones_like(angles), angles)[:, None, :]
    torch.testing.assert_close(pairs, expected * unit, rtol=1e-12, atol=1e-12)
    assert torch.equal(turned[..., rotary_dim:], x[..., rotary_dim:])


@LAWS
@given(sizes=heads(), at=positions, distance=positions, theta=thetas, seed=seeds)
def test_interleaved_scores_depend_on_the_distance(
    sizes: tuple[int, int], at: int, distance: int, theta: float, seed: int
) -> None:
    """The product of a rotated query and key is that of any other two as far apart."""
    head_dim, rotary_dim = sizes
    config = RopeConfig(theta=theta, rotary_dim=rotary_dim)
    query, key = random(2, 1, 1, 1, head_dim, seed=seed)
    here = interleaved(query, [at + distance], config) * interleaved(key, [at], config)
    origin = interleaved(query, [distance], config) * interleaved(key, [0], config)
    # Angles up to 16384 are each rounded to 2e-12.
    torch.testing.assert_close(here.sum(), origin.sum(), rtol=0, atol=1e-10 * head_dim)


@st.composite
def sectioned(draw: st.DrawFn) -> RopeConfig:
    sections = tuple(draw(st.lists(st.integers(1, 12), min_size=3, max_size=3)))
    return RopeConfig(theta=draw(thetas), rotary_dim=2 * sum(sections), sections=sections)


@LAWS
@given(config=sectioned(), at=st.lists(positions, min_size=1, max_size=8))
def test_equal_positions_on_all_axes_are_plain_rotation(config: RopeConfig, at: list[int]) -> None:
    """Bit for bit."""
    plain = RopeTables(replace(config, sections=None))(torch.tensor(at))
    on_axes = RopeTables(config)(torch.tensor([at] * 3))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(on_axes, plain, strict=True))


@LAWS
@given(config=sectioned(), at=st.lists(st.tuples(positions, positions, positions), min_size=1, max_size=8))
def test_each_section_turns_with_its_own_axis(config: RopeConfig, at: list[tuple[int, int, int]]) -> None:
    """The tables are the original's, for positions that differ between the axes."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

    assert config.sections is not None
    theirs = Qwen2_5_VLRotaryEmbedding(
        Qwen2_5_VLTextConfig(
            hidden_size=config.rotary_dim,
            num_attention_heads=1,
            num_key_value_heads=1,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": config.theta,
                "mrope_section": list(config.sections),
            },
        )
    )
    axes = torch.tensor(at).T
    # The frequencies of one of them, whose last bits would be turns of angle at positions in the thousands.
    tables = RopeTables(config)
    tables.frequencies = theirs.inv_freq
    for ours, expected in zip(tables(axes), theirs(torch.zeros(1), axes[:, None]), strict=True):
        assert torch.equal(ours, expected[0, :, : ours.shape[-1]])
