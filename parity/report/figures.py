"""The figures of a report, as every rendering shows them: a row for each rung, and what stands in its columns."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parity.compare.limits import UNQUANTIZED
from parity.compare.verdict import Edge, Verdict
from parity.report.record import Report, RungRecord
from parity.spelling import (
    DASH,
    LARGER_IS_BETTER,
    figure,
    limit_spelled,
    number,
    percent,
    seconds,
    spelled,
    whole,
)

__all__ = ["DASH", "figure", "number", "percent", "seconds", "spelled", "whole"]

#: Weights that are named before the rest is only counted.
NAMED = 3
NO_RUNG = RungRecord(name="")


def shown(text: object) -> str:
    """Foreign text as one line that is what it looks like.

    Line breaks and tabs become spaces. Everything else that a terminal or browser acts on instead of drawing it
    (escape sequences, bidirectional marks, zero-width and unassigned characters, lone surrogates) becomes ``\\x1b``.
    """
    return escaped(re.sub(r"\s*[\r\n\t\v\f\x85\u2028\u2029]\s*", " ", str(text)).strip(" "))


def escaped(line: str) -> str:
    """A line without any character that is acted on instead of drawn; spaces stay as they are."""
    # Categories C* (control, format, surrogate, unassigned) and Z* (separators other than the plain space).
    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else c.encode("unicode_escape").decode("ascii")
        for c in line
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a report: a rung, or what its encoder made, under every question that is asked of it.

    ``sound`` answers port, rounding or fidelity: does it compute what it should? ``quality`` answers what that costs.
    """

    rung: RungRecord
    sound: Edge | None = None
    quality: Edge | None = None

    @property
    def edges(self) -> list[Edge]:
        """Those that there are: one at the least."""
        return [edge for edge in (self.sound, self.quality) if edge]

    @property
    def name(self) -> str:
        """The rung, and the output where that is not the logits."""
        return edge_name(self.edges[0])


def edge_name(edge: Edge) -> str:
    """What an edge is called where its question is clear: its rung, and the output where that is not the logits."""
    return shown(edge.candidate if edge.output == "logits" else f"{edge.candidate} {edge.output}")


def full_name(edge: Edge) -> str:
    """What an edge is called among all: with its question where its rung is asked more than one."""
    return edge_name(edge) if edge.candidate in UNQUANTIZED else f"{edge_name(edge)} {shown(edge.question)}"


def ladder(report: Report) -> list[tuple[Edge, RungRecord]]:
    """The edges from the top of the ladder down, each with the rung that was run for it."""
    rungs = {rung.name: rung for rung in report.rungs}
    order = {name: position for position, name in enumerate(UNQUANTIZED)}
    edges = sorted(report.edges, key=lambda edge: order.get(edge.candidate, len(order)))
    return [(edge, rungs.get(edge.candidate, NO_RUNG)) for edge in edges]


def ladder_rows(report: Report) -> list[Row]:
    """A row for every rung and output, from the top of the ladder down."""
    found: dict[tuple[str, str], list[Row]] = {}
    for edge, rung in ladder(report):
        costs = edge.question == "quality"
        rows = found.setdefault((edge.candidate, edge.output), [])
        # An edge that is there twice has a line of its own, as wrong as that is.
        if not rows or (rows[-1].quality if costs else rows[-1].sound):
            rows.append(Row(rung=rung))
        rows[-1] = replace(rows[-1], quality=edge) if costs else replace(rows[-1], sound=edge)
    return [row for rows in found.values() for row in rows]


def judged(edge: Edge, metric: str) -> list[float | None]:
    """What is held against a limit: the figure, and what it is at worst where the prompts are a sample."""
    bounds = edge.metrics.get("bound")
    found = bounds.get(metric) if isinstance(bounds, Mapping) else None
    ends = found if isinstance(found, (list, tuple)) else [] if found is None else [found]
    return [number(value) for value in (edge.metrics.get(metric), *ends)]


