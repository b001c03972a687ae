"""What a recipe loses by itself: the re-authored model with the numbers of a quantized file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import registry
from parity import isolated
from parity.compare.metrics import compare_positions, concatenate, summarize
from parity.convert.float_file import Export, FloatFile, convert
from parity.convert.quantize import WeightPrecision, quantize
from parity.convert.recipes import get_recipe
from parity.errors import RungError
from parity.files import sha256_of
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners import conveyor
from parity.runners.base import answer
from parity.runners.litert import LiteRT
from parity.runners.reauthored import Reauthored
from parity.runners.rounded import Rounded, _Parameters, _round_weight, _to_8_bits, misstored
from parity.trace import Trace
from parity.weights import resolve

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
