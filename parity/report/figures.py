"""The figures and sentences of a report, as every rendering shows them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from parity.compare.limits import UNQUANTIZED, Limit, following, limits_for
from parity.compare.verdict import Edge, Verdict
from parity.report.record import Report, RungRecord

#: What stands where there is no figure, or none that means anything.
DASH = "—"
#: Weights that are named before the rest is only counted.
NAMED = 3
#: Figures that are better when larger: a lone bound of theirs is the least they may be.
LARGER_IS_BETTER = frozenset({"cosine", "top1_agreement", "top1_agreement_clear", "top5_overlap"})

NO_RUNG = RungRecord(name="")


def shown(text: object) -> str:
    """Foreign text as one line that is what it looks like.

    Line breaks and tabs become spaces. Everything else that a terminal or browser acts on instead of drawing it
    (escape sequences, bidirectional marks, zero-width and unassigned characters, lone surrogates) becomes ``\\x1b``.
    """
    line = re.sub(r"\s*[\r\n\t\v\f\x85\u2028\u2029]\s*", " ", str(text)).strip(" ")
    # Categories C* (control, format, surrogate, unassigned) and Z* (separators other than the plain space).
    return "".join(c if c == " " or unicodedata.category(c)[0] not in "CZ" else _escaped(c) for c in line)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def number(value: object) -> float | None:
    """``value`` if it is a finite number; a record read back has null for those that were not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def figure(value: object) -> str:
    """Three significant digits; very small and very large ones as ``4.2e-12``."""
    found = number(value)
    if found is None:
        return DASH
    size = abs(found)
    if size == 0:
        return "0"
    if 1e-3 <= size < 999.5:
        return f"{found:#.3g}".rstrip(".")
    if 1 <= size < 99_999.5:
        return f"{found:.0f}"
    mantissa, exponent = f"{found:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: object) -> str:
    """One decimal. 100% means all of them, and 0% none: rounding never says so of a share that is only near."""
    found = number(value)
    if found is None or not math.isfinite(found * 100):
        return DASH
    if found in (0, 1):
        return f"{found:.0%}"
    return f"{min(max(found, 0.001), 0.999):.1%}" if 0 < found < 1 else f"{found:.1%}"


def multiple(value: object, decimals: int = 2) -> str:
    """So many decimals while it is near one."""
    found = number(value)
    return figure(found) if found is None or not 0.1 <= found < 10 else f"{found:.{decimals}f}"


def ratio(value: object) -> str:
    """Four decimals while it is near one: perplexities differ little."""
    return multiple(value, 4)


def seconds(value: object) -> str:
    """As many decimals as matter to a person who waits."""
    found = number(value)
    return DASH if found is None else f"{found:.{2 if found < 1 else 1 if found < 100 else 0}f}"


def whole(value: object) -> str:
    """No decimals."""
    found = number(value)
    return DASH if found is None else f"{found:.0f}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of figures. ``title`` may have two lines; ``metrics`` are the ones whose limits colour it."""

    title: str
    meaning: str
    show: Callable[[Edge, RungRecord], str]
    metrics: Sequence[str] = ()

    def broken(self, edge: Edge) -> bool:
        """Whether a figure here is outside its limit."""
        present = [name for name in self.metrics if number(edge.metrics.get(name)) is not None]
        return any(name in edge.limits and not within(edge, name) for name in present)


def judged_by_floor(edge: Edge) -> bool:
    """Whether the noise floor says anything about this rung: not where it was made to lose precision."""
    return "floor_ratio" in edge.limits or edge.candidate in UNQUANTIZED


def _floor_ratio(edge: Edge, _: RungRecord) -> str:
    """Prefill / decode."""
    if not judged_by_floor(edge):
        return DASH
    phases = [edge.metrics.get(phase) for phase in ("prefill", "decode")]
    both = [multiple(phase.get("floor_ratio")) for phase in phases if isinstance(phase, Mapping)]
    if len(both) < len(phases) or DASH in both:
        return multiple(edge.metrics.get("floor_ratio"))
    return " / ".join(both)


def _worst_position(edge: Edge, _: RungRecord) -> str:
    return multiple(edge.metrics.get("worst_position_ratio")) if judged_by_floor(edge) else DASH


