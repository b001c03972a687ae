"""Measure ladders as whole processes and write the tables into docs/performance.md.

    python benchmarks/ladder.py tiny
    python benchmarks/ladder.py again
    python benchmarks/ladder.py full [MODEL...]
    python benchmarks/ladder.py whole [MODEL...]
    python benchmarks/ladder.py streamed [MODEL...]
    python benchmarks/ladder.py peaks

Each ladder is the real command line in a fresh process. A tiny one is run five times and the median quoted, as is one
whose files are there already; the others once. ``peaks`` runs nothing: it puts together what the others have written.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import PAGE, Panel, draw, machine, say, write_section
from processes import spent

from models import registry
from parity.weights import resolve

RUNS = 5
TINY = ("smollm-135m", "qwen2.5-0.5b")
#: Ladders of models at their published size: options, the last of which says how models go through memory.
SIZED = {"full": ("--recipe", "all", "--no-streamed"), "whole": ("--no-streamed",), "streamed": ("--streamed",)}
HEADINGS = {"full": "every recipe", "whole": "whole", "streamed": "by stages"}
_SMALL = ("smollm-135m", "smollm-360m", "tinyllama-1.1b")
MODELS = {
    "full": ("smollm-135m", "smollm-360m", "openelm-270m", "openelm-450m", "moonshine-tiny", "t5-small"),
    "whole": _SMALL,
    "streamed": (*_SMALL, "qwen2.5-1.5b", "llama-3.2-3b", "phi-4-mini"),
}


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
        took = spent(command, {**os.environ, **(environment or {})}, ends=(0, 1, 3))
        found = json.loads(report.read_text())
        if found["verdict"] == "ERROR":  # a FAIL is a figure too
            causes = [found["cause"], *(edge["cause"] for edge in found["edges"])]
            raise SystemExit(f"{' '.join(command)}: {'; '.join(filter(None, causes))}")
        return Ladder(took.seconds, took.peak, found)


def tiny_table() -> Iterator[str]:
    """Cold ladders of tiny presets: everything but the drawing of the weights."""
    yield "## A tiny ladder from a cold start\n"
    yield f"`python benchmarks/ladder.py tiny` ({machine()})\n"
    yield "`parity check MODEL --no-cache`: original, oracle, re-authored, float, dynamic_int8; seven prompts,"
    yield "224 positions.\n"
    yield f"| model | seconds, median of {RUNS} | fastest | slowest |"
    yield "|---|---:|---:|---:|"
    for model in TINY:
        resolve(registry.get(model), "tiny")
        ladder(model)  # fills the disk cache
        seconds = sorted(ladder(model).seconds for _ in range(RUNS))
        yield f"| {model} | {statistics.median(seconds):.1f} | {seconds[0]:.1f} | {seconds[-1]:.1f} |"


def again_table() -> Iterator[str]:
    """A ladder whose files are not there yet, and the same with them."""
    model = ("smollm-135m", "--weights", "synthetic")
    with tempfile.TemporaryDirectory() as cache:
        own = {"XDG_CACHE_HOME": cache}
        weights = resolve(registry.get(model[0]), "synthetic").folder.parents[1]
        (Path(cache) / "parity").mkdir()
        (Path(cache) / "parity" / "weights").symlink_to(weights)
        cold = ladder(*model, cached=True, environment=own).seconds
        warm = [ladder(*model, cached=True, environment=own).seconds for _ in range(RUNS)]
    yield "## A ladder at full size, and the same again\n"
    yield f"`python benchmarks/ladder.py again` ({machine()})\n"
    yield f"`parity check {' '.join(model)}`: original, oracle, re-authored, float, dynamic_int8.\n"
    yield "| | seconds |"
    yield "|---|---:|"
    yield f"| nothing in the cache | {cold:.1f} |"
    yield f"| unchanged, median of {RUNS} | {statistics.median(warm):.1f} |"


def sized_table(what: str, model: str) -> Iterator[str]:
    """One ladder at full published size."""
    options = SIZED[what]
    resolve(registry.get(model), "synthetic")
    done = ladder(model, "--weights", "synthetic", *options)
    costs = {rung["name"]: rung for rung in done.report["rungs"]}
    yield f"## {model} at full published size, {HEADINGS[what]}\n"
    yield f"`python benchmarks/ladder.py {what} {model}` ({machine()})\n"
    yield told(model, options, done) + "\n"
    yield "| rung | verdict | floor ratio | rel. L2 | KL mean | KL p99 | top-1 | perplexity ratio | run s | peak MB |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    oracle = costs["original64"]
    yield f"| original64 |{' - |' * 7} {oracle['seconds']:.1f} | {oracle['peak_rss_mb']:.0f} |"
    for edge in done.report["edges"]:
        figures, cost = edge["metrics"], costs[edge["candidate"]]
        name = edge["candidate"] + ("" if edge["output"] == "logits" else f", {edge['output']}")
        ratio = f"{figures['floor_ratio']:.2f}" if "floor_ratio" in edge["limits"] else "-"
        shown = (("kl_mean", ".2g"), ("kl_p99", ".2g"), ("top1_agreement_clear", ".3f"), ("perplexity_ratio", ".4f"))
        rest = [format(figures[metric], form) if metric in figures else "-" for metric, form in shown]
        ran = [f"{cost['seconds']:.1f}", f"{cost['peak_rss_mb']:.0f}"]
        yield f"| {' | '.join([name, edge['verdict'], ratio, format(figures['rel_l2'], '.2g'), *rest, *ran])} |"
    made = costs["float"]["artifact"]
    if "convert_seconds" not in made:  # by stages, files come and go
        return
    yield f"\nConverting to {made['bytes'] / 1e6:.0f} MB of float32 took {made['convert_seconds']:.1f} s and"
    yield f"{made['convert_peak_rss_mb']:.0f} MB. Quantizing:\n"
    yield "| recipe | seconds | MB | weights |"
    yield "|---|---:|---:|---|"
    for name, cost in costs.items():
        artifact = cost["artifact"]
        if "quantize_seconds" in artifact:
            kinds = ", ".join(f"{count} {precision}" for precision, count in artifact["weights"].items())
            yield f"| {name} | {artifact['quantize_seconds']:.1f} | {artifact['bytes'] / 1e6:.0f} | {kinds} |"


def told(model: str, options: Sequence[str], done: Ladder) -> str:
    """What the whole run took, in the words that ``peaks`` reads."""
    return (
        f"`parity check {model} --weights synthetic {' '.join(options)} --no-cache`: {done.report['verdict']}, "
        f"{done.seconds:.0f} s, {done.peak:.0f} MB at the peak of all processes together."
    )


_TOLD = re.compile(
    r"`parity check (\S+) --weights synthetic (--no-streamed|--streamed) --no-cache`: (\w+), (\d+) s, (\d+) MB"
)


def peaks() -> Iterator[str]:
    """What the page says of whole and of streamed ladders, side by side and drawn."""
    found: dict[str, dict[str, tuple[str, int, int]]] = {}
    for model, way, verdict, seconds, peak in _TOLD.findall(PAGE.read_text(encoding="utf-8")):
        found.setdefault(model, {})[way] = (verdict, int(seconds), int(peak))
    sizes = {model: registry.get(model).preset.parameters / 1e6 for model in found}
    models = sorted(found, key=lambda model: sizes[model])
    yield "## The memory of a ladder by the size of the model\n"
    yield "`python benchmarks/ladder.py peaks`, from the sections of `whole` and `streamed`: float and `dynamic_int8`,"
    yield "weights of full published size, the peak of all processes together.\n"
    yield "| model | parameters | whole s | whole MB | by stages s | by stages MB | verdict |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for model in models:
        ways = [found[model].get(way) for way in ("--no-streamed", "--streamed")]
        cells = [f"{way[1]} | {way[2]}" if way else "- | -" for way in ways]
        verdicts = ", ".join(dict.fromkeys(way[0] for way in ways if way))
        yield f"| {model} | {sizes[model]:.0f}M | {' | '.join(cells)} | {verdicts} |"
    lines = {
        label: [(sizes[model], found[model][way][2]) for model in models if way in found[model]]
        for label, way in (("whole", "--no-streamed"), ("by stages", "--streamed"))
    }
    yield ""
    yield draw("ladder-memory", [Panel("peak memory of a ladder in MB", "million parameters", lines)])


def main(what: str = "", *models: str) -> None:
    """Measure and write."""
    tables = {"tiny": tiny_table, "again": again_table, "peaks": peaks}
    if what in tables and not models:
        write_section(what, tables[what]())
    elif what in SIZED:
        for model in models or MODELS[what]:
            say(model)
            write_section(f"{what} {model}", sized_table(what, model))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
