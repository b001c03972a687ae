"""Damaged files: each ends in time, in one line that names it, or in numbers that are then judged like any others.

Most go through the functions that the command line calls, a few through the command line itself.
``pytest tests/hostile/test_mutants.py --mutants=500`` is the long version, ``--draw`` another draw of damages.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mutants import index_damaged, safetensors_damaged, text_damaged, tflite_damaged
from rich.console import Console

from models import registry
from models.authoring.checkpoint import INDEX, SINGLE
from models.authoring.config import ModelConfig
from models.authoring.hf_config import HFConfig
from models.errors import ModelError
from parity import isolated
from parity.compare.floor import NoiseFloor
from parity.compare.limits import ROUNDING_LIMITS
from parity.compare.measuring import measure
from parity.compare.verdict import judge
from parity.convert.float_file import Export, convert
from parity.convert.quantize import quantize
from parity.convert.recipes import get_recipe
from parity.errors import GoldenError, ParityError, RungError
from parity.golden import GoldenStore
from parity.inputs import Inputs, read_prompts, tokenize
from parity.pipeline import Request, record_golden
from parity.progress import Reporter
from parity.runners.base import Recorded, Runner, record
from parity.runners.litert import LiteRT
from parity.runners.original import Original
from parity.runners.reauthored import Reauthored
from parity.weights import Weights, resolve
from tests.made_floors import drawn_floor

MODEL = registry.get("smollm-135m")
CACHE = 64
#: Seconds without progress after which a mutant counts as hung.
PATIENCE = 60
#: Mutants of one test.
BATCH = 10
#: Of a hundred mutants.
SHARES = {"weights": 28, "index": 7, "config": 22, "golden": 10, "sidecar": 10, "float": 15, "quantized": 8}


@dataclass(frozen=True)
class Sound:
    """What is damaged, and what it gives undamaged on ``inputs``, a part of ``whole``."""

    weights: Weights
    config: ModelConfig
    inputs: Inputs
    whole: Inputs
    files: Mapping[str, Path]
    goldens: GoldenStore
    oracle: Recorded
    floor: NoiseFloor


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """A checkpoint, a recording, a float file and a quantized one; two short prompts."""
    folder = tmp_path_factory.mktemp("sound")
    isolated.prepare(converter=True)  # before the first job: what they share is imported once
    quiet = Reporter(Console(stderr=True), quiet=True)
    weights = resolve(MODEL, "tiny")
    config = MODEL.family.config_from(HFConfig.load(weights.folder))
    whole = tokenize(read_prompts("short"), weights.folder, config)
    shortest = sorted(whole.prompts, key=lambda prompt: len(prompt.prompt))[:2]
    inputs = replace(whole, prompts=tuple(replace(p, continuation=p.continuation[:4]) for p in shortest))
    export = Export(prefill_lengths=(16,), cache_length=CACHE)
    made = convert("llama", weights.folder, export, folder / "float.tflite").value
    quantize(made.path, made.names, get_recipe("dynamic_int8"), folder / "quantized.tflite")
    goldens = GoldenStore(folder / "golden")
    record_golden(Request(model=MODEL), goldens, quiet, overwrite=False)
    oracle = record(Original(weights.folder, "float64"), inputs, folder, generate=2)
    files = {name: folder / f"{name}.tflite" for name in ("float", "quantized")}
    noisy = Reauthored("llama", weights.folder, (CACHE,), name="noise floor", at_once=True, noisy=True)
    floor = drawn_floor(noisy, config, inputs, oracle.trace)
    return Sound(weights, config, inputs, whole, files, goldens, oracle, floor)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Batches of every kind until there are as many mutants as asked for; one in fifty through the command line."""
    mutants = metafunc.config.getoption("--mutants")
    if "kind" in metafunc.fixturenames:
        counts = {kind: round(mutants * share / 100) for kind, share in SHARES.items()}
        batches = [
            (kind, start, min(BATCH, count - start))
            for kind, count in counts.items()
            for start in range(0, count, BATCH)
        ]
        ids = [f"{kind}-{start}-{start + count}" for kind, start, count in batches]
        metafunc.parametrize(("kind", "start", "count"), batches, ids=ids)
    if "through" in metafunc.fixturenames:
        kinds = ("weights", "golden", "config", "sidecar", "index")
        cases = [(kinds[number % len(kinds)], number) for number in range(max(1, mutants // 50))]
        metafunc.parametrize("through", cases, ids=[f"{kind}-{number}" for kind, number in cases])


def test_damaged_files_end_in_one_line_or_a_verdict(
    request: pytest.FixtureRequest, tmp_path: Path, sound: Sound, tally: Counter[str], kind: str, start: int, count: int
) -> None:
    """No mutant makes anything hang, crash the caller, or raise what is not an error of this project."""
    bad: list[str] = []
    for number in range(start, start + count):
        seed = f"{request.config.getoption('--draw')}/{kind}/{number}"
        place = tmp_path / str(number)
        place.mkdir()
        try:
            outcome = tried(sound, kind, place, random.Random(seed))
        except (ParityError, ModelError) as error:
            outcome = refusal(str(error))
        tally[f"{kind}: {outcome.partition(':')[0]}"] += 1
        if outcome.startswith("unexpected"):
            bad.append(f"{seed}: {outcome}")
        shutil.rmtree(place)
    assert bad == []


def refusal(message: str) -> str:
    """What kind of refusal a message is."""
    if "\n" in message or " failed: " in message:  # an exception that nobody foresaw, as a job reports it
        return f"unexpected: {message}"
    if "was killed by" in message:
        return "the job crashed, ERROR names the signal"
    if not re.search(r"; |did you mean", message):
        return f"unexpected: no remedy in {message}"
    return "the job stood still, ERROR" if "made no progress" in message else "refused in one line"


def tried(sound: Sound, kind: str, place: Path, draw: random.Random) -> str:
    """What became of a mutant that was not refused.

    Raises:
        ParityError, ModelError: it was.
    """
    if kind in sound.files:
        path = place / "m.tflite"
        path.write_bytes(tflite_damaged(sound.files[kind].read_bytes(), draw))
        return judged(sound, LiteRT(kind, (path,), sound.config, 1), place, crashes=True)
    if kind in ("golden", "sidecar"):
        store = damaged_golden(sound, kind, place, draw)
        found = store.replay(MODEL.name, sound.weights, sound.whole)
        whole = sound.goldens.replay(MODEL.name, sound.weights, sound.whole)
        found.save(place / "found")
        whole.save(place / "whole")
        same = (place / "found").read_bytes() == (place / "whole").read_bytes()
        return "nothing that matters was changed" if same else "unexpected: another recording was replayed"
    folder = damaged_checkpoint(sound, kind, place, draw)
    return judged(sound, Reauthored("llama", folder, (CACHE,)), place, crashes=False)


def judged(sound: Sound, runner: Runner, place: Path, *, crashes: bool) -> str:
    """The verdict on what a mutant gives, if it gives anything."""
    try:
        recorded = record(runner, sound.inputs, place, generate=2, patience=PATIENCE)
        recorded.trace.check(sound.inputs, sound.config.vocab_size, runner.name, 2)
    except RungError as error:
        if "was killed by" in str(error) and not crashes:
            return f"unexpected: {error}"
        raise
    figures = measure(sound.oracle.trace, recorded.trace, sound.inputs, floor=sound.floor)["logits"]
    return f"judged, {judge('original64', 'float', 'rounding', figures, ROUNDING_LIMITS).verdict}"


def damaged_checkpoint(sound: Sound, kind: str, place: Path, draw: random.Random) -> Path:
    folder = place / "checkpoint"
    shutil.copytree(sound.weights.folder, folder)
    (folder / "manifest.json").unlink()
    if kind == "index":
        (folder / INDEX).write_bytes(index_damaged(folder, draw))
    elif kind == "config":
        path = folder / "config.json"
        path.write_bytes(text_damaged(path.read_text(), draw))
    else:
        (folder / SINGLE).write_bytes(safetensors_damaged((folder / SINGLE).read_bytes(), draw))
    return folder


def damaged_golden(sound: Sound, kind: str, place: Path, draw: random.Random) -> GoldenStore:
    store = GoldenStore(place / "golden")
    shutil.copytree(sound.goldens.folder, store.folder)
    recording = store.of(MODEL.name, sound.weights, sound.whole.name)
    if kind == "golden":
        recording.path.write_bytes(safetensors_damaged(recording.path.read_bytes(), draw))
    else:
        recording.sidecar.write_bytes(text_damaged(recording.sidecar.read_text(), draw))
    return store


def test_a_damaged_file_through_the_command_line(
    request: pytest.FixtureRequest, tmp_path: Path, sound: Sound, tally: Counter[str], through: tuple[str, int]
) -> None:
    """An exit code of the contract, at most one line beside the report, no traceback, nothing left over."""
    kind, number = through
    draw = random.Random(f"{request.config.getoption('--draw')}/{kind}/through/{number}")
    report, scratch = tmp_path / "r.json", tmp_path / "tmp"
    scratch.mkdir()
    if kind in ("golden", "sidecar"):
        store = damaged_golden(sound, kind, tmp_path, draw)
        arguments: tuple[object, ...] = (MODEL.name, "--golden", "--golden-dir", store.folder)
    else:
        arguments = ("llama", "--weights", damaged_checkpoint(sound, kind, tmp_path, draw))
    command = [sys.executable, "-m", "parity", "check", *arguments, "--rung", "reauthored", "--json", report]
    environment = {**os.environ, "TMPDIR": str(scratch), "COLUMNS": "200"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode in {0, 1, 2, 3}, done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("parity: ")]
    if done.returncode == 2:
        assert len(messages) == 1, done.stderr
    else:
        document = json.loads(report.read_text())
        assert document["verdict"] == {0: "PASS", 1: "FAIL", 3: "ERROR"}[done.returncode]
        causes = [edge["cause"] for edge in document["edges"] if edge["verdict"] == "ERROR"]
        assert not any("bug of the harness" in cause or "\n" in cause for cause in causes), causes
        assert messages == [], done.stderr
    assert [path.name for path in scratch.iterdir() if path.name.startswith(".parity")] == []
    tally[f"through the command line: exit code {done.returncode}"] += 1


# Recordings that are whole, but of something else


@pytest.mark.parametrize(
    "swap", ["another model", "another prompt set", "logits alone", "sidecar alone", "renamed folder", "no sidecar"]
)
def test_a_recording_in_anothers_place_is_refused(tmp_path: Path, sound: Sound, swap: str) -> None:
    """Whatever was moved where: one line that names the recording, never a comparison with it."""
    store = GoldenStore(tmp_path)
    shutil.copytree(sound.goldens.folder, tmp_path, dirs_exist_ok=True)
    other = GoldenStore.default().folder / "amd-llama-135m" / "tiny"
    recording = store.of(MODEL.name, sound.weights, sound.whole.name)
    inputs, name = sound.whole, MODEL.name
    match swap:
        case "another model":
            shutil.copytree(other, recording.path.parent, dirs_exist_ok=True)
        case "another prompt set":
            inputs = replace(inputs, name="long", sha256="0" * 64)
            moved = store.of(name, sound.weights, "long")
            recording.path.rename(moved.path)
            recording.sidecar.rename(moved.sidecar)
        case "logits alone":
            shutil.copyfile(other / "short.safetensors", recording.path)
        case "sidecar alone":
            shutil.copyfile(other / "short.json", recording.sidecar)
        case "renamed folder":
            (tmp_path / MODEL.name).rename(tmp_path / "renamed")
        case _:
            recording.sidecar.unlink()
    with pytest.raises(GoldenError) as caught:
        store.replay(name, sound.weights, inputs)
    assert "record" in str(caught.value) or "renew" in str(caught.value)
    assert "short" in str(caught.value) or "long" in str(caught.value)


@pytest.mark.parametrize("renamed", ["smollm-360m", "smollm2-135m"])
def test_a_recording_of_a_sibling_is_stale(tmp_path: Path, sound: Sound, renamed: str) -> None:
    """A folder renamed to another preset's name is that preset's recording in name only."""
    shutil.copytree(sound.goldens.folder / MODEL.name, tmp_path / renamed)
    sibling = resolve(registry.get(renamed), "tiny")
    with pytest.raises(GoldenError, match=rf"{renamed}/tiny/short is stale: weights"):
        GoldenStore(tmp_path).replay(renamed, sibling, sound.whole)


def test_a_recording_with_another_shape_is_refused(sound: Sound) -> None:
    """Hashes that fit do not make logits of another model's vocabulary comparable."""
    found = sound.goldens.replay(MODEL.name, sound.weights, sound.whole)
    found.check(sound.whole, sound.config.vocab_size)
    with pytest.raises(GoldenError, match=r"smollm-135m/tiny/short, prompt .* logits, not .*; record it again"):
        found.check(sound.whole, sound.config.vocab_size - 1)
