"""The re-authored model with the numbers of a quantized file: what a recipe loses, and what a file must do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from models import registry
from parity import isolated
from parity.compare.measuring import measure
from parity.compare.metrics import compare_positions, concatenate, summarize
from parity.convert.float_file import Export, FloatFile, convert
from parity.convert.quantize import WeightPrecision, quantize
from parity.convert.recipes import get_recipe
from parity.convert.stored import Numbers, Reading
from parity.errors import RungError
from parity.files import sha256_of
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners import conveyor
from parity.runners.base import answer
from parity.runners.litert import LiteRT
from parity.runners.reauthored import Reauthored
from parity.runners.rounded import DITHER, Rounded, _Parameters, _round_weight, _take, _times, _to_8_bits, misstored
from parity.trace import Trace
from parity.weights import resolve
from tests.made_floors import drawn_floor

#: Of Gemma 2 the final soft-cap is divided out of the head, which is the table that tokens are looked up in.
FAMILIES = {"smollm-135m": "llama", "gemma-2-2b": "gemma"}
RECIPES = ("dynamic_int8", "weight_only_int8", "fp16", "dynamic_int4", "dynamic_int4_block32")
RANDOM = np.random.default_rng(7)
INPUTS = Inputs(
    "made",
    "",
    "",
    "",
    tuple(TokenizedPrompt(f"p{i}", tuple(RANDOM.integers(5, 250, 24).tolist()), (5, 6, 7)) for i in range(6)),
)


def traced(runner: Reauthored | LiteRT, *, streamed: bool = False) -> Trace:
    answering = conveyor.answer if streamed else answer
    return answering(runner, INPUTS, 0, None, lambda _done, _total: None)[0]


def loss(reference: Trace, candidate: Trace) -> float:
    """Mean KL over all positions."""
    pairs = [(p.prefill, candidate.prompts[name].prefill) for name, p in reference.prompts.items()]
    return float(summarize(concatenate(compare_positions(a, b) for a, b in pairs))["kl_mean"])


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest) -> Reauthored:
    isolated.prepare(converter=True)
    folder = resolve(registry.get(request.param), "tiny").folder
    return Reauthored(FAMILIES[request.param], folder, (32,))


@pytest.fixture(scope="module")
def file(plain: Reauthored, tmp_path_factory: pytest.TempPathFactory) -> FloatFile:
    destination = tmp_path_factory.mktemp("file") / "float.tflite"
    return convert(plain.family, plain.folder, Export(prefill_lengths=(8,), cache_length=32), destination).value


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_loses_what_the_file_does(plain: Reauthored, file: FloatFile, recipe: str, tmp_path: Path) -> None:
    """Neither the quantizer nor the runtime adds to what rounding costs; a file of the same stored weights shows it."""
    config = registry.family(plain.family).load(plain.folder).config
    made = tmp_path / "q.tflite"
    stored = quantize(file.path, file.names, get_recipe(recipe), made).value
    reference = traced(plain)
    of_file = loss(reference, traced(LiteRT(recipe, (made,), config, 1, frozenset())))
    of_recipe = loss(reference, traced(Rounded(plain.family, plain.folder, (32,), stored=tuple(stored))))
    assert 0.7 < of_file / of_recipe < 1.4


# -- the numbers that a file stores


class Quantized:
    """A real file after a recipe, and PyTorch with its numbers."""

    def __init__(self, plain: Reauthored, file: FloatFile, recipe: str, folder: Path) -> None:
        self.path = folder / "q.tflite"
        self.stored = tuple(quantize(file.path, file.names, get_recipe(recipe), self.path).value)
        self.numbers = Numbers(self.path, file.path, file.names)
        self.config = registry.family(plain.family).load(plain.folder).config
        self.runner = Rounded(
            plain.family,
            plain.folder,
            (32,),
            name=f"{recipe} in PyTorch",
            precision="float64",
            stored=self.stored,
            numbers=self.numbers,
            at_once=True,
        )
        self.file = traced(LiteRT(recipe, (self.path,), self.config, 1, frozenset()))

    def ratios(self, *, dither: bool = False) -> tuple[float, float]:
        """How far the file is from PyTorch, in floors: at the typical position, and at the worst."""
        exact = traced(self.runner)
        noisy = replace(self.runner, name="noise", precision="float32", noisy=True)
        floor = drawn_floor(noisy, self.config, INPUTS, exact, 8)
        if dither:
            dithered = drawn_floor(replace(noisy, dither=True), self.config, INPUTS, exact)
            floor = replace(floor, discrete=True, dithered=dithered)
        found = measure(exact, self.file, INPUTS, floor=floor)["logits"].metrics
        return found["floor_ratio"], found["worst_position_ratio"]


@pytest.mark.parametrize("recipe", ["fp16", "weight_only_int8"])
def test_a_file_of_rounded_weights_does_what_it_says(
    plain: Reauthored, file: FloatFile, recipe: str, tmp_path: Path
) -> None:
    """Within float32's noise at every position: what a recipe loses is in both."""
    typical, worst = Quantized(plain, file, recipe, tmp_path).ratios()
    assert typical < 1.5
    assert worst < 5


