"""How far apart two traces are, prompt by prompt and position by position, as the figures of an edge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from parity.compare import sampling
from parity.compare.floor import NoiseFloor, typical_ratio
from parity.compare.metrics import (
    PositionErrors,
    compare_positions,
    concatenate,
    distances,
    negative_log_likelihood,
    summarize,
)
from parity.compare.sketch import SketchErrors, concatenate_sketched, sketched_distances, summarize_sketched
from parity.compare.statistics import Array
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PHASES, PromptTrace, Trace

#: What is compared of a rung.
Output = Literal["encoder", "logits"]
#: The output that an encoder makes, and the phase in which it does.
ENCODER: Output = "encoder"


@dataclass(frozen=True)
class Measured:
    """The figures of one output: over all positions, and by prompt."""

    metrics: Mapping[str, Any]
    prompts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is no number then is judged as none
def compare_prompts(reference: Trace, candidate: Trace) -> dict[str, dict[str, PositionErrors]]:
    """Position errors by phase and by prompt; the encoder's are of prompts that give it anything to do."""
    found: dict[str, dict[str, PositionErrors]] = {
        phase: {
            name: compare_positions(getattr(prompt, phase), getattr(candidate.prompts[name], phase))
            for name, prompt in reference.prompts.items()
        }
        for phase in PHASES
    }
    encoded = {
        name: compare_positions(prompt.encoded, made)
        for name, prompt in reference.prompts.items()
        if prompt.encoded is not None and (made := candidate.prompts[name].encoded) is not None
    }
    return {**found, ENCODER: encoded} if encoded else found


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is no number then is judged as none
def measure(
    reference: Trace,
    candidate: Trace,
    inputs: Inputs,
    *,
    floor: NoiseFloor | None = None,
    sampled: bool = False,
) -> dict[Output, Measured]:
    """Every figure of every output that is compared: ``encoder`` where there is one, then ``logits``.

    Those of the logits are over all positions, and under ``prefill`` and ``decode`` for each phase alone. A ``floor``
    adds distances in its units: ``floor_ratio`` at the typical position, ``worst_position_ratio``, and the ``draws``
    that it is of. ``sampled`` adds what the prompts say as a sample (``parity.compare.sampling``).
    """
    found = compare_prompts(reference, candidate)
    logits = {phase: found[phase] for phase in PHASES}
    metrics = summarize(concatenate(errors for phase in logits.values() for errors in phase.values()))
    for phase, errors in logits.items():
        metrics[phase] = summarize(concatenate(errors.values()))
    extra_cost = _extra_cost(reference, candidate, inputs)
    metrics["perplexity_ratio"] = float(np.exp(np.concatenate(extra_cost).mean()))
    whole = {name: concatenate(phase[name] for phase in logits.values()) for name in reference.prompts}
    ratios: dict[str, Array] = {}
    if floor:
        by_phase = {
            phase: {name: floor.ratios(name, phase, each) for name, each in errors.items()}
            for phase, errors in logits.items()
        }
        worst = {
            phase: {name: floor.worst_ratios(name, phase, each) for name, each in errors.items()}
            for phase, errors in logits.items()
        }
        for phase in PHASES:
            metrics[phase] |= _ratios(by_phase[phase], worst[phase])
        metrics |= {
            "floor_ratio": _most(metrics[phase]["floor_ratio"] for phase in PHASES),
            **_worst(worst),
            **_drawn(floor),
        }
        ratios = {name: np.concatenate([each[name] for each in by_phase.values()]) for name in whole}
    if sampled:
        metrics |= sampling.of_logits(whole, extra_cost)
    measured: dict[Output, Measured] = {}
    if ENCODER in found:
        rows, each = found[ENCODER], {}
        made = distances(concatenate(rows.values()))
        if floor:
            each = {name: floor.ratios(name, ENCODER, errors) for name, errors in rows.items()}
            worst = {ENCODER: {name: floor.worst_ratios(name, ENCODER, errors) for name, errors in rows.items()}}
            made |= {**_ratios(each, worst[ENCODER]), **_worst(worst), **_drawn(floor)}
        by_source = {name: {**distances(errors), **_of_ratios(each.get(name))} for name, errors in rows.items()}
        measured[ENCODER] = Measured({**made, **(sampling.of_encoder(rows) if sampled else {})}, by_source)
    measured["logits"] = Measured(metrics, by_prompt(whole, ratios))
    return measured


