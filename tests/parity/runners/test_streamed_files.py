"""Exported rungs by stages: what is converted, run and deleted piece by piece gives what the whole file gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from models import registry
from models.authoring.hf_config import HFConfig
from parity import isolated
from parity.convert.float_file import Export, FloatFile, convert
from parity.convert.quantize import quantize, summarize
from parity.convert.recipes import get_recipe
from parity.errors import RungError
from parity.inputs import Inputs, TokenizedPrompt
from parity.runners import conveyor
from parity.runners.base import record
from parity.runners.litert import LiteRT
from parity.runners.streamed_files import StreamedFiles
from parity.trace import Trace
from parity.weights import resolve

#: Scaled embeddings, windows and soft-caps; both tables are larger than a piece, which is larger than a block's.
NAME = "gemma-2-2b"
MOST = 5_000
INPUTS = Inputs(
    "made",
    "",
    "",
    "",
    (
        TokenizedPrompt("pieces", (2, *range(10, 30)), (5, 6)),
        TokenizedPrompt("turn", (2, 7, 9), (8,), turn=(11, 12, 13, 14, 15, 16, 17), reply=(4,), generates=False),
    ),
)
GUIDE = {"pieces": (9, 200, 11), "turn": ()}


@dataclass(frozen=True)
class Made:
    """A tiny model's checkpoint and its float file."""

    folder: Path
    export: Export
    file: FloatFile


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    isolated.prepare(converter=True)
    folder = resolve(registry.get(NAME), "tiny").folder
    export = Export(prefill_lengths=(4,), cache_length=64)
    destination = tmp_path_factory.mktemp("whole") / "float.tflite"
    return Made(folder, export, convert("gemma", folder, export, destination).value)


@pytest.mark.parametrize(
    ("recipe", "most"), [(None, MOST), ("dynamic_int8", MOST), ("dynamic_int4_block32", 1_000_000)]
)
def test_stages_give_what_the_whole_file_gives(made: Made, tmp_path: Path, recipe: str | None, most: int) -> None:
    """Bit for bit, in whole stages and with the tables cut; and what is said of the weights is the same."""
    config = registry.get(NAME).family.config_from(HFConfig.load(made.folder))
    path, said = made.file.path, {}
    if recipe:
        path = tmp_path / "quantized.tflite"
        said = summarize(quantize(made.file.path, made.file.names, get_recipe(recipe), path).value)
    facts = tmp_path / "facts.json"
    chosen = get_recipe(recipe) if recipe else None
    staged = StreamedFiles("rung", "gemma", made.folder, (made.export,), 1, frozenset(), facts, chosen, most)
    whole = record(LiteRT("rung", (path,), config, 1), INPUTS, tmp_path, generate=3, guide=GUIDE).trace
    found = record(staged, INPUTS, tmp_path, generate=3, guide=GUIDE, answering=conveyor.answer).trace
    assert_same(whole, found)
    told = json.loads(facts.read_text())
    assert told["signatures"] == ["prefill_4", "decode"]
    assert told.get("weights") == said.get("weights")
    for figure, (value, _) in said.get("rounding", {}).items():
        assert told["rounding"][figure][0] == pytest.approx(value)


def assert_same(whole: Trace, found: Trace) -> None:
    assert whole.digest == found.digest
    for name, expected in whole.prompts.items():
        assert expected.steps.ids.tolist() == found.prompts[name].steps.ids.tolist()
        assert expected.steps.margins.tolist() == found.prompts[name].steps.margins.tolist()


def test_nothing_is_left_of_the_files(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stage's file is there at a time, and none afterwards, whatever happened."""
    seen: list[list[Path]] = []
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def watched(_done: int, _total: int) -> None:
        seen.append(sorted(tmp_path.rglob("*.tflite")))
        if len(seen) == 30:
            raise RungError("enough")

    runner = StreamedFiles("float", "gemma", made.folder, (made.export,), 1, frozenset(), tmp_path / "facts.json")
    with pytest.raises(RungError, match="enough"):
        conveyor.answer(runner, INPUTS, 3, GUIDE, watched)
    assert {len(paths) for paths in seen} == {1}
    assert not list(tmp_path.rglob("*.tflite"))
    assert not (tmp_path / "facts.json").exists()
