"""Files are made once: the same again starts no job, whatever is different starts one."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import registry
from parity import isolated
from parity.artifacts import identity, making
from parity.artifacts.cache import FILE, MANIFEST, ArtifactCache
from parity.artifacts.identity import Sources, key_of
from parity.artifacts.making import Artifacts, Made
from parity.convert.float_file import Export, FloatFile
from parity.convert.quantize import WeightPrecision
from parity.convert.recipes import get_recipe
from parity.convert.rounding import Rounding
from parity.errors import RungError
from parity.files import content_sha256, sha256_of
from parity.inputs import Inputs, Prompt, PromptSet, TokenizedPrompt
from parity.runners.base import Recorded
from parity.trace import PromptTrace, Trace
from parity.weights import Weights

MODEL = registry.get("smollm-135m")
EXPORT = Export(prefill_lengths=(8,), cache_length=64)
NAMES = ("tokens", "head")
STORED = [WeightPrecision("tokens", "int8 channelwise", None, Rounding(0.5, 1.0))]


class Place:
    """A checkpoint, a cache, and jobs that write a line instead of converting; ``started`` names them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "config.json").write_text("{}")
        self.weights_file = folder / "checkpoint" / "model.safetensors"
        self.weights_file.write_text("weights")
        self.cache = ArtifactCache(folder / "cache", 1_000_000)
        self.started: list[str] = []
        self.notes: list[str] = []
        self.during: Callable[[], Any] = lambda: None
        self._runs = 0

    def weights(self) -> Weights:
        return Weights("path", "checkpoint", self.weights_file.parent, sha256_of([self.weights_file]), None)

    def scratch(self) -> Path:
        self._runs += 1
        (self.folder / f"run_{self._runs}").mkdir()
        return self.folder / f"run_{self._runs}" / "float.tflite"

    def artifacts(self, cache: ArtifactCache | None = None) -> Artifacts:
        return Artifacts(cache or self.cache, self.notes.append)

    def float_file(self, artifacts: Artifacts | None = None, export: Export = EXPORT) -> Made[FloatFile]:
        """As a run of its own has it, unless of one that is given."""
        artifacts = artifacts or self.artifacts()
        with artifacts.float_file(MODEL, self.weights(), export, self.scratch()) as under_way:
            return under_way.result()

    def quantized(self, recipe: str) -> Made[list[WeightPrecision]]:
        """As a run of its own has it, with the float file it needs."""
        artifacts = self.artifacts()
        source = self.float_file(artifacts).value
        destination = source.path.with_name("quantized.tflite")
        with artifacts.quantized_file(source, get_recipe(recipe), destination) as under_way:
            made = under_way.result()
        assert destination.read_text() == f"quantizing to {recipe}"
        return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path)

    class Job:
        """What ``isolated.Job`` is to its callers."""

        def __init__(self, name: str, function: Any) -> None:
            self.name = name
            self.arguments = function.args
            made.started.append(name)

        def result(self, _: Any) -> isolated.Finished[Any]:
            made.during()
            if self.name == "converting":
                _, _, export, destination = self.arguments
                destination.write_text("converted")
                return isolated.Finished(FloatFile(destination, export, ("decode",), NAMES), 42.0, 99.0)
            _, _, _, destination, _ = self.arguments
            destination.write_text(self.name)
            return isolated.Finished(STORED, 3.0, 7.0)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(isolated, "Job", Job)
    yield made
    assert making.isolated.Job is Job


def test_an_unchanged_rerun_starts_no_job(place: Place) -> None:
    """It has the same file, the same facts, and what making it once cost."""
    first, again = place.float_file(), place.float_file()
    assert place.started == ["converting"]
    assert (first.cached, again.cached) == (False, True)
    assert (again.seconds, again.peak_rss_mb) == (42.0, 99.0)
    assert again.value == replace(first.value, path=again.value.path)
    assert again.value.path != first.value.path
    assert again.value.path.read_text() == "converted"
    assert place.notes == []


