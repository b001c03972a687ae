"""A model as an ordered list of stages with named tensor inputs and outputs.

The same list serves running, locating the first stage that diverges, and lowering for export.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names of stages are wanted where no tensor ever is
    from torch import Tensor, nn

_BLOCK = re.compile(r"(?:(\w+)\.)?(?:stack\.)?blocks\.(\d+)\.")
_TOKENS = re.compile(r"(text\.)?embed\.")
_HEAD = re.compile(r"((text\.)?head|projection)(\.|$)")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step: reads the tensors ``inputs`` from the environment, writes ``outputs`` back, in order."""

    name: str
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, environment: dict[str, Tensor]) -> None:
        results = self.run(*(environment[name] for name in self.inputs))
        if not isinstance(results, tuple):
            results = (results,)
        environment.update(zip(self.outputs, results, strict=True))


def run_stages(stages: Iterable[Stage], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run ``stages`` in order over named tensors; returns the inputs and everything the stages made."""
    environment = dict(inputs)
    for stage in stages:
        stage(environment)
    return environment


def modules_of(stage: Stage) -> Iterator[nn.Module]:
    """The modules whose parameters a stage reads: those that it runs, or gives to the function that it runs."""
    from torch import nn

    run = stage.run
    held: list[object] = [run]
    if isinstance(run, partial):
        held = [run.func, *run.args, *run.keywords.values()]
    for each in held:
        owner = getattr(each, "__self__", each)
        if isinstance(owner, nn.Module):
            yield owner


def stage_of(parameter: str) -> str | None:
    """The stage that reads a parameter, as far as names tell: blocks, and the embedding and head of a decoder."""
    if found := _BLOCK.match(parameter):
        return f"{found[1] if found[1] in ('encoder', 'decoder', 'vision') else 'block'}_{found[2]}"
    if _TOKENS.match(parameter):
        return "embed"
    return "head" if _HEAD.match(parameter) else None
