"""Laws of the normalizations in float64, and equality with torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.authoring.config import NormConfig
from models.layers.norm import LayerNorm, RMSNorm, build_norm

LAWS = settings(deadline=None, max_examples=40)
EPS = torch.finfo(torch.float64).eps
#: Normalizing sums WIDTH squares and takes a root: far fewer than a hundred roundings reach any value.
ROUNDINGS = {"rtol": 100 * EPS, "atol": 100 * EPS}
WIDTH = 24

seeds = st.integers(0, 2**31)
factors = st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rms(eps: float, *, seed: int | None = None) -> RMSNorm:
    norm = RMSNorm(WIDTH, eps).double().requires_grad_(requires_grad=False)
    if seed is not None:
        norm.weight.copy_(random(WIDTH, seed=seed))
    return norm


def layer(eps: float, *, seed: int) -> LayerNorm:
    norm = LayerNorm(WIDTH, eps).double().requires_grad_(requires_grad=False)
    norm.weight.copy_(random(WIDTH, seed=seed))
    norm.bias.copy_(random(WIDTH, seed=seed + 1))
    return norm


@LAWS
@given(factor=factors, seed=seeds)
def test_rms_ignores_the_scale_as_eps_vanishes(factor: float, seed: int) -> None:
    """norm(a * x) is norm(x) with the sign of a."""
    x, norm = random(3, WIDTH, seed=seed), rms(1e-40, seed=seed + 1)
    torch.testing.assert_close(norm(factor * x), norm(x) * (1 if factor > 0 else -1), **ROUNDINGS)


@LAWS
@given(factor=factors, eps=st.sampled_from([1e-6, 1e-5, 0.1]), seed=seeds)
def test_rms_scale_law_with_eps(factor: float, eps: float, seed: int) -> None:
    """Scaling x by a is the same as scaling eps by 1 / a^2: eps is added to the mean square, inside the root."""
    x = random(3, WIDTH, seed=seed)
    expected = rms(eps / factor**2, seed=seed + 1)(x) * (1 if factor > 0 else -1)
    torch.testing.assert_close(rms(eps, seed=seed + 1)(factor * x), expected, **ROUNDINGS)


@LAWS
@given(seed=seeds)
def test_rms_output_has_unit_mean_square(seed: int) -> None:
    """Without a gain the mean square of the result is 1, row by row: rows do not see each other."""
    x = random(4, WIDTH, seed=seed) * torch.tensor([[1e-2], [1.0], [10.0], [1e4]], dtype=torch.float64)
    mean_square = rms(1e-40)(x).pow(2).mean(-1)
    torch.testing.assert_close(mean_square, torch.ones(4, dtype=torch.float64), **ROUNDINGS)


@LAWS
@given(factor=factors, seed=seeds)
def test_rms_gain_is_linear(factor: float, seed: int) -> None:
    """The result is the gain times the result without one, so scaled gains scale it and added gains add."""
    x, plain, gained = random(3, WIDTH, seed=seed), rms(1e-6), rms(1e-6, seed=seed + 1)
    assert torch.equal(gained(x), plain(x) * gained.weight)
    scaled = rms(1e-6, seed=seed + 1)
    scaled.weight.mul_(factor)
    torch.testing.assert_close(scaled(x), factor * gained(x), rtol=4 * EPS, atol=0)


@LAWS
@given(offset=st.sampled_from([1.0, -1.0, 0.5]), seed=seeds)
def test_rms_offset_is_added_to_the_stored_gain(offset: float, seed: int) -> None:
    """Offset 1 and weight w are the same bits as offset 0 and weight 1 + w; the stored weight stays w."""
    x, stored, plain = random(3, WIDTH, seed=seed), rms(1e-6, seed=seed + 1), rms(1e-6)
    weight = stored.weight.clone()
    stored.gain_offset = offset
    plain.weight.copy_(weight + offset)
    assert torch.equal(stored(x), plain(x))
    assert torch.equal(stored.weight, weight)


def test_rms_offset_equals_gemmas() -> None:
    """The same numbers as transformers' own Gemma norms, which store the gain less one."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    x = random(5, 7, WIDTH, seed=0).float()
    ours = build_norm(NormConfig(kind="rms", eps=1e-6, gain_offset=1.0), WIDTH).requires_grad_(requires_grad=False)
    ours.weight.copy_(random(WIDTH, seed=1))
    for kind in (GemmaRMSNorm, Gemma2RMSNorm):
        theirs = kind(WIDTH, eps=1e-6)
        theirs.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), theirs(x).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.5])
