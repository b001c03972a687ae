"""A recording is used only while everything it was made from is as it was, and it knows its oracle's trace again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from parity.compare.floor import NoiseFloor, PromptNoise
from parity.compare.sketch import parameters, summarize_sketched
from parity.errors import GoldenError
from parity.files import sha256_of
from parity.golden import SCHEMA_VERSION, Golden, GoldenStore
from parity.golden.store import _digest
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PromptTrace, Steps, Trace
from parity.weights import Weights

PROMPT = TokenizedPrompt("p", (1, 2, 3), (4, 5))
INPUTS = Inputs("set", "short", "0" * 64, "1" * 64, (PROMPT,))
VOCABULARY = 40


def oracle(encoded: int = 0) -> Trace:
    """What the oracle would have computed and said, two tokens of it."""
    rng = np.random.default_rng(0)
    prefill, decode = (4 * rng.standard_normal((count, VOCABULARY)) for count in (3, 2))
    ids = np.asarray([[7, 1, 2, 3, 4], [9, 8, 2, 3, 4]], np.int32)
    steps = Steps(ids, np.linspace(0, 4, 10, dtype=np.float32).reshape(2, 5), np.asarray([False, True]))
    return Trace({"p": PromptTrace(prefill, decode, steps, rng.standard_normal((encoded, 24)) if encoded else None)})


def other(change: Callable[[np.ndarray], np.ndarray], trace: Trace | None = None) -> Trace:
    """A trace whose logits and encoded rows are changed."""
    found = (trace or oracle()).prompts["p"]
    encoded = None if found.encoded is None else change(found.encoded)
    return Trace({"p": replace(found, prefill=change(found.prefill), decode=change(found.decode), encoded=encoded)})


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
    found.record("llama", weights, INPUTS, oracle())
    return found


def refused(store: GoldenStore, weights: Weights, inputs: Inputs = INPUTS) -> str:
    """Why the recording is not used: one line with the command that renews it."""
    with pytest.raises(GoldenError) as caught:
        store.replay("llama", weights, inputs)
    command = f"parity golden record llama --weights {weights.folder} --prompts short --golden-dir {store.folder}"
    assert f"`{command} --overwrite`" in str(caught.value)
    return str(caught.value)


def test_a_fresh_recording_is_used(store: GoldenStore, weights: Weights) -> None:
    """It says what the oracle said, and knows its trace again to the last bits of float64."""
    golden = store.replay("llama", weights, INPUTS)
    said = oracle().prompts["p"].steps
    assert golden.said == {"p": (7, 9)}
    assert np.array_equal(golden.steps["p"].ids, said.ids)
    assert np.array_equal(golden.steps["p"].margins, said.margins)
    assert np.array_equal(golden.steps["p"].ends, said.ends)
    found = golden.compare(oracle())
    assert {phase: list(prompts) for phase, prompts in found.items()} == {"prefill": ["p"], "decode": ["p"]}
    for phase, count in (("prefill", 3), ("decode", 2)):
        figures = summarize_sketched(found[phase]["p"])
        assert figures["positions"] == count
        assert figures["rel_l2"] == figures["resolution"] < 1e-15
        assert figures["top1_agreement"] == 1


def test_the_port_is_judged_by_it(store: GoldenStore, weights: Weights) -> None:
    """In units of float64's noise: a last bit is below one, a mistake of 1e-12 far beyond every limit."""
    golden = store.replay("llama", weights, INPUTS)
    rng = np.random.default_rng(1)
    size = 4 * VOCABULARY**0.5
    draws = {"prefill": np.full((4, 3), (5e-7 * size) ** 2), "decode": np.full((4, 2), (5e-7 * size) ** 2)}
    floor = NoiseFloor({"p": PromptNoise(draws, np.ones(4))}, {"prefill": 1e-7, "decode": 1e-7}).in_float64

    def ratios(relative: float) -> np.ndarray:
        traced = other(lambda rows: rows * (1 + relative * rng.standard_normal(rows.shape)))
        found = golden.compare(traced)
        return np.concatenate([floor.ratios("p", phase, errors["p"]) for phase, errors in found.items()])

    assert ratios(0).max() < 0.5
    assert ratios(3e-16).max() < 1.5
    assert ratios(1e-12).min() > 300


def test_the_same_trace_gives_the_same_file(store: GoldenStore, weights: Weights) -> None:
    """To the bit, sidecar and all."""
    recording = store.of("llama", weights, "set")
    before = recording.path.read_bytes(), recording.sidecar.read_bytes()
    assert recording.size == sum(map(len, before))
    store.record("llama", weights, INPUTS, oracle())
    assert (recording.path.read_bytes(), recording.sidecar.read_bytes()) == before
    facts = recording.facts
    assert facts["precision"] == "float64"
    assert facts["sketch"] == parameters()


