"""Draws of noise are as large as what adding term by term in float32 does, and the same wherever they are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import registry
from models.authoring.hf_config import HFConfig
from models.layers.audio import WholeNorm
from models.layers.norm import LayerNorm, RMSNorm
from parity.compare.floor import FIRST_DRAWS
from parity.compare.limits import UNIT_ROUNDOFF
from parity.compare.measuring import compare_prompts
from parity.compare.roundings import least_floors
from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners.base import answer
from parity.runners.noise import Draws, Noise, measured, read_floor
from parity.runners.reauthored import Reauthored
from parity.trace import PHASES, PromptTrace, Trace
from parity.weights import resolve
from tests.made_floors import drawn_floor
from tests.prompt_kinds import prompt

ROWS = 400
#: Noise over what was measured. Every rounding is taken for one of up to a whole unit roundoff, as it is just above a
#: power of two; over all mantissas they are 0.73 of that.
AT_LEAST, AT_MOST = 0.95, 1.9
#: Signs alike, and signs at random: sums that grow with every term, and sums that wander about nothing.
TERMS = {
    "random": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.uniform(0.5, 1.5, shape),
    "half and half": lambda rng, shape: rng.standard_normal(shape) + 0.3,
}


def silent(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def one_by_one(terms: np.ndarray) -> np.ndarray:
    """Sums over the last axis in float32, each term added to the sum of those before."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for number in range(terms.shape[-1]):
        total = total + terms[..., number]
    return total


class Only(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def noise_of(layer: nn.Module, *given: torch.Tensor, seed: str = "p") -> torch.Tensor:
    """What noise adds to what a layer makes, ``[draws, ...]``."""
    layer = layer.eval()
    with torch.inference_mode():
        exact = layer(*given)
        noise = Noise()
        noise.watch(Only(layer))  # type: ignore[arg-type]
        noise.begin(TokenizedPrompt(seed, (1,), ()))
        return torch.stack([layer(*given).double() - exact.double() for _ in range(8)])


def root_mean_square(errors: np.ndarray | torch.Tensor) -> float:
    return float(np.sqrt(np.square(np.asarray(errors, np.float64)).mean()))


@pytest.mark.parametrize("width", [16, 256, 2048])
@pytest.mark.parametrize("kind", TERMS)
def test_the_noise_of_a_product_is_that_of_adding_one_by_one(kind: str, width: int) -> None:
    """Actual float32 sums in sequence, in random order: of the same size, whatever the width and the signs."""
    rng = np.random.default_rng(width)
    weights = TERMS[kind](rng, (4, width)).astype(np.float32)
    given = TERMS["positive" if kind == "positive" else "random"](rng, (ROWS, width)).astype(np.float32)
    products = given[:, None].astype(np.float64) * weights
    rounded = (given[:, None] * weights).astype(np.float32)
    actual = one_by_one(rounded).astype(np.float64) - rounded.astype(np.float64).sum(axis=-1)
    assert root_mean_square(products.sum(axis=-1)) > 0

    layer = nn.Linear(width, 4, bias=False)
    layer.weight.data.copy_(torch.from_numpy(weights))
    drawn = noise_of(layer, torch.from_numpy(given))
    assert AT_LEAST < root_mean_square(drawn) / root_mean_square(actual) < AT_MOST


def test_the_noise_of_a_product_grows_with_the_width_as_sums_do() -> None:
    """Relative to what is summed: with the root of the number of terms, where errors of outputs alone would not."""
    rng = np.random.default_rng(0)
    found = []
    for width in (64, 4096):
        layer = nn.Linear(width, 8, bias=False)
        layer.weight.data.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, (8, width)).astype(np.float32)))
        given = torch.from_numpy(rng.uniform(0.5, 1.5, (ROWS, width)).astype(np.float32))
        found.append(root_mean_square(noise_of(layer, given)) / root_mean_square(layer(given).detach()))
    assert found[1] / found[0] == pytest.approx(8, rel=0.2)
    assert found[0] == pytest.approx(UNIT_ROUNDOFF * np.sqrt(64 / 3) / np.sqrt(3), rel=0.3)