@pytest.mark.parametrize("recipe", ["dynamic_int8", "dynamic_int4", "dynamic_int4_block32"])
def test_a_file_that_rounds_what_it_multiplies_does_what_it_says(
    plain: Reauthored, file: FloatFile, recipe: str, tmp_path: Path
) -> None:
    """Up to activations that are rounded to another integer, which the draws do as well."""
    typical, worst = Quantized(plain, file, recipe, tmp_path).ratios(dither=True)
    assert typical < 3
    assert worst < 8


@pytest.mark.parametrize(("recipe", "by"), [("fp16", 1.001), ("weight_only_int8", 1.001), ("dynamic_int8", 1.05)])
def test_a_file_with_other_numbers_does_not_do_what_it_says(
    plain: Reauthored, file: FloatFile, recipe: str, by: float, tmp_path: Path
) -> None:
    """One weight of one layer off by a thousandth; where activations are rounded as well, by more."""
    quantized = Quantized(plain, file, recipe, tmp_path)
    load = Rounded.load

    def off(runner: Rounded) -> Any:
        model = load(runner)
        with torch.no_grad():
            model.get_parameter("blocks.1.mlp.up_proj.weight")[::2].mul_(by)  # all of it: a norm would undo that
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rounded, "load", off)
        typical, worst = quantized.ratios(dither=recipe == "dynamic_int8")
    assert typical > 3 or worst > 8


