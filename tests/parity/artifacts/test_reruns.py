"""The commands with a cache: nothing is converted twice, everything is compared every time, and reports say so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from models import registry
from parity import isolated
from parity.artifacts.cache import SIZE, ArtifactCache
from parity.artifacts.command import ago
from parity.cli import main
from parity.errors import UsageError
from parity.faults.catalogue import faults
from parity.faults.fault import Subject
from parity.faults.planting import Rewrite, plant, planted
from parity.faults.run import run
from parity.faults.template import Template
from parity.pipeline import Request, bisect, check
from parity.progress import Reporter
from parity.report import notes
from parity.weights import resolve

MODEL = registry.get("amd-llama-135m")
QUIET = Reporter(Console(stderr=True), quiet=True)
#: The file's weights are NaN, an ERROR: what FAILs would be bisected, which takes longer.
BROKEN = Rewrite(
    "parity.convert.float_file",
    "yield stored.hollow, values\n",
    "yield stored.hollow, {name: value * float('nan') for name, value in values.items()}\n",
)


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """The environment of commands with a cache of their own, in which the drawn weights are those of all tests."""
    weights = resolve(MODEL, "tiny").folder
    (tmp_path / "parity").mkdir()
    (tmp_path / "parity" / "weights").symlink_to(weights.parents[1])
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path), SIZE: "1", "COLUMNS": "200"}


def parity(place: Mapping[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "parity", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=place, timeout=300)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs that are started."""
    started: list[str] = []
    begin = isolated.Job.__init__

    def counted(self: isolated.Job[Any], name: str, function: Any) -> None:
        started.append(name)
        begin(self, name, function)

    monkeypatch.setattr(isolated.Job, "__init__", counted)
    return started


def made(jobs: list[str]) -> list[str]:
    """Which of them make files, since the last time."""
    found = [name for name in jobs if name.startswith(("converting", "quantizing"))]
    jobs.clear()
    return found


def test_a_check_again_converts_nothing_and_compares_everything(tmp_path: Path, jobs: list[str]) -> None:
    """A changed recipe costs only quantization; the verdicts are of this run, and their files are said not to be.

    What PyTorch gave is kept as well: the exact port, the numbers of each file, and the draws of their noise floors.
    """
    cache = ArtifactCache(tmp_path / "cache", 100_000_000)
    first = check(Request(model=MODEL, rungs=("float", "dynamic_int8"), cache=cache), QUIET)
    assert {"reauthored64", "noise floor", "dynamic_int8 in PyTorch"} <= set(jobs)
    assert any(name.startswith("dynamic_int8 in PyTorch, noise floor") for name in jobs)
    assert made(jobs) == ["converting", "quantizing to dynamic_int8"]
    assert "kept" not in dict(notes.remarks(first))
    again = check(Request(model=MODEL, rungs=("float", "dynamic_int8"), cache=cache), QUIET)
    assert jobs == ["float", "looking at what is stored", "dynamic_int8"], "nothing but what looks at files"
    assert made(jobs) == []
    assert (first.verdict, again.verdict) == ("PASS", "PASS")
    assert dict(notes.remarks(again))["kept"] == (
        "recorded in an earlier run: original64, original; "
        "files made in an earlier run, and run again: float, dynamic_int8; --no-cache makes all anew"
    )
    for before, after in zip(first.rungs[2:], again.rungs[2:], strict=True):
        assert (before.artifact["cached"], after.artifact["cached"]) == (False, True)
        assert {**before.artifact, "cached": True} == after.artifact
    for before, after in zip(first.edges, again.edges, strict=True):
        assert (before.candidate, before.question) == (after.candidate, after.question)
        for metric in ("rel_l2", "floor_ratio", "draws"):
            assert before.metrics.get(metric) == pytest.approx(after.metrics.get(metric))
    ours = check(Request(model=MODEL, rungs=("reauthored64", "reauthored", "float"), cache=cache), QUIET)
    assert jobs == ["reauthored", "float", "looking at what is stored"]
    jobs.clear()
    assert [edge.candidate for edge in ours.edges] == ["original", "reauthored64", "reauthored", "float"]
    other = check(Request(model=MODEL, rungs=("reauthored", "fp16"), cache=cache), QUIET)
    assert other.verdict == "PASS"
    # Rounded weights leave the model as well conditioned as it was: its own floor is that of the numbers, too.
    assert jobs == ["quantizing to fp16", "fp16", "fp16 in PyTorch"]
    assert dict(notes.remarks(other))["kept"] == (
        "recorded in an earlier run: original64, original, reauthored; --no-cache makes all anew"
    )
    assert [edge.candidate for edge in other.edges] == ["original", "reauthored", "fp16", "fp16"]
    assert other.edges[1].metrics["rel_l2"] > 0


def test_a_bisection_again_converts_nothing(tmp_path: Path, jobs: list[str]) -> None:
    """Its diagnostic file and what a recipe makes of it are kept; what they compute is compared all the same."""
    request = Request(model=MODEL, rungs=("fp16",), cache=ArtifactCache(tmp_path / "cache", 100_000_000))
    (first,), (again,) = bisect(request, QUIET), bisect(request, QUIET)
    assert "fp16, stage by stage" in jobs[jobs.index("quantizing to fp16") + 2 :]
    assert made(jobs) == ["converting stage by stage", "quantizing to fp16"]
    assert first.stages == again.stages
    assert first.first is None