def test_rms_equals_torch(eps: float) -> None:
    """The same numbers as torch.nn.RMSNorm, small inputs included, where eps decides."""
    x, norm = random(5, 7, WIDTH, seed=0) * 1e-3, rms(eps, seed=1)
    theirs = torch.nn.RMSNorm(WIDTH, eps=eps, dtype=torch.float64)
    theirs.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), theirs(x).detach(), **ROUNDINGS)


def test_rms_of_zero_is_zero() -> None:
    """eps keeps a row of zeros finite."""
    assert torch.equal(
        rms(1e-6)(torch.zeros(2, WIDTH, dtype=torch.float64)), torch.zeros(2, WIDTH, dtype=torch.float64)
    )


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_fused_rms_gives_the_same_bits(offset: float) -> None:
    """Marks for the converter change no number."""
    plain, fused = (
        RMSNorm(WIDTH, 1e-5, gain_offset=offset, fused=fused).requires_grad_(requires_grad=False)
        for fused in (False, True)
    )
    plain.weight.copy_(random(WIDTH, seed=0))
    fused.load_state_dict(plain.state_dict())
    x = random(2, 3, WIDTH, seed=1).float()
    assert torch.equal(plain(x), fused(x))


@LAWS
@given(shift=st.floats(-1e3, 1e3), seed=seeds)
def test_layer_ignores_a_shift(shift: float, seed: int) -> None:
    """The same number added to every channel changes nothing."""
    x, norm = random(3, WIDTH, seed=seed), layer(1e-5, seed=seed + 1)
    # Adding a shift of up to 1e3 to values around 1 rounds them to 1e3 * EPS, and the mean cancels no better.
    torch.testing.assert_close(norm(x + shift), norm(x), rtol=0, atol=1e5 * EPS)


@LAWS
@given(factor=factors, seed=seeds)
def test_layer_ignores_the_scale_as_eps_vanishes(factor: float, seed: int) -> None:
    """norm(a * x) without its bias is norm(x) without it, with the sign of a."""
    x, norm = random(3, WIDTH, seed=seed), layer(1e-40, seed=seed + 1)
    without = (norm(x) - norm.bias) * (1 if factor > 0 else -1)
    torch.testing.assert_close(norm(factor * x) - norm.bias, without, **ROUNDINGS)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.5])
def test_layer_equals_torch(eps: float) -> None:
    """The same bits as torch.nn.LayerNorm, and the formula's numbers: biased variance, eps inside the root."""
    x, norm = random(5, 7, WIDTH, seed=0), layer(eps, seed=1)
    theirs = torch.nn.LayerNorm(WIDTH, eps=eps, dtype=torch.float64)
    theirs.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), theirs(x).detach())
    centred = x - x.mean(-1, keepdim=True)
    formula = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), formula, **ROUNDINGS)


def test_no_norm_leaves_everything_as_it_is() -> None:
    """Nothing configured: no parameters, the very same tensor."""
    x, norm = random(2, WIDTH, seed=0), build_norm(None, WIDTH)
    assert norm(x) is x
    assert not list(norm.parameters())


@pytest.mark.parametrize(("kind", "expected"), [("rms", RMSNorm), ("layer", LayerNorm)])
def test_build_norm(kind: str, expected: type) -> None:
    """The configuration chooses the kind and carries its eps."""
    norm = build_norm(NormConfig(kind=kind, eps=0.125), WIDTH)
    assert type(norm) is expected
    assert norm.eps == 0.125
    assert all(parameter.shape == (WIDTH,) for parameter in norm.parameters())


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_build_norm_carries_the_offset(offset: float) -> None:
    """With it, a weight of zero is a gain of one."""
    norm = build_norm(NormConfig(kind="rms", eps=1e-6, gain_offset=offset), WIDTH)
    assert norm.gain_offset == offset
    norm.requires_grad_(requires_grad=False).weight.zero_()
    assert float(norm(torch.ones(1, WIDTH)).mean()) == pytest.approx(offset, abs=1e-6)
