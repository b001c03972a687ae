"""A report as one HTML file that needs nothing else: no network, no scripts. Looks as good on paper and on a phone."""

from __future__ import annotations

from collections.abc import Sequence

from parity.report import figures, notes
from parity.report.charts import Chart
from parity.report.figures import MORE, NAMED, QUALITY, RUN, SOUND, SUMMARY, VERDICTS, Summary, shown
from parity.report.prompts import PROMPT_COLUMNS, prompts_of
from parity.report.record import Report, overall
from parity.report.situations import SituationTable
from parity.report.templates import template
from parity.spelling import DASH


def to_html(reports: Sequence[Report]) -> str:
    """The verdict, every rung's headroom at a glance, the figures, and what one needs to know to trust or repeat it."""
    return template("report.html").render(
        text=figures,
        notes=notes,
        dash=DASH,
        named=NAMED,
        reports=reports,
        sound=SOUND,
        quality=QUALITY,
        run=RUN,
        more=MORE,
        verdicts=VERDICTS,
        summary=SUMMARY,
        prompt_columns=[title for title, _ in PROMPT_COLUMNS],
        rows=[figures.ladder_rows(report) for report in reports],
        charts=[Chart.of(report) for report in reports],
        situations=[SituationTable.of(report) for report in reports],
        prompts=[prompts_of(report, drawn=True) for report in reports],
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