@pytest.mark.parametrize("groups", [1, 6])
def test_the_noise_of_a_convolution_is_that_of_its_windows(groups: int) -> None:
    """As many terms as a window has; a channel with large weights has more of it than one with small ones."""
    rng = np.random.default_rng(1)
    channels, kernel, frames = 6, 5, 300
    layer = nn.Conv1d(channels, channels, kernel, bias=False, groups=groups)
    weights = rng.standard_normal(tuple(layer.weight.shape)).astype(np.float32)
    weights[1] *= 100
    layer.weight.data.copy_(torch.from_numpy(weights))
    given = rng.standard_normal((1, channels, frames)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(given[0], kernel, axis=1)  # [C, frames, K]
    drawn = noise_of(layer, torch.from_numpy(given))
    for channel in (0, 1):
        taken = windows[[channel]] if groups > 1 else windows
        terms = (taken * weights[channel][:, None]).transpose(1, 0, 2).reshape(taken.shape[1], -1).astype(np.float32)
        actual = one_by_one(terms).astype(np.float64) - terms.astype(np.float64).sum(axis=-1)
        assert AT_LEAST < root_mean_square(drawn[:, 0, channel]) / root_mean_square(actual) < AT_MOST


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_the_noise_of_a_norm(kind: type[RMSNorm | LayerNorm]) -> None:
    """An error of each value, and one that a whole row shares: of the sum that all of it is divided by."""
    width = 1024
    layer = kind(width, 1e-6)
    given = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    made = layer(given).detach().double()
    relative = noise_of(layer, given) / made
    shared = relative.median(dim=-1).values
    assert root_mean_square(shared) == pytest.approx(np.sqrt(width / 3) / 2 * UNIT_ROUNDOFF / np.sqrt(3), rel=0.2)
    own = relative - shared[..., None]
    # What is added is rounded once more, and the original's own value has been.
    assert UNIT_ROUNDOFF / np.sqrt(3) * 0.8 < root_mean_square(own) < 2 * UNIT_ROUNDOFF


def test_a_norm_over_channels_and_times_is_noisy_too() -> None:
    layer = WholeNorm(4, 1e-5)
    given = torch.randn(1, 4, 90, generator=torch.Generator().manual_seed(0))
    drawn = noise_of(layer, given, torch.ones(90))
    assert 0 < root_mean_square(drawn) < 20 * UNIT_ROUNDOFF


def test_what_is_nothing_stays_nothing() -> None:
    """Zeros have no rounding: padding and masked rows are left as they are."""
    layer = nn.Linear(32, 8, bias=False)
    assert not noise_of(layer, torch.zeros(5, 32)).any()
    assert not noise_of(RMSNorm(32, 1e-6), torch.zeros(5, 32)).any()


def test_the_same_prompt_is_given_the_same_noise() -> None:
    """By its id, whatever was drawn before; another id has another."""
    layer, given = nn.Linear(32, 8), torch.randn(5, 32)
    one, again = noise_of(layer, given, seed="p"), None
    torch.rand(17)
    layer._forward_hooks.clear()
    again = noise_of(layer, given, seed="p")
    layer._forward_hooks.clear()
    other = noise_of(layer, given, seed="q")
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1]), "every call is another draw"


# -- draws of whole models

WORDS = (1, 17, 200, 45, 45, 90, 3, 61, 64)
INPUTS = Inputs(
    "ids", "", "", "", (TokenizedPrompt("a", WORDS, (17, 200, 45)), TokenizedPrompt("b", WORDS[::-1], (5, 6)))
)
KINDS = ["smollm-135m", "gemma-2-2b", "openelm-270m", "t5-small", "moonshine-tiny", "qwen2.5-vl-3b"]


def model_of(name: str) -> tuple[Reauthored, Inputs, Trace]:
    """A tiny model that is noisy, its inputs, and what it gives in float64."""
    model = registry.get(name)
    folder = resolve(model, "tiny").folder
    config = model.family.config_from(HFConfig.load(folder))
    inputs = INPUTS if name == "smollm-135m" else replace(INPUTS, prompts=(prompt(config),))
    exact = Reauthored(model.family.name, folder, (64,), precision="float64")
    noisy = replace(exact, name="noise floor", precision="float32", noisy=True, at_once=True)
    return noisy, inputs, answer(exact, inputs, 0, None, silent)[0]


def config_of(noisy: Reauthored) -> object:
    return registry.family(noisy.family).config_from(HFConfig.load(noisy.folder))


@pytest.mark.parametrize("name", KINDS)
def test_float32_evaluation_is_within_a_few_floors(name: str) -> None:
    """Of every kind of model: PyTorch's own float32 run, which adds in blocks, is at or below what draws make of it."""
    noisy, inputs, exact = model_of(name)
    floor = drawn_floor(noisy, config_of(noisy), inputs, exact)  # type: ignore[arg-type]
    plain, _ = answer(replace(noisy, noisy=False), inputs, 0, None, silent)
    for phase, prompts in compare_prompts(exact, plain).items():
        for at, errors in prompts.items():
            ratios = floor.ratios(at, phase, errors)
            assert 0.05 < np.median(ratios) < 1.5
            assert ratios.max() < 4


