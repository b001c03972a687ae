"""A recording is used only while everything it was made from is as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.compare.verdict import NoiseFloor
from parity.errors import GoldenError
from parity.golden import SCHEMA_VERSION, GoldenStore, Reference, _digest
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PHASES, PromptTrace, Trace
from parity.weights import Weights

PROMPT = TokenizedPrompt("p", (1, 2, 3), (4, 5))
INPUTS = Inputs("set", "short", "0" * 64, "1" * 64, (PROMPT,))


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return Weights("path", "checkpoint", folder, "2" * 64, None)


@pytest.fixture
def store(tmp_path: Path, weights: Weights) -> GoldenStore:
    """A store with one recording."""
    found = GoldenStore(tmp_path / "golden")
    logits = np.random.default_rng(0).standard_normal((3, 7))
    trace = Trace({"p": PromptTrace(logits, logits[:2])})
    floor = NoiseFloor(dict.fromkeys(PHASES, 1e-7), dict.fromkeys(PHASES, 1e-7))
    found.record("llama", weights, INPUTS, Reference("original64", trace, floor))
    return found


def refused(store: GoldenStore, weights: Weights, inputs: Inputs = INPUTS) -> str:
    """Why the recording is not used: one line with the command that renews it."""
    with pytest.raises(GoldenError) as caught:
        store.replay("llama", weights, inputs)
    command = f"parity golden record llama --weights {weights.folder} --prompts short --golden-dir {store.folder}"
    assert f"`{command} --overwrite`" in str(caught.value)
    return str(caught.value)


def test_a_fresh_recording_is_used(store: GoldenStore, weights: Weights) -> None:
    """The same logits, rounded to float32 once, and the same floor."""
    reference = store.replay("llama", weights, INPUTS)
    assert reference.trace.prompts["p"].prefill.dtype == np.float32
    assert reference.floor.rel_l2["decode"] == 1e-7


@pytest.mark.parametrize(
    "changed",
    [
        replace(PROMPT, prompt=(2, 3)),  # a beginning-of-text token that is no longer added
        replace(PROMPT, prompt=(1, 2, 6)),
        replace(PROMPT, continuation=(4, 6)),
        replace(PROMPT, prompt=(1, 2), continuation=(3, 4, 5)),
    ],
)
def test_other_token_ids_make_it_stale(store: GoldenStore, weights: Weights, changed: TokenizedPrompt) -> None:
    """Though the text and the tokenizer's files are the same."""
    assert "is stale: token ids changed since" in refused(store, weights, replace(INPUTS, prompts=(changed,)))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_another_configuration_makes_it_stale(store: GoldenStore, weights: Weights, file: str) -> None:
    """That of the model, and the one that says where a text ends."""
    (weights.folder / file).write_text('{"model_type": "llama", "eos_token_id": 3}')
    assert "is stale: config changed since" in refused(store, weights)


def rewritten(store: GoldenStore, weights: Weights, **changes: Any) -> None:
    """The sidecar as an older version would have written it."""
    path = store.of("llama", weights, "set").sidecar
    facts = {**json.loads(path.read_text()), **changes}
    del facts["sha256"]
    path.write_text(json.dumps({**facts, "sha256": _digest(facts)}))


def test_an_older_form_is_stale(store: GoldenStore, weights: Weights) -> None:
    """It is refused before anything of it is read, and it is not one that nobody uses."""
    rewritten(store, weights, schema_version=1)
    assert f"is stale: it is of schema 1, not {SCHEMA_VERSION}" in refused(store, weights)
    rewritten(store, weights, prompts_from_file=True)
    assert store.unused() == []
