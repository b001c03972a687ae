"""This project's PyTorch model: in float32, or in float64 throughout (the exact port)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parity.runners.driver import DrivenSession, Tensor
from parity.runners.noise import Noise
from parity.runners.precision import Precision, computing_in
from parity.runners.streamed_driven import DrivenLine

if TYPE_CHECKING:
    from models.authoring.by_stage import ModelByStage
    from models.authoring.model import Model


@dataclass(frozen=True)
class Reauthored:
    """The family's model with the weights of ``folder``; prefill takes a prompt in one piece, unless that says how.

    In float64 its rotary tables, masks and caches are float64 too. One that is ``noisy`` is given the errors of another
    order of its sums (``parity.runners.noise``).
    """

    family: str
    folder: Path
    cache_lengths: tuple[int, ...]
    threads: int = 1
    end_tokens: frozenset[int] = frozenset()
    name: str = "reauthored"
    one_row: bool = False
    at_once: bool = False
    precision: Precision = "float32"
    noisy: bool = False

    @contextmanager
    def open(self) -> Iterator[DrivenSession]:
        """Load the checkpoint through the family's weight map."""
        with self.loaded() as (model, noise):
            programs = [TorchProgram(model, length) for length in self.cache_lengths]
            session = DrivenSession(model.config, programs, self.end_tokens)
            if noise:
                session.on_begin = noise.begin
            yield session

    @contextmanager
    def loaded(self) -> Iterator[tuple[Model, Noise | None]]:
        """The model, ready to be evaluated in the runner's precision, and the noise that it is given, if any."""
        import torch

        torch.set_num_threads(self.threads)
        with computing_in(self.precision), torch.inference_mode():
            model, noise = self.load(), Noise() if self.noisy else None
            if noise:
                noise.watch(model)
            yield model, noise

    @contextmanager
    def stream(self) -> Iterator[DrivenLine]:
        """As ``open``, one stage at a time."""
        import torch

        from parity.runners.stages import TorchStages

        torch.set_num_threads(self.threads)
        with computing_in(self.precision), torch.inference_mode():
            parts = self.by_stage()
            if self.noisy:
                Noise().watch(parts.model)
            programs = [TorchStages(parts.model, length, self.precision) for length in self.cache_lengths]
            yield DrivenLine(parts.config, parts, programs, self.end_tokens)

    def load(self) -> Model:
        """The model with all its weights."""
        from models import registry

        return registry.family(self.family).load(self.folder)

    def by_stage(self) -> ModelByStage:
        """The model with the weights of one stage at a time."""
        from models import registry
        from models.authoring.by_stage import ModelByStage

        return ModelByStage(registry.family(self.family), self.folder)


class TorchProgram:
    """The model's entry points as they are, for any number of tokens."""

    def __init__(self, model: Model, cache_length: int) -> None:
        self.model = model
        self.cache_length = cache_length

    def empty_cache(self, rows: int) -> dict[str, Tensor]:
        return {name: tensor.numpy() for name, tensor in self.model.empty_cache(self.cache_length, rows).items()}

    def prefill_lengths(self, entry: str) -> None:  # noqa: ARG002  (any number of tokens, whatever the entry point)
        return

    def shapes(self, entry: str, length: int) -> Mapping[str, None]:  # noqa: ARG002
        return dict.fromkeys(self.model.entry(entry, self.cache_length).inputs)

    def call(self, entry: str, length: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        import torch

        known = {name: torch.from_numpy(value) for name, value in tensors.items()}
        default = torch.get_default_dtype()
        # What goes with a prompt, pictures and sounds, is float32 until a model computes with it.
        known = {name: value.to(default) if value.is_floating_point() else value for name, value in known.items()}
        made = self.model.entry(entry, self.cache_length)(known)
        return {name: tensor.numpy() for name, tensor in made.items()}
