"""How a session goes through entry points, whatever kind of model it is and whatever runs them.

The encoder's calls first; then the prompt, cut into calls of lengths that there are; then token by token. Every tensor
that a call gives back is there for the calls after it, under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.authoring.config import ModelConfig
from models.authoring.session import EncoderCall, SessionInputs, session_inputs
from parity.errors import RungError
from parity.inputs import TokenizedPrompt
from parity.runners.base import Prefilled, shortest
from parity.trace import Logits

Tensor = NDArray[Any]


class Program(Protocol):
    """Entry points that can be called, over a cache of ``cache_length`` slots."""

    cache_length: int

    def empty_cache(self, rows: int) -> dict[str, Tensor]:
        """Cache tensors for a new session of so many rows, by name."""

    def prefill_lengths(self, entry: str) -> Sequence[int] | None:
        """How many tokens a call of ``entry`` may take; ``None`` for any number."""

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int] | None]:
        """The inputs that a call with ``length`` tokens takes; ``None`` where their shape is free."""

    def call(self, entry: str, length: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run an entry point."""


@dataclass(frozen=True)
class Chunk:
    """One call of a signature: ``count`` real tokens from ``start`` on, padded to ``length``."""

    start: int
    count: int
    length: int


def plan_chunks(
    tokens: int, lengths: Sequence[int], cache_length: int, *, whole: bool = False, filled: int = 0
) -> list[Chunk]:
    """How a prompt is fed through signatures of fixed ``lengths`` (decode, length 1, is always there).

    The cache has ``cache_length`` slots, of which the first are ``filled`` already. Each step takes the shortest
    signature that holds the rest, or the longest when none does. A chunk whose padding would run past the cache is not
    allowed: the runtime would silently move the whole slice back over earlier tokens. A ``whole`` prompt is not cut.

    Raises:
        RungError: it does not fit the cache, or no signature holds it whole.
    """
    available = sorted({1, *lengths})
    if whole:
        holding = [length for length in available if tokens <= length <= cache_length]
        if not holding:
            raise RungError(
                f"a prompt of {tokens} tokens whose tokens see each other goes in one call, and the longest prefill "
                f"takes {max(available)} of a cache of {cache_length}; convert with a longer one"
            )
        return [Chunk(0, tokens, holding[0])]
    chunks = []
    start = 0
    while start < tokens:
        rest = tokens - start
        fitting = [length for length in available if filled + start + length <= cache_length]
        if not fitting:
            after = f" after {filled} others" if filled else ""
            raise RungError(
                f"a prompt of {tokens} tokens{after} does not fit a cache of {cache_length}; raise --kv-cache"
            )
        length = next((length for length in fitting if length >= rest), fitting[-1])
        chunks.append(Chunk(start, min(rest, length), length))
        start += chunks[-1].count
    return chunks