def test_a_changed_recipe_costs_only_quantization(place: Place) -> None:
    """And the same again nothing."""
    assert place.quantized("dynamic_int8") == Made(STORED, 3.0, 7.0, cached=False)
    assert place.quantized("fp16").cached is False
    assert place.quantized("dynamic_int8") == Made(STORED, 3.0, 7.0, cached=True)
    assert place.quantized("fp16").cached is True
    assert place.started == ["converting", "quantizing to dynamic_int8", "quantizing to fp16"]
    said = {entry.manifest.what for entry in place.cache.entries() if entry.manifest}
    assert said == {
        "float32 of checkpoint, prefill 8, 64 slots",
        "dynamic_int8 of checkpoint, prefill 8, 64 slots",
        "fp16 of checkpoint, prefill 8, 64 slots",
    }


def test_another_float_file_is_quantized_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its contents, whatever it was made from."""
    place.quantized("fp16")
    place.cache.clear()
    original = isolated.Job.result

    def another(self: Any, on_progress: Any) -> isolated.Finished[Any]:
        finished = original(self, on_progress)
        if self.name == "converting":
            finished.value.path.write_text("converted otherwise")
        return finished

    place.quantized("fp16")
    for entry in place.cache.entries():
        if entry.manifest and entry.manifest.what.startswith("float32"):
            place.cache._remove(entry.key)
    monkeypatch.setattr(isolated.Job, "result", another)
    assert place.quantized("fp16").cached is False


def test_whatever_changes_is_made_anew(place: Place) -> None:
    """The export, the configuration, the weights, the code, the libraries."""
    place.float_file()
    assert place.float_file(export=replace(EXPORT, cache_length=128)).cached is False
    place.weights_file.with_name("config.json").write_text('{"a": 1}')
    assert place.float_file().cached is False
    place.weights_file.write_text("other weights")
    assert place.float_file().cached is False
    assert (
        place.float_file(place.artifacts(replace(place.cache, sources=Sources("another", "same", "same")))).cached
        is False
    )
    artifacts = place.artifacts()
    artifacts.__dict__["_versions"] = {"torch": "0"}
    assert place.float_file(artifacts).cached is False
    assert place.started == ["converting"] * 6
    assert place.float_file().cached is True


PROMPTS = PromptSet("mine", "mine.jsonl", "ab", (Prompt("p", "text", "more"),))
INPUTS = Inputs("mine", "mine.jsonl", "ab", "cd", (TokenizedPrompt("p", (1, 2), (3,)),))


def tokens(place: Place, made: Inputs = INPUTS, prompts: PromptSet = PROMPTS) -> Inputs:
    def tokenize() -> Inputs:
        place.started.append("tokenizing")
        return made

    return place.artifacts().tokens(prompts, MODEL, place.weights(), place.scratch(), tokenize)


def original(
    place: Place,
    inputs: Inputs = INPUTS,
    artifacts: Artifacts | None = None,
    name: str = "original",
    **asked: Any,
) -> Recorded:
    path = place.scratch()

    def record() -> Recorded:
        place.started.append(name)
        logits = np.asarray([[1.0, 2.0]], np.float32)
        trace = Trace({prompt.id: PromptTrace(logits, logits + 1) for prompt in inputs.prompts})
        trace.save(path)
        return Recorded(inputs, trace, 5.0, 6.0, "a note")

    return (artifacts or place.artifacts()).recording(
        name, MODEL, place.weights(), inputs, asked, path, record, original=name == "original"
    )


def test_text_is_tokenized_once(place: Place) -> None:
    """And again when the text, the tokenizer or the configuration is another."""
    assert tokens(place) == tokens(place) == INPUTS
    assert place.started == ["tokenizing"]
    tokens(place, prompts=replace(PROMPTS, prompts=(Prompt("p", "another text", "more"),)))
    place.weights_file.with_name("tokenizer.json").write_text("{}")
    tokens(place)
    assert place.started == ["tokenizing"] * 3
    place.weights_file.write_text("other weights")
    tokens(place)
    assert place.started == ["tokenizing"] * 3


def test_what_an_original_recorded_is_kept_with_its_note_and_cost(place: Place) -> None:
    first, again = original(place), original(place)
    assert place.started == ["original"]
    assert (first.cached, again.cached) == (False, True)
    assert (again.seconds, again.peak_rss_mb, again.note, again.inputs) == (5.0, 6.0, "a note", INPUTS)
    assert again.trace.digest == first.trace.digest


def test_an_original_is_run_anew_for_whatever_its_numbers_depend_on(place: Place) -> None:
    """Tokens, what goes with them, how it is asked, what lies beside the weights, the weights, the code it runs."""
    prompt = INPUTS.prompts[0]
    pictured, other = (replace(prompt, media={"pixels": np.full(2, value)}) for value in (1.0, 2.0))
    for each in (prompt, replace(prompt, prompt=(1, 3)), replace(prompt, continuation=(4,)), pictured, other):
        assert original(place, replace(INPUTS, prompts=(each,))).cached is False
    for asked in ({"generate": 8}, {"guide": {"p": (1,)}}, {"guide": {"p": (2,)}}):
        assert original(place, **asked).cached is False
    place.weights_file.with_name("generation_config.json").write_text("{}")
    assert original(place).cached is False
    place.weights_file.write_text("other weights")
    assert original(place).cached is False
    assert place.cache.sources
    edited = replace(place.cache, sources=replace(place.cache.sources, originals="another"))
    assert original(place, artifacts=place.artifacts(edited)).cached is False
    assert original(place).cached is True


def test_a_port_may_change_without_its_original_being_run_again(place: Place) -> None:
    original(place)
    place.float_file()
    assert place.cache.sources
    edited = place.artifacts(replace(place.cache, sources=replace(place.cache.sources, files="another")))
    assert original(place, artifacts=edited).cached is True
    assert place.float_file(edited).cached is False


def test_a_port_is_run_anew_when_its_code_changes_and_not_before(place: Place) -> None:
    assert [original(place, name="reauthored").cached for _ in range(2)] == [False, True]
    assert place.cache.sources
    edited = place.artifacts(replace(place.cache, sources=replace(place.cache.sources, ports="another")))
    assert original(place, artifacts=edited, name="reauthored").cached is False
    assert original(place).cached is False
    assert place.started == ["reauthored", "reauthored", "original"]


def test_a_recording_that_was_tampered_with_is_made_again(place: Place) -> None:
    original(place)
    (entry,) = place.cache.entries()
    path = place.cache.folder / entry.key / FILE
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert original(place).cached is False
    assert "is damaged" in place.notes[0]
    assert original(place).cached is True


@pytest.mark.parametrize("bound", [None, 0])
def test_without_a_cache_everything_is_made(place: Place, bound: int | None) -> None:
    """None given, or none wanted; nothing is written anywhere."""
    cache = None if bound is None else replace(place.cache, bound=bound)
    for _ in range(2):
        artifacts = Artifacts(cache, place.notes.append)
        assert place.float_file(artifacts).cached is False
    assert place.started == ["converting"] * 2
    assert not place.cache.folder.exists()
    assert place.notes == []


def test_where_a_fault_is_planted_there_is_no_cache(place: Place) -> None:
    """A file of sound code is not taken, and one of other code not kept."""
    place.float_file()
    before = sorted(place.cache.folder.rglob("*"))
    planted = replace(place.cache, sources=None)
    assert place.float_file(place.artifacts(planted)).cached is False
    assert sorted(place.cache.folder.rglob("*")) == before
    assert place.notes == ["the sources are not imported from their files as they are; the cache is left alone"]


def changed_weights(place: Place) -> None:
    place.weights_file.write_text("edited while it was converted")


def changed_config(place: Place) -> None:
    place.weights_file.with_name("config.json").write_text('{"edited": 1}')


def removed_weights(place: Place) -> None:
    place.weights_file.unlink()


@pytest.mark.parametrize("change", [changed_weights, changed_config, removed_weights])
def test_what_changes_while_it_is_read_poisons_nothing(place: Place, change: Callable[[Place], None]) -> None:
    """The run has its file; no later one does, since nobody knows what it was made from."""
    place.during = lambda: change(place)
    assert place.float_file().value.path.read_text() == "converted"
    assert place.cache.entries() == []
    assert len(place.notes) == 1
    assert "is not kept for the next run: what it is made from has changed meanwhile" in place.notes[0]


def test_a_port_edited_meanwhile_costs_its_original_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's recording does not depend on it and is kept; the port's own is not."""
    assert place.cache.sources
    edited = replace(place.cache.sources, files="edited", ports="edited")
    monkeypatch.setattr(making, "sources", lambda: edited)
    original(place)
    assert original(place).cached is True
    original(place, name="reauthored")
    assert original(place, name="reauthored").cached is False
    assert "has changed meanwhile" in place.notes[0]


