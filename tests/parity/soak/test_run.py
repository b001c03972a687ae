"""Draws run for real: they pass, a fault does not, a crash costs one draw, and a run goes on where it stopped."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from models import registry
from parity import environment
from parity.compare.verdict import Verdict
from parity.runners.reauthored import Reauthored
from parity.soak import command, run
from parity.soak.draws import Draw, draws
from parity.soak.results import SCHEMA_VERSION, Outcome, Results, read
from parity.soak.run import run_draw, soak
from parity.soak.variants import variants

HEADER = {"schema_version": SCHEMA_VERSION, "seed": 11}
PRESETS = ("smollm-135m", "gemma-2-2b", "t5-small", "qwen2.5-vl-3b")


def test_no_false_alarm_in_a_few_draws(tmp_path: Path) -> None:
    """Twelve draws, one of them with files, in processes of their own."""
    planned = [replace(draw, files=draw.number == 0) for draw in draws(11, PRESETS, range(12), 0)]
    results = Results(tmp_path / "draws.jsonl", HEADER)
    seen: list[int] = []
    outcomes = soak(planned, results, tmp_path / "failures", 2, lambda outcome: seen.append(outcome.number))
    assert [(outcome.number, outcome.verdict, outcome.cause) for outcome in outcomes] == [
        (number, Verdict.PASS, None) for number in range(12)
    ]
    assert sorted(seen) == list(range(12))
    assert not (tmp_path / "failures").exists()
    assert read(results.path)[1] == outcomes
    rungs = [edge["candidate"] for edge in outcomes[0].edges]
    assert rungs == ["reauthored64", "original", "reauthored", "float", "dynamic_int8"]
    for outcome in outcomes[1:]:
        encodes = registry.get(outcome.preset).family.name == "t5"
        if encodes:
            assert {edge["output"] for edge in outcome.edges} == {"encoder", "logits"}
        assert all(0 <= edge["floor_ratio"] < 16 for edge in outcome.edges)
        assert outcome.positions > outcome.prompts > 0


@dataclass(frozen=True)
class _Faulty(Reauthored):
    """The last block's output projection is a ten-thousandth too large."""

    @contextmanager
    def open(self) -> Iterator[object]:
        with super().open() as session:
            for program in session.programs.values():
                program.model.blocks[-1].attention.o_proj.weight.data *= 1.0001
            yield session


def test_a_fault_is_no_pass_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checkpoint, the ids, and the command that runs the draw again."""
    monkeypatch.setattr(run, "Reauthored", _Faulty)
    draw = Draw(seed=1, number=5, preset="smollm-135m", files=False)
    outcome = run_draw(draw, tmp_path)
    assert outcome.verdict == Verdict.FAIL
    assert "reauthored, logits: floor_ratio" in str(outcome.cause)
    kept = json.loads((tmp_path / draw.name / "draw.json").read_text())
    assert kept["command"] == "parity soak --seed 1 --draw 5 --model smollm-135m --files-every 0"
    assert kept["verdict"] == "FAIL"
    assert len(kept["ids"]) == outcome.prompts
    assert (tmp_path / draw.name / "model.safetensors").is_file()


def test_what_cannot_be_run_is_an_error_not_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised on the way is the cause."""

    def refuse(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr(run, "fit", refuse)
    outcome = run_draw(Draw(seed=1, number=5, preset="smollm-135m", files=False), tmp_path)
    assert outcome.verdict == Verdict.ERROR
    assert outcome.cause == "ZeroDivisionError: nothing to divide"


@dataclass(frozen=True, kw_only=True)
class _Deadly(Draw):
    """Takes its process with it."""

    @property
    def model(self) -> registry.Model:
        os._exit(9)


def test_a_crash_costs_one_draw(tmp_path: Path) -> None:
    """The process is gone, the draw is an ERROR that says so, the others of its process are run by another."""
    planned = list(draws(2, ("smollm-135m",), range(3), 0))
    planned[1] = _Deadly(seed=2, number=1, preset="smollm-135m", files=False)
    outcomes = soak(planned, Results(tmp_path / "draws.jsonl", HEADER), tmp_path / "failures", 1)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.PASS, Verdict.ERROR, Verdict.PASS]
    assert "exit code 9" in str(outcomes[1].cause)


def finished(number: int, verdict: str = "PASS") -> Outcome:
    edges = [
        {"candidate": rung, "output": "logits", "verdict": verdict, "floor_ratio": 1.5, "worst_position_ratio": 2.0}
        for rung in ("original", "reauthored", "float")
    ]
    preset = variants()[number]
    family = registry.get(preset).family.name
    return Outcome(
        number=number, preset=preset, family=family, verdict=verdict, seconds=77.0, prompts=2, positions=9,
        files=True, edges=tuple(edges), cause=None if verdict == "PASS" else "float, logits: floor_ratio 9, limit 8"
    )  # fmt: skip


def asked(folder: Path, count: int) -> command.Soak:
    return command.Soak(
        seed=0, draws=count, files_every=0, workers=1, output=folder / "draws.jsonl", failures=folder / "failures",
        markdown=folder / "soak.md",
    )  # fmt: skip


def begin(folder: Path, outcomes: list[Outcome]) -> None:
    asked_for = {"schema_version": SCHEMA_VERSION, "seed": 0, "presets": variants(), "files_every": 0}
    header = {**asked_for, "environment": environment.describe()}
    results = Results(folder / "draws.jsonl", header)
    results.open()
    for outcome in outcomes:
        results.append(outcome)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Finished draws are not run again; a torn last line is."""
    begin(tmp_path, [finished(0)])
    with (tmp_path / "draws.jsonl").open("a") as file:
        file.write('{"number": 1, "preset"')
    console = Console(file=io.StringIO(), width=120)
    assert command.run(asked(tmp_path, 2), console, console)
    first, second = read(tmp_path / "draws.jsonl")[1]
    assert first == finished(0)
    assert second.number == 1
    assert 0 < second.seconds < 77
    assert "2 draws, 0 false alarms" in console.file.getvalue()


def test_a_false_alarm_is_shown_and_fails_the_run(tmp_path: Path) -> None:
    """In the terminal, on the page and in the answer; with the command that runs it again."""
    begin(tmp_path, [finished(0), finished(1, "FAIL")])
    console = Console(file=io.StringIO(), width=120)
    assert not command.run(asked(tmp_path, 2), console, console)
    shown, page = console.file.getvalue(), (tmp_path / "soak.md").read_text()
    assert "again: parity soak --seed 0 --draw 1 --model" in shown
    assert "2 draws, 1 false alarms" in shown
    assert "## False alarms" in page
    assert "floor_ratio 9, limit 8" in page