def within(edge: Edge, metric: str) -> bool:
    """Whether a figure keeps its limit, as far as the record tells; one that is missing does not."""
    return holds(metric, judged(edge, metric), edge.limits.get(metric))


def holds(metric: str, values: Sequence[float | None], bound: object) -> bool:
    """Whether all values are inside a limit."""
    least: float | None
    most: float | None
    if isinstance(bound, (list, tuple)):
        least, most = (number(end) for end in bound) if len(bound) == 2 else (None, None)
        return least is not None and most is not None and all(v is not None and least <= v <= most for v in values)
    only = number(bound)
    if only is None:
        return False
    return all(v is not None and (v >= only if metric in LARGER_IS_BETTER else v <= only) for v in values)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table of rows. ``title`` may have two lines; ``broken`` tells whether a figure breaks its limit."""

    title: str
    meaning: str
    show: Callable[[Row], str]
    broken: Callable[[Row], bool] = lambda _: False

    @property
    def name(self) -> str:
        """The title in one line."""
        return self.title.strip().replace("\n", " ")


def _breaks(edge: Edge | None, metric: str) -> bool:
    """Whether there is a figure, a limit on it, and it is not kept."""
    if edge is None or metric not in edge.limits or number(edge.metrics.get(metric)) is None:
        return False
    return not within(edge, metric)


def _of_sound(title: str, metric: str, meaning: str) -> Column:
    """A figure of whether a rung is sound; blank where nothing asks that."""
    return Column(
        title=title,
        meaning=meaning,
        show=lambda row: spelled(metric, row.sound.metrics.get(metric)) if row.sound else "",
        broken=lambda row: _breaks(row.sound, metric),
    )


def _of_quality(title: str, metric: str, meaning: str, encoder: str = "") -> Column:
    """A figure of what a rung costs, another one for what encoders make; blank where nothing asks that."""

    def name(row: Row) -> str:
        return metric if row.quality and row.quality.output == "logits" else encoder

    return Column(
        title=title,
        meaning=meaning,
        show=lambda row: spelled(name(row), row.quality.metrics.get(name(row))) if row.quality and name(row) else "",
        broken=lambda row: _breaks(row.quality, name(row)),
    )


def _at_most(row: Row) -> str:
    if not row.quality or row.quality.output != "logits":
        return ""
    bounds = row.quality.metrics.get("bound")
    return figure(bounds.get("kl_typical")) if isinstance(bounds, Mapping) else DASH


def _allowed(row: Row) -> str:
    if not row.quality:
        return ""
    metric = "kl_typical" if row.quality.output == "logits" else "rel_l2"
    return limit_spelled(metric, row.quality.limits[metric]) if metric in row.quality.limits else DASH


def _phases(row: Row) -> str:
    """The typical position of prefill and of decode."""
    phases = [row.sound.metrics.get(phase) for phase in ("prefill", "decode")] if row.sound else []
    both = [figure(phase.get("floor_ratio")) for phase in phases if isinstance(phase, Mapping)]
    return " / ".join(both) if len(both) == 2 and DASH not in both else "" if not row.sound else DASH


def _cost(title: str, metric: str, meaning: str) -> Column:
    """A figure against the reference of the ladder: of the edge about quality where there is one."""

    def edge(row: Row) -> Edge:
        return row.quality or row.edges[0]

    return Column(
        title=title,
        meaning=meaning,
        show=lambda row: spelled(metric, edge(row).metrics.get(metric)),
        broken=lambda row: _breaks(edge(row), metric),
    )


TYPICAL = _of_sound("floor\ntypical", "floor_ratio", "distance in units of the noise floor at the typical position")
WORST = _of_sound("floor\nworst", "worst_position_ratio", "the same at the single worst position")
PHASES = Column(
    title="floor\nprefill/decode", meaning="the typical position of the prompts and of what follows", show=_phases
)
REL_L2 = _of_sound("rel\nL2", "rel_l2", "‖candidate - reference‖ / ‖reference‖ over all positions")
KL_TYPICAL = _of_quality(
    "KL\ntypical", "kl_typical", "nats per position of the median prompt; of an encoder's rows the rel L2", "rel_l2"
)
AT_MOST = Column(
    title="KL\nat most",
    meaning="what the typical prompt of others like these loses at most",
    show=_at_most,
    broken=lambda row: _breaks(row.quality, "kl_typical"),
)
ALLOWED = Column(title="KL\nbudget", meaning="what the budget allows it to be", show=_allowed)
FLIPS = _of_quality("flips\n", "flips", "positions with another best token where the reference is not undecided")
KL_MEAN = _cost("KL\nmean", "kl_mean", "KL(reference ‖ candidate) per position in nats, over all prompts")
KL_P99 = _cost("KL\np99", "kl_p99", "the same at the 99th percentile of positions")
TOP1 = _cost("top-1\nall", "top1_agreement", "positions with the same most likely token")
TOP1_CLEAR = _cost(
    "top-1\nclear", "top1_agreement_clear", "the same where the reference's best two are not nearly tied"
)
TOP5 = _cost("top-5\n", "top5_overlap", "how many of the five most likely tokens are the same")
PERPLEXITY = _cost("ppl\nratio", "perplexity_ratio", "perplexity of the continuations over the reference's")
SECONDS = Column(title="run\ns", meaning="seconds to run the rung", show=lambda row: seconds(row.rung.seconds))
PEAK = Column(title="peak\nMB", meaning="memory of its process at most", show=lambda row: whole(row.rung.peak_rss_mb))

#: What says whether a rung is sound, what it costs, and what the run took. As they stand side by side.
SOUND = (TYPICAL, WORST, REL_L2)
QUALITY = (KL_TYPICAL, AT_MOST, ALLOWED, FLIPS)
RUN = (SECONDS, PEAK)
#: What there is room for elsewhere.
MORE = (PHASES, KL_MEAN, KL_P99, TOP1, TOP1_CLEAR, TOP5, PERPLEXITY)
#: As they are given room in a narrow terminal.
BY_IMPORTANCE = (
    TYPICAL, KL_TYPICAL, WORST, AT_MOST, REL_L2, FLIPS, ALLOWED, SECONDS, PHASES, KL_MEAN, PERPLEXITY, TOP1_CLEAR, PEAK
)  # fmt: skip
#: What the two verdicts of a row say.
VERDICTS = {
    "sound": "port, rounding or fidelity: whether the rung computes what it should",
    "quality": "whether the model can afford what the recipe costs",
}
#: What figures are called in one line.
TITLES = {
    "floor_ratio": "floor ratio",
    "worst_position_ratio": "worst position",
    "rel_l2": "rel L2",
    "rel_l2_typical": "rel L2 of the typical prompt",
    "kl_typical": "KL typical",
    "kl_mean": "KL mean",
    "kl_p99": "KL p99",
    "kl_max": "KL max",
    "flips": "flips",
    "top1_agreement": "top-1 all",
    "top1_agreement_clear": "top-1 clear",
    "top5_overlap": "top-5",
    "perplexity_ratio": "ppl ratio",
}


def title(metric: str) -> str:
    """What a figure is called."""
    return TITLES.get(metric, shown(metric))


def has_quality(rows: Sequence[Row]) -> bool:
    """Whether any row says what a recipe costs."""
    return any(row.quality for row in rows)


def short_hash(value: object) -> str:
    """Enough of a hash to tell two apart by eye."""
    return shown(value)[:8] if value else ""


def weights_text(report: Report) -> str:
    """``tiny 7e303f9f``: the kind of weights, and which."""
    weights = report.weights
    name = shown(weights.get("path") or weights.get("kind", DASH))
    revision = f"@{short_hash(weights['revision'])}" if weights.get("revision") else ""
    return f"{name}{revision} {short_hash(weights.get('sha256'))}".rstrip()


def prompts_text(report: Report) -> str:
    """``short 0772100b, 7 prompts, 224 positions``."""
    prompts = report.prompt_set
    name = f"{shown(prompts.get('name', DASH))} {short_hash(prompts.get('sha256'))}".rstrip()
    return f"{name}, {counted(prompts.get('prompts'), 'prompt')}, {counted(prompts.get('positions'), 'position')}"


def counted(value: object, noun: str) -> str:
    """``1 edge``, ``4 edges``."""
    return f"{whole(value)} {noun}{'' if number(value) == 1 else 's'}"


def outcome(report: Report) -> str:
    """``4 edges, 224 positions, 12.3 s``."""
    positions = counted(report.prompt_set.get("positions"), "position")
    return f"{counted(len(report.edges), 'edge')}, {positions}, {seconds(report.seconds)} s"


def tally(reports: Sequence[Report]) -> str:
    """``3 models: 2 PASS, 1 FAIL``."""
    count = Counter(report.verdict for report in reports)
    each = ", ".join(f"{count[verdict]} {verdict}" for verdict in Verdict if count[verdict])
    return f"{counted(len(reports), 'model')}: {each}" if each else counted(0, "model")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A model's row among several: its worst figures."""

    model: str
    weights: str
    verdict: Verdict
    passed: str
    floor_ratio: str
    worst: str
    kl_typical: str
    flips: str
    seconds: str

    @classmethod
    def of(cls, report: Report) -> Summary:
        """The largest of each figure: in units of the floor of rungs that should be sound, in nats of recipes."""
        passed = sum(edge.verdict is Verdict.PASS for edge in report.edges)
        sound = [edge for edge in report.edges if edge.question != "quality"]
        costs = [edge for edge in report.edges if edge.question == "quality"]
        return cls(
            model=shown(report.model),
            weights=weights_text(report),
            verdict=report.verdict,
            passed=f"{passed} of {len(report.edges)}",
            floor_ratio=_largest(sound, "floor_ratio"),
            worst=_largest(sound, "worst_position_ratio"),
            kl_typical=_largest(costs, "kl_typical"),
            flips=_largest(costs, "flips"),
            seconds=seconds(report.seconds),
        )