def parameters(runner: Reauthored) -> dict[str, torch.Tensor]:
    with runner.loaded() as (model, _):
        return {name: value.clone() for name, value in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_numbers_are_read_not_made_again(plain: Reauthored, file: FloatFile, recipe: str, tmp_path: Path) -> None:
    """Codes times scales in float64, bit for bit, in whatever way the file has them."""
    quantized = Quantized(plain, file, recipe, tmp_path)
    found, published = parameters(quantized.runner), parameters(replace(plain, precision="float64"))
    seen = 0
    for name, reading, stored, source in quantized.numbers.read():
        ours = published[f"{name}.weight"].float().numpy()
        if np.array_equal(ours, source):  # no gain in it, nor a constant
            tied = not reading.lookup and name == "embed.tokens"  # what the head multiplies with
            value = found["head.projection.weight" if tied else f"{name}.weight"]
            assert value.dtype == torch.float64
            np.testing.assert_array_equal(value.numpy(), stored)
            seen += 1
    assert seen > 10
    assert found.keys() == published.keys()


def test_the_numbers_of_the_float_file_make_the_very_model(plain: Reauthored, file: FloatFile) -> None:
    """Whatever a converter has multiplied into weights is taken once."""
    numbers = Numbers(file.path, file.path, file.names)
    runner = Rounded(plain.family, plain.folder, (32,), precision="float64", numbers=numbers)
    exact, found = traced(replace(plain, precision="float64")), traced(runner)
    for name, prompt in exact.prompts.items():
        # What is multiplied into a weight has been rounded once.
        distance = np.linalg.norm(found.prompts[name].prefill - prompt.prefill)
        assert distance <= 1e-7 * np.linalg.norm(prompt.prefill)


@dataclass(frozen=True)
class Folded:
    """A made-up file of the weights ``names`` of a model, with the gain of ``norm`` multiplied into them."""

    model: Any
    norm: str
    names: tuple[str, ...]
    by: float = 1.0

    def read(self) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        norm = self.model.get_submodule(self.norm)
        gain = (norm.weight + getattr(norm, "gain_offset", 0.0)).numpy()
        for name in self.names:
            source = self.model.get_parameter(f"{name}.weight").numpy() * gain
            yield name, Reading(lookup=False, encoder=False), source.astype(np.float64) * self.by, source


def test_a_gain_that_is_in_the_weights_is_taken_once(plain: Reauthored) -> None:
    """The numbers have it already, and the norm's own becomes one: the model is what it was."""
    load = registry.family(plain.family).load
    readers = tuple(f"blocks.1.attention.{name}_proj" for name in "qkv")
    with torch.inference_mode():
        sound, folded = load(plain.folder), load(plain.folder)
        _take(folded, cast("Any", Folded(sound, "blocks.1.attention_norm", readers, 1.5)))
        norm, before = (model.get_submodule("blocks.1.attention_norm") for model in (folded, sound))
        offset = getattr(norm, "gain_offset", 0.0)
        assert (norm.weight + offset == 1).all()
        assert not (before.weight + offset == 1).all()
        for name in ("blocks.0.attention_norm", "blocks.2.attention_norm", "head.norm"):
            assert torch.equal(folded.get_submodule(name).weight, sound.get_submodule(name).weight)
        given = torch.randn(3, before.weight.shape[0], generator=torch.Generator().manual_seed(0))
        for name in readers:
            made, expected = (
                model.get_submodule(name)(model.get_submodule("blocks.1.attention_norm")(given))
                for model in (folded, sound)
            )
            bias = getattr(sound.get_submodule(name), "bias", None)
            assert bias is None
            torch.testing.assert_close(made, 1.5 * expected, rtol=1e-5, atol=1e-5)


def test_a_tied_table_may_be_stored_in_two_ways(plain: Reauthored, file: FloatFile, tmp_path: Path) -> None:
    """For looking up and for multiplying: each of the two is what the file has for it."""
    quantized = Quantized(plain, file, "dynamic_int8", tmp_path)
    ways = {
        reading.lookup: (stored, source)
        for name, reading, stored, source in quantized.numbers.read()
        if name == "embed.tokens"
    }
    assert ways.keys() == {True, False}
    found = parameters(quantized.runner)
    np.testing.assert_array_equal(found["embed.tokens.weight"].numpy(), ways[True][0])
    # What the converter has multiplied into one of the two is divided out again.
    constant = ways[False][1].flat[0] / ways[True][1].flat[0]
    assert constant == (1 if plain.family == "llama" else pytest.approx(1 / quantized.config.final_softcap))
    expected = ways[False][0] / constant
    np.testing.assert_allclose(found["head.projection.weight"].numpy(), expected, rtol=1e-6)


def test_weights_of_another_checkpoint_are_refused(plain: Reauthored, file: FloatFile, tmp_path: Path) -> None:
    """What a file has of a weight must be what the checkpoint has, but for a gain or a constant."""
    other = tmp_path / "other"
    shutil.copytree(plain.folder, other)
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if "layers.1.mlp.up_proj" in name)
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    runner = replace(Rounded(plain.family, other, (32,)), numbers=Numbers(file.path, file.path, file.names))
    with pytest.raises(RungError, match=r"blocks.1.mlp.up_proj is not what the checkpoint has; convert it again"):
        parameters(runner)
    renamed = tuple("blocks.9.mlp.up_proj" if each == "blocks.1.mlp.up_proj" else each for each in file.names)
    runner = replace(runner, folder=plain.folder, numbers=Numbers(file.path, file.path, renamed))
    with pytest.raises(RungError, match=r"blocks.9.mlp.up_proj is a weight of the file and no parameter"):
        parameters(runner)


