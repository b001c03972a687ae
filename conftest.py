"""Root of the test run: the ladder plugin, and which tests must stay together when several processes share them."""

import os

import pytest

from parity import isolated

pytest_plugins = ["parity.pytest_plugin"]

#: Files of slow tests that share nothing, and may go to whatever process is free.
APART = (
    "test_composed.py",
    "test_faults.py",
    "test_odd_checkpoints.py",
    "test_kills.py",
    "test_mutants.py",
    "test_reruns.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests go on that are drawn at random."""
    group = parser.getgroup("hostile")
    group.addoption("--kills", type=int, default=6, help="how many processes are killed at random moments")
    group.addoption("--mutants", type=int, default=40, help="how many damaged files are tried")
    group.addoption("--draw", type=int, default=0, help="which kills and mutants: another number draws others")


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    """What is tested is made, not found: no test, nor what it starts, reads the user's cache or fills it."""
    os.environ["PARITY_CACHE_GB"] = "0"
    # The first job of a process starts the server of all others, whatever they need.
    isolated.PRELOAD = isolated.PRELOAD_CONVERTER
    isolated.prepare(converter=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is costly to make is made once: a model's ladder for its edges, a file's fixtures for its tests."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        case = callspec.params.get("parity_edge") if callspec else None
        together = item.nodeid if item.path.name in APART else str(item.path)
        item.add_marker(pytest.mark.xdist_group(case[0].name if case else together))
