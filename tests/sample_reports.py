"""Reports as checks of a trained model write them: seven prompts, one of which amplifies rounding fifty times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parity.compare.budgets import TIERS
from parity.compare.limits import Limit, Question, limits_for
from parity.compare.measuring import Measured
from parity.compare.sampling import typical_of
from parity.compare.verdict import Edge, Verdict, judge, over_budget
from parity.report.record import Report, RungRecord

#: Positions of each prompt, of which the last sixteen are a continuation.
POSITIONS = {"english": 20, "code": 23, "script": 31, "repeated": 25, "single": 17, "numbers": 37, "question": 27}
#: KL of 8 bits, measured in PyTorch: one prompt decides the mean by itself.
INT8 = {
    "english": 0.040, "code": 0.041, "script": 0.049, "repeated": 2.07, "single": 0.038, "numbers": 0.031,
    "question": 0.035,
}  # fmt: skip
#: Twelve tokens that all texts are made of.
PIECES = ("The", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", "\n", " and", " then")
#: How many times as much as the typical prompt each amplifies rounding.
STATED = {"english": 1.0, "code": 0.6, "script": 0.7, "repeated": 54.2, "single": 0.5, "numbers": 1.2, "question": 1.1}


def wave(count: int, mean: float) -> list[float]:
    """Positive values around ``mean`` that are the same each time."""
    shape = [math.exp(1.5 * math.sin(1 + 2.3 * place)) for place in range(count)]
    scale = mean * count / sum(shape)
    return [float(f"{scale * value:.3g}") for value in shape]


def floors(typical: float, worst: float, rel_l2: float, *, draws: int = 4, **other: Any) -> Measured:
    """Figures in units of the noise floor."""
    prompts = {
        name: {
            "positions": count,
            "rel_l2": rel_l2 * STATED[name],
            "kl_mean": rel_l2**2,
            "kl_max": 4 * rel_l2**2,
            "top1_agreement": 1.0,
            "top1_agreement_clear": 1.0,
            "kl": wave(count, rel_l2**2),
            "floor_ratio": typical,
            "worst_position_ratio": worst,
            "ratio": [*wave(count - 1, typical), worst],
        }
        for name, count in POSITIONS.items()
    }
    metrics = {
        "positions": 180, "rel_l2": rel_l2, "max_abs": 3 * rel_l2, "cosine": 1.0, "kl_mean": rel_l2**2,
        "kl_p99": 9 * rel_l2**2, "kl_max": 10 * rel_l2**2, "top1_agreement": 1.0, "top1_agreement_clear": 1.0,
        "top5_overlap": 1.0, "perplexity_ratio": 1.0, "prefill": {"floor_ratio": typical},
        "decode": {"floor_ratio": typical / 2}, "floor_ratio": typical, "worst_position_ratio": worst,
        "worst_position": {"prompt": "repeated", "phase": "decode", "position": 15}, "draws": draws,
    }  # fmt: skip
    return Measured({**metrics, **other}, prompts)


def costs(losses: Mapping[str, float], flips: float, rel_l2: float = 0.066) -> Measured:
    """Figures of what a recipe costs, the prompts as a sample."""
    typical, most, confidence = typical_of(list(losses.values()))
    mean = sum(losses.values()) / len(losses)
    intervals = {
        "kl_typical": [min(losses.values()), most],
        "kl_mean": [0.0, 3 * mean],
        "kl_p99": [mean, 20 * mean],
        "perplexity_ratio": [0.99, 1.21],
        "flips": [flips / 2, 2 * flips],
    }
    prompts = {
        name: {
            "positions": POSITIONS[name],
            "rel_l2": rel_l2,
            "kl_mean": loss,
            "kl_max": 4 * loss,
            "top1_agreement": 1 - flips,
            "top1_agreement_clear": 1 - flips,
            "kl": wave(POSITIONS[name], loss),
        }
        for name, loss in losses.items()
    }
    metrics = {
        "positions": 180, "rel_l2": rel_l2, "max_abs": 3.0, "cosine": 0.99, "kl_mean": mean, "kl_p99": 5 * mean,
        "kl_max": 6 * mean, "top1_agreement": 1 - flips, "top1_agreement_clear": 1 - flips, "top5_overlap": 0.9,
        "perplexity_ratio": 1.093, "prefill": {}, "decode": {}, "prompts": len(losses), "kl_typical": typical,
        "flips": flips, "typical_confidence": confidence,
        "outliers": {name: loss for name, loss in losses.items() if loss > 4 * typical}, "interval": intervals,
        "bound": {
            **{name: ends[1] for name, ends in intervals.items()},
            "perplexity_ratio": intervals["perplexity_ratio"],
            "top1_agreement_clear": 1 - 2 * flips,
        },
    }  # fmt: skip
    return Measured(metrics, prompts)


def held(candidate: str, question: Question, measured: Measured, reference: str = "original64") -> Edge:
    """An edge in units of the noise floor, judged."""
    return judge(reference, candidate, question, measured, limits_for(question))


def faithful(candidate: str, typical: float = 0.7, worst: float = 2.2, recipe: str = "") -> Edge:
    """A quantized file against PyTorch with its numbers, of which it stores what its recipe asks."""
    measured = floors(typical, worst, 1.1e-6, draws=8, weight_steps=0.5, weight_coarseness=1.0038)
    reference = f"{recipe or candidate} in PyTorch"
    return judge(reference, candidate, "fidelity", measured, limits_for("fidelity", stored=True))


def priced(
    candidate: str, tier: str, measured: Measured, own: float | None, limits: Sequence[Limit] | None = None
) -> Edge:
    """What a recipe costs, held to a tier, or to ``limits`` that somebody calls ``tier``."""
    edge = judge("original64", candidate, "quality", measured, TIERS[tier].limits if limits is None else limits)
    return replace(edge, budget=tier, own_loss={} if own is None else {"kl_typical": own})


def generation(rung: str, *changed: tuple[str, int], kind: str = "changed") -> dict[str, Any]:
    """Of eight steps after each prompt; ``changed`` are those where a rung chooses otherwise."""
    chosen = {name: list(range(8)) for name in POSITIONS}
    for name, at in changed:
        chosen[name][at] = 11
    counts = {name: len(changed) if name == kind else 0 for name in ("tie", "defect", "changed")}
    first = [{"at": at, "prompt": name, "margin": 0.17, "kind": kind, "cause": "x"} for name, at in changed]
    return {
        "rung": rung, "matches": 56 - len(changed), "ties": counts["tie"], "defects": counts["defect"],
        "changed": counts["changed"], "of": 56, "first_difference": first[0] if first else None, "chosen": chosen,
    }  # fmt: skip


def trained_report(**changed: Any) -> Report:
    """Sound float rungs; 8 bits that cost more than the budget by themselves, 16 bits that cost nothing."""
    edges = [
        held("original", "rounding", floors(0.61, 1.9, 1.2e-5)),
        held("reauthored64", "port", floors(0.32, 1.4, 2.1e-15)),
        held("reauthored", "rounding", floors(0.58, 1.7, 1.3e-5)),
        held("float", "rounding", floors(0.71, 2.1, 7.6e-5, draws=8)),
        faithful("dynamic_int8"),
        over_budget(priced("dynamic_int8", "lossless", costs(INT8, 0.127), 0.0383), Verdict.PASS),
        faithful("fp16", 0.5, 1.2),
        priced("fp16", "lossless", costs({name: loss / 1e4 for name, loss in INT8.items()}, 0.003), 3.1e-6),
    ]
    rungs = ("original64", "original", "reauthored64", "reauthored", "float", "dynamic_int8", "fp16")
    exceptions = [{"weight": f"blocks.{i}.mlp", "asked": "int8", "precision": "float32"} for i in range(5)]
    artifacts = {"dynamic_int8": {"weights": {"float32": 5, "int8 channelwise": 12}, "exceptions": exceptions}}
    fields: dict[str, Any] = {
        "model": "smollm2-135m",
        "family": "llama",
        "weights": {"kind": "sample", "sha256": "7e303f9f" * 8, "revision": None},
        "prompt_set": {"name": "short", "sha256": "0772100b" * 8, "prompts": 7, "positions": 180},
        "rungs": [
            RungRecord(name=name, seconds=0.4 * place, peak_rss_mb=400 + place, artifact=artifacts.get(name, {}))
            for place, name in enumerate(rungs)
        ],
        "edges": edges,
        "generation": [
            generation("original"),
            generation("reauthored"),
            generation("float", ("repeated", 3), kind="tie"),
            generation("dynamic_int8", ("english", 3), ("repeated", 1), ("repeated", 5)),
            generation("fp16"),
        ],
        "environment": {
            "packages": {"parity": "0.1.0", "torch": "2.13.0", "transformers": "5.1.0", "numpy": "2.3.1"},
            "revision": "fa6aee3094770aee6b002b049bcaba240cdcc6d5+",
            "python": "3.11.7",
            "threads": 2,
        },
        "seconds": 41.3,
        "conditioning": {
            name: {"typical": 9.5 * times, "worst": 40.0 * times, "times": times, "ill": times >= 30}
            for name, times in STATED.items()
        },
        "command": "parity check smollm2-135m --weights sample --recipe dynamic_int8 --recipe fp16",
        "date": "2026-11-30T18:07:45+00:00",
        "prompts_said": {name: list(range(8)) for name in POSITIONS},
        "texts": {
            "prompts": {name: [place % 12 for place in range(count)] for name, count in POSITIONS.items()},
            "pieces": {str(place): text for place, text in enumerate(PIECES)},
        },
    }
    return Report(**fields | changed)


def broken_port() -> Report:
    """A wrong constant: the exact port fails, its float rungs with it, and one rung crashed."""
    report = trained_report(model="qwen2.5-0.5b", family="qwen2")
    edges = [
        held("original", "rounding", floors(0.61, 1.9, 1.2e-5)),
        replace(held("reauthored64", "port", floors(3.1e7, 4.4e8, 2.0e-6)), first_divergent_stage="block_3"),
        held("reauthored", "rounding", floors(12.6, 41.0, 1.9e-5)),
        held("float", "rounding", floors(12.4, 40.2, 1.9e-5)),
        Edge(
            reference="original64",
            candidate="dynamic_int8",
            question="quality",
            verdict=Verdict.ERROR,
            cause="the process was killed (out of memory?); give it more, or --streamed",
        ),
    ]
    said = [entry for entry in report.generation if entry["rung"] not in ("dynamic_int8", "fp16", "float")]
    defect = generation("float", ("code", 2), kind="defect")
    rungs = [rung for rung in report.rungs if rung.name != "fp16"]
    return replace(report, edges=edges, generation=[*said, defect], rungs=rungs)
