"""Where a text ends is compared: every rung stops where the original's own library would, or the check fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from models import registry
from parity import pipeline
from parity.compare.verdict import Verdict
from parity.golden import Golden, GoldenStore
from parity.pipeline import Request, check, record_golden
from parity.progress import Reporter
from parity.report.record import Report
from parity.weights import resolve

MODEL = registry.get("amd-llama-135m")
QUIET = Reporter(Console(stderr=True), quiet=True)
#: A token that these prompts never lead to.
NEVER = 2


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of its own."""
    folder = tmp_path_factory.mktemp("ends") / "mine"
    shutil.copytree(resolve(MODEL, "tiny").folder, folder)
    return folder


@pytest.fixture(scope="module")
def said(original: Path) -> dict[str, tuple[int, ...]]:
    """What the original says after each prompt."""
    store = GoldenStore(original.parent / "golden")
    recording = record_golden(Request(model=MODEL, weights=str(original)), store, QUIET, overwrite=False)
    found = Golden.load(recording.name, recording.path).said
    assert not any(NEVER in ids for ids in found.values())
    return found


def checked(original: Path, place: Path, *rungs: str, config: Any = NEVER, generation: Any = None) -> Report:
    """The report on a copy of the checkpoint that names ``config`` and ``generation`` as its ends."""
    folder = place / "checkpoint"
    shutil.copytree(original, folder)
    values = json.loads((folder / "config.json").read_text()) | {"eos_token_id": config}
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return check(Request(model=MODEL, weights=str(folder), rungs=rungs or ("reauthored",)), QUIET)


def steps(said: dict[str, tuple[int, ...]], end: int) -> int:
    """How many tokens there are up to and with the first ``end`` of each prompt."""
    return sum(ids.index(end) + 1 if end in ids else len(ids) for ids in said.values())


def assert_all_match(report: Report, of: int) -> None:
    assert report.verdict is Verdict.PASS, report.edges
    assert {(entry["matches"], entry["of"]) for entry in report.generation} == {(of, of)}


@pytest.mark.parametrize("form", ["an id", "a list", "apart", "a list apart"])
def test_every_rung_stops_where_the_original_does(
    original: Path, said: dict[str, tuple[int, ...]], tmp_path: Path, form: str
) -> None:
    """However the checkpoint names the token: in ``config.json``, or in ``generation_config.json`` alone."""
    end = said["english"][1]
    of = steps(said, end)
    assert of < sum(map(len, said.values()))
    named: Any = [NEVER, end] if form.startswith("a list") else end
    rungs = ("reauthored", "float", "dynamic_int8") if form == "a list apart" else ("reauthored",)
    where = {"generation": named} if form.endswith("apart") else {"config": named}
    report = checked(original, tmp_path, *rungs, **where)
    assert {entry["rung"] for entry in report.generation} == {"original", *rungs}
    report.generation[:] = [entry for entry in report.generation if entry["rung"] != "dynamic_int8"]
    assert_all_match(report, of)


def test_without_an_end_texts_go_on(original: Path, said: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    """A checkpoint may name none, or one that is never said."""
    assert_all_match(checked(original, tmp_path, config=None), sum(map(len, said.values())))


@pytest.mark.parametrize("broken", ["reads nothing", "reads too much"])
def test_a_rung_that_stops_elsewhere_fails(
    original: Path,
    said: dict[str, tuple[int, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    """A reader that misses an end, or knows one that is none: FAIL, though every logit is right."""
    end = said["english"][1]
    ends = frozenset[int]() if broken == "reads nothing" else frozenset({end})
    monkeypatch.setattr(pipeline, "end_tokens", lambda _: ends)
    report = checked(original, tmp_path, config=end if broken == "reads nothing" else NEVER)
    found = {edge.candidate: edge for edge in report.edges}
    assert found["original"].verdict is Verdict.PASS
    assert found["reauthored"].verdict is Verdict.FAIL
    assert found["reauthored"].cause is not None
    stops, goes_on = ("reference", "rung") if broken == "reads nothing" else ("rung", "reference")
    assert f"{end} ends the text for the {stops}, the {goes_on} goes on" in found["reauthored"].cause
    (entry,) = [entry for entry in report.generation if entry["rung"] == "reauthored"]
    counts = [ids.count(end) for ids in said.values()]
    # The reference that stops there does so once in a text.
    assert entry["defects"] == sum(min(count, 1) if broken == "reads nothing" else count for count in counts)
    assert entry["matches"] + entry["defects"] == entry["of"]