def _metric(title: str, name: str, form: Callable[[object], str], meaning: str) -> Column:
    return Column(title=title, meaning=meaning, show=lambda edge, _: form(edge.metrics.get(name)), metrics=(name,))


FLOOR = Column(
    title="floor ratio\nprefill/decode",
    meaning="distance to the reference in units of the original's own float32 rounding; float rungs only",
    show=_floor_ratio,
    metrics=("floor_ratio",),
)
WORST = Column(
    title="worst\nposition",
    meaning="the same at the single worst position, in units of the original's own worst; float rungs only",
    show=_worst_position,
    metrics=("worst_position_ratio",),
)
REL_L2 = _metric("rel\nL2", "rel_l2", figure, "‖candidate - reference‖ / ‖reference‖ over all positions")
KL_MEAN = _metric("KL\nmean", "kl_mean", figure, "KL(reference ‖ candidate) per position in nats, mean")
KL_P99 = _metric("KL\np99", "kl_p99", figure, "the same at the 99th percentile of positions")
TOP1 = _metric("top-1\nall", "top1_agreement", percent, "positions with the same most likely token")
TOP1_CLEAR = _metric(
    "top-1\nclear", "top1_agreement_clear", percent, "the same where the reference's best two are not nearly tied"
)
TOP5 = _metric("top-5", "top5_overlap", percent, "how many of the five most likely tokens are the same")
PERPLEXITY = _metric("ppl\nratio", "perplexity_ratio", ratio, "perplexity of the continuations over the reference's")
SECONDS = Column(title="run\ns", meaning="seconds to run the rung", show=lambda _, rung: seconds(rung.seconds))
PEAK = Column(title="peak\nMB", meaning="memory of its process at most", show=lambda _, rung: whole(rung.peak_rss_mb))

#: As they stand side by side.
COLUMNS = (FLOOR, WORST, REL_L2, KL_MEAN, KL_P99, TOP1, TOP1_CLEAR, TOP5, PERPLEXITY, SECONDS, PEAK)
#: How figures are shown that are no plain number.
SHOWN_AS = {
    **dict.fromkeys(("top1_agreement", "top1_agreement_clear", "top5_overlap"), percent),
    **dict.fromkeys(("floor_ratio", "worst_position_ratio"), multiple),
    "perplexity_ratio": ratio,
}
#: What figures are called in one line.
TITLES = {name: column.title.split("\nprefill")[0].replace("\n", " ") for column in COLUMNS for name in column.metrics}
#: As they are given room in a narrow terminal.
BY_IMPORTANCE = (FLOOR, KL_MEAN, TOP1_CLEAR, REL_L2, PERPLEXITY, KL_P99, SECONDS, WORST, TOP5, PEAK, TOP1)


def edge_name(edge: Edge) -> str:
    """What an edge is called: its rung, and the output that was compared where that is not the logits."""
    return shown(edge.candidate if edge.output == "logits" else f"{edge.candidate} {edge.output}")


def ladder(report: Report) -> list[tuple[Edge, RungRecord]]:
    """The edges from the top of the ladder down, each with the rung that was run for it."""
    rungs = {rung.name: rung for rung in report.rungs}
    order = {name: position for position, name in enumerate(UNQUANTIZED)}
    edges = sorted(report.edges, key=lambda edge: order.get(edge.candidate, len(order)))
    return [(edge, rungs.get(edge.candidate, NO_RUNG)) for edge in edges]


def within(edge: Edge, metric: str) -> bool:
    """Whether a figure keeps its limit, as far as the record tells; one that is missing does not."""
    value, bound = number(edge.metrics.get(metric)), edge.limits.get(metric)
    if value is None:
        return False
    if isinstance(bound, (list, tuple)):
        least, most = (number(end) for end in bound) if len(bound) == 2 else (None, None)
        return least is not None and most is not None and least <= value <= most
    only = number(bound)
    return only is not None and (value >= only if metric in LARGER_IS_BETTER else value <= only)