def test_a_converted_file_is_a_persons_own(place: dict[str, str], tmp_path: Path) -> None:
    """It is the same the second time, says where it is from, and what is written into it changes nothing kept."""
    options = ("--recipe", "fp16", "--prefill", "8", "--kv-cache", "32")
    first = parity(place, "convert", MODEL.name, "-o", tmp_path / "a.tflite", *options)
    assert first.returncode == 0, first.stderr
    again = parity(place, "convert", MODEL.name, "-o", tmp_path / "b.tflite", *options)
    said = "taken from the cache"
    assert (again.returncode, said in first.stdout, said in again.stdout) == (0, False, True)
    a, b = tmp_path / "a.tflite", tmp_path / "b.tflite"
    assert a.read_bytes() == b.read_bytes()
    assert (a.stat().st_nlink, b.stat().st_nlink) == (1, 1)
    listed = parity(place, "cache", "list")
    assert listed.returncode == 0
    assert re.search(rf"fp16 of {MODEL.name} tiny, prefill 8, 32 slots .* \d\.\d", listed.stdout)
    assert re.search(rf"float32 of {MODEL.name} tiny, prefill 8, 32 slots .* \d\.\d", listed.stdout)
    assert "2 files, 0.0" in listed.stdout
    assert "of at most 1.0 GB" in listed.stdout
    assert "removed 0 files" in parity(place, "cache", "clear", "--older-than", "1").stdout
    cleared = parity(place, "cache", "clear")
    assert (cleared.returncode, cleared.stdout.startswith("removed 2 files, 0.0")) == (0, True)
    assert list((tmp_path / "parity" / "artifacts").iterdir()) == []
    assert b.read_bytes() == a.read_bytes()


def test_the_commands_on_a_cache_that_is_not_there(place: dict[str, str]) -> None:
    """Nothing is kept and nothing removed; a wrong option or size is wrong use."""
    for arguments, said in ((("list",), "0 files, 0.000 GB of at most 1.0 GB"), (("clear",), "removed 0 files")):
        done = parity(place, "cache", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
    assert "nothing is taken or kept" in parity({**place, SIZE: "0"}, "cache", "list").stdout
    for arguments in (("clear", "--older-than", "-1"), ("clear", "--older-than", "x"), ("mend",)):
        assert parity(place, "cache", *arguments).returncode == 2
    for arguments in (("cache", "list"), ("check", MODEL.name)):
        done = parity({**place, SIZE: "much"}, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"parity: {SIZE}=much is no size; set it to gigabytes, or to 0 for no cache\n"


def test_a_fault_in_converting_is_caught_though_a_sound_file_is_kept(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sound file is not taken, the faulty one not kept: even where nobody thinks of ``--no-cache``."""
    for name in ("XDG_CACHE_HOME", SIZE):
        monkeypatch.setenv(name, place[name])
    folder, sound = tmp_path / "planted", tmp_path / "sound"
    for each in (folder, sound):
        each.mkdir()
    arguments = ["check", MODEL.name, "--rung", "float", "--json", str(tmp_path / "report.json")]
    with Template() as template:
        plant([], sound)
        assert template.run(sound, arguments, 300) == 0
        before = sorted((tmp_path / "parity" / "artifacts").rglob("*"))
        assert len(before) == 3 * len(("tokens", "original64", "original", "reauthored64", "noise floor", "float"))
        plant([BROKEN], folder)
        assert template.run(folder, arguments, 300) == 3
        assert planted(folder) == {BROKEN.module}
        report = json.loads((tmp_path / "report.json").read_text())
        assert "NaN" in report["edges"][-1]["cause"]
        assert [rung["artifact"]["cached"] for rung in report["rungs"] if rung["name"] == "float"] == [False]
        assert sorted((tmp_path / "parity" / "artifacts").rglob("*")) == before
        assert template.run(sound, arguments, 300) == 0
        assert "kept" in (sound / "stdout").read_text()


def test_planted_runs_have_no_cache() -> None:
    """The catalogue's runs say so themselves."""
    asked: list[list[str]] = []

    class Asking:
        def run(self, *arguments: Any) -> None:
            asked.append(arguments[1])

    fault = next(fault for fault in faults() if fault.name == "signature outputs swapped")
    run(fault, Subject(MODEL), Asking())
    assert asked[0][0] == "check"
    assert "--no-cache" in asked[0]


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (("check", MODEL.name), "parity.pipeline.check"),
        (("bisect", MODEL.name), "parity.pipeline.bisect"),
        (("generate", MODEL.name, "text"), "parity.pipeline.generate"),
        (("convert", MODEL.name, "-o", "out"), "parity.convert.export.to_file"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_every_command_that_converts_can_do_without(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], function: str
) -> None:
    """And has the user's cache otherwise."""
    caches: list[ArtifactCache | None] = []

    def instead(*arguments: Any, **options: Any) -> None:
        caches.append(options["cache"] if "cache" in options else arguments[0].cache)
        raise UsageError("enough")

    monkeypatch.setattr(function, instead)
    for option in ((), ("--no-cache",)):
        with pytest.raises(SystemExit):
            main([*command, *option])
    assert caches == [ArtifactCache.default(), None]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1.0, "0.0 seconds ago"), (59, "59.0 seconds ago"), (90, "1.5 minutes ago"), (7200, "2.0 hours ago")],
)
def test_ages_are_in_a_fitting_unit(seconds: float, said: str) -> None:
    """The largest that they are one of."""
    assert ago(seconds) == said