@given(constant=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_a_constant_that_is_in_the_weights_is_divided_out(constant: float, seed: int) -> None:
    """As the converter multiplies it: in float32, with one rounding of each value."""
    mine = torch.randn(7, 9, generator=torch.Generator().manual_seed(seed))
    times = float(np.float32(constant))
    found = _times(mine * times, mine)
    assert found == pytest.approx(times, rel=1e-6)
    assert _times(mine, mine) == 1.0
    assert _times(-mine, mine) == -1.0
    gain = torch.linspace(0.5, 1.5, 9)
    assert _times(mine * gain, mine) is None
    other = (mine * times).clone()
    other[3, 4] *= 1 + 1e-5
    assert _times(other, mine) is None


# -- by stages, and rounding by itself


def test_by_stages_it_is_the_same(plain: Reauthored) -> None:
    before = sha256_of([plain.folder / "model.safetensors"])
    model = registry.family(plain.family).load(plain.folder)
    names = [name.removesuffix(".weight") for name, each in model.named_parameters() if each.ndim == 2]
    stored = tuple(WeightPrecision(name, "int8 channelwise", dynamic=True) for name in names)
    runner = Rounded(plain.family, plain.folder, (32,), stored=stored)
    whole, streamed = traced(runner), traced(runner, streamed=True)
    assert whole.digest == streamed.digest
    assert whole.digest != traced(plain).digest
    assert sha256_of([plain.folder / "model.safetensors"]) == before, "rounded in memory only"


def test_a_weight_that_is_stored_as_it_is_stays_so(plain: Reauthored) -> None:
    runner = Rounded(plain.family, plain.folder, (32,), stored=(WeightPrecision("embed.tokens", "float32"),))
    assert traced(runner).digest == traced(plain).digest


def test_what_is_multiplied_is_rounded_only_where_the_runtime_does(plain: Reauthored) -> None:
    """A dynamic weight of float32 does nothing to itself, and rounds its input."""
    weight = WeightPrecision("blocks.0.mlp.down_proj", "float32", dynamic=True)
    runner = Rounded(plain.family, plain.folder, (32,), stored=(weight,))
    assert traced(runner).digest != traced(plain).digest
    assert traced(replace(runner, stored=(replace(weight, dynamic=False),))).digest == traced(plain).digest


@pytest.mark.parametrize(
    ("precision", "codes", "group"),
    [
        ("int8 channelwise", 127, (1, 64)),
        ("int8 tensorwise", 127, (8, 64)),
        ("int4 channelwise", 7, (1, 64)),
        ("int4 block 32", 7, (1, 32)),
    ],
)
def test_weights_are_at_most_half_a_step_away(precision: str, codes: int, group: tuple[int, int]) -> None:
    exact = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    exact[3] = 0
    rounded = exact.clone()
    _round_weight(rounded, precision)
    rows, columns = group
    for row in range(0, 8, rows):
        for column in range(0, 64, columns):
            here = (slice(row, row + rows), slice(column, column + columns))
            step = exact[here].abs().max() / codes
            assert (exact[here] - rounded[here]).abs().max() <= step * 0.501
            assert len(rounded[here].unique()) <= 2 * codes + 1
    assert not rounded[3].any()


def test_half_precision_is_the_nearest_half() -> None:
    exact = torch.randn(3, 5)
    rounded = exact.clone()
    _round_weight(rounded, "float16")
    assert torch.equal(rounded, exact.half().float())


def test_rows_are_rounded_to_256_values_with_zero_among_them() -> None:
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(2)) + torch.tensor([[0.0], [3.0], [-3.0], [0.0]])
    x[3] = 0
    rounded = _to_8_bits(x, (-1,))
    for row, made in zip(x, rounded, strict=True):
        step = (max(row.max().item(), 0) - min(row.min().item(), 0)) / 255
        assert (row - made).abs().max() <= step * 1.01
        assert len(made.unique()) <= 256
    assert not rounded[3].any()
    padded = torch.cat([x, torch.zeros(4, 1)], dim=-1)
    assert not _to_8_bits(padded, (-1,))[:, -1].any(), "zero stays zero"


