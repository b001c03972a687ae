"""What can be wrong with the things a model is made from. Every message names the thing and the remedy."""

from __future__ import annotations


class ModelError(Exception):
    """Base of the errors below; the message is one line for the person who started the command."""


class UnknownModelError(ModelError):
    """A model, family or model type that no family here supports."""


class ConfigError(ModelError):
    """A checkpoint's configuration cannot be carried out as written."""


class CheckpointError(ModelError):
    """A checkpoint's files are damaged, incomplete, or do not fit its configuration."""