#: The figures of a summary, by the names of its fields.
SUMMARY = {
    "passed": "edges\npassed",
    "floor_ratio": "worst\nfloor ratio",
    "worst": "worst\nposition",
    "kl_typical": "worst\nKL typical",
    "flips": "worst\nflips",
    "seconds": "run\ns",
}


def _largest(edges: Sequence[Edge], metric: str) -> str:
    known = (value for edge in edges if (value := number(edge.metrics.get(metric))) is not None)
    return spelled(metric, max(known, default=None))


def environment_lines(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, those of nested objects in their place; what is not known is left out."""
    lines = []
    for name, value in environment.items():
        nested = value.items() if isinstance(value, Mapping) else [(name, value)]
        lines += [(shown(key), shown(item)) for key, item in nested if item is not None]
    return lines


#: Packages that a report names beside its date: they decide most.
DECISIVE = ("parity", "torch", "transformers", "ai-edge-litert", "ai-edge-quantizer")


def made(report: Report) -> list[str]:
    """When a report was made, by which command, at which revision, with which versions; what is known of that."""
    packages = report.environment.get("packages")
    versions = packages if isinstance(packages, Mapping) else {}
    named = [f"{name} {shown(versions[name])}" for name in DECISIVE if name in versions]
    if report.environment.get("revision"):
        named.insert(1 if "parity" in versions else 0, f"revision {_revision(report.environment['revision'])}")
    if report.environment.get("python"):
        named.append(f"Python {shown(report.environment['python'])}")
    when = re.sub(r"(\d)T(\d\d:\d\d)\S*", r"\1 \2", shown(report.date)) if report.date else ""
    return [*filter(None, (when, shown(report.command or ""))), *named]


def _revision(value: object) -> str:
    text = shown(value)
    return f"{text[:8]}+" if text.endswith("+") else text[:8]
