"""What only encoders read by a recipe of its own: every weight is stored as it was asked for, on both sides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import registry
from models.authoring.hf_config import HFConfig
from models.authoring.session import shipped_sessions
from parity.convert.float_file import Export, FloatFile, convert
from parity.convert.quantize import WeightPrecision, quantize
from parity.convert.recipes import get_recipe, with_encoder
from parity.convert.stored import read_file, weights_of
from parity.errors import UsageError
from parity.pipeline import Request
from parity.weights import resolve

T5 = registry.get("t5-small")
#: How a recipe stores the weights whose width is a multiple of its block.
STORED = {"dynamic_int8": "int8", "weight_only_int8": "int8", "fp16": "float16", "dynamic_int4": "int4"}
STORED |= {"dynamic_int4_block32": "int4 block 32"}


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> FloatFile:
    """A converted T5: one encoder, one decoder, one table that both read."""
    folder = resolve(T5, "tiny").folder
    config = T5.family.config_from(HFConfig.load(folder))
    export = Export(prefill_lengths=(16,), cache_length=32, sessions=shipped_sessions(config, 16))
    return convert("t5", folder, export, tmp_path_factory.mktemp("t5") / "float.tflite").value


def stored(floats: FloatFile, recipe: str, encoder: str | None, path: Path) -> list[tuple[bool, WeightPrecision]]:
    """Every weight of the quantized file, and whether an encoder reads it."""
    chosen = with_encoder(get_recipe(recipe), encoder)
    found = quantize(floats.path, floats.names, chosen, path).value
    readers = [weight.subgraph.name.startswith(b"encode") for weight in weights_of(read_file(path))]
    return list(zip(readers, found, strict=True))


@pytest.mark.parametrize(
    ("recipe", "encoder"),
    [
        ("dynamic_int8", "fp16"),
        ("fp16", "dynamic_int8"),
        ("dynamic_int4_block32", "weight_only_int8"),
        ("weight_only_int8", "dynamic_int4_block32"),
    ],
)
def test_each_side_is_stored_by_its_own_recipe(floats: FloatFile, tmp_path: Path, recipe: str, encoder: str) -> None:
    """Also the table that both read; what a block does not divide stays float and is said to, on its side alone."""
    found = stored(floats, recipe, encoder, tmp_path / "quantized.tflite")
    assert {reads for reads, _ in found} == {True, False}
    for reads, weight in found:
        wanted = STORED[encoder if reads else recipe]
        if weight.asked:
            assert (weight.asked, weight.precision) == (wanted, "float32")
            assert wanted == "int4 block 32"
        else:
            assert weight.precision.startswith(wanted)
    assert "tokens" in {weight.name for reads, weight in found if reads}
    assert "tokens" in {weight.name for reads, weight in found if not reads}


def test_without_it_one_recipe_is_for_all(floats: FloatFile, tmp_path: Path) -> None:
    """On both sides alike."""
    found = stored(floats, "dynamic_int8", None, tmp_path / "quantized.tflite")
    assert {weight.precision for _, weight in found} == {"int8 channelwise"}


def test_names_are_settled_before_anything_runs() -> None:
    """A model without an encoder, and a recipe that does not exist, are wrong use."""
    with pytest.raises(UsageError, match="--encoder-recipe is for models with an encoder, smollm-135m has none"):
        Request(model=registry.get("smollm-135m"), encoder_recipe="fp16")
    with pytest.raises(UsageError, match="no recipe is called 'fp61'; did you mean fp16"):
        Request(model=T5, encoder_recipe="fp61")


def test_the_encoders_rows_are_judged_by_the_encoders_recipe(tmp_path: Path) -> None:
    """Its limits, not those of the rung's name; and the reports say which one it was."""
    report, page = tmp_path / "report.json", tmp_path / "report.md"
    arguments = ["check", "t5-small", "--rung", "dynamic_int4", "--encoder-recipe", "fp16"]
    command = [sys.executable, "-m", "parity", *arguments, "--json", str(report), "--markdown", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(report.read_text())
    asked = [edge for edge in record["edges"] if edge["question"] == "quality"]
    edges = {(edge["candidate"], edge["output"]): edge for edge in asked}
    rows = edges["dynamic_int4", "encoder"]
    assert rows["limits"]["rel_l2"] < 0.01 < edges["dynamic_int4", "logits"]["metrics"]["rel_l2"]
    assert rows["metrics"]["rel_l2"] < rows["limits"]["rel_l2"]
    assert record["rungs"][-1]["artifact"]["encoder_recipe"] == "fp16"
    assert "quantized by fp16" in page.read_text()
