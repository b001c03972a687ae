"""The page that benchmarks write to: a section each, and charts beside it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from parity.files import write_whole
from parity.report.templates import template

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
HEADER = """\
# Measured times and memory

Each section is written by the command it names, run on a machine that does nothing else. Every figure is of whole
processes; where several rounds were run it is their median. `parity bench MODEL` measures yours on your machine.
"""
#: Of a chart's drawing area, in pixels.
WIDTH, HEIGHT, LEFT, TOP = 460, 220, 60, 44
COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df")


def machine() -> str:
    """What the figures of a section are of."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def say(text: str) -> None:
    """A line to whoever waits."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def write_section(name: str, lines: Iterable[str]) -> None:
    """Put a section in its place on the page, which is otherwise left as it is; a new one goes to the end."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEADER
    section = begin + "\n".join(lines).rstrip() + "\n" + end
    before, found, rest = text.partition(begin)
    text = before + section + rest.partition(end)[2] if found else f"{text.rstrip()}\n\n{section}"
    write_whole(PAGE, text)


@dataclass(frozen=True)
class Panel:
    """A chart of lines: for each, by name, the points that were measured."""

    title: str
    across: str
    series: Mapping[str, Sequence[tuple[float, float]]]


def draw(name: str, panels: Sequence[Panel]) -> str:
    """Write the chart ``docs/NAME.svg``, panels side by side; returns what refers to it from the page."""
    step = LEFT + WIDTH + 40
    drawn = [_placed(panel, LEFT + number * step) for number, panel in enumerate(panels)]
    size = {"width": step * len(panels), "height": TOP + HEIGHT + 56, "bottom": TOP + HEIGHT}
    write_whole(PAGE.parent / f"{name}.svg", template("chart.svg", Path(__file__).parent).render(panels=drawn, **size))
    return f"![{'; '.join(panel.title for panel in panels)}]({name}.svg)"


def _placed(panel: Panel, left: int) -> dict[str, object]:
    """A panel in pixels."""
    points = [point for line in panel.series.values() for point in line]
    most_x = max(x for x, _ in points)
    unit = _unit(max(y for _, y in points))
    most_y = math.ceil(max(y for _, y in points) / unit) * unit

    def place(x: float, y: float) -> tuple[float, float]:
        return round(left + WIDTH * x / most_x, 1), round(TOP + HEIGHT * (1 - y / most_y), 1)

    lines = [
        {"label": label, "colour": colour, "points": [place(*point) for point in line], "key": TOP + 14 + 17 * number}
        for number, ((label, line), colour) in enumerate(zip(panel.series.items(), COLOURS, strict=False))
    ]
    return {
        "title": panel.title,
        "across": panel.across,
        "left": left,
        "right": left + WIDTH,
        "lines": lines,
        "xs": [(place(x, 0)[0], f"{x:.0f}") for x in sorted({x for x, _ in points})],
        "ys": [(place(0, unit * n)[1], f"{unit * n:g}") for n in range(round(most_y / unit) + 1)],
    }


def _unit(most: float) -> float:
    """The distance between ticks: 1, 2 or 5 times a power of ten, four to nine of them."""
    power = 10 ** math.floor(math.log10(most))
    return next(power * step for step in (0.1, 0.2, 0.5, 1.0, 2.0) if most / (power * step) <= 9)
