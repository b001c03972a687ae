"""The sentences of a report, as every rendering says them: why it is no PASS, what a recipe costs, what to know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.compare.budgets import TIERS
from parity.compare.limits import ENCODER_LIMITS, Limit, encoder_limits, limits_for
from parity.compare.verdict import Edge, Verdict
from parity.report.figures import counted, edge_name, full_name, ladder, short_hash, shown, title
from parity.report.record import Report
from parity.spelling import DASH, figure, limit_spelled, number, percent, spelled, whole


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
        for metric, bound in edge.limits.items():
            reason = shown(_reason(edge, metric, bound))
            rungs = held.setdefault((shown(metric), limit_spelled(metric, bound), reason), {})
            rungs[full_name(edge)] = None
    return [
        ShownLimit(metric=metric, bound=bound, rungs=tuple(rungs), reason=reason)
        for (metric, bound, reason), rungs in held.items()
    ]


def _reason(edge: Edge, metric: str, bound: object) -> str:
    """Why a limit is what it is, if it still is."""
    tables = _todays(edge)
    if tables is None:
        return f"As {edge.budget} asks."
    known = [limit for table in tables for limit in table if limit.metric == metric]
    if not known:
        return "This limit is not in today's table."
    return next(
        (limit.reason for limit in known if limit.bound == bound),
        f"The limit has changed since; it is now {limit_spelled(metric, known[0].bound)}.",
    )


def _todays(edge: Edge) -> list[tuple[Limit, ...]] | None:
    """Today's limits of an edge, the likeliest table first; ``None`` for a budget of one's own.

    The record does not say by which recipe an encoder was judged that has one of its own, or one that is not listed.
    """
    if edge.question != "quality":
        return [limits_for(edge.question, stored=True)]
    if edge.output != "logits":
        return [encoder_limits(edge.candidate), *ENCODER_LIMITS.values()]
    if edge.budget is None:
        return []
    return [TIERS[edge.budget].limits] if edge.budget in TIERS else None


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
    asked = Counter(edge_name(edge) for edge in report.edges)
    for edge, _ in ladder(report):
        if edge.verdict is not Verdict.PASS:
            name = full_name(edge) if asked[edge_name(edge)] > 1 else edge_name(edge)
            text = shown(edge.cause) if edge.cause else "no cause was recorded"
            if edge.first_divergent_stage:
                text += f"; first diverging stage: {shown(edge.first_divergent_stage)}"
            grouped.setdefault((edge.verdict, text), []).append(name)
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
    """Rungs whose greedy generation went alike."""

    rungs: tuple[str, ...]
    text: str
    defect: bool


def generated(report: Report) -> list[Generated]:
    """At how many steps rungs chose the reference's token, and what the other choices were; equal ones together."""
    grouped: dict[tuple[str, bool], list[str]] = {}
    for entry in report.generation:
        text = f"{whole(entry.get('matches'))}/{whole(entry.get('of'))} tokens"
        for key, noun, plural in (("ties", "tie", "ties"), ("changed",) * 3, ("defects", "defect", "defects")):
            count = number(entry.get(key))
            text += f", {whole(count)} {noun if count == 1 else plural}" if count else ""
        difference = entry.get("first_difference")
        kind = difference.get("kind") if isinstance(difference, Mapping) else None
        if isinstance(difference, Mapping) and kind != "tie":
            where = f" of {shown(difference['prompt'])}" if "prompt" in difference else ""
            text += f", the first at token {shown(difference.get('at', DASH))}{where}"
        grouped.setdefault((text, kind == "defect"), []).append(shown(entry.get("rung", DASH)))
    return [Generated(rungs=tuple(rungs), text=text, defect=defect) for (text, defect), rungs in grouped.items()]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a recipe costs: a sentence for the typical prompt, one for the outliers, one for each other figure."""

    rung: str
    typical: str
    outliers: str
    others: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What matters most."""
        return "; ".join(filter(None, (self.typical, self.outliers)))


