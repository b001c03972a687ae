"""Comparing traces: metrics are pure functions, limits one table, verdicts fail closed."""
