"""A file for audio of some length: what it is called, what it takes, and that shorter audio comes out the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from models import registry
from models.authoring.hf_config import HFConfig
from parity import isolated
from parity.convert.export import to_file
from parity.inputs import Inputs, TokenizedPrompt, read_prompts, tokenize
from parity.progress import Reporter
from parity.runners.base import Session
from parity.runners.litert import LiteRT
from parity.runners.reauthored import Reauthored
from parity.weights import resolve

MODEL = registry.get("moonshine-tiny")
CONFIG = MODEL.family.config_from(HFConfig(MODEL.preset.values(tiny=True), MODEL.name))
QUIET = Reporter(Console(stderr=True), quiet=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For two seconds, with all the positions that the model knows."""
    folder = tmp_path_factory.mktemp("audio")
    made = to_file(
        MODEL,
        "tiny",
        folder,
        recipe=None,
        prefill_lengths=(64,),
        cache_length=None,
        prefill_logits=False,
        reporter=QUIET,
        audio_seconds=2.0,
    )
    assert made.path == folder / "moonshine-tiny_2s_f32_ekv194.tflite"
    assert set(made.signatures) == {"encode", "decode"}
    return made.path


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    isolated.prepare(converter=False)
    return tokenize(read_prompts("speech"), resolve(MODEL, "tiny").folder, CONFIG)


def answers(session: Session, prompt: TokenizedPrompt) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder made, and logits over the prompt and the continuation."""
    prefill, encoded = session.prefill(prompt, 64)
    assert encoded is not None
    return encoded, np.concatenate([prefill, [session.decode(token) for token in prompt.continuation]])


@pytest.mark.parametrize("name", ["syllable", "bursts", "sentence"])
def test_shorter_audio_comes_out_the_same(file: Path, inputs: Inputs, name: str) -> None:
    """Padded to two seconds by the runner, hidden by the file."""
    prompt = next(prompt for prompt in inputs.prompts if prompt.id == name)
    with LiteRT("float", (file,), CONFIG, 1).open() as session:
        made = answers(session, prompt)
    with Reauthored("moonshine", resolve(MODEL, "tiny").folder, (64,)).open() as session:
        exact = answers(session, prompt)
    for ours, theirs in zip(made, exact, strict=True):
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 5e-6


def test_shapes_are_of_the_longest_audio(file: Path) -> None:
    """Samples and rows of two seconds; one count of each."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    runner = interpreter.get_signature_runner("encode")
    shapes = {name: detail["shape"].tolist() for name, detail in runner.get_input_details().items()}
    assert shapes == {"audio": [1, 32000], "samples": [1], "encoder_rows": [1]}
    rows = CONFIG.stem.rows(32000)
    given = {name: detail["shape"].tolist() for name, detail in runner.get_output_details().items()}
    assert given["encoded"] == [1, rows, CONFIG.width]
    taken = interpreter.get_signature_runner("decode").get_input_details()
    assert {name for name in taken if name.startswith("cross_")} == {n for n in given if n.startswith("cross_")}
    assert taken["kv_cache_k_0"]["shape"][1] == CONFIG.max_positions