def bound_text(metric: str, bound: object) -> str:
    """A limit as it is read, never rounded: ``≤ 8``, ``≥ 0.9``, ``0.955 to 1.045``."""
    ends = [number(end) for end in (bound if isinstance(bound, (list, tuple)) else [bound])]
    exact = " to ".join(DASH if end is None else f"{end:.9g}" for end in ends)
    return exact if len(ends) > 1 else f"{'≥' if metric in LARGER_IS_BETTER else '≤'} {exact}"


@dataclass(frozen=True, kw_only=True)
class ShownLimit:
    """A limit, the rungs that were held to it, and why it is what it is."""

    metric: str
    bound: str
    rungs: tuple[str, ...]
    reason: str


def limits_shown(reports: Sequence[Report]) -> list[ShownLimit]:
    """The limits that rungs were judged by, each once. Reasons are today's: given only where the limit still is."""
    held: dict[tuple[str, str, str], dict[str, None]] = {}
    for edge in (edge for report in reports for edge, _ in ladder(report)):
        table = {limit.metric: limit for limit in _table_of_limits(edge)}
        for metric, bound in edge.limits.items():
            today = table.get(metric)
            if today is None:
                reason = "This limit is not in today's table."
            elif today.bound == bound:
                reason = today.reason
            else:
                reason = f"The limit has changed since; it is now {bound_text(metric, today.bound)}."
            rungs = held.setdefault((shown(metric), bound_text(metric, bound), shown(reason)), {})
            rungs[edge_name(edge)] = None
    return [
        ShownLimit(metric=metric, bound=bound, rungs=tuple(rungs), reason=reason)
        for (metric, bound, reason), rungs in held.items()
    ]


def _table_of_limits(edge: Edge) -> tuple[Limit, ...]:
    """Today's limits of a rung. The record does not say by which precision an unlisted recipe was judged."""
    for bits, stored in product((None, 16, 8, 4), (True, False)):
        table = limits_for(edge.candidate, bits, edge.output, stored=stored)
        table = following(table, edge.own_loss, edge.candidate, bits, edge.output) if edge.own_loss else table
        if {limit.metric: limit.bound for limit in table} == edge.limits:
            return table
    return limits_for(edge.candidate, output=edge.output)


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why rungs did not pass. Rungs that stopped for one reason are named together; no rungs means the whole run."""

    verdict: Verdict
    rungs: tuple[str, ...]
    text: str


def causes(report: Report) -> list[Cause]:
    """One for the run, if it ended early, then one for every different reason down the ladder."""
    grouped: dict[tuple[Verdict, str], list[str]] = {}
    if report.cause:
        grouped[(Verdict.ERROR, shown(report.cause))] = []
    elif not report.edges:
        grouped[(Verdict.ERROR, "nothing was compared")] = []
    for edge, _ in ladder(report):
        if edge.verdict is not Verdict.PASS:
            text = shown(edge.cause) if edge.cause else "no cause was recorded"
            if edge.first_divergent_stage:
                text += f"; first diverging stage: {shown(edge.first_divergent_stage)}"
            grouped.setdefault((edge.verdict, text), []).append(edge_name(edge))
    return [Cause(verdict=verdict, rungs=tuple(rungs), text=text) for (verdict, text), rungs in grouped.items()]


@dataclass(frozen=True, kw_only=True)
class Exceptions:
    """The weights of a quantized file that did not get what its recipe asked for."""

    rung: str
    weights: tuple[tuple[str, str, str], ...]
    total: int | None

    @property
    def count(self) -> str:
        """How many of how many."""
        of = f" of {self.total}" if self.total else ""
        return f"{len(self.weights)}{of} {'weight' if (self.total or len(self.weights)) == 1 else 'weights'}"

    @property
    def precisions(self) -> str:
        """What they are instead of what: ``float32 instead of int4 block 128``."""
        pairs = dict.fromkeys((stored, asked) for _, asked, stored in self.weights)
        return ", ".join(f"{stored} instead of {asked}" for stored, asked in pairs)


def exceptions(report: Report) -> list[Exceptions]:
    """By rung. Texts are already ``shown``."""
    found = []
    for rung in report.rungs:
        listed = rung.artifact.get("exceptions")
        weights = tuple(
            (shown(item.get("weight", DASH)), shown(item.get("asked", DASH)), shown(item.get("precision", DASH)))
            for item in (listed if isinstance(listed, (list, tuple)) else ())
            if isinstance(item, Mapping)
        )
        counts = rung.artifact.get("weights")
        total = sum(int(number(n) or 0) for n in counts.values()) if isinstance(counts, Mapping) else None
        if weights:
            found.append(Exceptions(rung=shown(rung.name), weights=weights, total=total))
    return found


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Rungs whose free-running generation went alike."""

    rungs: tuple[str, ...]
    text: str
    defect: bool