def test_what_cannot_be_read_beside_the_weights_stands_only_in_the_way_of_the_cache(place: Place) -> None:
    """Nobody but the cache looks at a file that is none of the model's."""
    place.weights_file.with_name("other").mkdir()
    place.weights_file.with_name("loop").symlink_to("loop")
    assert [original(place).cached for _ in range(2)] == [False, True]
    unreadable = place.weights_file.with_name("notes")
    unreadable.write_text("private")

    def refuse(path: Path) -> str:
        if path == unreadable:
            raise PermissionError(13, "Permission denied", str(path))
        return content_sha256(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "unread_sha256", refuse)
        assert original(place).cached is False
    assert "notes cannot be read (Permission denied)" in place.notes[0]


def test_sources_edited_during_a_run_poison_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job imports them when it likes."""
    place.during = lambda: monkeypatch.setattr(making, "sources", lambda: Sources("edited", "same", "same"))
    place.float_file()
    assert place.cache.entries() == []
    assert "has changed meanwhile" in place.notes[0]


def test_a_full_disk_does_not_fail_the_run_that_made_the_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has an ordinary file, and can quantize it."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    made = place.quantized("fp16")
    assert made == Made(STORED, 3.0, 7.0, cached=False)
    assert ["No space left on device" in note for note in place.notes] == [True, True]
    assert place.cache.entries() == []


def test_what_the_run_uses_is_kept_while_it_goes_on(place: Place) -> None:
    """A small cache holds the float file that the next recipe needs, and says what it has no room for."""
    with place.artifacts().float_file(MODEL, place.weights(), EXPORT, place.scratch()) as under_way:
        under_way.result()
    (entry,) = place.cache.entries()
    small = replace(place.cache, bound=entry.size + 100)
    artifacts = place.artifacts(small)
    source = place.float_file(artifacts).value
    destination = source.path.with_name("quantized.tflite")
    with artifacts.quantized_file(source, get_recipe("fp16"), destination) as under_way:
        assert under_way.result().cached is False
    assert [each.key for each in place.cache.entries()] == [entry.key]
    assert "do not fit" in place.notes[0]


@pytest.mark.parametrize("value", [None, [], {"signatures": ["decode"]}, {"signatures": "decode", "names": [1]}])
def test_a_manifest_with_other_values_is_damage(place: Place, value: Any) -> None:
    """Though its hash is right: the entry goes, and the file is made."""
    place.float_file()
    (entry,) = place.cache.entries()
    path = place.cache.folder / entry.key / MANIFEST
    facts = json.loads(path.read_text())["facts"] | {"value": value}
    path.write_text(json.dumps({"sha256": key_of(facts), "facts": facts}))
    assert place.float_file().cached is False
    assert "is damaged" in place.notes[0]
    assert place.float_file().cached is True
    assert place.started == ["converting"] * 2


def test_a_poisoned_file_is_made_again(place: Place) -> None:
    """And says so."""
    place.float_file()
    (entry,) = place.cache.entries()
    path = place.cache.folder / entry.key / FILE
    path.unlink()
    path.write_text("CONVERTED")
    made = place.float_file()
    assert (made.cached, made.value.path.read_text()) == (False, "converted")
    assert "its file is not the one that was made" in place.notes[0]


def test_a_failed_job_keeps_nothing(place: Place) -> None:
    """Its error is the run's."""

    def fail() -> None:
        raise RungError("no")

    place.during = fail
    with pytest.raises(RungError, match="no"):
        place.float_file()
    assert place.cache.entries() == []


def test_two_runs_that_make_the_same_both_have_it(place: Place) -> None:
    """Whoever is done first is kept."""
    one, other = place.artifacts(), place.artifacts()
    with (
        one.float_file(MODEL, place.weights(), EXPORT, place.scratch()) as first,
        other.float_file(MODEL, place.weights(), EXPORT, place.scratch()) as second,
    ):
        assert place.started == ["converting"] * 2
        assert [first.result().cached, second.result().cached] == [False, False]
    assert len(place.cache.entries()) == 1
    assert place.notes == []
    assert [path.name for path in place.cache.folder.iterdir()] == [place.cache.entries()[0].key]
