"""A report as GitHub Markdown, for pasting into a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from parity.compare.verdict import Verdict
from parity.report.figures import (
    COLUMNS,
    DASH,
    NAMED,
    Summary,
    causes,
    certainty,
    edge_name,
    environment_lines,
    exceptions,
    generated,
    ladder,
    limits_shown,
    prompts_text,
    remarks,
    seconds,
    shown,
    tally,
    weights_text,
)
from parity.report.record import Report, overall
from parity.report.situations import SituationTable

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


def to_markdown(reports: Sequence[Report]) -> str:
    """The verdict, the figures, why it is not PASS, and what one needs to know to trust or repeat it."""
    blocks = [block for part in _document(reports) for block in (part, "")]
    return "\n".join(blocks[:-1]) + "\n"


def _document(reports: Sequence[Report]) -> Iterator[str]:
    if len(reports) == 1:
        yield f"## {MARKS[reports[0].verdict]} {code(reports[0].model)}"
        yield from _model(reports[0])
    else:
        yield f"## {MARKS[overall(reports)]} {tally(reports)}, {seconds(sum(report.seconds for report in reports))} s"
        if reports:
            yield _summary(reports)
        for report in reports:
            yield f"### {MARKS[report.verdict]} {code(report.model)}"
            yield from _model(report)
    limits = limits_shown(reports)
    if limits:
        listed = (f"- {code(at.metric)} {at.bound} for {_names(at.rungs)}. {prose(at.reason)}" for at in limits)
        yield _details("Limits and their reasons", "\n".join(listed))
    yield from _environments(reports)


def _model(report: Report) -> Iterator[str]:
    yield (
        f"Family {code(report.family)}, weights {code(weights_text(report))}, prompts {prose(prompts_text(report))}; "
        f"{seconds(report.seconds)} s."
    )
    if report.edges:
        yield _edges(report)
    situations = SituationTable.of(report)
    if situations.rows:
        yield _situations(situations)
    notes = [*_causes(report), *_remarks(report), *_exceptions(report), *_certainty(report), *_generated(report)]
    if notes:
        yield "\n".join(notes)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """The first ``left`` columns hold words, the others numbers."""
    rule = [":--" if position < left else "--:" for position in range(len(titles))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))


def _edges(report: Report) -> str:
    rows = []
    for edge, rung in ladder(report):
        figures = [(column.show(edge, rung), column.broken(edge)) for column in COLUMNS]
        cells = (f"**{text}**" if broken else text for text, broken in figures)
        rows.append([code(edge_name(edge)), MARKS[edge.verdict], *cells])
    titles = [column.title.replace("\n", " ") for column in COLUMNS]
    return _table(["rung", "verdict", *titles], rows, left=2)


def _situations(situations: SituationTable) -> str:
    rows = [
        [code(row.name), row.prompts, row.positions, *(f"**{at.text}**" if at.broken else at.text for at in row.cells)]
        for row in situations.rows
    ]
    titles = ["situation", "prompts", "positions", *(f"{code(at.rung)} {at.metric}" for at in situations.headings)]
    return _table(titles, rows, left=1)


def _summary(reports: Sequence[Report]) -> str:
    titles = ["model", "verdict", "weights", "edges passed"]
    titles += ["worst floor ratio", "worst KL mean", "worst top-1 clear", "run s"]
    rows = []
    for row in map(Summary.of, reports):
        figures = (row.passed, row.floor_ratio, row.kl_mean, row.top1_clear, row.seconds)
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


def _certainty(report: Report) -> Iterator[str]:
    for found in certainty(report):
        yield f"- **Certainty** {code(found.rung)}: {prose('; '.join(found.sentences))}"


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