def generated(report: Report) -> list[Generated]:
    """At how many steps rungs chose the reference's token, and what the other choices were; equal ones together."""
    grouped: dict[tuple[str, bool], list[str]] = {}
    for entry in report.generation:
        text = f"{whole(entry.get('matches'))}/{whole(entry.get('of'))} tokens"
        for count, noun in ((entry.get("ties"), "tie"), (entry.get("defects"), "defect")):
            text += f", {counted(count, noun)}" if number(count) else ""
        difference = entry.get("first_difference")
        defect = isinstance(difference, Mapping) and difference.get("kind") != "tie"
        if isinstance(difference, Mapping) and defect:
            where = f" of {shown(difference['prompt'])}" if "prompt" in difference else ""
            text += f", the first at token {shown(difference.get('at', DASH))}{where}"
        grouped.setdefault((text, defect), []).append(shown(entry.get("rung", DASH)))
    return [Generated(rungs=tuple(rungs), text=text, defect=defect) for (text, defect), rungs in grouped.items()]


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """What the prompts, as a sample, say about a quantized rung: a sentence for each figure, the leading one first."""

    rung: str
    sentences: tuple[str, ...]


def certainty(report: Report) -> list[Certainty]:
    """The 95 % interval of every sampled figure, and the smallest change that these prompts would have shown."""
    found = []
    for edge, _ in ladder(report):
        intervals, noticed = edge.metrics.get("interval"), edge.metrics.get("detectable")
        if isinstance(intervals, Mapping) and isinstance(noticed, Mapping) and intervals:
            sentences = tuple(_certainty(edge, name, ends, noticed.get(name)) for name, ends in intervals.items())
            found.append(Certainty(rung=edge_name(edge), sentences=sentences))
    return found


def _certainty(edge: Edge, metric: str, interval: object, noticed: object) -> str:
    """``KL mean 0.00150 (0.00112 to 0.00188), would have noticed 5.2e-4``."""
    form = SHOWN_AS.get(metric, figure)
    ends = interval if isinstance(interval, (list, tuple)) else ()
    between = " to ".join(form(end) for end in ends) or DASH
    # Changes of agreement and of perplexity are shares.
    change = percent(noticed) if metric in SHOWN_AS else figure(noticed)
    name = TITLES.get(metric, shown(metric))
    return f"{name} {form(edge.metrics.get(metric))} ({between}), would have noticed {change}"


def remarks(report: Report) -> list[tuple[str, str]]:
    """What one must know of how a run came about, each under a word: memory, the original, frequencies, and so on."""
    notes = dict.fromkeys(shown(rung.artifact["note"]) for rung in report.rungs if rung.artifact.get("note"))
    regimes = _rope_regimes(report)
    encoders = dict.fromkeys(
        shown(rung.artifact["encoder_recipe"]) for rung in report.rungs if rung.artifact.get("encoder_recipe")
    )
    reason = report.streamed.get("reason") if report.streamed else None
    return [
        *([("weights", made)] if (made := _dequantized(report)) else []),
        *([("streamed", f"stage by stage, {shown(reason)}")] if reason else []),
        *(("original", note) for note in notes),
        *([("frequencies", regimes)] if regimes else []),
        *([("not applied", left_out)] if (left_out := _left_out(report)) else []),
        *(("encoder", f"what only the encoder reads is quantized by {name}") for name in encoders),
        *(("own loss", _own_loss(edge)) for edge in report.edges if edge.own_loss),
        *([("kept", kept)] if (kept := _kept(report)) else []),
    ]


