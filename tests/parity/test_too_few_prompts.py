"""Quantized rungs on few prompts, down the whole ladder: one says nothing about others, two are judged by the worse."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from models import registry
from parity.compare.verdict import Edge, Verdict
from parity.pipeline import Request, check
from parity.progress import Reporter

LINES = (
    {"id": "a", "text": "The lighthouse", "continuation": " keeper wrote in his logbook every evening by lamp."},
    {"id": "b", "text": "Seven ships", "continuation": " came home before the storm, and two of them were empty."},
)


def edges(path: Path, count: int) -> dict[tuple[str, str], Edge]:
    """By rung and question."""
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES[:count]))
    request = Request(model=registry.get("amd-llama-135m"), prompts=str(path), rungs=("reauthored64", "float", "fp16"))
    report = check(request, Reporter(Console(stderr=True), quiet=True))
    json.dumps(report.to_json(), allow_nan=False)
    return {(edge.candidate, edge.question): edge for edge in report.edges}


def test_one_prompt_is_no_sample(tmp_path: Path) -> None:
    """Port, file and fidelity pass at every position of it; what a recipe costs other prompts, one cannot tell."""
    found = edges(tmp_path / "one.jsonl", 1)
    cost = found.pop(("fp16", "quality"))
    assert {edge.verdict for edge in found.values()} == {Verdict.PASS}
    assert set(found) == {
        ("original", "rounding"), ("reauthored64", "port"), ("float", "rounding"), ("fp16", "fidelity")
    }  # fmt: skip
    assert cost.verdict is Verdict.ERROR
    assert cost.cause == "one prompt says nothing about others; give four, better seven"
    assert cost.metrics["prompts"] == 1


def test_two_prompts_are_judged_by_the_worse(tmp_path: Path) -> None:
    """How sure that is, is said."""
    found = edges(tmp_path / "two.jsonl", 2)
    assert {edge.verdict for edge in found.values()} == {Verdict.PASS}
    cost = found["fp16", "quality"].metrics
    assert cost["bound"]["kl_typical"] == max(cost["interval"]["kl_typical"]) > cost["kl_typical"]
    assert cost["typical_confidence"] == 0.75
