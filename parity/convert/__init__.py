"""Stages to StableHLO to ``.tflite``, then every recipe applied to that one float file."""
