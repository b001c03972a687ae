"""An exported ``.tflite`` file in the LiteRT runtime, driven the way an engine drives it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.authoring.config import ModelConfig
from models.authoring.session import prefill_name
from parity.errors import RungError
from parity.runners.driver import DrivenSession, Tensor

_PREFILL = re.compile(r"(prefill)_(\d+)(_\w+)?")


@dataclass(frozen=True)
class LiteRT:
    """The files ``paths``, one for each cache length; ``name`` is the rung's (``float`` or a recipe).

    A file does not say which tokens end a text; ``end_tokens`` are those of the checkpoint it was made from.
    """

    name: str
    paths: tuple[Path, ...]
    config: ModelConfig
    threads: int
    end_tokens: frozenset[int] = frozenset()
    one_row: bool = True
    at_once: bool = False

    @contextmanager
    def open(self) -> Iterator[DrivenSession]:
        """Load the files. One that the runtime refuses is an error with its words."""
        from ai_edge_litert.interpreter import Interpreter

        try:
            files = [LiteRTProgram(Interpreter(str(path), num_threads=self.threads)) for path in self.paths]
            yield DrivenSession(self.config, files, self.end_tokens)
        except (ValueError, RuntimeError, TypeError, MemoryError) as error:
            raise RungError(
                f"the runtime refuses {self.name}: {' '.join(str(error).split())[:300]}; convert it again"
            ) from error


class LiteRTProgram:
    """The signatures of one file."""

    def __init__(self, interpreter: Any) -> None:
        self.signatures = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
        self._shapes = {
            name: {key: detail["shape"].tolist() for key, detail in runner.get_input_details().items()}
            for name, runner in self.signatures.items()
        }
        details = self.signatures[self._name("decode", 1)].get_input_details()
        self._cache = {
            name: np.zeros(detail["shape"], detail["dtype"])
            for name, detail in details.items()
            if name.startswith("kv_cache_")
        }
        lengths = {cache.shape[1] for cache in self._cache.values() if cache.ndim == 4}
        if len(lengths) != 1:
            raise RungError(f"the file's caches have {len(lengths)} lengths; convert it again")
        self.cache_length = int(lengths.pop())

    def empty_cache(self, rows: int) -> dict[str, Tensor]:
        if rows != 1:
            raise RungError(f"an exported file takes one row, not {rows}")
        return dict(self._cache)

    def prefill_lengths(self, entry: str) -> Sequence[int]:
        found = (_PREFILL.fullmatch(name) for name in self.signatures)
        return [int(match[2]) for match in found if match and match[1] + (match[3] or "") == entry]

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int]]:
        return self._shapes[self._name(entry, length)]

    def call(self, entry: str, length: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = self.signatures[self._name(entry, length)](**tensors)
        return made

    def _name(self, entry: str, length: int) -> str:
        name = prefill_name(entry, length) if entry.startswith("prefill") else entry
        if name not in self.signatures:
            raise RungError(f"the file has no signature {name}; it has {', '.join(self.signatures)}; convert it again")
        return name
