"""Runners: one a rung, all driven the same way, each in a process of its own and gone before the next starts."""
