"""Runners: one a rung, all driven the same way. Each runs in a process of its own and is gone before the next starts."""
