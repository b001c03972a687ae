"""A bisection as a table in a terminal, as one HTML page with a plot, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.bisect.reproduction import Replayed
from parity.compare.bisect import Bisection, StageErrors
from parity.report.charts import tick
from parity.report.figures import shown
from parity.report.record import without_infinities
from parity.report.templates import template
from parity.spelling import DASH, figure
from parity.trace import STAGE_PHASES

COLUMNS = {
    "entering": "accumulated error of what enters, from the first stage of the phase on",
    "own": "error that the stage makes of the reference's inputs; relative L2, as all of these",
    "floor": "what float32 costs the reference's own stage on the same inputs",
    "ratio": "own error in units of the floor; for a recipe, as a share of the limit",
    "worst": "the same at the worst single row, in units of the floor's own worst",
    "limit": "what the own error may be",
    "leaving": "accumulated error of what leaves",
}
_CELLS: Mapping[str, Callable[[StageErrors], str]] = {
    "entering": lambda row: figure(row.entering),
    "own": lambda row: figure(row.own),
    "floor": lambda row: figure(row.floor),
    "ratio": lambda row: figure(row.ratio),
    "worst": lambda row: figure(row.worst_ratio),
    "limit": lambda row: figure(row.limit),
    "leaving": lambda row: figure(row.leaving),
}


def title(bisection: Bisection) -> str:
    """``reauthored against original64``."""
    return shown(f"{bisection.rung} against {bisection.reference}")


def finding(bisection: Bisection) -> str:
    """The first bad stage and what to make of it, or that there is none."""
    if bisection.first is None:
        return shown(bisection.remark)
    return shown(f"first bad stage: {bisection.first}, in {bisection.phase}; {bisection.remark}")


def render(bisection: Bisection, console: Console) -> None:
    """Print every stage of a rung, the phases one after the other, and what was found."""
    ascii_only = console.options.ascii_only
    table = Table(
        box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="dim",
    )
    table.add_column("stage", overflow="fold")
    table.add_column("phase")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in bisection.stages:
        style = "bold red" if row.bad else ""
        cells = (cell(row).replace(DASH, "-" if ascii_only else DASH) for cell in _CELLS.values())
        table.add_row(*(Text(text, style) for text in (shown(row.stage), row.phase, *cells)))
    console.print()
    console.print(Text(title(bisection), "bold"))
    console.print(table)
    console.print(Text(finding(bisection), "bold red" if bisection.first else "green"), soft_wrap=True)


def render_replayed(replayed: Replayed, console: Console) -> None:
    """Print how far off the stage was, and is."""
    it = replayed.reproduction
    console.print(Text(shown(f"{it.model}, {it.rung}: {it.stage}, in {it.phase}"), "bold"))
    words = f"relative L2 {figure(replayed.now)}, was {figure(replayed.then)}, limit {figure(it.limit)}"
    console.print(Text(shown(words), "bold red" if replayed.bad else "green"))


def to_json(bisections: Sequence[Bisection], about: Mapping[str, Any]) -> dict[str, Any]:
    """The bisections of a model; figures that are not finite become null."""
    whole = {
        "schema_version": 1,
        **about,
        "rungs": [bisection.to_json() for bisection in bisections],
        "verdict": "FAIL" if any(bisection.first for bisection in bisections) else "PASS",
    }
    cleaned: dict[str, Any] = without_infinities(whole)
    return cleaned


def to_html(bisections: Sequence[Bisection], about: Mapping[str, Any]) -> str:
    """The finding, the growth of the error by depth, and every stage's figures."""
    return template("stages.html").render(
        about={shown(name): shown(value) for name, value in about.items()},
        bad=any(bisection.first for bisection in bisections),
        sections=[
            {
                "title": title(bisection),
                "finding": finding(bisection),
                "bad": bisection.first is not None,
                "prompts": shown(", ".join(bisection.prompts)),
                "plots": [
                    Plot.of(phase, rows)
                    for phase in STAGE_PHASES
                    if (rows := [row for row in bisection.stages if row.phase == phase])
                ],
                "rows": [
                    (shown(row.stage), row.phase, [cell(row) for cell in _CELLS.values()], row.bad)
                    for row in bisection.stages
                ],
            }
            for bisection in bisections
        ],
        columns=COLUMNS,
        dash=DASH,
    )


@dataclass(frozen=True, kw_only=True)
class Point:
    """A stage on the plot: heights in [0, 1] from the bottom, and the words that appear beside it."""

    stage: str
    label: bool
    x: float
    own: float
    leaving: float
    limit: float
    floor: float | None
    bad: bool
    words: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The stages of a phase by depth over a logarithmic axis of errors; ``ticks`` are heights and their labels."""

    phase: str
    points: Sequence[Point]
    ticks: Sequence[tuple[float, str]]

    #: Stages whose names there is room for.
    LABELS = 14

    @classmethod
    def of(cls, phase: str, rows: Sequence[StageErrors]) -> Plot:
        """The axis spans all that there is to see in whole decades; nothing and infinity lie at its ends."""
        values = [value for row in rows for value in (row.own, row.leaving, row.limit, row.floor) if value]
        decades = [math.log10(value) for value in values if math.isfinite(value)]
        first, last = math.floor(min(decades, default=-8)), math.ceil(max(decades, default=0))
        last = max(last, first + 1)

        def height(value: float) -> float:
            if value <= 0:
                return 0.0
            return min(max((math.log10(value) - first) / (last - first), 0.0), 1.0) if math.isfinite(value) else 1.0

        every = math.ceil(len(rows) / cls.LABELS)
        # The name of the first bad stage is always there, and its neighbours' leave room for it.
        bad = next((number for number, row in enumerate(rows) if row.bad), -every)
        points = [
            Point(
                stage=shown(row.stage),
                label=number == bad or (number % every == 0 and abs(number - bad) >= every),
                x=(number + 0.5) / len(rows),
                own=height(row.own),
                leaving=height(row.leaving),
                limit=height(row.limit),
                floor=None if row.floor is None else height(row.floor),
                bad=row.bad,
                words=shown(
                    f"{row.stage}: own {figure(row.own)}, limit {figure(row.limit)}, leaving {figure(row.leaving)}"
                ),
            )
            for number, row in enumerate(rows)
        ]
        step = 1 if last - first <= 6 else 2
        ticks = [(height(10.0**decade), tick(decade)) for decade in range(last, first - 1, -step)]
        return cls(phase=phase, points=points, ticks=ticks)
