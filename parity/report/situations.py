"""A run's figures in each situation, as every rendering shows them: situations down, rungs across."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parity.compare.verdict import Edge, Verdict
from parity.report.figures import edge_name, ladder, shown
from parity.report.record import Report
from parity.spelling import DASH, figure, number, whole


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure, or the typical and the worst; ``broken`` where the rung is outside its limits in this situation."""

    text: str
    broken: bool = False


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A rung, what its figure is, and whether that is of the logits rather than of what its encoder made."""

    rung: str
    metric: str
    logits: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """A situation, how much was compared in it, and a cell for each of the table's rungs."""

    name: str
    prompts: str
    positions: str
    cells: tuple[Cell, ...]

    @property
    def broken(self) -> bool:
        """Whether any rung is outside its limits here."""
        return any(cell.broken for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class SituationTable:
    """``rows`` begin with those that are outside limits."""

    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, report: Report) -> SituationTable:
        """Of a report; without rows where it has no situations. The original, which is the unit, is left out."""
        edges = [edge for edge, _ in ladder(report) if _situations(edge)]
        edges = [edge for edge in edges if edge.candidate != "original" or edge.verdict is not Verdict.PASS]
        counts = report.prompt_set.get("situations")
        counts = counts if isinstance(counts, Mapping) else {}
        rows = [
            Row(
                name=shown(name),
                prompts=whole(count.get("prompts")),
                positions=whole(count.get("positions")),
                cells=tuple(_cell(edge, name) for edge in edges),
            )
            for name, count in counts.items()
            if isinstance(count, Mapping)
        ]
        headings = tuple(
            Heading(rung=edge_name(edge), metric=_metric(edge), logits=edge.output == "logits") for edge in edges
        )
        return cls(headings=headings, rows=tuple(sorted(rows, key=lambda row: not row.broken)) if edges else ())


def _situations(edge: Edge) -> Mapping[str, Any]:
    return edge.situations if isinstance(edge.situations, Mapping) else {}


def _metric(edge: Edge) -> str:
    """The figure that stands for a rung: in units of the noise, as nats, or for an encoder's rows as a distance."""
    if edge.question != "quality":
        return "typical / worst"
    return "KL mean" if edge.output == "logits" else "rel L2"


def _cell(edge: Edge, name: str) -> Cell:
    found = _situations(edge).get(name)
    if not isinstance(found, Mapping):
        return Cell(text=DASH)
    broken = found.get("verdict") in (Verdict.FAIL, Verdict.ERROR)
    if edge.question == "quality":
        return Cell(text=figure(found.get("kl_mean" if edge.output == "logits" else "rel_l2")), broken=broken)
    # Either of the two may be what fails; where neither is a number the rung was not compared.
    both = [found.get(metric) for metric in ("floor_ratio", "worst_position_ratio")]
    text = " / ".join(map(figure, both)) if any(number(value) is not None for value in both) else DASH
    return Cell(text=text, broken=broken)
