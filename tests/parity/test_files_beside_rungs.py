"""What runs beside what on the ladder of one model."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from models import registry
from parity import ladder
from parity.artifacts.making import Artifacts
from parity.pipeline import Request, check
from parity.progress import Reporter
from parity.runners.base import Recorded, record


@pytest.mark.parametrize(("small", "streamed", "beside"), [(0, False, True), (10**9, False, True), (0, True, False)])
def test_files_are_made_beside_the_rungs_above_them(
    monkeypatch: pytest.MonkeyPatch, small: int, streamed: bool, beside: bool
) -> None:
    """Whatever the size of the model, unless it goes by stages: then files come and go."""
    begun: list[str] = []
    float_file = Artifacts.float_file

    def converting(self: Artifacts, *arguments: Any) -> Any:
        begun.append("converting")
        return float_file(self, *arguments)

    def recording(runner: Any, *arguments: Any, **options: Any) -> Recorded:
        begun.append(runner.name)
        return record(runner, *arguments, **options)

    monkeypatch.setattr(ladder, "SMALL_BYTES", small)
    monkeypatch.setattr(ladder, "record", recording)
    monkeypatch.setattr(Artifacts, "float_file", converting)
    monkeypatch.setattr(ladder.Ladder, "_misstored", lambda *_: None)
    request = Request(model=registry.get("smollm-135m"), rungs=("float",), streamed=streamed)
    assert check(request, Reporter(Console(stderr=True), quiet=True)).verdict == "PASS"
    rungs = ["original64", "original", "reauthored64", "float"]
    assert begun == ["converting", *rungs] if beside else begun == rungs