def test_dither_moves_what_is_near_the_middle_of_two_integers_and_nothing_else() -> None:
    """By one step, in either direction; most values are left alone, and without it nothing is drawn."""
    x = torch.randn(40, 2000, generator=torch.Generator().manual_seed(3))
    plain = _to_8_bits(x, (-1,))
    assert torch.equal(plain, _to_8_bits(x, (-1,)))
    torch.manual_seed(0)
    dithered = torch.stack([_to_8_bits(x, (-1,), DITHER) for _ in range(20)])
    step = (x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)) / 255
    from_middle = ((x / step).frac().abs() - 0.5).abs()
    moved = (dithered - plain).abs() > step / 2
    assert not moved[:, from_middle > DITHER * 1.01].any()
    assert moved[:, from_middle < DITHER / 2].double().mean() == pytest.approx(3 / 8, abs=0.03)
    assert 0.002 < moved.double().mean() < DITHER
    largest = ((dithered - plain).abs() / step).max()
    assert largest == pytest.approx(1, abs=1e-3)
    assert ((dithered - plain)[moved] > 0).double().mean() == pytest.approx(0.5, abs=0.05)


def test_dither_is_of_the_whole_model(plain: Reauthored) -> None:
    """Where activations are rounded: draws differ from each other, and from the model without it."""
    weight = WeightPrecision("blocks.0.mlp.down_proj", "float32", dynamic=True)
    runner = Rounded(plain.family, plain.folder, (32,), stored=(weight,), noisy=True, dither=True)
    assert traced(runner).digest != traced(replace(runner, dither=False)).digest
    assert traced(runner).digest == traced(runner).digest, "it follows from the prompt's id"


def test_a_sound_file_has_what_the_checkpoint_has(plain: Reauthored, file: FloatFile) -> None:
    """Constants that were multiplied in are none the worse for it; a name that is another weight's is seen."""
    assert misstored(plain.family, plain.folder, [(file.path, file.names)], lambda *_: None) is None
    first = next(name for name in file.names if name.endswith("gate_proj"))
    names = tuple(name.replace("gate_proj", "up_proj") if name == first else name for name in file.names)
    weight, said = misstored(plain.family, plain.folder, [(file.path, names)], lambda *_: None) or ("", "")
    assert weight == first.replace("gate_proj", "up_proj")
    assert "is not what the checkpoint has" in said


@pytest.mark.parametrize("times", [1 + 1e-6, 1 - 1e-4, 1 + 2.0**-23])
def test_no_constant_is_that_close_to_one(plain: Reauthored, times: float) -> None:
    """Rounding hides it in whatever the file computes."""
    model = plain.load()
    known, name = _Parameters(model), "blocks.1.mlp.down_proj"
    exact = model.get_parameter(f"{name}.weight").numpy()
    assert known.in_a_file(name, exact)[1:] == (1.0, None)
    assert known.in_a_file(name, exact * np.float32(0.125))[1:] == (0.125, None)
    with pytest.raises(RungError, match="times what the checkpoint has of blocks"):
        known.in_a_file(name, exact * np.float32(times))
