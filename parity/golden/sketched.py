"""What a recording keeps of the oracle's trace: sketches of its logits (``parity.compare.sketch``), and its choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.compare.measuring import ENCODER
from parity.compare.sketch import DIMENSIONS, LARGEST, Sketch, SketchErrors, compare_sketch, sketch
from parity.errors import GoldenError, RungError
from parity.files import whole_file
from parity.inputs import Inputs, TokenizedPrompt
from parity.trace import PHASES, Logits, PromptTrace, Steps, Trace, check_generated

_ROWS = (*PHASES, "encoded")
#: The tensors of a sketch: sums and largest values, the width and the ids of those, sizes and rests.
_PACKED = ("exact", "ids", "sizes")
_STEPS = ("ids", "margins", "ends")


@dataclass(frozen=True)
class SketchedPrompt:
    """Of one prompt what a ``PromptTrace`` holds, its rows as sketches."""

    prefill: Sketch
    decode: Sketch
    steps: Steps
    encoded: Sketch | None = None

    @property
    def rows(self) -> Iterator[tuple[str, Sketch]]:
        """Every sketch there is, by what a trace calls those rows."""
        return ((name, found) for name in _ROWS if (found := getattr(self, name)) is not None)


@dataclass(frozen=True)
class Golden:
    """The oracle's recording, by prompt: traces can be compared with it, and rungs led along what it ``said``."""

    name: str
    prompts: Mapping[str, SketchedPrompt]

    @classmethod
    def of(cls, name: str, trace: Trace) -> Golden:
        """What is recorded of ``trace``: the same to the bit whenever the trace is the same.

        Raises:
            GoldenError: it is not in float64, or holds what cannot be recorded.
        """
        return cls(name, {prompt: _sketched(prompt, found) for prompt, found in trace.prompts.items()})

    @property
    def steps(self) -> dict[str, Steps]:
        """What was generated after each prompt, step by step."""
        return {name: prompt.steps for name, prompt in self.prompts.items()}

    @property
    def said(self) -> dict[str, tuple[int, ...]]:
        """The ids that were generated after each prompt."""
        return {name: prompt.steps.chosen for name, prompt in self.prompts.items()}

    def compare(self, candidate: Trace) -> dict[str, dict[str, SketchErrors]]:
        """How far ``candidate`` is from what was recorded, by phase and prompt; the encoder counts as one more phase.

        Raises:
            GoldenError: it answers other prompts, has rows of other shapes, or values that are not finite.
        """
        if odd := sorted(set(self.prompts) ^ set(candidate.prompts)):
            raise GoldenError(f"prompt {odd[0]} is in the recording or in what it is compared with, not in both")
        found: dict[str, dict[str, SketchErrors]] = {}
        for name, prompt in self.prompts.items():
            answered = candidate.prompts[name]
            if prompt.encoded is None and answered.encoded is not None:
                raise GoldenError(f"prompt {name}: an encoder's rows, of which the recording has none; record it again")
            for rows, kept in prompt.rows:
                phase = ENCODER if rows == "encoded" else rows
                found.setdefault(phase, {})[name] = _compared(kept, getattr(answered, rows), f"prompt {name}, {phase}")
        return found

    def check(self, inputs: Inputs, vocab_size: int | None = None, generate: int | None = None) -> None:
        """Refuse a recording that does not cover the inputs.

        ``vocab_size`` is the model's, and ``generate`` how many tokens the oracle was asked for, where those are known.

        Raises:
            GoldenError: prompts, shapes, values or choices that are not those of such a recording.
        """
        if odd := sorted({prompt.id for prompt in inputs.prompts} ^ set(self.prompts)):
            raise GoldenError(f"{self.name}: prompt {odd[0]} is missing, or not in {inputs.name}; record it again")
        for prompt in inputs.prompts:
            try:
                self._check(prompt, vocab_size, generate)
            except (RungError, ValueError) as error:
                raise GoldenError(f"{self.name}, prompt {prompt.id}: {error}; record it again") from None

    def _check(self, prompt: TokenizedPrompt, vocab_size: int | None, generate: int | None) -> None:
        kept = self.prompts[prompt.id]
        expected = {"prefill": prompt.prefilled, "decode": prompt.decoded, "encoded": prompt.encoded_rows}
        vocabulary = vocab_size or kept.prefill.width
        for rows, found in kept.rows:
            found.check()
            if len(found) != expected[rows]:
                raise ValueError(f"{rows} has {len(found)} rows, not {expected[rows]}")
            if rows in PHASES and (found.width, found.ids.shape[1]) != (vocabulary, min(LARGEST, vocabulary)):
                raise ValueError(f"{rows} is of {found.width} logits, not {vocabulary}")
        if (kept.encoded is None) == bool(prompt.encoded_rows):
            raise ValueError(f"an encoder's rows are {'missing' if kept.encoded is None else 'not asked for'}")
        check_generated(kept.steps, prompt, vocabulary, "the recording", generate)

    def save(self, path: Path) -> None:
        """Write the recording's numbers, whole or not at all."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {}
        for name, prompt in self.prompts.items():
            for rows, kept in prompt.rows:
                tensors |= {f"{name}/{rows}/{part}": values for part, values in _packed(kept).items()}
            tensors |= {f"{name}/{part}": np.ascontiguousarray(getattr(prompt.steps, part)) for part in _STEPS}
        with whole_file(path) as temporary:
            try:
                save_file(tensors, temporary)
            except SafetensorError as error:  # how the library reports a full disk
                raise OSError(str(error)) from error

    @classmethod
    def load(cls, name: str, path: Path) -> Golden:
        """Read a recording back.

        Raises:
            GoldenError: the file is missing, truncated, or not a recording.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
            prompts = dict.fromkeys(key.removesuffix("/ends") for key in tensors if key.endswith("/ends"))
            found = {}
            for prompt in prompts:
                sketches = {
                    rows: _unpacked({part: tensors[f"{prompt}/{rows}/{part}"] for part in _PACKED})
                    for rows in _ROWS
                    if rows in PHASES or f"{prompt}/{rows}/{_PACKED[0]}" in tensors
                }
                steps = Steps(**{part: tensors[f"{prompt}/{part}"] for part in _STEPS})
                found[prompt] = SketchedPrompt(steps=steps, **sketches)
        except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise GoldenError(f"{path} is not a recording ({error}); record it again") from None
        return cls(name, found)


