"""Conversion by composing stages: what is alike is lowered once, whatever the depth of the model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.authoring.signatures import Signature
from models.authoring.stage import Stage
from parity.convert.graphs import Graph, read_graph
from parity.convert.internals import WEIGHT, Lowering
from parity.convert.likeness import Parts, pattern
from parity.convert.linking import Linker, Value
from parity.convert.timings import Timings
from parity.convert.writing import Writer

if TYPE_CHECKING:
    from parity import isolated


def compose(
    model: nn.Module,
    values: Mapping[str, Tensor],
    signatures: Sequence[Signature],
    metadata: Mapping[str, bytes],
    destination: Path,
    progress: isolated.Progress,
    timings: Timings,
) -> tuple[str, ...]:
    """Convert ``signatures`` of the model to the file ``destination``, which says of itself what ``metadata`` says.

    The model's own parameters have shapes, ``values`` their values. Returns the names of the weights, in file order.
    """
    composer = Composer(dict(model.named_parameters()), timings)
    with Writer(destination, values, early=len(signatures) > 1) as writer:
        return write_signatures(composer, writer, signatures, metadata, progress)


def write_signatures(
    composer: Composer,
    writer: Writer,
    signatures: Sequence[Signature],
    metadata: Mapping[str, bytes],
    progress: isolated.Progress,
) -> tuple[str, ...]:
    """Convert signatures and write the file."""
    linker = Linker(len(signatures))
    total = sum(len(signature.entry.stages) for signature in signatures)
    done = 0
    for signature in signatures:
        linker.begin(signature.name)
        known: dict[str, Value] = {}
        samples = dict(signature.inputs)
        for stage in signature.entry.stages:
            progress(done, total)
            composer.place(linker, stage, known, samples)
            done += 1
        linker.finish(known, signature.inputs, signature.entry.outputs)
        if signature is signatures[0] and writer.early:
            linker.begin_writing(writer)
    with composer.timings.spent("writing"):
        return linker.write(writer, metadata, progress)


class _Alone(nn.Module):
    """A stage by itself, its inputs and outputs numbered, so that it is the same at every depth."""

    def __init__(self, stage: Stage, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.stage = stage

    def forward(self, **tensors: Tensor) -> dict[str, Tensor]:
        made = self.stage.run(*(tensors[f"in_{number}"] for number in pattern(self.stage.inputs)))
        made = made if isinstance(made, tuple) else (made,)
        return {f"out_{number}": each for number, each in enumerate(made)}


class Composer:
    """Lowers every distinct stage once. ``parameters`` say what is called how; their values are of no interest."""

    def __init__(self, parameters: Mapping[str, Tensor], timings: Timings) -> None:
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._lowering = Lowering(timings)
        self.timings = timings
        self._lowered: dict[Hashable, tuple[Graph, Mapping[str, Tensor]]] = {}
        self._alive: list[Any] = []  # some likenesses go by identity

    def made(self, stage: Stage, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Samples of what a stage makes of samples: of the right shapes, without anything having been computed."""
        _, outputs, _ = self._lower(stage, samples)
        return _samples(stage, outputs)

    def place(self, linker: Linker, stage: Stage, known: dict[str, Value], samples: dict[str, Tensor]) -> None:
        """Put a stage behind what is there, and samples of what it makes to the others."""
        graph, outputs, alone = self._lower(stage, samples)
        with self.timings.spent("linking"):
            linker.place(
                stage.name,
                graph,
                known,
                inputs={f"in_{number}": name for number, name in enumerate(dict.fromkeys(stage.inputs))},
                outputs={f"out_{number}": name for number, name in enumerate(stage.outputs)},
                weights={name: self._names[id(each)] for name, each in alone.named_parameters(remove_duplicate=False)},
            )
        samples.update(_samples(stage, outputs))

    def _lower(self, stage: Stage, samples: Mapping[str, Tensor]) -> tuple[Graph, Mapping[str, Tensor], _Alone]:
        """The graph of a stage, or of one like it, samples of its outputs, and the stage as it was lowered."""
        parts = Parts()
        taken = list(dict.fromkeys(stage.inputs))
        shapes = tuple((tuple(samples[name].shape), samples[name].dtype) for name in taken)
        key = (parts.likeness(stage.run), pattern(stage.inputs), shapes)
        alone = _Alone(stage, parts.modules)
        self._alive.append(alone)
        if key not in self._lowered:
            given = {f"in_{number}": samples[name] for number, name in enumerate(taken)}
            with torch.no_grad():
                lowered = self._lowering.lower(alone, given)
            self._lowered[key] = read_graph(lowered.content, WEIGHT), lowered.outputs
        return *self._lowered[key], alone


def _samples(stage: Stage, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples of what a lowered stage makes, by the stage's own names."""
    likes = {name: outputs[f"out_{number}"] for number, name in enumerate(stage.outputs)}
    return {name: torch.empty(like.shape, dtype=like.dtype) for name, like in likes.items()}
