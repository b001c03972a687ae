"""Recipes by name, by the quantizer's own name, by file; what came out is looked at before anyone ships it."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import registry
from parity import isolated
from parity.convert.float_file import Export, FloatFile, convert
from parity.convert.quantize import WeightPrecision, quantization, quantize, summarize
from parity.convert.recipes import RECIPES, entries, get_recipe, weight_bits
from parity.convert.rounding import Rounding
from parity.convert.stored import Storage, read_file, storage_of, weights_of
from parity.errors import RungError, UsageError
from parity.weights import resolve

ATTENTION = tuple(f"attention.{part}_proj" for part in "qkvo")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def apply(file: FloatFile, recipe: str, destination: Path) -> dict[str, Any]:
    """What a recipe made of a file."""
    return summarize(quantize(file.path, file.names, get_recipe(recipe), destination).value)


def read(path: Path, names: Sequence[str]) -> list[Storage]:
    """How each weight of a file is stored."""
    return [storage_of(weight, name) for name, weight in zip(names, weights_of(read_file(path)), strict=True)]


def test_files_of_every_cache_length_count() -> None:
    """Of a weight that two files have alike, once; of one that they have differently, both."""
    sound, coarse = Rounding(0.5, 1.0), Rounding(3.0, 1.0)
    short = [WeightPrecision("a", "int8", rounding=sound), WeightPrecision("b", "int4 block 32", "int8", sound)]
    long = [WeightPrecision("a", "int8", rounding=coarse), WeightPrecision("b", "int8", rounding=sound)]
    found = summarize([*short, *long])
    assert found["weights"] == {"int8": 2, "int4 block 32": 1}
    assert found["exceptions"] == [{"weight": "b", "asked": "int8", "precision": "int4 block 32"}]
    assert found["rounding"]["steps"] == (3.0, "a")


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> FloatFile:
    """A float file whose widths (144 and 384) are no multiples of every block."""
    path = tmp_path_factory.mktemp("convert") / "float.tflite"
    export = Export(prefill_lengths=(8,), cache_length=32)
    return convert("llama", resolve(registry.get("smollm-135m"), "tiny").folder, export, path).value


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """Where a test's quantized file goes."""
    return tmp_path / "quantized.tflite"


@pytest.mark.parametrize(
    ("name", "bits", "expected"),
    [
        ("dynamic_int8", 8, {"int8 channelwise"}),
        ("weight_only_int8", 8, {"int8 channelwise"}),
        ("fp16", 16, {"float16"}),
        ("dynamic_int4", 4, {"int4 channelwise"}),
    ],
)
def test_named_recipes_store_what_they_say(
    float_file: FloatFile, quantized: Path, name: str, bits: int, expected: set[str]
) -> None:
    """Every weight of every layer has the recipe's precision, nothing is left over."""
    facts = apply(float_file, name, quantized)
    assert set(facts["weights"]) == expected
    assert facts["exceptions"] == []
    assert weight_bits(get_recipe(name)) == bits
    assert quantized.stat().st_size < float_file.path.stat().st_size


def test_a_width_that_no_block_divides_is_reported(float_file: FloatFile, quantized: Path) -> None:
    """144 is no multiple of 32: those weights stay float32, by name; 384 is, and gets its blocks."""
    facts = apply(float_file, "dynamic_int4_block32", quantized)
    assert set(facts["weights"]) == {"float32", "int4 block 32"}
    kept = {row["weight"]: row for row in facts["exceptions"]}
    assert kept["blocks.1.attention.q_proj"]["precision"] == "float32"
    assert kept["blocks.1.attention.q_proj"]["asked"] == "int4 block 32"
    assert not any(name.endswith("down_proj") for name in kept)


def test_the_next_smaller_block_is_used_and_reported(tmp_path: Path, quantized: Path) -> None:
    """96 is no multiple of 128 but of 32; the smaller block is never less accurate, and is said."""
    source = tmp_path / "float.tflite"
    folder = resolve(registry.get("amd-llama-135m"), "tiny").folder
    file = convert("llama", folder, Export(prefill_lengths=(8,), cache_length=32), source).value
    facts = apply(file, "dynamic_int4_block128", quantized)
    assert set(facts["weights"]) == {"int4 block 32", "int4 block 128"}
    assert {row["asked"] for row in facts["exceptions"]} == {"int4 block 128"}
    assert {row["precision"] for row in facts["exceptions"]} == {"int4 block 32"}


def test_library_names_and_files_are_recipes(float_file: FloatFile, quantized: Path, tmp_path: Path) -> None:
    """Any dynamic or weight-only recipe of the AI Edge Quantizer, and any JSON in its format."""
    assert weight_bits(get_recipe("dynamic_wi4b64_afp32")) == 4
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(entries(RECIPES["dynamic_int8"]), default=str))
    assert get_recipe(str(path)).name == "mine"
    assert set(apply(float_file, str(path), quantized)["weights"]) == {"int8 channelwise"}