def costs(report: Report) -> list[Cost]:
    """By rung and output, of those whose prompts are a sample of others."""
    found = []
    for edge, _ in ladder(report):
        leading = "kl_typical" if edge.output == "logits" else "rel_l2_typical"
        if edge.question == "quality" and number(edge.metrics.get(leading)) is not None:
            intervals = edge.metrics.get("interval")
            names = [name for name in intervals if name != leading] if isinstance(intervals, Mapping) else []
            found.append(
                Cost(
                    rung=edge_name(edge),
                    typical=_typical(edge, leading),
                    outliers=_outliers(edge),
                    others=tuple(_interval(edge, name) for name in names),
                )
            )
    return found


def _typical(edge: Edge, metric: str) -> str:
    """``the typical prompt loses KL 0.0410, at most 0.0490 (93.8% sure); good allows ≤ 0.1``."""
    ends = _ends(edge, metric)
    unit = "KL" if metric == "kl_typical" else "rel L2"
    said = f"the typical prompt loses {unit} {spelled(metric, edge.metrics.get(metric))}"
    if ends:
        said += f", at most {spelled(metric, ends[-1])} ({percent(edge.metrics.get('typical_confidence'))} sure)"
    if edge.limits:
        allowed = ", ".join(
            f"{'' if name == metric else f'{title(name)} '}{limit_spelled(name, bound)}"
            for name, bound in edge.limits.items()
        )
        said += f"; {shown(edge.budget) if edge.budget else 'the limit'} allows {allowed}"
    own = edge.own_loss.get(metric)
    # Why an edge fails is said by its cause, whose loss it is as well.
    if edge.verdict is not Verdict.PASS or number(own) is None:
        return said
    return f"{said}; the recipe itself loses {spelled(metric, own)}"


def _outliers(edge: Edge) -> str:
    """``outlier: repeated 2.07``."""
    found = edge.metrics.get("outliers")
    if not isinstance(found, Mapping) or not found:
        return ""
    each = ", ".join(f"{shown(name)} {figure(loss)}" for name, loss in found.items())
    return f"{'outlier' if len(found) == 1 else 'outliers'}: {each}"


def _interval(edge: Edge, metric: str) -> str:
    """``KL mean 0.0441 (0.0312 to 0.0569)``."""
    between = " to ".join(spelled(metric, end) for end in _ends(edge, metric)) or DASH
    return f"{title(metric)} {spelled(metric, edge.metrics.get(metric))} ({between})"


def _ends(edge: Edge, metric: str) -> list[Any]:
    intervals = edge.metrics.get("interval")
    found = intervals.get(metric) if isinstance(intervals, Mapping) else None
    return list(found) if isinstance(found, (list, tuple)) else []


def amplification(report: Report, prompt: str) -> float | None:
    """How many times as much as the typical prompt one amplifies rounding, if that was measured."""
    found = report.conditioning.get(prompt)
    return number(found.get("times")) if isinstance(found, Mapping) else None


def _ill_conditioned(report: Report) -> str:
    """``repeated amplifies rounding 54.2 times as much as the typical prompt``."""
    found = {
        name: amplification(report, name)
        for name, facts in report.conditioning.items()
        if isinstance(facts, Mapping) and facts.get("ill")
    }
    if not found:
        return ""
    first, *rest = (f"{shown(name)} amplifies rounding {figure(times)} times" for name, times in found.items())
    return ", ".join([f"{first} as much as the typical prompt", *rest])


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
        *([("ill-conditioned", ill)] if (ill := _ill_conditioned(report)) else []),
        *([("floor", drawn)] if (drawn := _draws(report)) else []),
        *(("remark", said) for said in _edges_remarks(report)),
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


def _draws(report: Report) -> str:
    """How many draws of the noise floor edges were judged by."""
    counts: dict[str, list[str]] = {}
    for edge, _ in ladder(report):
        if number(edge.metrics.get("draws")) is not None:
            counts.setdefault(whole(edge.metrics["draws"]), []).append(full_name(edge))
    usual = max(counts, key=lambda count: len(counts[count]), default="")
    each = [f"{count} for {', '.join(names)}" for count, names in counts.items() if count != usual]
    return ", ".join([f"{counted(int(usual), 'draw')} of rounding", *each]) if usual else ""


def _edges_remarks(report: Report) -> list[str]:
    """What edges say besides their verdicts."""
    found: dict[str, list[str]] = {}
    for edge, _ in ladder(report):
        if edge.remark:
            found.setdefault(shown(edge.remark), []).append(full_name(edge))
    return [f"{', '.join(names)}: {said}" for said, names in found.items()]


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
