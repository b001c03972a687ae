"""Which tokens end a text, as checkpoints say it: the same that transformers reads from the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.authoring.end_tokens import end_tokens
from models.errors import ConfigError

SIZES = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "vocab_size": 16,
}


def folder_of(place: Path, config: dict[str, Any], generation: Any = None) -> Path:
    (place / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (place / "generation_config.json").write_text(json.dumps(generation))
    return place


@pytest.mark.parametrize(
    "generation", [None, {}, {"eos_token_id": None}, {"eos_token_id": 7}, {"eos_token_id": [7, 8]}]
)
@pytest.mark.parametrize("named", [{}, {"eos_token_id": None}, {"eos_token_id": 5}, {"eos_token_id": [5, 6]}])
def test_the_library_reads_the_same(tmp_path: Path, named: dict[str, Any], generation: Any) -> None:
    """An id, a list, nothing; in either file, in both, differing."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from parity.runners.original import end_tokens_of

    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    folder = folder_of(tmp_path, {**SIZES, **named}, generation)
    assert end_tokens(folder) == end_tokens_of(AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize(
    ("outer", "text", "expected"),
    [({}, {"eos_token_id": 3}, {3}), ({"eos_token_id": 4}, {"eos_token_id": 3}, {4}), ({}, {}, set())],
)
def test_a_model_made_of_several(tmp_path: Path, outer: Any, text: Any, expected: set[int]) -> None:
    """Its text model says it where the whole does not."""
    assert end_tokens(folder_of(tmp_path, {**outer, "text_config": text})) == expected


@pytest.mark.parametrize("value", ["2", 2.5, -1, True, [1, None], [[1]], {"id": 1}])
@pytest.mark.parametrize("apart", [True, False])
def test_what_is_no_token_id_is_refused(tmp_path: Path, value: Any, *, apart: bool) -> None:
    """With the file and the key in the message."""
    named = {"eos_token_id": value}
    folder = folder_of(tmp_path, {} if apart else named, named if apart else None)
    with pytest.raises(ConfigError, match=f"{'generation_' if apart else ''}config.json: eos_token_id"):
        end_tokens(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "3"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    """Not taken for one that names nothing."""
    (folder_of(tmp_path, {}) / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        end_tokens(tmp_path)
