"""A quantized rung on too few prompts, down the whole ladder: ERROR with the remedy, while float rungs are judged."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from models import registry
from parity.compare.verdict import Verdict
from parity.pipeline import Request, check
from parity.progress import Reporter


def test_one_prompt_judges_float_rungs_only(tmp_path: Path) -> None:
    """The float file passes at every position of it; of what its recipe loses, one prompt cannot tell."""
    path = tmp_path / "one.jsonl"
    line = {"id": "a", "text": "The lighthouse", "continuation": " keeper wrote in his logbook every evening by lamp."}
    path.write_text(json.dumps(line) + "\n")
    request = Request(model=registry.get("amd-llama-135m"), prompts=str(path), rungs=("float", "fp16"))
    report = check(request, Reporter(Console(stderr=True), quiet=True))
    edges = {edge.candidate: edge for edge in report.edges}
    assert edges["float"].verdict is Verdict.PASS
    assert edges["fp16"].verdict is Verdict.ERROR
    assert edges["fp16"].cause == "one prompt says nothing about others; give two at least, better seven"
    assert edges["fp16"].metrics["prompts"] == 1
    json.dumps(report.to_json(), allow_nan=False)
