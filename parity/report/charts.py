"""What a page draws: how much of its limits each rung uses up, and what happens position by position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from parity.compare.verdict import Edge, Verdict
from parity.report.figures import full_name, judged, ladder, title, within
from parity.report.record import Report
from parity.spelling import LARGER_IS_BETTER, figure, limit_spelled, number, spelled

#: The figure that stands for an edge, if it was judged by it; the first that applies.
_LEADING = ("floor_ratio", "kl_typical", "kl_mean")
#: Decades of the axis that are always there, and those beyond which a mark stays at the edge.
_LEAST_RANGE = (-2, 1)
_MOST_RANGE = (-8, 8)
#: A share of a limit larger than this counts as this, and one smaller than its inverse as none.
_FAR = 1e99
_TIMES = "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Columns of a chart by position: of more positions, the worst of several in a row share one.
COLUMNS = 240
#: Lines of a chart by position that colours tell apart.
LINES = 8
#: Steps of the axis of such a chart at most.
_STEPS = 4
#: Tokens in a row that are named under the cursor.
_NAMED = 3


def share_of_limit(edge: Edge, metric: str) -> float | None:
    """How much of what its limit allows a figure uses up, at worst: 1 at the limit, 0 for no loss at all.

    Agreement is counted as what is missing from all, a ratio with limits on both sides as its distance from one.
    """
    shares = [
        None if value is None else _share_of(metric, value, edge.limits.get(metric)) for value in judged(edge, metric)
    ]
    return max((share for share in shares if share is not None), default=None) if None not in shares else None


def _share_of(metric: str, value: float, bound: object) -> float | None:
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
    """An edge: the mark that stands for it, and those of its other limits."""

    name: str
    verdict: Verdict
    lead: Mark | None
    others: Sequence[Mark]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Every edge's share of its limit, on one logarithmic axis. ``ticks`` are positions in [0, 1] and their labels."""

    rows: Sequence[ChartRow]
    ticks: Sequence[tuple[float, str]]
    limit: float

    @classmethod
    def of(cls, report: Report) -> Chart:
        """The axis spans what there is to see, always including the limit and some room on both sides."""
        edges = [edge for edge, _ in ladder(report)]
        shares = [share for edge in edges for metric in edge.limits if (share := share_of_limit(edge, metric))]
        decades = [math.log10(share) for share in shares]
        first = max(_MOST_RANGE[0], min(_LEAST_RANGE[0], *(math.floor(decade) for decade in decades), 0))
        last = min(_MOST_RANGE[1], max(_LEAST_RANGE[1], *(math.ceil(decade) for decade in decades), 0))
        axis = _Axis(first, last)
        step = math.ceil((last - first) / 8)
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
        return ChartRow(
            name=full_name(edge),
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
            mark = Mark(
                metric=title(metric),
                x=self.at(share),
                within=within(edge, metric),
                beyond=not self.first <= decade <= self.last,
                value=_judged_text(edge, metric),
                bound=limit_spelled(metric, bound),
                room=_room(share),
            )
            yield metric, (share, mark)


def _judged_text(edge: Edge, metric: str) -> str:
    """A figure and what it is at worst: ``0.0383, at most 0.0451``."""
    value, *ends = judged(edge, metric)
    said = spelled(metric, value)
    if len(ends) == 1:
        said += f", at {'least' if metric in LARGER_IS_BETTER else 'most'} {spelled(metric, ends[0])}"
    return f"{said} ({' to '.join(spelled(metric, end) for end in ends)})" if len(ends) > 1 else said


def _room(share: float) -> str:
    """How many times the figure would fit into its limit, or the limit into it."""
    if share == 0:
        return "all of it left"
    times = 1 / share if share <= 1 else share
    rounded = float(f"{times:.2g}")
    amount = f"{rounded:.1f}" if rounded < 10 else f"{rounded:.0f}" if rounded < 1e5 else figure(rounded)
    return f"{amount}{_TIMES} {'room' if share <= 1 else 'over'}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One edge's values, a height in [0, 1] from the bottom for every column of a chart; ``colour`` is a number."""

    name: str
    colour: int
    heights: Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class ByPosition:
    """Values of several edges by position, on a logarithmic axis of whole decades.

    ``labels`` are those of the axis from the top down. ``limit`` is a height. ``words`` has what every column is: its
    place in the text, and the value of every line.
    """

    lines: Sequence[Line]
    labels: Sequence[str]
    limit: float | None
    words: Sequence[str]

    @classmethod
    def of(
        cls,
        values: Mapping[str, Sequence[object]],
        pieces: Sequence[str],
        limit: float | None = None,
        bottom: float = 0.0,
    ) -> ByPosition | None:
        """``values`` by the names of edges; ``pieces`` is what a person sees of the position's token,
        where that is known.

        Nothing where there is no value that could be drawn. What is zero, or less, lies at the bottom; so does what is
        below ``bottom``, where differences say nothing any more.
        """
        series = {name: [number(value) for value in each] for name, each in list(values.items())[:LINES]}
        count = max(map(len, series.values()), default=0)
        known = [value for each in series.values() for value in each if value is not None]
        drawn = [math.log10(max(value, bottom)) for value in (*known, *([limit] if limit else [])) if value > 0]
        if not known or not drawn:
            return None
        last = math.ceil(max(drawn))
        span = min(max(last - math.floor(min(drawn)), 1), _MOST_RANGE[1])
        step = math.ceil(span / _STEPS)
        first = last - step * math.ceil(span / step)

        def height(value: float) -> float:
            return min(max((math.log10(value) - first) / (last - first), 0.0), 1.0) if value > 0 else 0.0

        wide = math.ceil(count / COLUMNS)
        columns = [range(start, min(start + wide, count)) for start in range(0, count, wide)]
        worst = {name: [_worst(each, column) for column in columns] for name, each in series.items()}
        return cls(
            lines=[
                Line(name=name, colour=place, heights=[None if v is None else height(v) for v in each])
                for place, (name, each) in enumerate(worst.items())
            ],
            labels=[tick(decade) for decade in range(last, first - 1, -step)],
            limit=height(limit) if limit else None,
            words=[
                f"{_place(column, pieces)}: "
                + ", ".join(f"{name} {figure(each[place])}" for name, each in worst.items() if each[place] is not None)
                for place, column in enumerate(columns)
            ],
        )


def _worst(values: Sequence[float | None], column: range) -> float | None:
    return max((v for v in values[column.start : column.stop] if v is not None), default=None)


def _place(column: range, pieces: Sequence[str]) -> str:
    """``position 3, after "fox"``."""
    where = f"position {column.start}" if len(column) == 1 else f"positions {column.start} to {column[-1]}"
    said = "".join(pieces[column.start : column.stop][-_NAMED:])
    return f'{where}, after "{said}"' if said else where