class DrivenSession:
    """A session through the program with the shortest cache that holds it."""

    note = ""

    def __init__(
        self, config: ModelConfig, programs: Sequence[Program], end_tokens: frozenset[int] = frozenset()
    ) -> None:
        self.config = config
        self.end_tokens = end_tokens
        self.programs = {program.cache_length: program for program in programs}
        self.program = programs[0]
        self.given = SessionInputs()
        self.state: dict[str, Tensor] = {}
        self.position = 0
        self.prompt = TokenizedPrompt("", (), ())
        #: Is told of every prompt before anything of it is run.
        self.on_begin: Callable[[TokenizedPrompt], None] = lambda _: None

    def prefill(self, prompt: TokenizedPrompt, until: int) -> Prefilled:
        self.begin(prompt, until)
        rows = [self._encode(call) for call in self.given.calls]
        encoded = np.concatenate(rows) if rows else None
        if encoded is not None:
            self.state["encoded"] = encoded[None]
        return Prefilled(self._take_all(prompt.prompt, whole=self.given.whole), encoded)

    def begin(self, prompt: TokenizedPrompt, until: int) -> None:
        """Start over with an empty cache."""
        self.on_begin(prompt)
        self.prompt = prompt
        self.program = self.programs[shortest(self.programs, until)]
        self.given = session_inputs(self.config, prompt.prompt, prompt.media, until)
        self.state = {**self.program.empty_cache(self.rows), **self.given.constant}
        self.position = 0

    def extend(self, tokens: Sequence[int]) -> Logits:
        return self._take_all(tokens)

    def decode(self, token: int) -> Logits:
        logits: Logits = self._take("decode", [token], Chunk(0, 1, 1))[0]
        return logits

    def _encode(self, call: EncoderCall) -> Logits:
        """The rows that one call makes ``[rows, D]``; what else it gives is kept."""
        made = self.program.call(call.entry, 0, self.fitted(call.entry, 0, call.tensors))
        encoded = taken(made, "encoded", call.entry)
        self.state |= made
        return encoded[: call.rows]

    def _take_all(self, tokens: Sequence[int], *, whole: bool = False) -> Logits:
        """Logits of the tokens, in as many calls as it takes."""
        return np.concatenate([self._take(entry, tokens, chunk) for entry, chunk in self.plan(tokens, whole=whole)])

    def plan(self, tokens: Sequence[int], *, whole: bool = False) -> list[tuple[str, Chunk]]:
        """The calls that take the tokens from here on, each with its entry point."""
        entry = self.given.prefill or "decode"
        lengths = self.program.prefill_lengths(entry) if self.given.prefill else ()
        lengths = (len(tokens),) if lengths is None else lengths
        lengths = lengths if self.prompt.through is None else self.prompt.through
        chunks = plan_chunks(len(tokens), lengths, self.program.cache_length, whole=whole, filled=self.position)
        return [(entry if chunk.length > 1 else "decode", chunk) for chunk in chunks]

    def _take(self, entry: str, tokens: Sequence[int], chunk: Chunk) -> Logits:
        """Logits of the chunk's real tokens. Padding leaves nothing visible behind."""
        made = self.program.call(entry, chunk.length, self.prepared(entry, tokens, chunk))
        logits = taken(made, "logits", entry, self.prompt.row, self.rows)
        self.state |= made
        self.position += chunk.count
        return logits[: chunk.count]

    @property
    def rows(self) -> int:
        """How many rows each call has."""
        return 2 if self.prompt.beside else 1

    def prepared(self, entry: str, tokens: Sequence[int], chunk: Chunk) -> dict[str, Tensor]:
        """What a call takes that runs the chunk from this position on."""
        end = self.position + chunk.length
        if end > self.program.cache_length:
            raise RungError(
                f"position {end} is past the cache of {self.program.cache_length}; convert with a longer one"
            )
        rows = [tokens[chunk.start : chunk.start + chunk.count]]
        if self.prompt.beside:
            rows.insert(1 - self.prompt.row, self.prompt.beside[self.position : self.position + chunk.count])
        padded = [[*row, *[0] * (chunk.length - chunk.count)] for row in rows]
        known = {name: _cut(value, self.position, end) for name, value in self.given.per_position.items()}
        positions = np.arange(self.position, end, dtype=np.int32)
        tensors = {**self.state, **known, "tokens": np.asarray(padded, np.int32), "input_pos": positions}
        return self.fitted(entry, chunk.length, tensors)

    def fitted(self, entry: str, length: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exactly what the entry point takes, padded to its shapes."""
        given = {}
        for name, shape in self.program.shapes(entry, length).items():
            if name not in tensors:
                raise RungError(f"{entry} takes {name}, which nothing gives it; convert it again")
            given[name] = tensors[name] if shape is None else _padded(tensors[name], shape, f"{entry}: {name}")
        return given


def taken(made: dict[str, Tensor], name: str, entry: str, row: int = 0, rows: int = 1) -> Logits:
    """Of an output ``[B, T, values]``, which is taken out of what a call made, one ``row`` of its ``rows``."""
    if name not in made or made[name].ndim != 3 or len(made[name]) != rows:
        found = f"of shape {list(made[name].shape)}" if name in made else "missing"
        raise RungError(f"{entry}: {name} are {found}, expected a batch of {rows}; convert it again")
    taken: Logits = made.pop(name)[row]
    return taken


def _cut(values: Tensor, start: int, end: int) -> Tensor:
    """Values of positions ``start`` to ``end``; zeros for padding beyond the session."""
    cut = values[..., start:end]
    missing = end - start - cut.shape[-1]
    return np.concatenate([cut, np.zeros((*cut.shape[:-1], missing), cut.dtype)], axis=-1) if missing else cut


def _padded(values: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """``values`` with zeros behind them on every axis, up to ``shape``."""
    if values.shape == tuple(shape):
        return values
    if values.ndim != len(shape) or any(have > room for have, room in zip(values.shape, shape, strict=True)):
        raise RungError(f"{what} of shape {list(values.shape)} does not fit the file's {list(shape)}; convert it again")
    return np.pad(values, [(0, room - have) for have, room in zip(values.shape, shape, strict=True)])
