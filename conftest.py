"""Root of the test run: the ladder plugin, and which tests must stay together when several processes share them."""

import pytest

pytest_plugins = ["parity.pytest_plugin"]

#: Files of slow tests that share nothing, and may go to whatever process is free.
APART = ("test_planted_mistakes.py", "test_odd_checkpoints.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is costly to make is made once: a model's ladder for its edges, a file's fixtures for its tests."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        case = callspec.params.get("parity_edge") if callspec else None
        together = item.nodeid if item.path.name in APART else str(item.path)
        item.add_marker(pytest.mark.xdist_group(case[0].name if case else together))
