"""The catalogue: every fault there is, by group."""

from __future__ import annotations

from collections.abc import Iterator

from models import registry
from models.registry import Model
from parity.faults.fault import Fault

#: One preset of every architecture, and of every rule for positions, that differs in more than sizes.
SUBJECTS = (
    "smollm-135m",
    "llama-3.2-1b",
    "qwen2.5-0.5b",
    "gemma-2-2b",
    "phi-2",
    "phi-4-mini",
    "openelm-270m",
    "t5-small",
    "moonshine-tiny",
    "paligemma-2-3b-224",
    "qwen2.5-vl-3b",
)


def faults() -> Iterator[Fault]:
    """All of them, group by group."""
    from parity.faults.catalogue import (
        arithmetic,
        conversion,
        encoders,
        masks,
        positions,
        quantization,
        runtime,
        weights,
    )

    for group in (weights, positions, masks, arithmetic, encoders, conversion, quantization, runtime):
        yield from group.FAULTS


def subjects() -> list[Model]:
    """The models that faults are planted in unless told otherwise."""
    return [registry.get(name) for name in SUBJECTS]
