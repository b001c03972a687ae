"""A model as an ordered list of stages with named tensor inputs and outputs.

The same list serves running, locating the first stage that diverges, and lowering for export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step: reads the tensors ``inputs`` from the environment, writes ``outputs`` back, in order."""

    name: str
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, environment: dict[str, Tensor]) -> None:
        results = self.run(*(environment[name] for name in self.inputs))
        if isinstance(results, Tensor):
            results = (results,)
        environment.update(zip(self.outputs, results, strict=True))


def run_stages(stages: Iterable[Stage], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run ``stages`` in order over named tensors; returns the inputs and everything the stages made."""
    environment = dict(inputs)
    for stage in stages:
        stage(environment)
    return environment
