"""Measure ladders as whole processes and write the tables into docs/performance.md.

    python benchmarks/ladder.py docs/performance.md

Each ladder is the real command line in a fresh process; a tiny one is run five times and the median quoted, the
full-size ones once. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RUNS = 5
TINY = ("smollm-135m", "qwen2.5-0.5b")
FULL = ("smollm-135m", "openelm-270m", "openelm-450m", "moonshine-tiny", "t5-small")

HEADER = """\
# Measured times and memory

Written by `python benchmarks/ladder.py docs/performance.md` on {cores} cores ({machine}, Python {python}); every figure
is of the real command line in a fresh process, with nothing else running.
"""


def ladder(*arguments: str) -> tuple[float, dict[str, Any]]:
    """Wall seconds of one `parity check`, and its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        began = time.perf_counter()
        command = [sys.executable, "-m", "parity", "check", *arguments, "--no-cache", "--json", str(report)]
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode not in (0, 1):  # a FAIL is a figure too; the table shows it
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
        return time.perf_counter() - began, json.loads(report.read_text())


def tiny_table() -> Iterator[str]:
    """Cold ladders of tiny presets: everything but the drawing of the weights."""
    yield "## A tiny ladder from a cold start\n"
    yield "`parity check MODEL`: original, oracle, re-authored, float, dynamic_int8; seven prompts, 224 positions.\n"
    yield f"| model | seconds, median of {RUNS} | fastest | slowest |"
    yield "|---|---:|---:|---:|"
    for model in TINY:
        ladder(model)  # draws the weights, fills the disk cache
        seconds = sorted(ladder(model)[0] for _ in range(RUNS))
        yield f"| {model} | {statistics.median(seconds):.1f} | {seconds[0]:.1f} | {seconds[-1]:.1f} |"


def full_table(model: str) -> Iterator[str]:
    """One full-size ladder with every recipe."""
    seconds, report = ladder(model, "--weights", "synthetic", "--recipe", "all")
    yield f"\n## {model} at full published size\n"
    yield f"`parity check {model} --weights synthetic --recipe all`: {seconds:.0f} s, drawing the weights included.\n"
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


def main(destination: Path) -> None:
    """Measure and write."""
    import os

    header = HEADER.format(cores=os.cpu_count(), machine=platform.machine(), python=platform.python_version())
    tables = [header, *tiny_table(), *(line for model in FULL for line in full_table(model))]
    destination.write_text("\n".join(tables) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