def measure_recorded(errors: Mapping[str, Mapping[str, SketchErrors]], floor: NoiseFloor) -> dict[Output, Measured]:
    """The figures of what was compared with a recording, ``errors`` by phase and prompt, in units of the ``floor``."""
    ratios = {
        phase: {name: floor.ratios(name, phase, each) for name, each in prompts.items()}
        for phase, prompts in errors.items()
    }
    measured: dict[Output, Measured] = {}
    if ENCODER in errors:
        made = sketched_distances(concatenate_sketched(errors[ENCODER].values()))
        made |= {**_ratios(ratios[ENCODER], ratios[ENCODER]), **_worst({ENCODER: ratios[ENCODER]}), **_drawn(floor)}
        rows = {name: {"positions": len(each), **_of_ratios(each)} for name, each in ratios[ENCODER].items()}
        measured[ENCODER] = Measured(made, rows)
    logits = {phase: ratios[phase] for phase in PHASES}
    metrics = summarize_sketched(concatenate_sketched(each for phase in PHASES for each in errors[phase].values()))
    for phase in PHASES:
        metrics[phase] = _ratios(logits[phase], logits[phase])
    metrics |= {
        "floor_ratio": _most(metrics[phase]["floor_ratio"] for phase in PHASES),
        **_worst(logits),
        **_drawn(floor),
    }
    whole = {name: np.concatenate([logits[phase][name] for phase in PHASES]) for name in errors[PHASES[0]]}
    measured["logits"] = Measured(
        metrics, {name: {"positions": len(each), **_of_ratios(each)} for name, each in whole.items()}
    )
    return measured


def _ratios(ratios: Mapping[str, Array], worst: Mapping[str, Array]) -> dict[str, Any]:
    return {
        "floor_ratio": typical_ratio(ratios.values()),
        "worst_position_ratio": _most(float(each.max()) for each in worst.values()),
    }


def _most(figures: Iterable[float]) -> float:
    """The largest, or NaN if one is; of Python's ``max`` that would depend on the order."""
    return float(np.max(list(figures)))


def _drawn(floor: NoiseFloor) -> dict[str, Any]:
    return {"draws": floor.draws, **({"discrete": True} if floor.discrete else {})}


def _worst(ratios: Mapping[str, Mapping[str, Array]]) -> dict[str, Any]:
    """The worst position, and where it is; the first that is no number, if there is one."""
    largest, where = -math.inf, dict[str, Any]()
    for phase, prompts in ratios.items():
        for name, each in prompts.items():
            place = int(np.argmax(np.where(np.isnan(each), np.inf, each)))
            if not where or (math.isfinite(largest) and not each[place] <= largest):
                largest, where = float(each[place]), {"prompt": name, "phase": phase, "position": place}
    return {"worst_position_ratio": largest, "worst_position": where}


def by_prompt(errors: Mapping[str, PositionErrors], ratios: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """What a report says of each prompt: its figures, and position by position its KL and its ratio to the floor."""
    rows: dict[str, dict[str, Any]] = {}
    for name, each in errors.items():
        figures = summarize(each)
        kept = ("positions", "rel_l2", "kl_mean", "kl_max", "top1_agreement", "top1_agreement_clear")
        row = {key: figures[key] for key in kept}
        row["kl"] = [_short(value) for value in each.kl]
        rows[name] = {**row, **_of_ratios(ratios.get(name))}
    return rows


def _of_ratios(ratios: Array | None) -> dict[str, Any]:
    """What is said of one prompt's distances in units of the floor, if there is one."""
    if ratios is None:
        return {}
    return {
        "floor_ratio": float(np.median(ratios)),
        "worst_position_ratio": float(ratios.max()),
        "ratio": [_short(value) for value in ratios],
    }


def _short(value: float) -> float:
    """Three digits are all that a chart shows."""
    return float(f"{value:.3g}")


def _extra_cost(reference: Trace, candidate: Trace, inputs: Inputs) -> list[Array]:
    """Nats that each forced token costs more, by prompt."""
    return [_cost(candidate.prompts[p.id], p) - _cost(reference.prompts[p.id], p) for p in inputs.prompts]


def _cost(recorded: PromptTrace, prompt: TokenizedPrompt) -> Array:
    """Nats of each forced token; the first of those is predicted by the last position that was prefilled before."""
    begun = len(prompt.continuation)
    parts = (
        (recorded.prefill[: len(prompt.prompt)], recorded.decode[:begun], prompt.continuation),
        (recorded.prefill, recorded.decode[begun:], prompt.reply),
    )
    return np.concatenate(
        [
            negative_log_likelihood(np.concatenate([prefilled[-1:], decoded[:-1]]), np.asarray(forced))
            for prefilled, decoded, forced in parts
            if forced
        ]
    )
