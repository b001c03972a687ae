"""``parity bench``: what it measures of every rung, and what it makes of that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from models import registry
from parity.bench import DECODED, Bench, Cost, Making, Run, bench
from parity.cli import app
from parity.pipeline import Request
from parity.progress import Reporter
from parity.report.costs import against_plain, rows, to_markdown

QUIET = Reporter(Console(stderr=True), quiet=True)


def test_every_rung_is_made_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line: originals, the model, both ways to convert, and a recipe."""
    monkeypatch.setattr("parity.bench.LEAST_SECONDS", 0.0)
    report, page = tmp_path / "bench.json", tmp_path / "bench.md"
    asked = ["bench", "smollm-135m", "--rounds", "1", "--plain", "--json", str(report), "--markdown", str(page)]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())
    rungs = {rung["name"]: rung for rung in found["rungs"]}
    assert list(rungs) == ["original", "reauthored", "plain", "float", "dynamic_int8"]
    assert found["decoded"] == DECODED
    assert found["prompt"] == 128
    for name, rung in rungs.items():
        assert len(rung["runs"]) == 1
        assert rung["prefill_rate"] > rung["decode_rate"] > 0
        assert all(run["first"] > run["prefill"] and run["peak_rss_mb"] > 50 for run in rung["runs"])
        assert ("made" in rung) == (name in ("plain", "float", "dynamic_int8"))
    assert rungs["dynamic_int8"]["made"][0]["bytes"] < rungs["float"]["made"][0]["bytes"] / 2
    assert "float against plain" in page.read_text()
    assert all(name in done.output for name in rungs)


def test_sounds_make_their_own_prompt() -> None:
    """The positions that count are those of the encoder, where they are more."""
    measured = bench(Request(model=registry.get("moonshine-tiny"), rungs=("reauthored",)), QUIET, rounds=1, plain=False)
    (cost,) = measured.costs
    assert cost.rung == "reauthored"
    assert measured.prompt > 16


def cost(name: str, seconds: float, prefill: float, decode: float) -> Cost:
    runs = [Run(2.0, prefill * factor, decode * factor, 300.0) for factor in (1.0, 1.1, 9.0)]
    return Cost(name, runs, [Making(seconds * factor, 1000 * seconds, 5_000_000) for factor in (1.0, 1.2, 7.0)])


MEASURED = Bench(
    model="m",
    weights="tiny",
    parameters_bytes=1_000_000,
    prompt=64,
    decoded=DECODED,
    threads=2,
    costs=[cost("plain", 10.0, 0.4, 0.02), cost("float", 2.0, 0.5, 0.01)],
    environment={},
)


def test_medians_are_told_and_proportions_kept() -> None:
    """What disturbs one round disturbs no figure; a rate is of the median."""
    assert rows(MEASURED)[1] == ("float", "2.4", "2000", "5.0", "2.0", "116.4", "90.9", "300")
    assert against_plain(MEASURED) == (
        "float against plain: made 5.0 times as fast with 1/5.0 of the memory, "
        "runs at 0.800 of its prefill rate and 2.000 of its decode rate"
    )
    assert against_plain(replace(MEASURED, costs=MEASURED.costs[1:])) is None
    assert "| float | 2.4 | 2000 |" in to_markdown(MEASURED)


def test_a_rung_without_a_file_has_no_cost_of_making() -> None:
    """The columns stay empty."""
    original = Cost("original", [Run(1.0, 0.5, 0.1, 200.0)])
    assert rows(replace(MEASURED, costs=[original])) == [("original", "", "", "", "1.0", "128.0", "10.0", "200")]