@pytest.mark.parametrize("name", ["dynamic_int9", "os", "static_wi8_ai8", "missing.json", "AlgorithmName"])
def test_what_is_no_recipe_is_refused(name: str) -> None:
    """Neither a typo, nor any attribute of the library, nor a recipe that needs calibration."""
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        get_recipe(name)


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    """JSON of another shape."""
    path = tmp_path / "bad.json"
    path.write_text('{"a": 1}')
    with pytest.raises(UsageError, match="no list of rules"):
        entries(get_recipe(str(path)))


def test_a_recipe_that_matches_nothing_is_an_error(float_file: FloatFile, quantized: Path, tmp_path: Path) -> None:
    """A quantized file in which nothing is quantized must not pass as one."""
    path = tmp_path / "nothing.json"
    rules = entries(RECIPES["dynamic_int8"])
    path.write_text(json.dumps([{**rule, "regex": "no such layer"} for rule in rules], default=str))
    with pytest.raises(RungError, match="left every weight in float32"):
        apply(float_file, str(path), quantized)
    assert not quantized.exists()


@pytest.mark.parametrize("scale", [0.0, float(np.float16(6e-8)), float("nan")])
def test_scales_the_runtime_refuses_are_refused_here(float_file: FloatFile, quantized: Path, scale: float) -> None:
    """A block scale that is zero, subnormal or NaN in float16 is found, with the tensor's name."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    apply(float_file, "dynamic_int4_block32", quantized)
    read(quantized, float_file.names)
    model = tfl_flatbuffer_utils.read_model(str(quantized))
    subgraph = model.subgraphs[0]
    tensor = next(t for t in subgraph.tensors if getattr(t.quantization, "details", None) is not None)
    scales_buffer = model.buffers[subgraph.tensors[tensor.quantization.details.scales].buffer]
    scales = np.frombuffer(scales_buffer.data, np.float16).copy()
    scales[5] = scale
    scales_buffer.data = np.frombuffer(scales.tobytes(), np.uint8)
    tfl_flatbuffer_utils.write_model(model, str(quantized))
    with pytest.raises(RungError, match=r"mlp\.down_proj has 1 of \d+ scales"):
        read(quantized, float_file.names)


def test_weights_are_named_after_the_parameters(float_file: FloatFile) -> None:
    """Also where the exporter has merged the operators that read them and calls them all the same."""
    blocks = [f"blocks.{layer}.{part}" for layer in range(3) for part in (*ATTENTION, *MLP)]
    assert set(float_file.names) == {"embed.tokens", *blocks}


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=64),
    st.sampled_from([4, 8]),
)
@settings(max_examples=200, deadline=None)
def test_quantization_error_is_within_half_a_step(row: list[float], bits: int) -> None:
    """The library's own symmetric quantization, dequantized, is at most half a step away."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as uniform

    values = np.asarray([row], np.float32)
    largest = np.abs(values).max()
    if largest < 1e-6:
        return
    zero_point, scale = uniform.tensor_zp_scale_from_min_max(
        -np.full((1, 1), largest), np.full((1, 1), largest), bits, True, qtyping.QuantGranularity.CHANNELWISE
    )
    params = qtyping.UniformQuantParams(bits, 0, scale, zero_point)
    restored = uniform.uniform_dequantize(uniform.uniform_quantize(values, params), params)
    # half a step, and the float32 rounding of the division and the product on either side of it
    assert np.abs(restored - values).max() <= 0.5 * scale.max() * (1 + 1e-6) + 4e-7 * largest


def _held_after(file: FloatFile, destination: Path, _: isolated.Progress) -> list[str]:
    """What this process has open of files that are gone, once a file was quantized and both were removed."""
    source = destination.with_name("source.tflite")
    shutil.copyfile(file.path, source)
    quantization(source, file.names, get_recipe("dynamic_int8"), destination)(lambda *_: None)
    source.unlink()
    destination.unlink()
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return [link for link in links if link.endswith(".tflite (deleted)")]


def test_the_disk_of_a_file_that_was_quantized_and_removed_is_free(float_file: FloatFile, quantized: Path) -> None:
    """By stages, a model of any size goes through a disk that holds a stage."""
    assert isolated.run("quantizing", partial(_held_after, float_file, quantized)).value == []


@pytest.mark.parametrize(
    ("precision", "asked", "coarser"),
    [
        ("int8 channelwise", None, False),
        ("int4 block 32", "int8", True),
        ("int4 block 32", "int4 block 128", False),
        ("float32", "int4 block 32", False),
        ("int8 channelwise", "float16", True),
    ],
)
def test_fewer_bits_than_asked_for_are_noticed(precision: str, asked: str | None, coarser: bool) -> None:
    assert WeightPrecision("w", precision, asked).coarser is coarser


@pytest.mark.parametrize(
    ("recipe", "dynamic"),
    [("dynamic_int8", True), ("weight_only_int8", False), ("fp16", False), ("dynamic_int4", True)],
)
def test_who_rounds_what_is_multiplied(float_file: FloatFile, quantized: Path, recipe: str, dynamic: bool) -> None:
    """The recipe says so, of everything that is a product; the table of the tied head is one, and its lookup none."""
    found = quantize(float_file.path, float_file.names, get_recipe(recipe), quantized).value
    assert {weight.dynamic for weight in found if not weight.name.startswith("embed")} == {dynamic}
    assert {weight.dynamic for weight in found if weight.name.startswith("embed")} == {False, dynamic}