def test_draws_are_numbered_and_can_be_made_apart(tmp_path: Path) -> None:
    """Eight at once are four and four more, bit for bit, in whatever order and process they are made."""
    noisy, inputs, exact = model_of("smollm-135m")
    exact.save(tmp_path / "exact")
    floors = {}
    for first, count in ((4, 4), (0, 8), (0, 4)):
        path = tmp_path / f"{first} {count}"
        measured(answer, noisy, inputs, Draws(first, count), tmp_path / "exact", path, silent)
        floors[first, count] = read_floor(path, inputs, least_floors(config_of(noisy)))  # type: ignore[arg-type]
    together, apart = floors[0, 8], floors[0, 4] + floors[4, 4]
    assert (together.draws, apart.draws, floors[0, 4].draws) == (8, 8, FIRST_DRAWS)
    for name, found in together.prompts.items():
        np.testing.assert_array_equal(found.most, apart.prompts[name].most)
        for phase in PHASES:
            np.testing.assert_array_equal(found.squared[phase], apart.prompts[name].squared[phase])
            assert len({tuple(draw) for draw in found.squared[phase].tolist()}) == 8, "no two draws are alike"


def test_draws_measure_what_they_say(tmp_path: Path) -> None:
    """Squared distances of each phase and the largest error of any logit, of a runner that is off by a known amount."""
    centre = Trace({name: PromptTrace(np.ones((3, 5)), np.ones((2, 5))) for name in ("a", "b")})
    centre.save(tmp_path / "exact")
    asked: list[Inputs] = []

    def answering(
        _runner: object, inputs: Inputs, generate: int, guide: object, _progress: object
    ) -> tuple[Trace, str]:
        asked.append(inputs)
        assert (generate, guide) == (0, None)
        prompts = {}
        for at in inputs.prompts:
            by = 0.5 if at.id == "b draw 3" else 0.25
            prompts[at.id] = PromptTrace(np.full((3, 5), 1 + by, np.float32), np.ones((2, 5), np.float32))
        return Trace(prompts), ""

    runner = Reauthored("llama", tmp_path, (64,), name="noise floor")
    measured(answering, runner, INPUTS, Draws(2, 2), tmp_path / "exact", tmp_path / "floor", silent)
    assert [each.id for each in asked[0].prompts] == ["a draw 2", "b draw 2", "a draw 3", "b draw 3"]
    assert not any(each.generates for each in asked[0].prompts)
    floor = read_floor(tmp_path / "floor", INPUTS, dict.fromkeys(PHASES, 0.0))
    np.testing.assert_allclose(floor.prompts["b"].squared["prefill"], [[5 / 16] * 3, [5 / 4] * 3])
    assert not floor.prompts["b"].squared["decode"].any()
    np.testing.assert_allclose(floor.prompts["b"].most, [0.25, 0.5])
    np.testing.assert_allclose(floor.prompts["a"].most, [0.25, 0.25])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_draw_that_overflows_is_no_floor(broken: float, tmp_path: Path) -> None:
    """It would forgive everything: said in words, and nothing is written."""
    centre = Trace({name: PromptTrace(np.ones((3, 5)), np.ones((2, 5))) for name in ("a", "b")})
    centre.save(tmp_path / "exact")

    def answering(_runner: object, inputs: Inputs, *_: object) -> tuple[Trace, str]:
        prompts = {at.id: PromptTrace(np.ones((3, 5)), np.ones((2, 5))) for at in inputs.prompts}
        prompts["b draw 1"].decode[1, 4] = broken
        return Trace(prompts), ""

    runner = Reauthored("llama", tmp_path, (64,), name="noise floor")
    with pytest.raises(RungError, match="noise floor, prompt b, decode: NaN or infinity"):
        measured(answering, runner, INPUTS, Draws(0, 4), tmp_path / "exact", tmp_path / "floor", silent)
    assert not (tmp_path / "floor").exists()


def test_a_noisy_runner_is_not_taken_for_the_model_itself() -> None:
    """The hooks stay on the model that was opened for draws."""
    noisy, inputs, _ = model_of("smollm-135m")
    plain = replace(noisy, noisy=False)
    before = answer(plain, inputs, 0, None, silent)[0].digest
    drawn = answer(noisy, inputs, 0, None, silent)[0].digest
    assert answer(noisy, inputs, 0, None, silent)[0].digest == drawn != before
    assert answer(plain, inputs, 0, None, silent)[0].digest == before
