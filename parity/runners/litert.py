"""An exported ``.tflite`` file in the LiteRT runtime, driven the way an engine drives it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.errors import RungError
from parity.runners.base import shortest
from parity.trace import Logits


@dataclass(frozen=True)
class Chunk:
    """One call of a signature: ``count`` real tokens from ``start`` on, padded to ``length``."""

    start: int
    count: int
    length: int


def plan_chunks(tokens: int, lengths: Sequence[int], cache_length: int) -> list[Chunk]:
    """How a prompt is fed through signatures of fixed ``lengths`` (decode, length 1, is always there).

    Each step takes the shortest signature that holds the rest, or the longest when none does. A chunk whose padding
    would run past the cache is not allowed: the runtime would silently move the whole slice back over earlier tokens.
    """
    available = sorted({1, *lengths})
    chunks = []
    start = 0
    while start < tokens:
        rest = tokens - start
        fitting = [length for length in available if start + length <= cache_length]
        if not fitting:
            raise RungError(f"a prompt of {tokens} tokens does not fit a cache of {cache_length}")
        length = next((length for length in fitting if length >= rest), fitting[-1])
        chunks.append(Chunk(start, min(rest, length), length))
        start += chunks[-1].count
    return chunks


@dataclass(frozen=True)
class LiteRT:
    """The files ``paths``, one for each cache length; ``name`` is the rung's (``float`` or a recipe)."""

    name: str
    paths: tuple[Path, ...]
    threads: int

    @contextmanager
    def open(self) -> Iterator[LiteRTSession]:
        """Load the files. One that the runtime refuses is an error with its words."""
        from ai_edge_litert.interpreter import Interpreter

        try:
            models = [LiteRTModel(Interpreter(str(path), num_threads=self.threads)) for path in self.paths]
            yield LiteRTSession(models)
        except (ValueError, RuntimeError) as error:
            raise RungError(f"the runtime refuses {self.name}: {' '.join(str(error).split())[:300]}") from error


class LiteRTModel:
    """The signatures of one file."""

    def __init__(self, interpreter: Any) -> None:
        names = interpreter.get_signature_list()
        if "decode" not in names:
            raise RungError(f"the file has no decode signature, only {', '.join(names) or 'none'}")
        self.interpreter = interpreter  # the signatures live as long as it does
        self.prefill_lengths = [int(name.removeprefix("prefill_")) for name in names if name.startswith("prefill_")]
        self.signatures = {name: interpreter.get_signature_runner(name) for name in names}
        self.empty_cache: dict[str, NDArray[Any]] = {
            name: np.zeros(detail["shape"], detail["dtype"])
            for name, detail in self.signatures["decode"].get_input_details().items()
            if name.startswith("kv_cache_")
        }
        self.cache_length = int(self.empty_cache["kv_cache_k_0"].shape[1])


class LiteRTSession:
    """The cache that goes round between the signatures of the file with the shortest cache that holds the session."""

    note = ""

    def __init__(self, models: Sequence[LiteRTModel]) -> None:
        self.models = {model.cache_length: model for model in models}
        self.model = models[0]
        self.cache: dict[str, NDArray[Any]] = {}
        self.position = 0

    def prefill(self, tokens: Sequence[int], until: int) -> Logits:
        self.model = self.models[shortest(self.models, until)]
        self.cache = self.model.empty_cache
        self.position = 0
        pieces = []
        for chunk in plan_chunks(len(tokens), self.model.prefill_lengths, self.model.cache_length):
            name = "decode" if chunk.length == 1 else f"prefill_{chunk.length}"
            padded = [*tokens[chunk.start : chunk.start + chunk.count], *[0] * (chunk.length - chunk.count)]
            pieces.append(self._run(name, padded, chunk.count))
        return np.concatenate(pieces)

    def decode(self, token: int) -> Logits:
        logits: Logits = self._run("decode", [token], 1)[0]
        return logits

    def _run(self, signature: str, tokens: Sequence[int], count: int) -> Logits:
        """Call ``signature``; logits of the first ``count`` positions. Padding leaves nothing visible behind."""
        if self.position + len(tokens) > self.model.cache_length:
            raise RungError(f"position {self.position + len(tokens)} is past the cache of {self.model.cache_length}")
        positions = np.arange(self.position, self.position + len(tokens), dtype=np.int32)
        run = self.model.signatures[signature]
        outputs = run(tokens=np.asarray([tokens], dtype=np.int32), input_pos=positions, **self.cache)
        logits: Logits = outputs.pop("logits")[0, :count]
        self.cache = outputs
        self.position += count
        return logits