def _dequantized(report: Report) -> str:
    """What the weights were made from, where that is a quantized file."""
    weights = report.weights
    if not weights.get("dequantized_from"):
        return ""
    types = weights.get("quantization")
    counts = ", ".join(f"{whole(n)} {shown(kind)}" for kind, n in types.items()) if isinstance(types, Mapping) else ""
    package = (
        f", from the package {shown(weights['package'])} {shown(weights.get('version', ''))}"
        if weights.get("package")
        else ""
    )
    file = f"{shown(weights['dequantized_from'])} {short_hash(weights.get('dequantized_from_sha256'))}".rstrip()
    return f"dequantized to float32 from {file} ({counts}){package}"


def _kept(report: Report) -> str:
    """What is of an earlier run. Of rungs that run files it is the file alone."""
    kept = [rung for rung in report.rungs if rung.artifact.get("cached")]
    recorded = ", ".join(shown(rung.name) for rung in kept if "sha256" not in rung.artifact)
    made = ", ".join(shown(rung.name) for rung in kept if "sha256" in rung.artifact)
    said = [f"recorded in an earlier run: {recorded}"] if recorded else []
    said += [f"files made in an earlier run, and run again: {made}"] if made else []
    return "; ".join([*said, "--no-cache makes all anew"]) if said else ""


def _own_loss(edge: Edge) -> str:
    """What a recipe loses by itself, where limits follow from that."""
    figures = [
        f"{TITLES[name]} {SHOWN_AS.get(name, figure)(edge.own_loss[name])}" for name in edge.own_loss if name in TITLES
    ]
    return f"{edge_name(edge)} is held to what its recipe loses in PyTorch: {', '.join(figures)}"


def _left_out(report: Report) -> str:
    """The situations that do not apply, to the model or to a rung, and why."""
    reasons = report.prompt_set.get("left_out")
    found = [f"{shown(name)}: {shown(why)}" for name, why in reasons.items()] if isinstance(reasons, Mapping) else []
    elsewhere: dict[tuple[str, str], dict[str, None]] = {}
    for edge, _ in ladder(report):
        situations = edge.situations if isinstance(edge.situations, Mapping) else {}
        for name, figures in situations.items():
            if isinstance(figures, Mapping) and figures.get("verdict") is None and "positions" not in figures:
                elsewhere.setdefault((shown(name), shown(figures.get("cause", DASH))), {})[shown(edge.candidate)] = None
    found += [f"{name} on {', '.join(rungs)}: {why}" for (name, why), rungs in elsewhere.items()]
    return "; ".join(found)


def _rope_regimes(report: Report) -> str:
    """Which frequencies the exported files have, where that depends on the cache length; else nothing."""
    found = next((rung.artifact["rope_regimes"] for rung in report.rungs if "rope_regimes" in rung.artifact), None)
    if not isinstance(found, list):
        return ""
    facts = [item for item in found if isinstance(item, Mapping)]
    parts = [f"{shown(item.get('rope_regime'))} factors for {shown(item.get('cache_length'))} slots" for item in facts]
    return f"{', '.join(parts)}; the boundary is {shown(facts[0].get('rope_boundary'))} positions" if facts else ""


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
    kl_mean: str
    top1_clear: str
    seconds: str

    @classmethod
    def of(cls, report: Report) -> Summary:
        """The largest floor ratio of the float rungs; the largest KL and least agreement of the others."""
        floats = [edge for edge in report.edges if judged_by_floor(edge)]
        others = [edge for edge in report.edges if edge not in floats]
        passed = sum(edge.verdict is Verdict.PASS for edge in report.edges)
        return cls(
            model=shown(report.model),
            weights=weights_text(report),
            verdict=report.verdict,
            passed=f"{passed} of {len(report.edges)}",
            floor_ratio=figure(max(_known(floats, "floor_ratio"), default=None)),
            kl_mean=figure(max(_known(others, "kl_mean"), default=None)),
            top1_clear=percent(min(_known(others, "top1_agreement_clear"), default=None)),
            seconds=seconds(report.seconds),
        )


def _known(edges: Sequence[Edge], metric: str) -> Iterator[float]:
    for edge in edges:
        value = number(edge.metrics.get(metric))
        if value is not None:
            yield value


def environment_lines(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, those of nested objects in their place."""
    lines = []
    for name, value in environment.items():
        nested = value.items() if isinstance(value, Mapping) else [(name, value)]
        lines += [(shown(key), shown(item)) for key, item in nested]
    return lines
