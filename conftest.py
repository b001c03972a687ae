"""Root of the test run: the ladder plugin, and isolation of what tests write."""

pytest_plugins = ["parity.pytest_plugin"]
