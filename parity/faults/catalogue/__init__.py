"""The catalogue: every fault there is, by group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from models import registry
from models.registry import Model
from parity.faults.fault import Fault, Group

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
        situations,
        subtle,
        weights,
    )

    tables = (weights, positions, masks, arithmetic, encoders, conversion, quantization, runtime, situations, subtle)
    known = [fault for table in tables for fault in table.FAULTS]
    for group in get_args(Group):
        yield from (fault for fault in known if fault.group == group)


def subjects() -> list[Model]:
    """The models that faults are planted in unless told otherwise."""
    return [registry.get(name) for name in SUBJECTS]