def _packed(kept: Sketch) -> dict[str, NDArray[Any]]:
    """A sketch as three tensors: each has a name of a hundred bytes, and there are many."""
    width = np.full((len(kept), 1), kept.width, np.int32)
    exact = np.column_stack([kept.projected, kept.largest])
    parts = (exact, np.column_stack([width, kept.ids]), np.column_stack([kept.size, kept.rest]))
    return {name: np.ascontiguousarray(part) for name, part in zip(_PACKED, parts, strict=True)}


def _unpacked(packed: dict[str, NDArray[Any]]) -> Sketch:
    """Raises ``IndexError`` or ``ValueError`` where the tensors are not those of a sketch."""
    exact, ids, sizes = (packed[name] for name in _PACKED)
    width, *others = np.unique(ids[:, 0]).tolist()
    if others:
        raise ValueError(f"rows of {width} and of {others[0]} numbers")
    return Sketch(
        width=int(width),
        projected=exact[:, :DIMENSIONS],
        largest=exact[:, DIMENSIONS:],
        ids=ids[:, 1:],
        size=sizes[:, 0],
        rest=sizes[:, 1],
    )


def _sketched(name: str, prompt: PromptTrace) -> SketchedPrompt:
    sketches = {}
    for rows in _ROWS:
        values: Logits | None = getattr(prompt, rows)
        if values is None:
            continue
        where = f"prompt {name}, {rows}"
        if values.dtype != np.float64:
            raise GoldenError(f"{where}: {values.dtype} cannot be recorded; record the oracle, which is in float64")
        try:
            sketches[rows] = sketch(values, LARGEST if rows in PHASES else 0)
        except ValueError as error:
            raise GoldenError(f"{where}: {error}; see what the oracle computes there") from None
    return SketchedPrompt(steps=prompt.steps, **sketches)


def _compared(kept: Sketch, values: Logits | None, where: str) -> SketchErrors:
    if values is None:
        raise GoldenError(f"{where}: no rows, of which the recording has {len(kept)}; see what it ran")
    try:
        return compare_sketch(kept, values)
    except ValueError as error:
        raise GoldenError(f"{where}: {error}; see what it ran") from None
