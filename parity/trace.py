"""What a runner recorded: logits at every position of every prompt. On disk one safetensors file, as goldens are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parity.errors import RungError
from parity.files import whole_file
from parity.inputs import Inputs

#: Where in a prompt logits were computed: the whole prompt at once, or token by token through the cache.
PHASES = ("prefill", "decode")

Logits = NDArray[np.floating]


@dataclass(frozen=True)
class PromptTrace:
    """Logits of one prompt: ``prefill`` ``[T, V]`` over the prompt, ``decode`` ``[C, V]`` over its continuation.

    ``encoded`` ``[rows, D]`` is what the encoder made of what goes with the prompt, if anything does. ``generated``
    holds the ids of free-running greedy generation from the prompt, ``margins`` the distance between the two best
    logits at each of them.
    """

    prefill: Logits
    decode: Logits
    generated: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    encoded: Logits | None = None


@dataclass(frozen=True)
class Trace:
    """All prompts of a set, by id."""

    prompts: Mapping[str, PromptTrace]

    def save(self, path: Path, dtype: type[np.floating] | None = None) -> None:
        """Write the trace, whole or not at all; ``dtype`` rounds the logits for storage."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors = {}
        for name, prompt in self.prompts.items():
            for phase in PHASES if prompt.encoded is None else (*PHASES, "encoded"):
                logits = getattr(prompt, phase)
                with np.errstate(over="ignore"):  # said in words below
                    stored = np.ascontiguousarray(logits, dtype)
                if np.isfinite(logits).all() and not np.isfinite(stored).all():
                    raise RungError(f"prompt {name}, {phase}: values beyond what {stored.dtype} can hold")
                tensors[f"{name}/{phase}"] = stored
            tensors[f"{name}/generated"] = np.asarray(prompt.generated, dtype=np.int64)
            tensors[f"{name}/margins"] = np.asarray(prompt.margins, dtype=np.float64)
        with whole_file(path) as temporary:
            try:
                save_file(tensors, temporary)
            except SafetensorError as error:  # how the library reports a full disk
                raise OSError(str(error)) from error

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read a trace back.

        Raises:
            RungError: the file is missing, truncated, or not a trace.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
            names = dict.fromkeys(key.rpartition("/")[0] for key in tensors)
            return cls(
                {
                    name: PromptTrace(
                        prefill=tensors[f"{name}/prefill"],
                        decode=tensors[f"{name}/decode"],
                        encoded=tensors.get(f"{name}/encoded"),
                        generated=tuple(tensors[f"{name}/generated"].tolist()),
                        margins=tuple(tensors[f"{name}/margins"].tolist()),
                    )
                    for name in names
                }
            )
        except (OSError, SafetensorError, KeyError) as error:
            raise RungError(f"{path} is not a trace ({error}); record it again") from None

    @property
    def digest(self) -> str:
        """SHA-256 of the logits rounded to float32: equal for two traces only if they hold the same numbers."""
        digest = hashlib.sha256()
        for name, prompt in sorted(self.prompts.items()):
            for phase in PHASES:
                logits = getattr(prompt, phase)
                digest.update(f"{name}/{phase}{logits.shape}".encode())
                with np.errstate(over="ignore"):  # what float32 cannot hold is refused elsewhere
                    digest.update(logits.astype(np.float32).tobytes())
        return digest.hexdigest()

    def check(self, inputs: Inputs, vocab_size: int, who: str, generate: int | None = None) -> None:
        """Refuse a trace that does not cover the inputs or cannot have come from a working model.

        ``generate`` is how many tokens it was asked to generate after each prompt, where that is known.

        Raises:
            RungError: a prompt missing or extra, a wrong shape, NaN or infinity, or values that are all alike.
        """
        asked = {prompt.id for prompt in inputs.prompts}
        if missing := sorted(asked - set(self.prompts)):
            raise RungError(f"{who} gave no answer to prompt {missing[0]} of {inputs.name}; run it again")
        if extra := sorted(set(self.prompts) - asked):
            raise RungError(f"{who} answered a prompt {extra[0]} that is not in {inputs.name}; run it again")
        for prompt in inputs.prompts:
            trace = self.prompts[prompt.id]
            if len(trace.generated) != len(trace.margins):
                raise RungError(
                    f"{who}, prompt {prompt.id}: generated tokens and their margins differ in number; run it again"
                )
            if generate not in (None, len(trace.generated)):
                made = len(trace.generated)
                raise RungError(f"{who}, prompt {prompt.id}: {made} tokens generated, not {generate}; run it again")
            for phase, count in zip(PHASES, (len(prompt.prompt), len(prompt.continuation)), strict=True):
                where = f"{who}, prompt {prompt.id}, {phase}"
                _check_rows(getattr(trace, phase), (count, vocab_size), "logits", "positions", where)
            if (trace.encoded is None) == bool(prompt.encoded_rows):
                found = "missing" if trace.encoded is None else "not asked for"
                raise RungError(f"{who}, prompt {prompt.id}: an encoder's output is {found}; see what it ran")
            if trace.encoded is not None:
                where, width = f"{who}, prompt {prompt.id}, encoder", trace.encoded.shape[-1]
                _check_rows(trace.encoded, (prompt.encoded_rows, width), "rows", "rows", where)


def _check_rows(values: Logits, shape: tuple[int, int], what: str, rows: str, where: str) -> None:
    """Refuse rows of another shape, with NaN or infinity, or with one value throughout."""
    if values.shape != shape or not shape[1]:
        raise RungError(f"{where}: {what} of shape {list(values.shape)}, expected {list(shape)}; see what it ran")
    if not np.issubdtype(values.dtype, np.floating):
        raise RungError(f"{where}: {what} are {values.dtype}, expected floating point; dequantize them")
    if bad := np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist():
        raise RungError(
            f"{where}: NaN or infinity at {len(bad)} of {shape[0]} {rows}, first at {bad[0]}; see what overflows"
        )
    if flat := np.flatnonzero(values.max(axis=1) == values.min(axis=1)).tolist():
        raise RungError(f"{where}: every value is the same at {rows.removesuffix('s')} {flat[0]}; see what writes it")
