"""What can go wrong outside a model's own files. Every message is one line that names the thing and the remedy."""

from __future__ import annotations

from models.errors import OneLineError


class ParityError(OneLineError):
    """Base of the errors below. Nothing could be concluded: exit code 3."""


class UsageError(ParityError):
    """The command was used wrongly (an unknown name, a bad option, a missing file): exit code 2."""


class WeightsError(ParityError):
    """A checkpoint could not be had or is not what it should be."""


class PromptError(ParityError):
    """A prompt set cannot be read, or does not fit the model."""


class RungError(ParityError):
    """A rung could not be run to its end: it crashed, or gave something that is not a trace."""


class CannotStartError(RungError):
    """The system gives a job no process, or no place for its log."""


class GoldenError(ParityError):
    """A recording is missing, stale or unused."""
