"""Stages that read a table of the whole vocabulary, cut along it: one row has nothing to do with another.

A runtime holds a table two or three times, and a quantizer more often. What a piece looks up, or projects to, is what
the whole would for its rows, and so is how the rows are quantized.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from models.authoring.stage import Stage, modules_of
from parity.runners.driver import Tensor as Array
from parity.runners.stages import Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: The stages whose tables may be cut, for their rows have nothing to do with each other; and parameters of a piece.
CUT = ("embed", "head")
MOST = 100_000_000
_NAME = re.compile(r"\.\d+:\d+$")


@dataclass(frozen=True)
class Piece:
    """The rows of a stage's table from ``start`` to ``end``; ``count`` pieces make the stage."""

    stage: str
    number: int
    count: int
    start: int
    end: int
    looks_up: bool

    @property
    def name(self) -> str:
        """What the piece is called as a stage."""
        return f"{self.stage}.{self.number}"

    def cut(self, name: str) -> str:
        """The name of these rows of a parameter."""
        owner, _, leaf = name.rpartition(".")
        return f"{owner}.{self.start}:{self.end}.{leaf}"

    def step(self, whole: Step) -> Step:
        """A step that runs the piece and puts what it makes to what the pieces before it have made."""
        earlier = [f"logits.{number}" for number in range(self.number)]

        def look_up(inputs: Mapping[str, Array]) -> dict[str, Array]:
            tokens = inputs["tokens"]
            made = whole.run({**inputs, "tokens": np.clip(tokens - self.start, 0, self.end - self.start - 1)})
            if self.number:
                mine = (tokens >= self.start) & (tokens < self.end)
                made["hidden"] = np.where(mine[..., None], made["hidden"], inputs["hidden"])
            return made

        def project(inputs: Mapping[str, Array]) -> dict[str, Array]:
            logits = whole.run(inputs)["logits"]
            if self.number + 1 < self.count:
                return {f"logits.{self.number}": logits}
            return {"logits": np.concatenate([*(inputs[name] for name in earlier), logits], axis=-1)}

        if self.looks_up:
            return Step(whole.name, [*whole.inputs, *(["hidden"] if self.number else [])], look_up)
        last = self.number + 1 == self.count
        return Step(whole.name, [*whole.inputs, *(earlier if last else [])], project)


def base_name(weight: str) -> str:
    """The weight that a piece's is part of."""
    return _NAME.sub("", weight)


class Cutter:
    """Cuts stages whose tables have more than ``most`` parameters; ``names`` are those of the model, by identity."""

    def __init__(self, names: Mapping[int, str], most: int) -> None:
        self._names = names
        self._most = most
        self._pieces: dict[str, list[Piece]] = {}
        self._tables: dict[str, tuple[str, nn.Module]] = {}
        #: The pieces of tables, without values, and of which parameter each is.
        self.parameters: dict[str, Tensor] = {}
        self.rows: dict[str, tuple[str, Piece]] = {}

    def pieces(self, stage: Stage) -> list[Piece]:
        """Those of a stage; none where it stays as it is."""
        if stage.name not in self._pieces:
            self._pieces[stage.name] = list(self._cut(stage)) if stage.name in CUT else []
        return self._pieces[stage.name]

    def stage(self, whole: Stage, piece: Piece) -> Stage:
        """The stage with a part of its table."""
        (module,) = modules_of(whole)
        name, _ = self._tables[whole.name]
        clone = _clone(module)
        table: Any = _clone(module.get_submodule(name))
        clone._modules[name] = table  # noqa: SLF001  (setattr would change the module that it is a copy of)
        for leaf, parameter in module.get_submodule(name).named_parameters():
            whole_name = self._names[id(parameter)]
            cut = piece.cut(whole_name)
            if cut not in self.parameters:
                self.parameters[cut] = _hollow(parameter, piece)
                self.rows[cut] = whole_name, piece
            table._parameters[leaf] = self.parameters[cut]  # noqa: SLF001
        run = partial(clone, *whole.run.args, **whole.run.keywords) if isinstance(whole.run, partial) else clone
        return replace(whole, name=piece.name, run=run)

    def values(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters with values, and the pieces of them."""
        there = {cut: row for cut, row in self.rows.items() if not parameters[row[0]].is_meta}
        found = {cut: parameters[name][piece.start : piece.end] for cut, (name, piece) in there.items()}
        return {**parameters, **found}

    def _cut(self, stage: Stage) -> Iterator[Piece]:
        from torch import nn

        (module,) = modules_of(stage)
        for name, child in module.named_children():
            if isinstance(child, nn.Embedding | nn.Linear) and child.weight.numel() > self._most:
                self._tables[stage.name] = name, child
                rows = max(1, self._most // child.weight.shape[1])
                starts: Sequence[int] = range(0, len(child.weight), rows)
                for number, start in enumerate(starts):
                    end = min(start + rows, len(child.weight))
                    yield Piece(stage.name, number, len(starts), start, end, isinstance(child, nn.Embedding))


def _clone(module: nn.Module) -> nn.Module:
    """The same module, whose parts can be exchanged."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)  # noqa: SLF001
    clone._parameters = dict(module._parameters)  # noqa: SLF001
    return clone


def _hollow(parameter: torch.nn.Parameter, piece: Piece) -> Tensor:
    import torch

    room = torch.empty((piece.end - piece.start, *parameter.shape[1:]), dtype=parameter.dtype)
    return torch.nn.Parameter(room, requires_grad=False)
