"""Tests that share what is costly to make are run by one process, however many there are."""

import pytest


def test_groups_are_kept(request: pytest.FixtureRequest) -> None:
    """A pytest that pytest-xdist does not know forgets groups without a word, and everything is made twice."""
    group = request.node.get_closest_marker("xdist_group").args[0]
    assert group == str(request.path)
    if hasattr(request.config, "workerinput"):
        assert request.node.nodeid.endswith(f"@{group}")
