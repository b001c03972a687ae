"""A report as one HTML file that needs nothing else: no network, no scripts. Looks as good on paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parity.compare.verdict import Edge, Verdict
from parity.report import figures
from parity.report.figures import COLUMNS, DASH, LARGER_IS_BETTER, NAMED, Summary, number, shown
from parity.report.record import Report, overall
from parity.report.situations import SituationTable
from parity.report.templates import template

#: The figure that stands for a rung in the chart, if it was judged by it; the first that applies.
_LEADING = ("floor_ratio", "kl_mean")
#: Decades of the axis that are always there, and those beyond which a mark stays at the edge.
_LEAST_RANGE = (-2, 1)
_MOST_RANGE = (-8, 8)
#: A share of a limit larger than this counts as this, and one smaller than its inverse as none.
_FAR = 1e99
_TIMES = "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Characters of a rung's name that there is room for beside the chart.
_NAME_LENGTH = 24


def to_html(reports: Sequence[Report]) -> str:
    """The verdict, every rung's headroom at a glance, the figures, and what one needs to know to trust or repeat it."""
    return template("report.html").render(
        text=figures,
        columns=COLUMNS,
        dash=DASH,
        named=NAMED,
        reports=reports,
        charts=[Chart.of(report) for report in reports],
        situations=[SituationTable.of(report) for report in reports],
        summaries=[Summary.of(report) for report in reports],
        verdict=overall(reports),
        environments=_environments(reports),
    )


def _environments(reports: Sequence[Report]) -> list[tuple[list[str], tuple[tuple[str, str], ...]]]:
    """Each different environment once, with the models it belongs to."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for report in reports:
        found.setdefault(tuple(figures.environment_lines(report.environment)), []).append(shown(report.model))
    return [(models, lines) for lines, models in found.items()]


def share_of_limit(edge: Edge, metric: str) -> float | None:
    """How much of what its limit allows a figure uses up: 1 at the limit, 0 for no loss at all.

    Agreement is counted as what is missing from all, a ratio with limits on both sides as its distance from one.
    """
    value, bound = number(edge.metrics.get(metric)), edge.limits.get(metric)
    if value is None:
        return None
    if isinstance(bound, (list, tuple)):
        ends = [number(end) for end in bound]
        end = ends[-1 if value > 1 else 0] if len(ends) == 2 else None
        if end is None or end <= 0 or end == 1 or value <= 0:
            return None
        share = math.log(value) / math.log(end)
    else:
        most = number(bound)
        if most is None:
            return None
        used, allowed = (1 - value, 1 - most) if metric in LARGER_IS_BETTER else (value, most)
        if allowed <= 0:
            return None
        share = used / allowed
    return min(share, _FAR) if share > 1 / _FAR else 0.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One figure on the axis. ``x`` in [0, 1]; ``beyond`` where it would lie off the axis."""

    metric: str
    x: float
    within: bool
    beyond: bool
    value: str
    bound: str
    room: str


@dataclass(frozen=True, kw_only=True)
class ChartRow:
    """A rung: the mark that stands for it, and those of its other limits."""

    rung: str
    short: str
    verdict: Verdict
    lead: Mark | None
    others: Sequence[Mark]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Every rung's share of its limit, on one logarithmic axis. ``ticks`` are positions in [0, 1] and their labels."""

    rows: Sequence[ChartRow]
    ticks: Sequence[tuple[float, str]]
    limit: float

    @classmethod
    def of(cls, report: Report) -> Chart:
        """The axis spans what there is to see, always including the limit and some room on both sides."""
        edges = [edge for edge, _ in figures.ladder(report)]
        shares = [share for edge in edges for metric in edge.limits if (share := share_of_limit(edge, metric))]
        decades = [math.log10(share) for share in shares]
        first = max(_MOST_RANGE[0], min(_LEAST_RANGE[0], *(math.floor(decade) for decade in decades), 0))
        last = min(_MOST_RANGE[1], max(_LEAST_RANGE[1], *(math.ceil(decade) for decade in decades), 0))
        axis = _Axis(first, last)
        step = 1 if last - first <= 8 else 2
        ticks = [(axis.at(10.0**decade), _share(decade)) for decade in range(first, last + 1) if decade % step == 0]
        return cls(rows=[axis.row(edge) for edge in edges], ticks=ticks, limit=axis.at(1.0))


def tick(decade: int) -> str:
    """A power of ten at the edge of an axis."""
    return f"{10.0**decade:g}" if -3 <= decade <= 3 else f"10{str(decade).translate(_SUPERSCRIPTS)}"


def _share(decade: int) -> str:
    return "limit" if decade == 0 else tick(decade) + _TIMES


@dataclass(frozen=True)
class _Axis:
    first: int
    last: int

    def at(self, share: float) -> float:
        """Where a share of the limit lies, the ends of the axis for what is beyond them."""
        decade = math.log10(share) if share > 0 else -math.inf
        return min(max((decade - self.first) / (self.last - self.first), 0.0), 1.0)

    def row(self, edge: Edge) -> ChartRow:
        """The leading figure, unless another one is outside its limit: then the one that is furthest out."""
        marks = dict(self.marks(edge))
        broken = [metric for metric, (share, _) in marks.items() if share > 1]
        lead = max(broken, key=lambda metric: marks[metric][0], default=None)
        lead = lead or next((metric for metric in (*_LEADING, *marks) if metric in marks), None)
        rung = figures.edge_name(edge)
        return ChartRow(
            rung=rung,
            short=rung if len(rung) <= _NAME_LENGTH else f"{rung[: _NAME_LENGTH - 1]}…",
            verdict=edge.verdict,
            lead=marks[lead][1] if lead else None,
            others=[mark for metric, (_, mark) in marks.items() if metric != lead],
        )

    def marks(self, edge: Edge) -> Iterator[tuple[str, tuple[float, Mark]]]:
        """The share and the mark of every figure that has a limit."""
        for metric, bound in edge.limits.items():
            share = share_of_limit(edge, metric)
            if share is None:
                continue
            decade = math.log10(share) if share else -math.inf
            form = figures.SHOWN_AS.get(metric, figures.figure)
            mark = Mark(
                metric=figures.TITLES.get(metric, shown(metric)),
                x=self.at(share),
                within=figures.within(edge, metric),
                beyond=not self.first <= decade <= self.last,
                value=form(edge.metrics[metric]),
                bound=figures.bound_text(metric, bound),
                room=_room(share),
            )
            yield metric, (share, mark)


def _room(share: float) -> str:
    """How many times the figure would fit into its limit, or the limit into it."""
    if share == 0:
        return "all of it left"
    times = 1 / share if share <= 1 else share
    rounded = float(f"{times:.2g}")
    amount = f"{rounded:.1f}" if rounded < 10 else f"{rounded:.0f}" if rounded < 1e5 else figures.figure(rounded)
    return f"{amount}{_TIMES} {'room' if share <= 1 else 'over'}"
