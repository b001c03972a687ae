"""The distribution of a soak's figures: a table for the terminal, a page, and a drawing beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from parity.compare.budgets import default_budget
from parity.compare.limits import (
    FLOAT_RUNGS,
    ROUNDING_LIMITS,
    UNQUANTIZED,
    Limit,
    Question,
    encoder_limits,
    limits_for,
    question_of,
)
from parity.compare.measuring import Output
from parity.compare.verdict import Verdict
from parity.files import write_whole
from parity.report.markdown import prose
from parity.report.templates import template
from parity.soak.results import Outcome
from parity.soak.variants import variants
from parity.spelling import figure, limit_spelled, spelled

#: Draws shown as the worst.
WORST = 5
ALL = "all"
PREFACE = """\
A draw is random weights, random numbers of layers, heads and tokens, random prompts (ids of any row, special ones, one
again and again; of one token, around the length of a call, of a window, of a boundary), random pictures and sounds, a
random order of the prompts and one or two threads for every rung. Every rung is judged as `parity check` judges it. A
correct port must pass every one: anything else is a false alarm, and is kept in `soak-failures` with its weights, its
prompts and the command that runs it again.
"""
COLOURS = {"reauthored": "#0969da", "float": "#8250df"}


@dataclass(frozen=True)
class Spread:
    """Of a figure over draws: how many, the least, what 5, 50, 95 and 99 in a hundred stay below, the most."""

    count: int
    least: float
    low: float
    middle: float
    high: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(len(values), *np.quantile(values, (0, 0.05, 0.5, 0.95, 0.99, 1)).tolist())


def ratios(
    outcomes: Sequence[Outcome], rung: str, metric: str, output: str | None = None, question: str | None = None
) -> list[float]:
    """A figure of every edge of a rung, of one output and question or of all."""
    return [
        edge[metric]
        for outcome in outcomes
        for edge in outcome.edges
        if edge["candidate"] == rung
        and output in (None, edge["output"])
        and question in (None, _question(edge))
        and edge.get(metric) is not None
    ]


def _question(edge: Mapping[str, Any]) -> str:
    """What an edge asks; those of older files do not say it."""
    rung = edge["candidate"]
    return str(edge.get("question") or (question_of(rung) if rung in UNQUANTIZED else "quality"))


def summary_table(outcomes: Sequence[Outcome]) -> Table:
    """One line a preset: its draws, and the largest ratio of each float rung."""
    table = Table()
    for heading in ("preset", "draws", "with files", "not PASS", *(f"{rung}, largest ratio" for rung in FLOAT_RUNGS)):
        table.add_column(heading, justify="left" if heading == "preset" else "right")
    for name, of_preset in _by_preset(outcomes):
        found = (ratios(of_preset, rung, "floor_ratio") for rung in FLOAT_RUNGS)
        table.add_row(
            name,
            *map(str, _counts(of_preset)),
            *(f"{max(values):.2f}" if values else "-" for values in found),
        )
    return table


def write_page(path: Path, header: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """The page, and its drawing beside it under the same name with ``.svg``."""
    picture = path.with_suffix(".svg")
    write_whole(picture, drawing(outcomes))
    write_whole(path, page(header, outcomes, picture.name))


def page(header: Mapping[str, Any], outcomes: Sequence[Outcome], picture: str) -> str:
    """Everything as Markdown."""
    sections = (
        _summary(header, outcomes, picture),
        _float_rungs(outcomes),
        _quantized_rungs(outcomes),
        _presets(outcomes),
        _worst_draws(header, outcomes),
        _alarms(outcomes),
        _environment(header, outcomes),
    )
    return "\n\n".join("\n".join(section) for section in map(list, sections) if section) + "\n"


def _summary(header: Mapping[str, Any], outcomes: Sequence[Outcome], picture: str) -> Iterator[str]:
    draws, with_files, alarms = _counts(outcomes)
    positions, prompts = (sum(getattr(each, what) for each in outcomes) for what in ("positions", "prompts"))
    asked = f"--draws {draws} --seed {header['seed']} --files-every {header['files_every']}"
    if header["presets"] != variants():
        asked += "".join(f" --model {preset}" for preset in header["presets"])
    yield "# No false alarms"
    yield ""
    yield f"Written by `parity soak {asked} --markdown docs/soak.md`."
    yield ""
    yield PREFACE
    yield f"**{draws:,} draws, {alarms} false alarms.** {with_files} of the draws converted and ran files."
    yield f"{positions:,} positions in {prompts:,} prompts were compared on every rung."
    yield ""
    yield f"![floor_ratio by rung and preset]({picture})"


def _float_rungs(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "## Float rungs"
    yield ""
    yield "| rung | output | metric | edges | least | median | 95 % below | 99 % below | largest | limit |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for who, metric, limit, spread in _spreads(outcomes, UNQUANTIZED, ("port", "rounding")):
        shown = (spread.least, spread.middle, spread.high, spread.p99, spread.most, limit.most)
        yield f"| {who} | `{metric}` | {spread.count} | {' | '.join(map(figure, shown))} |"


def _quantized_rungs(outcomes: Sequence[Outcome]) -> Iterator[str]:
    quantized = {edge["candidate"] for outcome in outcomes for edge in outcome.edges} - set(UNQUANTIZED)
    if not quantized:
        return
    yield "## Quantized rungs"
    yield ""
    yield "| rung | output | question | metric | edges | least | median | largest | limit |"
    yield "|---|---|---|---|---:|---:|---:|---:|---|"
    for question in _OF_FILES:
        for who, metric, limit, spread in _spreads(outcomes, sorted(quantized), (question,)):
            shown = (spelled(metric, value) for value in (spread.least, spread.middle, spread.most))
            bound = limit_spelled(metric, limit.bound)
            yield f"| {who} | {question} | `{metric}` | {spread.count} | {' | '.join(shown)} | {bound} |"


#: What is asked of quantized files.
_OF_FILES: tuple[Question, ...] = ("fidelity", "quality")
_OUTPUTS: tuple[Output, ...] = ("logits", "encoder")


def _spreads(
    outcomes: Sequence[Outcome], rungs: Sequence[str], questions: Sequence[Question]
) -> Iterator[tuple[str, str, Limit, Spread]]:
    """For every limit that edges were held to: whose, the metric, the limit and the figures."""
    for rung, question, output in product(rungs, questions, _OUTPUTS):
        for limit in _limits(rung, question, output):
            if values := ratios(outcomes, rung, limit.metric, output, question):
                yield f"{rung} | {output}", limit.metric, limit, Spread.of(values)


def _limits(rung: str, question: Question, output: Output) -> Sequence[Limit]:
    """What draws are held to: of recipes there is one, of eight bits."""
    if question != "quality":
        return limits_for(question)
    return default_budget(8).limits if output == "logits" else encoder_limits(rung)


def _presets(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "## Presets"
    yield ""
    yield "The last two columns are the largest `floor_ratio` of any output."
    yield ""
    yield "| preset | draws | with files | not PASS | reauthored | float |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, of_preset in _by_preset(outcomes):
        found = (ratios(of_preset, rung, "floor_ratio") for rung in FLOAT_RUNGS)
        largest = " | ".join(figure(max(values)) if values else "-" for values in found)
        yield f"| {name} | {' | '.join(map(str, _counts(of_preset)))} | {largest} |"


def _worst_draws(header: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "## The worst draws"
    yield ""
    yield f"Those nearest to a limit. `parity soak --seed {header['seed']} --draw NUMBER` runs one of them again."
    yield ""
    yield "| draw | preset | rung | output | `floor_ratio` | `worst_position_ratio` | positions | dimensions |"
    yield "|---:|---|---|---|---:|---:|---:|---|"
    for each, edge in _worst(outcomes):
        resized = ", ".join(f"{path} {value}" for path, value in each.dimensions.items())
        found = " | ".join(figure(edge[metric]) for metric in ("floor_ratio", "worst_position_ratio"))
        who = f"{each.number} | {each.preset} | {edge['candidate']} | {edge['output']}"
        yield f"| {who} | {found} | {each.positions} | {prose(resized)} |"


def _alarms(outcomes: Sequence[Outcome]) -> Iterator[str]:
    alarms = [outcome for outcome in outcomes if outcome.verdict != Verdict.PASS]
    if alarms:
        yield "## False alarms"
        yield ""
    for each in alarms:
        yield f"- draw {each.number}, {each.preset}: {each.verdict}, {prose(each.cause)}"


def _environment(header: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Iterator[str]:
    found = header["environment"]
    yield "## Environment"
    yield ""
    yield f"{found['system']} on {found['machine']}, {found['threads']} cores, Python {found['python']};"
    yield ", ".join(f"{name} {version}" for name, version in found["packages"].items()) + "."
    for files, what in ((False, "without files"), (True, "with files")):
        if taken := [outcome.seconds for outcome in outcomes if outcome.files == files]:
            yield f"A draw {what} took {statistics.median(taken):.1f} s by the clock (median)."


def drawing(outcomes: Sequence[Outcome]) -> str:
    """The spread of ``floor_ratio`` of the logits and of what encoders made, a row a preset, a panel a rung."""
    named = [(ALL, outcomes), *_by_preset(outcomes)]
    found = {
        rung: [Spread.of(values) if (values := ratios(of, rung, "floor_ratio")) else None for _, of in named]
        for rung in FLOAT_RUNGS
    }
    limit = next(limit.most for limit in ROUNDING_LIMITS if limit.metric == "floor_ratio")
    spreads = [spread for rung in found.values() for spread in rung if spread]
    first = math.floor(math.log2(min([0.5, *(spread.least for spread in spreads)])))
    last = math.ceil(math.log2(max([2 * limit, *(spread.most for spread in spreads)])))
    label, wide, gap, top, row = 230, 300, 40, 66, 22

    def panel(number: int, rung: str) -> dict[str, Any]:
        left = label + 14 + number * (wide + gap)

        def at(value: float) -> float:
            return round(left + wide * (math.log2(value) - first) / (last - first), 1)

        bars = [
            {
                "y": top + row * i + row // 2,
                **{key: at(getattr(spread, key)) for key in ("least", "low", "middle", "high", "most")},
            }
            for i, spread in enumerate(found[rung])
            if spread
        ]
        ticks = [{"x": at(2.0**power), "label": f"{2.0**power:g}"} for power in range(first, last + 1)]
        count = len(ratios(outcomes, rung, "floor_ratio"))
        title = f"{rung}, {count} edges"
        return {
            "left": left, "title": title, "ticks": ticks, "bars": bars, "limit": at(limit), "colour": COLOURS[rung]
        }  # fmt: skip

    bottom = top + row * len(named)
    return template("soak.svg").render(
        title="floor_ratio by rung and preset",
        panels=[panel(number, rung) for number, rung in enumerate(FLOAT_RUNGS)],
        rows=[{"name": name, "y": top + row * i + row // 2, "all": name == ALL} for i, (name, _) in enumerate(named)],
        label=label,
        top=top,
        bottom=bottom,
        width=label + 14 + 2 * wide + gap + 24,
        height=bottom + 44,
    )


def _by_preset(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """In the order in which they were drawn first."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.preset, []).append(outcome)
    return list(found.items())


def _counts(outcomes: Sequence[Outcome]) -> tuple[int, int, int]:
    """Draws, those with files, those that are no PASS."""
    alarms = sum(outcome.verdict != Verdict.PASS for outcome in outcomes)
    return len(outcomes), sum(outcome.files for outcome in outcomes), alarms


def _worst(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Mapping[str, Any]]]:
    """The draws nearest to a limit, each once, by either ratio of a float rung."""
    limits = {limit.metric: limit.most for limit in ROUNDING_LIMITS}

    def nearness(edge: Mapping[str, Any]) -> float:
        return max(float(edge[metric]) / most for metric, most in limits.items())

    found = [
        (outcome, max(edges, key=nearness))
        for outcome in outcomes
        if (edges := [edge for edge in outcome.edges if edge["candidate"] in FLOAT_RUNGS])
    ]
    return sorted(found, key=lambda pair: -nearness(pair[1]))[:WORST]