def test_an_encoders_rows_are_recorded(tmp_path: Path, weights: Weights) -> None:
    """As one more phase; a trace without them, or with them where the recording has none, is no comparison."""
    store = GoldenStore(tmp_path / "golden")
    inputs = replace(INPUTS, prompts=(replace(PROMPT, encoded_rows=6),))
    store.record("llama", weights, inputs, oracle(encoded=6))
    golden = store.replay("llama", weights, inputs)
    found = golden.compare(other(lambda rows: rows + 1e-9, oracle(encoded=6)))
    assert len(found["encoder"]["p"]) == 6
    least, most = found["encoder"]["p"].between
    assert (least <= 1e-9 * 24**0.5).all()
    assert (most >= 1e-9 * 24**0.5).all()
    with pytest.raises(GoldenError, match="prompt p, encoder: no rows"):
        golden.compare(oracle())
    with pytest.raises(GoldenError, match="encoder's rows, of which the recording has none"):
        Golden.of("g", oracle()).compare(oracle(encoded=6))
    with pytest.raises(GoldenError, match="encoder's rows are missing"):
        store.record("llama", weights, inputs, oracle())


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (Trace({}), "prompt p is in the recording or in what it is compared with, not in both"),
        (Trace({**oracle().prompts, "q": oracle().prompts["p"]}), "prompt q is in"),
        (other(lambda rows: rows[1:]), r"prompt p, prefill: shapes \(3, 40\) and \(2, 40\) cannot be compared"),
        (other(lambda rows: rows[:, 1:]), r"shapes \(3, 40\) and \(3, 39\) cannot be compared"),
        (other(lambda rows: np.where(rows > 3, np.nan, rows)), "prompt p, prefill: NaN or infinity in the logits"),
        (other(lambda rows: np.where(rows > 3, np.inf, rows)), "prompt p, prefill: NaN or infinity in the logits"),
    ],
)
def test_what_cannot_be_compared_is_an_error(trace: Trace, message: str) -> None:
    """One line that names the prompt and the phase."""
    with pytest.raises(GoldenError, match=message):
        Golden.of("g", oracle()).compare(trace)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (other(lambda rows: rows.astype(np.float32)), "prompt p, prefill: float32 cannot be recorded"),
        (other(lambda rows: np.where(rows > 3, np.nan, rows)), "NaN or infinity"),
        (other(lambda rows: 1e200 * rows), "infinity in size"),
        (other(lambda rows: rows[1:]), "prefill has 2 rows, not 3"),
        (other(lambda rows: rows[:0]), "nothing to compare"),
        (Trace({}), "prompt p is missing"),
        (Trace({**oracle().prompts, "q": oracle().prompts["p"]}), "prompt q is missing, or not in set"),
        (Trace({"p": replace(oracle().prompts["p"], decode=np.eye(2, 41))}), "decode is of 41 logits, not 40"),
        (Trace({"p": replace(oracle().prompts["p"], encoded=np.eye(2))}), "encoded has 2 rows, not 0"),
    ],
)
def test_what_is_no_oracle_is_not_recorded(tmp_path: Path, weights: Weights, trace: Trace, message: str) -> None:
    """And nothing is left where the recording would be."""
    store = GoldenStore(tmp_path / "golden")
    with pytest.raises(GoldenError, match=message):
        store.record("llama", weights, INPUTS, trace)
    assert not list(tmp_path.glob("golden/**/*.*"))


def test_choices_are_checked() -> None:
    """As many as were asked for, unless the text ended, and ids of the vocabulary."""
    golden = Golden.of("g", oracle())
    golden.check(INPUTS, VOCABULARY, generate=5)
    steps = oracle().prompts["p"].steps
    for changed, message in (
        (replace(steps, ends=np.zeros(2, np.bool_)), "2 tokens generated, not 5"),
        (replace(steps, ids=steps.ids + 34), "a token id that is none of the 40"),
        (replace(steps, margins=steps.margins[1:]), "choices, margins and ends of different numbers"),
    ):
        prompt = replace(golden.prompts["p"], steps=changed)
        with pytest.raises(GoldenError, match=message):
            Golden("g", {"p": prompt}).check(INPUTS, VOCABULARY, generate=5)
    with pytest.raises(GoldenError, match="is of 40 logits, not 41"):
        golden.check(INPUTS, VOCABULARY + 1)


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
    """The sidecar as another version would have written it."""
    path = store.of("llama", weights, "set").sidecar
    facts = {**json.loads(path.read_text()), **changes}
    del facts["sha256"]
    path.write_text(json.dumps({**facts, "sha256": _digest(facts)}))


