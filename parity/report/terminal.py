"""A report as a table in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from parity.compare.verdict import Verdict
from parity.report.figures import (
    BY_IMPORTANCE,
    MORE,
    NAMED,
    QUALITY,
    RUN,
    SOUND,
    SUMMARY,
    Column,
    Row,
    Summary,
    has_quality,
    ladder_rows,
    made,
    outcome,
    prompts_text,
    shown,
    tally,
    weights_text,
)
from parity.report.notes import causes, costs, exceptions, generated, remarks
from parity.report.record import Report, overall
from parity.report.situations import SituationTable
from parity.spelling import DASH, seconds

STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.ERROR: "bold magenta"}


class _Page:
    """Writes to one console: foreign text only ever as plain text, and in ASCII where that is all there is."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.ascii = console.options.ascii_only

    def text(self, text: str, style: str = "") -> Text:
        """``text`` as it is, no markup in it meant."""
        if self.ascii:
            known = {DASH: "-", "≤": "<=", "≥": ">=", "‖": "||"}
            text = "".join(known.get(c, c) for c in text).encode("ascii", "backslashreplace").decode("ascii")
        # The style belongs to these characters; as the style of the whole it would spread to what is added to them.
        return Text(overflow="fold").append(text, style)

    def paragraph(self, sentence: Text, label: Text | None = None, indent: int = 0) -> None:
        """``sentence`` in lines of its own, ``indent`` to the right of the margin, where ``label`` stands."""
        start = (label or Text()).copy()
        start.pad_right(indent - start.cell_len)
        for line in sentence.wrap(self.console, max(1, self.console.width - indent)):
            line.rstrip()
            self.console.print(start + line, highlight=False)
            start = Text(" " * indent)

    def table(self, first: str) -> Table:
        """An empty table; its first column is a name that may be cut into lines, for numbers may not."""
        style = box.ASCII2 if self.ascii else box.SIMPLE_HEAD
        table = Table(box=style, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
        table.add_column(first, max_width=max(22, self.console.width // 4), overflow="fold")
        return table

    def fits(self, table: Table) -> bool:
        """Whether nothing would have to be cut."""
        unbounded = self.console.options.update(width=10_000)
        return Measurement.get(self.console, unbounded, table).maximum <= self.console.width

    def notes(self, rows: Sequence[tuple[Text, Text]]) -> None:
        """Labels on the left, sentences beside them that wrap within their own column."""
        if rows:
            self.console.print()
        indent = max((label.cell_len for label, _ in rows), default=0) + 2
        for label, sentence in rows:
            self.paragraph(sentence, label, indent)


def render(report: Report, console: Console) -> None:
    """Print one model's report: a row for each rung and situation, why it did not pass, what to know, the verdict."""
    page = _Page(console)
    made_of = f"  {shown(report.family)}, weights {weights_text(report)}, prompts {prompts_text(report)}"
    page.paragraph(page.text(shown(report.model), "bold") + page.text(made_of, "dim"))
    if report.edges:
        console.print()
        console.print(_ladder_table(page, ladder_rows(report)))
    situations = SituationTable.of(report)
    if situations.rows:
        console.print()
        console.print(_situation_table(page, situations))
    notes = (_cause_notes, _remark_notes, _precision_notes, _cost_notes, _generation_notes)
    page.notes([row for rows in notes for row in rows(page, report)])
    console.print()
    if about := made(report):
        page.paragraph(page.text(", ".join(about), "dim"))
    page.paragraph(
        page.text(report.verdict, STYLES[report.verdict])
        + page.text(f" {shown(report.model)}", "bold")
        + page.text(f"  {outcome(report)}")
    )


def _ladder_table(page: _Page, rows: Sequence[Row]) -> Table:
    """With as many columns as there is room for, the most important ones first."""
    chosen: list[Column] = []
    for column in BY_IMPORTANCE:
        useful = column not in QUALITY or has_quality(rows)
        if useful and page.fits(_table_of(page, rows, [*chosen, column])):
            chosen.append(column)
    return _table_of(page, rows, chosen)


def _table_of(page: _Page, rows: Sequence[Row], chosen: Sequence[Column]) -> Table:
    """A line for each row: is it sound, by how much; can the model afford it, by how much; what else there is."""
    sound, quality, rest = (
        [column for column in columns if column in chosen] for columns in (SOUND, QUALITY, (*MORE, *RUN))
    )
    both = has_quality(rows)
    table = page.table("rung")
    table.add_column("sound" if both else "verdict", no_wrap=True)
    for column in sound:
        table.add_column(page.text(column.title.strip()), justify="right", no_wrap=True)
    if both:
        table.add_column("quality", no_wrap=True)
    for column in (*quality, *rest):
        table.add_column(page.text(column.title.strip()), justify="right", no_wrap=True)

    def cell(column: Column, row: Row) -> Text:
        text = column.show(row)
        return page.text(text, "dim" if text == DASH else "bold red" if column.broken(row) else "")

    for row in rows:
        verdicts = [
            page.text(edge.verdict, STYLES[edge.verdict]) if edge else page.text("")
            for edge in (row.sound, row.quality)
        ]
        table.add_row(
            page.text(row.name),
            verdicts[0],
            *(cell(column, row) for column in sound),
            *verdicts[1 : 1 + both],
            *(cell(column, row) for column in (*quality, *rest)),
        )
    return table


def _situation_table(page: _Page, situations: SituationTable) -> Table:
    """With as many rungs as there is room for: broken ones first, then logits, then what encoders made."""

    def importance(at: int) -> tuple[bool, bool]:
        return not any(row.cells[at].broken for row in situations.rows), not situations.headings[at].logits

    order = sorted(range(len(situations.headings)), key=importance)
    chosen: list[int] = []
    for at in order:
        if page.fits(_situations_of(page, situations, sorted([*chosen, at]))):
            chosen.append(at)
    return _situations_of(page, situations, sorted(chosen))


def _situations_of(page: _Page, situations: SituationTable, chosen: Sequence[int]) -> Table:
    table = page.table("situation")
    table.add_column("prompts", justify="right", no_wrap=True)
    table.add_column("positions", justify="right", no_wrap=True)
    for heading in (situations.headings[at] for at in chosen):
        title = "\n".join([*page.text(heading.rung).plain.split(" "), heading.metric])
        table.add_column(Text(title), justify="right", no_wrap=True)
    for row in situations.rows:
        cells = [row.cells[at] for at in chosen]
        table.add_row(
            page.text(row.name, "bold red" * row.broken),
            page.text(row.prompts),
            page.text(row.positions),
            *(page.text(at.text, "dim" if at.text == DASH else "bold red" if at.broken else "") for at in cells),
        )
    return table


def _cause_notes(page: _Page, report: Report) -> Iterator[tuple[Text, Text]]:
    for cause in causes(report):
        named = f"{', '.join(cause.rungs)}: " if cause.rungs else ""
        yield page.text(cause.verdict, STYLES[cause.verdict]), page.text(named, "bold") + page.text(cause.text)


def _remark_notes(page: _Page, report: Report) -> Iterator[tuple[Text, Text]]:
    for label, sentence in remarks(report):
        yield page.text(label, "dim"), page.text(sentence)


def _precision_notes(page: _Page, report: Report) -> Iterator[tuple[Text, Text]]:
    for position, found in enumerate(exceptions(report)):
        names = [name for name, _, _ in found.weights]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        sentence = f"{found.count} {found.precisions} ({', '.join(names[:NAMED])}{more})"
        label = "" if position else "precision"
        yield page.text(label, "yellow"), page.text(f"{found.rung}: ", "bold") + page.text(sentence)


def _cost_notes(page: _Page, report: Report) -> Iterator[tuple[Text, Text]]:
    """What the typical prompt loses, and the outliers; the other figures are in the other renderings."""
    for position, found in enumerate(costs(report)):
        sentence = page.text(f"{found.rung}: ", "bold") + page.text(found.sentence)
        yield page.text("" if position else "quality", "dim"), sentence


def _generation_notes(page: _Page, report: Report) -> Iterator[tuple[Text, Text]]:
    for position, found in enumerate(generated(report)):
        named = page.text(f"{', '.join(found.rungs)}: ", "bold")
        yield page.text("" if position else "generated", "dim"), named + page.text(found.text, "red" * found.defect)


def render_summary(reports: Sequence[Report], console: Console) -> None:
    """Print several models' reports as one row each, and why those that did not pass did not."""
    page = _Page(console)
    summaries = [Summary.of(report) for report in reports]
    if summaries:
        optional = ["seconds", "worst", "flips", "weights"]
        table = _summary_table(page, summaries, optional)
        while optional and not page.fits(table):
            optional = optional[:-1]
            table = _summary_table(page, summaries, optional)
        console.print(table)
    notes = []
    for report in reports:
        for cause in causes(report):
            named = f"{shown(report.model)} {', '.join(cause.rungs)}".rstrip()
            sentence = page.text(f"{named}: ", "bold") + page.text(cause.text)
            notes.append((page.text(cause.verdict, STYLES[cause.verdict]), sentence))
    page.notes(notes)
    console.print()
    verdict = overall(reports)
    took = seconds(sum(report.seconds for report in reports))
    page.paragraph(page.text(verdict, STYLES[verdict]) + page.text(f" {tally(reports)}, {took} s"))


def _summary_table(page: _Page, summaries: Sequence[Summary], optional: Sequence[str]) -> Table:
    table = page.table("model")
    table.add_column("verdict", no_wrap=True)
    if "weights" in optional:
        table.add_column("weights", no_wrap=True)
    optional_figures = ("seconds", "worst", "flips")
    titles = {name: title for name, title in SUMMARY.items() if name in optional or name not in optional_figures}
    for title in titles.values():
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summaries:
        figures = [getattr(summary, name) for name in titles]
        table.add_row(
            page.text(summary.model),
            page.text(summary.verdict, STYLES[summary.verdict]),
            *([page.text(summary.weights)] if "weights" in optional else []),
            *(page.text(text, "dim" if text == DASH else "") for text in figures),
        )
    return table
