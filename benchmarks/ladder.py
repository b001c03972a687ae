"""Measure ladders as whole processes and write the tables into docs/performance.md.

    python benchmarks/ladder.py tiny
    python benchmarks/ladder.py again
    python benchmarks/ladder.py full [MODEL...]
    python benchmarks/ladder.py streamed [MODEL...]

Each ladder is the real command line in a fresh process. A tiny one is run five times and the median quoted, as is one
whose files are there already; the others once.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import machine, say, write_section
from processes import spent

from models import registry

RUNS = 5
TINY = ("smollm-135m", "qwen2.5-0.5b")
FULL = ("smollm-135m", "smollm-360m", "openelm-270m", "openelm-450m", "moonshine-tiny", "t5-small")
STREAMED = ("tinyllama-1.1b", "qwen2.5-1.5b", "llama-3.2-3b", "phi-4-mini")


@dataclass(frozen=True)
class Ladder:
    """Wall seconds of one `parity check`, the peak memory of all its processes together in MB, and its report."""

    seconds: float
    peak: float
    report: Any


def ladder(*arguments: str, cached: bool = False, environment: Mapping[str, str] | None = None) -> Ladder:
    """Run one."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        kept = () if cached else ("--no-cache",)
        command = [sys.executable, "-m", "parity", "check", *arguments, *kept, "--json", str(report)]
        took = spent(command, {**os.environ, **(environment or {})}, ends=(0, 1))  # a FAIL is a figure too
        return Ladder(took.seconds, took.peak, json.loads(report.read_text()))


def tiny_table() -> Iterator[str]:
    """Cold ladders of tiny presets: everything but the drawing of the weights."""
    yield "## A tiny ladder from a cold start\n"
    yield f"`python benchmarks/ladder.py tiny` ({machine()})\n"
    yield "`parity check MODEL --no-cache`: original, oracle, re-authored, float, dynamic_int8; seven prompts,"
    yield "224 positions.\n"
    yield f"| model | seconds, median of {RUNS} | fastest | slowest |"
    yield "|---|---:|---:|---:|"
    for model in TINY:
        ladder(model)  # draws the weights, fills the disk cache
        seconds = sorted(ladder(model).seconds for _ in range(RUNS))
        yield f"| {model} | {statistics.median(seconds):.1f} | {seconds[0]:.1f} | {seconds[-1]:.1f} |"


def again_table() -> Iterator[str]:
    """A ladder whose files are not there yet, and the same with them."""
    model = ("smollm-135m", "--weights", "synthetic")
    with tempfile.TemporaryDirectory() as cache:
        own = {"XDG_CACHE_HOME": cache}
        ladder(*model, "--rung", "reauthored", environment=own)  # draws the weights
        cold = ladder(*model, cached=True, environment=own).seconds
        warm = [ladder(*model, cached=True, environment=own).seconds for _ in range(RUNS)]
    yield "## A ladder at full size, and the same again\n"
    yield f"`python benchmarks/ladder.py again` ({machine()})\n"
    yield f"`parity check {' '.join(model)}`: original, oracle, re-authored, float, dynamic_int8.\n"
    yield "| | seconds |"
    yield "|---|---:|"
    yield f"| nothing in the cache | {cold:.1f} |"
    yield f"| unchanged, median of {RUNS} | {statistics.median(warm):.1f} |"


