"""What a runner recorded: logits at every position of every prompt. On disk one safetensors file, as goldens are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parity.errors import RungError
from parity.files import whole_file
from parity.inputs import Inputs, TokenizedPrompt

#: How many of the best tokens are kept of every generated step.
BEST = 5

#: Where in a prompt logits were computed: the whole prompt at once, or token by token through the cache.
PHASES = ("prefill", "decode")
#: When a stage is run.
Phase = Literal["encode", "prefill", "decode"]
#: In the order in which they come.
STAGE_PHASES: tuple[Phase, ...] = ("encode", "prefill", "decode")
#: The stage that stands for a file whose stages are all right and which is wrong nevertheless.
SIGNATURES = "signatures"
_STEPS = ("ids", "margins", "ends")

Logits = NDArray[np.floating]


def _no_ids() -> NDArray[np.int32]:
    return np.empty((0, BEST), np.int32)


def _no_margins() -> NDArray[np.float32]:
    return np.empty((0, BEST), np.float32)


@dataclass(frozen=True)
class Steps:
    """Greedy choices, step by step: the ``ids`` ``[G, 5]`` with the best logits, best first, so the first is chosen.

    ``margins`` ``[G, 5]`` are the distances of their logits from the best one's. ``ends`` ``[G]`` says whether the rung
    takes what it chose for the end of the text. Fewer than five columns where there are fewer tokens.
    """

    ids: NDArray[np.int32] = field(default_factory=_no_ids)
    margins: NDArray[np.float32] = field(default_factory=_no_margins)
    ends: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def chosen(self) -> tuple[int, ...]:
        """The ids that were chosen."""
        return tuple(self.ids[:, 0].tolist())

    def margin(self, step: int, token: int) -> float:
        """How far ``token`` is from being chosen at ``step``; at least so far, if it is not among the best."""
        found = np.flatnonzero(self.ids[step] == token)
        return float(self.margins[step, found[0] if len(found) else -1])


@dataclass(frozen=True)
class PromptTrace:
    """Logits of one prompt: ``prefill`` ``[T, V]`` over the prompt, ``decode`` ``[C, V]`` over its continuation.

    A second turn's positions follow those of the prompt, its reply's those of the continuation.

    ``encoded`` ``[rows, D]`` is what the encoder made of what goes with the prompt, if anything does. ``steps`` are the
    choices of greedy generation from the prompt.
    """

    prefill: Logits
    decode: Logits
    steps: Steps = field(default_factory=Steps)
    encoded: Logits | None = None


@dataclass(frozen=True)
class Trace:
    """All prompts of a set, by id."""

    prompts: Mapping[str, PromptTrace]

    @property
    def said(self) -> dict[str, tuple[int, ...]]:
        """What was generated after each prompt."""
        return {name: prompt.steps.chosen for name, prompt in self.prompts.items()}

    def of(self, inputs: Inputs) -> Trace:
        """The part of the trace that answers ``inputs``."""
        return Trace({prompt.id: self.prompts[prompt.id] for prompt in inputs.prompts})

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
            tensors |= {f"{name}/{part}": getattr(prompt.steps, part) for part in _STEPS}
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
                        steps=Steps(**{part: tensors[f"{name}/{part}"] for part in _STEPS}),
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

    def check(
        self,
        inputs: Inputs,
        vocab_size: int,
        who: str,
        generate: int | None = None,
        guide: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Refuse a trace that does not cover the inputs or cannot have come from a working model.

        ``generate`` is how many tokens it was asked to generate after each prompt, where that is known, unless the text
        ends before; with a ``guide``, as many as that has.

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
            led = None if guide is None else len(guide[prompt.id])
            check_generated(trace.steps, prompt, vocab_size, who, generate, led)
            for phase, count in zip(PHASES, (prompt.prefilled, prompt.decoded), strict=True):
                where = f"{who}, prompt {prompt.id}, {phase}"
                _check_rows(getattr(trace, phase), (count, vocab_size), "logits", "positions", where)
            if (trace.encoded is None) == bool(prompt.encoded_rows):
                found = "missing" if trace.encoded is None else "not asked for"
                raise RungError(f"{who}, prompt {prompt.id}: an encoder's output is {found}; see what it ran")
            if trace.encoded is not None:
                where, width = f"{who}, prompt {prompt.id}, encoder", trace.encoded.shape[-1]
                _check_rows(trace.encoded, (prompt.encoded_rows, width), "rows", "rows", where)


def check_generated(
    steps: Steps,
    prompt: TokenizedPrompt,
    vocab_size: int,
    who: str,
    generate: int | None = None,
    led: int | None = None,
) -> None:
    """Refuse choices that are none, or not as many as were asked for.

    That is ``generate``, unless the text ends before, or as many as a guide ``led`` along.

    Raises:
        RungError: what is wrong, and at which prompt.
    """
    _check_steps(steps, vocab_size, f"{who}, prompt {prompt.id}, generation")
    wanted = generate if led is None else led
    wanted = wanted if prompt.generates else 0
    ended = led is None and len(steps) > 0 and bool(steps.ends[-1])
    if not ended and wanted not in (None, len(steps)):
        raise RungError(f"{who}, prompt {prompt.id}: {len(steps)} tokens generated, not {wanted}; run it again")


def _check_steps(steps: Steps, vocab_size: int, where: str) -> None:
    """Refuse choices that are not token ids, or whose parts do not belong together."""
    ids, margins = steps.ids, steps.margins
    width = min(BEST, vocab_size) if len(ids) else ids.shape[-1]
    if not ids.shape == margins.shape == (*steps.ends.shape, width):
        raise RungError(f"{where}: choices, margins and ends of different numbers")
    if not ((ids >= 0) & (ids < vocab_size)).all():
        raise RungError(f"{where}: a token id that is none of the {vocab_size}")
    if not (margins >= 0).all():  # nor NaN
        raise RungError(f"{where}: a margin that is no distance")


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
