"""The file that ships, against the one that a check runs: nothing but the logits of prefill is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import registry
from models.authoring.hf_config import HFConfig
from parity.convert.float_file import Export, convert
from parity.files import content_sha256
from parity.runners.litert import LiteRTProgram
from parity.weights import resolve

TOKENS = (1, 17, 200, 45, 45, 90, 3, 311, 64, 12, 9, 250, 31, 77, 5, 101)
CHECKED = Export(prefill_lengths=(16,), cache_length=64)


@pytest.mark.parametrize("name", ["smollm-135m", "gemma-2-2b", "phi-2"])
def test_the_shipped_file_leaves_the_same_cache_and_decodes_the_same_bits(name: str, tmp_path: Path) -> None:
    """Prefill, then two tokens through the cache: every bit that both files give is the same."""
    from ai_edge_litert.interpreter import Interpreter

    model = registry.get(name)
    folder = resolve(model, "tiny").folder
    vocabulary = model.family.config_from(HFConfig.load(folder)).vocab_size
    programs = []
    for kind, export in (("checked", CHECKED), ("shipped", replace(CHECKED, prefill_logits=False))):
        path = tmp_path / f"{kind}.tflite"
        convert(model.family.name, folder, export, path)
        programs.append(LiteRTProgram(Interpreter(str(path), num_threads=1)))
    tokens = np.asarray([TOKENS], np.int32) % vocabulary
    positions = np.arange(len(TOKENS), dtype=np.int32)
    made = [
        each.call("prefill", 16, {**each.empty_cache(1), "tokens": tokens, "input_pos": positions}) for each in programs
    ]
    assert made[0].pop("logits").shape == (1, 16, vocabulary)
    assert "logits" not in made[1]
    for at, token in enumerate((7, 9), start=len(TOKENS)):
        assert made[0].keys() == made[1].keys() == programs[0].empty_cache(1).keys()
        for tensor, value in made[0].items():
            np.testing.assert_array_equal(value, made[1][tensor])
        given = {"tokens": np.asarray([[token]], np.int32), "input_pos": np.asarray([at], np.int32)}
        made = [each.call("decode", 1, {**cache, **given}) for each, cache in zip(programs, made, strict=True)]
        np.testing.assert_array_equal(made[0].pop("logits"), made[1].pop("logits"))


def test_converting_again_gives_the_same_file(tmp_path: Path) -> None:
    """So that the hash in a report says which file passed."""
    model = registry.get("smollm-135m")
    folder = resolve(model, "tiny").folder
    paths = [tmp_path / "once.tflite", tmp_path / "again.tflite"]
    for path in paths:
        convert(model.family.name, folder, CHECKED, path)
    assert content_sha256(paths[0]) == content_sha256(paths[1])
