"""The ladder of every selected model, one test per edge, and the freshness of its recording."""

import pytest
from rich.console import Console

from parity.golden import GoldenStore
from parity.pipeline import Request, record_golden, verify_golden
from parity.progress import Reporter
from parity.pytest_plugin import EdgeUnderTest


@pytest.mark.parity
def test_edge_passes(parity_edge: EdgeUnderTest, record_property) -> None:
    """The rung is within its limits on every prompt, prefill and decode."""
    for name, value in parity_edge.figures.items():
        record_property(name, value)
    assert parity_edge.edge.verdict == "PASS", str(parity_edge)


@pytest.mark.parity
def test_recording_is_fresh(parity_request: Request, pytestconfig: pytest.Config) -> None:
    """The committed recording was made from exactly today's weights, config, tokenizer and prompts."""
    store, quiet = GoldenStore.default(), Reporter(Console(stderr=True), quiet=True)
    if pytestconfig.getoption("--update-golden"):
        record_golden(parity_request, store, quiet, overwrite=True)
    verify_golden(parity_request, store, quiet)