def full_table(model: str) -> Iterator[str]:
    """One full-size ladder with every recipe."""
    ladder(model, "--weights", "synthetic", "--rung", "reauthored", "--no-streamed")  # draws the weights
    done = ladder(model, "--weights", "synthetic", "--recipe", "all", "--no-streamed")
    report = done.report
    yield f"## {model} at full published size\n"
    yield f"`python benchmarks/ladder.py full {model}` ({machine()})\n"
    yield f"`parity check {model} --weights synthetic --recipe all --no-cache`: {done.seconds:.0f} s,"
    yield f"{done.peak:.0f} MB at the peak of all processes together.\n"
    yield "| rung | verdict | floor ratio | rel. L2 | KL mean | KL p99 | top-1 | perplexity ratio | run s | peak MB |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    costs = {rung["name"]: rung for rung in report["rungs"]}
    for edge in report["edges"]:
        figures, cost = edge["metrics"], costs[edge["candidate"]]
        name = edge["candidate"] + ("" if edge["output"] == "logits" else f", {edge['output']}")
        ratio = f"{figures['floor_ratio']:.2f}" if "floor_ratio" in edge["limits"] else "-"
        shown = (("kl_mean", ".2g"), ("kl_p99", ".2g"), ("top1_agreement_clear", ".3f"), ("perplexity_ratio", ".4f"))
        rest = [format(figures[metric], form) if metric in figures else "-" for metric, form in shown]
        spent = [f"{cost['seconds']:.1f}", f"{cost['peak_rss_mb']:.0f}"]
        yield f"| {' | '.join([name, edge['verdict'], ratio, format(figures['rel_l2'], '.2g'), *rest, *spent])} |"
    oracle = costs["original64"]
    made = costs["float"]["artifact"]
    yield f"\nThe oracle took {oracle['seconds']:.1f} s and {oracle['peak_rss_mb']:.0f} MB at its peak; converting to"
    yield f"{made['bytes'] / 1e6:.0f} MB of float32 took {made['convert_seconds']:.0f} s and"
    yield f"{made['convert_peak_rss_mb']:.0f} MB. Quantizing:\n"
    yield "| recipe | seconds | MB | weights |"
    yield "|---|---:|---:|---|"
    for name, cost in costs.items():
        artifact = cost["artifact"]
        if "quantize_seconds" in artifact:
            kinds = ", ".join(f"{count} {precision}" for precision, count in artifact["weights"].items())
            yield f"| {name} | {artifact['quantize_seconds']:.1f} | {artifact['bytes'] / 1e6:.0f} | {kinds} |"


def streamed_table(models: Sequence[str]) -> Iterator[str]:
    """Ladders by stages, a row for each rung."""
    yield "## Models by stages\n"
    yield f"`python benchmarks/ladder.py streamed {' '.join(models)}` ({machine()})\n"
    yield "`parity check MODEL --weights synthetic --streamed`: of the whole run, the peak of all processes"
    yield "together; of each rung, that of its own.\n"
    yield "| model, parameters | seconds | peak MB | rung | verdict | floor ratio or KL mean | run s | peak MB |"
    yield "|---|---:|---:|---|---|---:|---:|---:|"
    for model in models:
        say(model)
        done = ladder(model, "--weights", "synthetic", "--streamed")
        edges = {edge["candidate"]: edge for edge in done.report["edges"]}
        called = f"{model}, {registry.get(model).preset.parameters / 1e9:.2f}B"
        for number, rung in enumerate(done.report["rungs"]):
            edge = edges.get(rung["name"], {"verdict": "-", "metrics": {}})
            figure = edge["metrics"].get("floor_ratio", edge["metrics"].get("kl_mean"))
            about = [called, f"{done.seconds:.0f}", f"{done.peak:.0f}"] if not number else [""] * 3
            figures = [
                "-" if figure is None else f"{figure:.2g}",
                f"{rung['seconds']:.0f}",
                f"{rung['peak_rss_mb']:.0f}",
            ]
            yield f"| {' | '.join([*about, rung['name'], edge['verdict'], *figures])} |"


def main(what: str, *models: str) -> None:
    """Measure and write."""
    if what == "tiny":
        write_section("tiny ladders", tiny_table())
    elif what == "again":
        write_section("ladders again", again_table())
    elif what == "full":
        for model in models or FULL:
            say(model)
            write_section(f"full size {model}", full_table(model))
    elif what == "streamed":
        write_section("streamed", streamed_table(models or STREAMED))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
