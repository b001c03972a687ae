"""What can be wrong with the things a model is made from. Every message names the thing and the remedy."""

from __future__ import annotations


class OneLineError(Exception):
    """An error for a person: its message is one line of printable characters, whatever it quotes."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


class ModelError(OneLineError):
    """Base of the errors below."""


class UnknownModelError(ModelError):
    """A model, family or model type that no family here supports."""


class ConfigError(ModelError):
    """A checkpoint's configuration cannot be carried out as written."""


class CheckpointError(ModelError):
    """A checkpoint's files are damaged, incomplete, or do not fit its configuration."""
