"""A report as GitHub Markdown, for pasting into a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from parity.compare.verdict import Verdict
from parity.report.figures import (
    MORE,
    NAMED,
    QUALITY,
    RUN,
    SOUND,
    SUMMARY,
    VERDICTS,
    Column,
    Row,
    Summary,
    environment_lines,
    has_quality,
    ladder_rows,
    made,
    prompts_text,
    shown,
    tally,
    weights_text,
)
from parity.report.notes import causes, costs, exceptions, generated, limits_shown, remarks
from parity.report.prompts import PROMPT_COLUMNS, prompts_of
from parity.report.record import Report, overall
from parity.report.situations import SituationTable
from parity.spelling import DASH, seconds

MARKS = {Verdict.PASS: "✅ PASS", Verdict.FAIL: "❌ FAIL", Verdict.ERROR: "⚠️ ERROR"}

#: Names made of these alone mean nothing to Markdown between backticks, in a table cell or out of it.
_PLAIN_NAME = re.compile(r"[\w./:+=,@()-]+( [\w./:+=,@()-]+)*", re.ASCII)
#: Characters with a meaning in running text. A lone underscore between letters or digits has none.
_SPECIAL = re.compile(r"[&<>|`*\[\]\\~^$!#@{}]|(?<![^\W_])_|_(?![^\W_])")


def code(name: object) -> str:
    """A foreign name, set as code. Between backticks if it is an ordinary one, else as an element full of entities."""
    text = shown(name)
    if not text:
        return DASH
    return f"`{text}`" if _PLAIN_NAME.fullmatch(text) else f"<code>{_entities(text)}</code>"


def prose(text: object) -> str:
    """A foreign sentence that stays one: no markup, no table cells, nobody notified, no issue linked."""
    # GitHub looks for @names and #numbers after it has decoded entities; a space of no width keeps it from finding any.
    return re.sub("(&#(?:35|64);)", r"\1&#8203;", _entities(shown(text)))


def _entities(text: str) -> str:
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)


def _names(names: Iterable[object]) -> str:
    return ", ".join(code(name) for name in names)


def to_markdown(reports: Sequence[Report], *, prompts: bool = False) -> str:
    """The verdict, the figures, why it is not PASS, and what one needs to know to trust or repeat it.

    ``prompts`` adds the figures of every prompt.
    """
    blocks = [block for part in _document(reports, prompts=prompts) for block in (part, "")]
    return "\n".join(blocks[:-1]) + "\n"


def _document(reports: Sequence[Report], *, prompts: bool) -> Iterator[str]:
    if len(reports) == 1:
        yield f"## {MARKS[reports[0].verdict]} {code(reports[0].model)}"
        yield from _model(reports[0], prompts=prompts)
    else:
        yield f"## {MARKS[overall(reports)]} {tally(reports)}, {seconds(sum(report.seconds for report in reports))} s"
        if reports:
            yield _summary(reports)
        for report in reports:
            yield f"### {MARKS[report.verdict]} {code(report.model)}"
            yield from _model(report, prompts=prompts)
    limits = limits_shown(reports)
    if limits:
        listed = (f"- {code(at.metric)} {at.bound} for {_names(at.rungs)}. {prose(at.reason)}" for at in limits)
        yield _details("Limits and their reasons", "\n".join(listed))
    yield from _environments(reports)


def _model(report: Report, *, prompts: bool) -> Iterator[str]:
    yield (
        f"Family {code(report.family)}, weights {code(weights_text(report))}, prompts {prose(prompts_text(report))}; "
        f"{seconds(report.seconds)} s."
    )
    if about := made(report):
        yield f"Made: {_names(about)}."
    if report.edges:
        rows = ladder_rows(report)
        yield _ladder(rows)
        yield _details("More figures", _more(rows))
    situations = SituationTable.of(report)
    if situations.rows:
        yield _situations(situations)
    notes = [*_causes(report), *_remarks(report), *_exceptions(report), *_costs(report), *_generated(report)]
    if notes:
        yield "\n".join(notes)
    if prompts and (listed := _prompts(report)):
        yield _details("Prompt by prompt", listed)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """The first ``left`` columns hold words, the others numbers."""
    rule = [":--" if position < left else "--:" for position in range(len(titles))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))


def _ladder(rows: Sequence[Row]) -> str:
    """Is each rung sound, and by how much; can the model afford it, and by how much."""
    both = has_quality(rows)
    right = [*QUALITY, *RUN] if both else RUN

    def line(row: Row) -> Iterator[str]:
        yield code(row.name)
        yield MARKS[row.sound.verdict] if row.sound else ""
        yield from (_cell(column, row) for column in SOUND)
        if both:
            yield MARKS[row.quality.verdict] if row.quality else ""
        yield from (_cell(column, row) for column in right)

    words = ["rung", "sound" if both else "verdict"]
    titles = [*words, *(column.name for column in SOUND), *(["quality"] * both), *(column.name for column in right)]
    return _table(titles, map(list, map(line, rows)), left=2)


def _more(rows: Sequence[Row]) -> str:
    """What there is no room for beside the verdicts, and what all of it means."""
    table = _table(
        ["rung", *(column.name for column in MORE)],
        ([code(row.name), *(_cell(column, row) for column in MORE)] for row in rows),
        left=1,
    )
    meanings = [f"- **{name}**: {prose(meaning)}" for name, meaning in VERDICTS.items()]
    meanings += [f"- **{column.name}**: {prose(column.meaning)}" for column in (*SOUND, *QUALITY, *MORE, *RUN)]
    return "\n".join([table, "", *meanings])


def _cell(column: Column, row: Row) -> str:
    text = column.show(row)
    return f"**{text}**" if column.broken(row) else text


def _prompts(report: Report) -> str:
    """A line for every rung under every prompt."""
    lines = [
        [code(prompt.name), prompt.times, code(line.name), *line.cells]
        for prompt in prompts_of(report)
        for line in prompt.lines
    ]
    titles = ["prompt", "amplifies", "rung", *(name for name, _ in PROMPT_COLUMNS)]
    return _table(titles, lines, left=1) if lines else ""


def _situations(situations: SituationTable) -> str:
    rows = [
        [code(row.name), row.prompts, row.positions, *(f"**{at.text}**" if at.broken else at.text for at in row.cells)]
        for row in situations.rows
    ]
    titles = ["situation", "prompts", "positions", *(f"{code(at.rung)} {at.metric}" for at in situations.headings)]
    return _table(titles, rows, left=1)


def _summary(reports: Sequence[Report]) -> str:
    titles = ["model", "verdict", "weights", *(title.replace("\n", " ") for title in SUMMARY.values())]
    rows = []
    for row in map(Summary.of, reports):
        figures = (getattr(row, name) for name in SUMMARY)
        rows.append([code(row.model), MARKS[row.verdict], code(row.weights), *figures])
    return _table(titles, rows, left=3)


def _causes(report: Report) -> Iterator[str]:
    for cause in causes(report):
        yield f"- **{cause.verdict}** {_names(cause.rungs) or 'the run'}: {prose(cause.text)}"


def _remarks(report: Report) -> Iterator[str]:
    for label, sentence in remarks(report):
        yield f"- **{label.capitalize()}** {prose(sentence)}"


def _exceptions(report: Report) -> Iterator[str]:
    for found in exceptions(report):
        names = [name for name, _, _ in found.weights]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        sentence = f"{found.count} {prose(found.precisions)} ({_names(names[:NAMED])}{more})"
        yield f"- **Precision** {code(found.rung)}: {sentence}"


def _costs(report: Report) -> Iterator[str]:
    for found in costs(report):
        yield f"- **Quality** {code(found.rung)}: {prose('; '.join([found.sentence, *found.others]))}"


def _generated(report: Report) -> Iterator[str]:
    for found in generated(report):
        yield f"- **Generated** {_names(found.rungs)}: {prose(found.text)}"


def _environments(reports: Sequence[Report]) -> Iterator[str]:
    """Each different environment once, with the models it belongs to if there are several."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for report in reports:
        found.setdefault(tuple(environment_lines(report.environment)), []).append(report.model)
    for lines, models in found.items():
        of = f" of {_names(models)}" if len(found) > 1 else ""
        yield _details(f"Environment{of}", "\n".join(f"- {code(f'{name} {value}')}" for name, value in lines))


def _details(title: str, body: str) -> str:
    """Folded away until clicked on. Markdown inside needs the blank lines."""
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"
