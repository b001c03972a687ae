"""Recordings of the oracle, small enough to keep: what it computed, in float64, and what it said."""

from parity.golden.sketched import Golden, SketchedPrompt
from parity.golden.store import SCHEMA_VERSION, GoldenStore, Recording, Reference, identity

__all__ = [
    "SCHEMA_VERSION",
    "Golden",
    "GoldenStore",
    "Recording",
    "Reference",
    "SketchedPrompt",
    "identity",
]
