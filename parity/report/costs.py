"""What ``parity bench`` has measured, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parity.bench import PLAIN, Bench, Cost

if TYPE_CHECKING:
    from rich.console import Console

HEADINGS = ("rung", "made s", "peak MB", "file MB", "first s", "prefill /s", "decode /s", "peak MB")
#: What the headings mean.
LEGEND = (
    "made: converted, or a recipe applied to the float file; first: from nothing to the first decoded token; prefill "
    "and decode: positions a second; peak: memory of the process that makes the file, and of the one that runs it."
)


def rows(bench: Bench) -> list[Sequence[str]]:
    """A row for every rung, in ladder order."""
    return [_row(cost, bench.prompt) for cost in bench.costs]


def _row(cost: Cost, positions: int) -> Sequence[str]:
    seconds, peak, size = (cost.median_made(name) for name in ("seconds", "peak_rss_mb", "bytes"))
    made = (
        []
        if seconds is None or peak is None or size is None
        else [f"{seconds:.1f}", f"{peak:.0f}", f"{size / 1e6:.1f}"]
    )
    rates = (f"{positions / cost.median('prefill'):.1f}", f"{1 / cost.median('decode'):.1f}")
    return (
        cost.rung,
        *(made or ("", "", "")),
        f"{cost.median('first'):.1f}",
        *rates,
        f"{cost.median('peak_rss_mb'):.0f}",
    )


def against_plain(bench: Bench) -> str | None:
    """The float file in proportion to the one that the converter makes by itself, if there is one."""
    found = {cost.rung: cost for cost in bench.costs}
    if PLAIN not in found or "float" not in found:
        return None
    ours, plain = found["float"], found[PLAIN]
    seconds, peak = (_ratio(plain.median_made(name), ours.median_made(name)) for name in ("seconds", "peak_rss_mb"))
    prefill, decode = (plain.median(name) / ours.median(name) for name in ("prefill", "decode"))
    return (
        f"float against plain: made {seconds:.1f} times as fast with 1/{peak:.1f} of the memory, "
        f"runs at {prefill:.3f} of its prefill rate and {decode:.3f} of its decode rate"
    )


def _ratio(one: float | None, other: float | None) -> float:
    assert one is not None, "files have been made"
    assert other is not None, "files have been made"
    return one / other


def about(bench: Bench) -> str:
    """What was measured."""
    rounds = len(bench.costs[0].runs)
    return (
        f"{bench.model}, weights {bench.weights}, {bench.parameters_bytes / 1e6:,.1f} MB stored: a prompt of "
        f"{bench.prompt} positions, then {bench.decoded} tokens, {bench.threads} threads, median of {rounds}"
    )


def render(bench: Bench, console: Console) -> None:
    """A table, and what it means."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "rung" else "right", no_wrap=heading == "rung")
    for row in rows(bench):
        table.add_row(*row)
    console.print(about(bench), markup=False, highlight=False)
    console.print(table)
    for line in filter(None, (against_plain(bench), LEGEND)):
        console.print(line, markup=False, highlight=False)


def to_markdown(bench: Bench) -> str:
    """The same, for a page."""
    lines = [about(bench) + ".", "", f"| {' | '.join(HEADINGS)} |", "|---" + "|---:" * (len(HEADINGS) - 1) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(bench)]
    lines += ["", *([against_plain(bench) or ""] if against_plain(bench) else []), LEGEND]
    return "\n".join(lines) + "\n"
