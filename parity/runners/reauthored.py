"""This project's PyTorch model, float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parity.runners.base import shortest
from parity.trace import Logits

if TYPE_CHECKING:
    from torch import Tensor

    from models.authoring.decoder import DecoderOnlyModel


@dataclass(frozen=True)
class Reauthored:
    """The family's model with the weights of ``folder``; prefill takes the prompt in one piece."""

    family: str
    folder: Path
    cache_lengths: tuple[int, ...]
    threads: int = 1
    name: str = "reauthored"

    @contextmanager
    def open(self) -> Iterator[ReauthoredSession]:
        """Load the checkpoint through the family's weight map."""
        import torch

        from models import registry

        torch.set_num_threads(self.threads)
        model = registry.family(self.family).load(self.folder)
        with torch.inference_mode():
            yield ReauthoredSession(model, self.cache_lengths)


class ReauthoredSession:
    """The model and its cache: the shortest of ``cache_lengths`` that holds the session."""

    note = ""

    def __init__(self, model: DecoderOnlyModel, cache_lengths: Sequence[int]) -> None:
        self.model = model
        self.cache_lengths = cache_lengths
        self.cache: dict[str, Tensor] = {}
        self.position = 0

    def prefill(self, tokens: Sequence[int], until: int) -> Logits:
        self.cache = self.model.empty_cache(shortest(self.cache_lengths, until))
        self.position = 0
        return self._run(tokens)

    def decode(self, token: int) -> Logits:
        logits: Logits = self._run([token])[0]
        return logits

    def _run(self, tokens: Sequence[int]) -> Logits:
        import torch

        positions = torch.arange(self.position, self.position + len(tokens), dtype=torch.int32)
        outputs = self.model(torch.tensor([tokens], dtype=torch.int32), positions, self.cache)
        logits: Logits = outputs.pop("logits")[0].numpy()
        self.cache = outputs
        self.position += len(tokens)
        return logits
