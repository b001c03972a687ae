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
    run, making = cost.run, cost.making
    made = [f"{making.seconds:.1f}", f"{making.peak_rss_mb:.0f}", f"{making.bytes / 1e6:.1f}"] if making else [""] * 3
    rates = (f"{positions / run.prefill:.1f}", f"{1 / run.decode:.1f}")
    return (cost.rung, *made, f"{run.first:.1f}", *rates, f"{run.peak_rss_mb:.0f}")


def against_plain(bench: Bench) -> str | None:
    """The float file in proportion to the one that the converter makes by itself, if there is one."""
    files = {cost.rung: (cost.making, cost.run) for cost in bench.costs}
    making, run = files.get("float", (None, None))
    plain_making, plain_run = files.get(PLAIN, (None, None))
    if not (making and run and plain_making and plain_run):
        return None
    return (
        f"float against plain: made {plain_making.seconds / making.seconds:.1f} times as fast with "
        f"1/{plain_making.peak_rss_mb / making.peak_rss_mb:.1f} of the memory, runs at "
        f"{plain_run.prefill / run.prefill:.3f} of its prefill rate and "
        f"{plain_run.decode / run.decode:.3f} of its decode rate"
    )


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
    lines += ["", *filter(None, (against_plain(bench), LEGEND))]
    return "\n".join(lines) + "\n"
