"""What the random draws came to, counted over the whole run and shown at its end."""

from __future__ import annotations

from collections import Counter

import pytest

_TALLY = pytest.StashKey[Counter[str]]()


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Counter[str]:
    """Outcomes by kind; with several processes each shows its own."""
    return request.config.stash.setdefault(_TALLY, Counter())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each kind."""
    if found := terminalreporter.config.stash.get(_TALLY, None):
        terminalreporter.section(f"{found.total()} kills and mutants")
        for kind, count in sorted(found.items()):
            terminalreporter.line(f"{count:5} {kind}")