@pytest.mark.parametrize("version", [1, 2, SCHEMA_VERSION + 1, None])
def test_another_form_is_stale(store: GoldenStore, weights: Weights, version: int | None) -> None:
    """It is refused before anything of it is read, and it is not one that nobody uses."""
    rewritten(store, weights, schema_version=version)
    assert f"is stale: it is of schema {version}, not {SCHEMA_VERSION}" in refused(store, weights)
    rewritten(store, weights, prompts_from_file=True)
    assert store.unused() == []


@pytest.mark.parametrize(
    "changes", [{"sketch": {**parameters(), "signs": "0" * 16}}, {"sketch": None}, {"precision": "float32"}]
)
def test_numbers_that_are_kept_otherwise_are_stale(
    store: GoldenStore, weights: Weights, changes: dict[str, Any]
) -> None:
    """Sums under other signs say nothing under these."""
    rewritten(store, weights, **changes)
    assert "is stale: numbers are no longer kept in its way" in refused(store, weights)


def test_a_missing_recording_names_the_command(store: GoldenStore, weights: Weights) -> None:
    """That makes it."""
    store.of("llama", weights, "set").path.unlink()
    with pytest.raises(GoldenError, match="is not there; record it with `parity golden record llama"):
        store.replay("llama", weights, INPUTS)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "longer"])
def test_damaged_numbers_are_refused(store: GoldenStore, weights: Weights, damage: str) -> None:
    """Whatever the damage, before anything is compared."""
    path = store.of("llama", weights, "set").path
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
            "longer": whole + b"0",
        }[damage]
    )
    assert "is not the file its sidecar describes" in refused(store, weights)


def test_an_edited_sidecar_is_refused(store: GoldenStore, weights: Weights) -> None:
    """And one that is none."""
    sidecar = store.of("llama", weights, "set").sidecar
    text = sidecar.read_text()
    for broken, message in (
        (text.replace('"positions": 5', '"positions": 6'), "has been edited"),
        (text[: len(text) // 2], "is not a recording's sidecar"),
        ("[]", "is not a recording's sidecar"),
    ):
        sidecar.write_text(broken)
        with pytest.raises(GoldenError, match=message):
            store.replay("llama", weights, INPUTS)


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        ("p/prefill/exact", lambda values: values[1:], "projected is|ids is|size is"),
        ("p/prefill/exact", lambda values: values * np.nan, "NaN or infinity in projected"),
        ("p/prefill/exact", lambda values: values.astype(np.float32), "projected is float32"),
        ("p/prefill/ids", lambda values: values + np.int32(1), "of 40 logits, not 41"),
        ("p/prefill/ids", lambda values: values[:0], "is not a recording"),
        ("p/decode/sizes", lambda values: -values, "below zero"),
        ("p/decode/sizes", lambda values: values[:, :1], "is not a recording"),
        ("p/decode/sizes", None, "is not a recording"),
        ("p/ends", None, "prompt p is missing"),
        ("p/ids", lambda values: values[:, :3], "of different numbers"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    store: GoldenStore,
    weights: Weights,
    tensor: str,
    change: Callable[[np.ndarray], np.ndarray] | None,
    message: str,
) -> None:
    """Although the sidecar describes just these: it was written by something else than this."""
    path = store.of("llama", weights, "set").path
    tensors = load_file(path)
    if change:
        tensors[tensor] = np.ascontiguousarray(change(tensors[tensor]))
    else:
        del tensors[tensor]
    save_file(tensors, path)
    rewritten(store, weights, logits_sha256=sha256_of([path]))
    with pytest.raises(GoldenError, match=message):
        store.replay("llama", weights, INPUTS)


@pytest.mark.parametrize(
    ("kind", "asked", "named"),
    [
        ("gguf", "/models/My model.Q4_K_M.gguf", "/models/My model.Q4_K_M.gguf"),
        ("hub", "hub@abc", "hub@abc"),
        ("sample", "", "sample"),
        ("path", "/models/mine", "/models/mine"),
    ],
)
def test_the_command_names_the_weights(store: GoldenStore, weights: Weights, kind: str, asked: str, named: str) -> None:
    """As they were asked for, so that the line can be pasted; a GGUF file by its path, not the folder made of it."""
    meant = replace(weights, kind=kind, asked=asked, sha256="3" * 64)
    with pytest.raises(GoldenError, match="weights changed since") as caught:
        store.replay("llama", meant, INPUTS)
    words = shlex.split(str(caught.value).partition("`")[2].rpartition("`")[0])
    assert words[:6] == ["parity", "golden", "record", "llama", "--weights", named]
    assert words[-1] == "--overwrite"


def test_a_recording_is_small() -> None:
    """Whatever the vocabulary: 456 bytes a position."""
    trace = Trace({"p": PromptTrace(*np.random.default_rng(0).standard_normal((2, 20, 5000)))})
    kept = Golden.of("g", trace).prompts["p"]
    parts = ("projected", "ids", "largest", "size", "rest")
    assert sum(getattr(kept.prefill, part).nbytes for part in parts) == 20 * 456
