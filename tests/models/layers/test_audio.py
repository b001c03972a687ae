"""The audio stem: its normalization against PyTorch's own, and what padding may touch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.authoring.config import AudioStemConfig
from models.layers.audio import AudioStem, WholeNorm

LAWS = settings(deadline=None, max_examples=40)
STEM = AudioStemConfig(kernels=(127, 7, 3), strides=(64, 3, 2), norm_eps=1e-5)


def norm(channels: int, seed: int) -> tuple[WholeNorm, nn.GroupNorm]:
    """Ours and PyTorch's with one group, with the same random gains and biases, in float64."""
    ours, theirs = WholeNorm(channels, 1e-5).double(), nn.GroupNorm(1, channels, 1e-5).double()
    generator = torch.Generator().manual_seed(seed)
    for name in ("weight", "bias"):
        values = 1 + torch.randn(channels, generator=generator, dtype=torch.float64)
        getattr(ours, name).data = values
        getattr(theirs, name).data = values
    return ours, theirs


@LAWS
@given(
    channels=st.integers(1, 6),
    frames=st.integers(2, 9),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_norm_is_group_norm_over_real_frames(channels: int, frames: int, padding: int, seed: int) -> None:
    """Whatever follows the real frames."""
    ours, theirs = norm(channels, seed)
    x = torch.randn(2, channels, frames + padding, generator=torch.Generator().manual_seed(seed)).double()
    real = (torch.arange(frames + padding) < frames).double()
    with torch.no_grad():
        made, expected = ours(x, real)[..., :frames], theirs(x[..., :frames])
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_norm_keeps_its_digits_on_an_offset(offset: float) -> None:
    """Centred first: the variance of values far from zero is not the difference of two large sums."""
    ours, theirs = norm(4, seed=0)
    x = offset + torch.randn(1, 4, 500, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made, exact = ours.float()(x, torch.ones(500)), theirs(x.double())
    error = float((made - exact).norm() / exact.norm())
    assert error < 1e-6 * max(1.0, offset)  # what float32 holds of the values themselves


@pytest.mark.parametrize("samples", [895, 1278, 1279, 5000])
@pytest.mark.parametrize("padding", [0, 1, 63, 64, 5000])
def test_padding_touches_no_real_row(samples: int, padding: int) -> None:
    """Loud padding, and as many rows as the configuration counts."""
    torch.manual_seed(0)
    stem = AudioStem(STEM, 8).double()
    heard = torch.randn(1, samples + padding).double()
    with torch.no_grad():
        padded = stem(heard, torch.tensor([samples]))
        exact = stem(heard[:, :samples], torch.tensor([samples]))
    assert exact.shape == (1, STEM.rows(samples), 8)
    assert padded.shape == (1, STEM.rows(samples + padding), 8)
    torch.testing.assert_close(padded[:, : exact.shape[1]], exact, rtol=1e-12, atol=1e-12)


@LAWS
@given(samples=st.integers(0, 100_000))
def test_rows_and_the_shortest_agree(samples: int) -> None:
    """A row from the shortest audio on, and never fewer for more samples."""
    assert (STEM.rows(samples) > 0) == (samples >= STEM.shortest)
    assert STEM.rows(samples + 1) - STEM.rows(samples) in (0, 1)
