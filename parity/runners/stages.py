"""A session run stage by stage, with somebody watching who may change what the next stage is given.

The same driver as everywhere takes prompts through entry points; here an entry point is its stages, one call each,
whether PyTorch runs them or a file in which every stage is a signature.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from models.authoring.session import grid_of, prefill_name
from parity.errors import RungError
from parity.inputs import TokenizedPrompt
from parity.runners.driver import DrivenSession, Tensor
from parity.runners.litert import LiteRTProgram
from parity.runners.precision import Precision
from parity.trace import SIGNATURES, Phase

if TYPE_CHECKING:
    from models.authoring.config import ModelConfig
    from models.authoring.model import Model
    from models.authoring.stage import Stage
    from parity.convert.cutting import Piece
    from parity.runners.reauthored import Reauthored


@dataclass(frozen=True)
class Step:
    """A stage that can be called: the tensors it reads, and what makes its outputs of them."""

    name: str
    inputs: Sequence[str]
    run: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Call:
    """One call of an entry point with ``length`` tokens, the ``number``-th of its prompt."""

    phase: Phase
    number: int
    entry: str
    length: int
    cache_length: int


#: Sees the inputs of a stage and what it made of them; what it returns stands in for that.
Observer = Callable[[Call, str, Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]


class Stages(Protocol):
    """A model whose entry points are to be had stage by stage, over a cache of ``cache_length`` slots."""

    @property
    def cache_length(self) -> int:
        """Slots of the cache."""

    def empty_cache(self) -> dict[str, Tensor]:
        """As a program's."""

    def prefill_lengths(self, entry: str) -> Sequence[int] | None:
        """As a program's."""

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int] | None]:
        """As a program's."""

    def steps(self, entry: str, length: int) -> Sequence[Step]:
        """The stages of an entry point in order."""

    def outputs(self, entry: str, length: int) -> Sequence[str]:
        """The tensors that a caller of the entry point is given."""


@dataclass(frozen=True)
class Layout:
    """The signatures of an export: the inputs of each, by name, with their shapes."""

    cache_length: int
    signatures: Mapping[str, Mapping[str, tuple[int, ...]]]

    def prefill_lengths(self, entry: str) -> list[int]:
        """How many tokens a call may take."""
        found = (re.fullmatch(r"(prefill)_(\d+)(_\w+)?", name) for name in self.signatures)
        return [int(match[2]) for match in found if match and match[1] + (match[3] or "") == entry]


def signature_name(entry: str, length: int) -> str:
    """What the entry point is exported as."""
    return prefill_name(entry, length) if entry.startswith("prefill") else entry


class Course:
    """Where a prompt is on its way, and who watches."""

    def __init__(self, observe: Observer) -> None:
        self.observe = observe
        self.phase: Phase = "prefill"
        self.number = 0

    def next_call(self, entry: str, length: int, cache_length: int) -> Call:
        """The call that is about to be made."""
        phase: Phase = "encode" if grid_of(entry) is not None else self.phase
        self.number += 1
        return Call(phase, self.number - 1, entry, length, cache_length)


class StagedProgram:
    """Stages as a program of the driver."""

    def __init__(self, stages: Stages, course: Course) -> None:
        self.stages = stages
        self.course = course
        self.cache_length = stages.cache_length

    def empty_cache(self, rows: int) -> dict[str, Tensor]:
        if rows != 1:
            raise RungError("stages are compared on one row; leave the other rows of the batch out")
        return self.stages.empty_cache()

    def prefill_lengths(self, entry: str) -> Sequence[int] | None:
        return self.stages.prefill_lengths(entry)

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int] | None]:
        return self.stages.shapes(entry, length)

    def call(self, entry: str, length: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        call = self.course.next_call(entry, length, self.cache_length)
        known = dict(tensors)
        for step in self.stages.steps(entry, length):
            inputs = {name: known[name] for name in step.inputs}
            made = step.run(inputs)
            known |= made
            known |= self.course.observe(call, step.name, inputs, made)
        return {name: known[name] for name in self.stages.outputs(entry, length)}


def walk(config: ModelConfig, models: Sequence[Stages], prompt: TokenizedPrompt, observe: Observer) -> Iterator[None]:
    """Take a prompt and what is forced after it through the stages; yields after every call for some of it.

    A second turn counts as decoding: it goes on with a filled cache.
    """
    course = Course(observe)
    session = DrivenSession(config, [StagedProgram(stages, course) for stages in models])
    session.prefill(prompt, prompt.until(0))
    yield
    course.phase = "decode"
    for token in prompt.continuation:
        session.decode(token)
        yield
    if prompt.turn:
        session.extend(prompt.turn)
        yield
    for token in prompt.reply:
        session.decode(token)
        yield


class TorchStages:
    """The re-authored model's own stages; with a ``layout``, in calls of its shapes."""

    def __init__(
        self, model: Model, cache_length: int, precision: Precision = "float32", layout: Layout | None = None
    ) -> None:
        self.model = model
        self.cache_length = cache_length
        self.precision = precision
        self.layout = layout

    def empty_cache(self) -> dict[str, Tensor]:
        return {name: tensor.numpy() for name, tensor in self.model.empty_cache(self.cache_length).items()}

    def prefill_lengths(self, entry: str) -> Sequence[int] | None:
        return self.layout.prefill_lengths(entry) if self.layout else None

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int] | None]:
        if self.layout:
            return self.layout.signatures[signature_name(entry, length)]
        return dict.fromkeys(self.model.entry(entry, self.cache_length).inputs)

    def steps(self, entry: str, length: int) -> Sequence[Step]:  # noqa: ARG002  (the same for any number of tokens)
        stages = self.model.entry(entry, self.cache_length).stages
        return [Step(stage.name, tuple(dict.fromkeys(stage.inputs)), self._runner(stage)) for stage in stages]

    def outputs(self, entry: str, length: int) -> Sequence[str]:  # noqa: ARG002
        return self.model.entry(entry, self.cache_length).outputs

    def _runner(self, stage: Stage) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
        import torch

        dtype = getattr(torch, self.precision)

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            known = {name: torch.from_numpy(value) for name, value in inputs.items()}
            known = {name: value.to(dtype) if value.is_floating_point() else value for name, value in known.items()}
            stage(known)
            return {name: known[name].numpy() for name in stage.outputs}

        return run


@contextmanager
def torch_stages(
    ours: Reauthored, layouts: Sequence[Layout | None] = ()
) -> Iterator[tuple[ModelConfig, list[TorchStages]]]:
    """The re-authored model, loaded once, over each of its cache lengths."""
    with ours.loaded() as (model, _):
        lengths = zip(ours.cache_lengths, layouts or [None] * len(ours.cache_lengths), strict=True)
        yield model.config, [TorchStages(model, length, ours.precision, layout) for length, layout in lengths]


@dataclass
class FileStages:
    """A file in which ``signature.stage`` is a signature for every stage of every signature of ``layout``."""

    interpreter: Any
    layout: Layout
    stages: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
    given: Mapping[str, Sequence[str]]
    cache: Mapping[str, Tensor]
    #: Stages that are only parts of one, by name.
    pieces: Mapping[str, Piece] = field(default_factory=dict)
    _runners: dict[str, Any] = field(default_factory=dict)

    @property
    def cache_length(self) -> int:
        return self.layout.cache_length

    def empty_cache(self) -> dict[str, Tensor]:
        return dict(self.cache)

    def prefill_lengths(self, entry: str) -> Sequence[int]:
        return self.layout.prefill_lengths(entry)

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int]]:
        return self.layout.signatures[signature_name(entry, length)]

    def steps(self, entry: str, length: int) -> Sequence[Step]:
        signature = signature_name(entry, length)
        steps = [self._step(f"{signature}.{stage}", stage, inputs) for stage, inputs in self.stages[signature]]
        return [self.pieces[step.name].step(step) if step.name in self.pieces else step for step in steps]

    def outputs(self, entry: str, length: int) -> Sequence[str]:
        return self.given[signature_name(entry, length)]

    def _step(self, signature: str, stage: str, inputs: Sequence[str]) -> Step:
        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if signature not in self._runners:
                runner = self.interpreter.get_signature_runner(signature)
                self._runners[signature] = runner, runner.get_input_details()
            runner, taken = self._runners[signature]
            # An input of which only the shape matters is none of the file's.
            made: dict[str, Tensor] = runner(**{name: value for name, value in inputs.items() if name in taken})
            return made

        return Step(stage, inputs, run)

    def opened(self, interpreter: Any) -> None:
        """Go on with another file, or with none."""
        self._runners.clear()
        self.interpreter = interpreter


class Whole:
    """Stages taken together: an entry point is a single step, whatever it is made of."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.cache_length = stages.cache_length

    def empty_cache(self) -> dict[str, Tensor]:
        return self.stages.empty_cache()

    def prefill_lengths(self, entry: str) -> Sequence[int] | None:
        return self.stages.prefill_lengths(entry)

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int] | None]:
        return self.stages.shapes(entry, length)

    def steps(self, entry: str, length: int) -> Sequence[Step]:
        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            known = dict(inputs)
            for step in self.stages.steps(entry, length):
                known |= step.run({name: known[name] for name in step.inputs})
            return {name: known[name] for name in self.outputs(entry, length)}

        return [Step(SIGNATURES, list(self.shapes(entry, length)), run)]

    def outputs(self, entry: str, length: int) -> Sequence[str]:
        return self.stages.outputs(entry, length)


class FileCalls:
    """A real file, whose signatures are the only steps there are."""

    def __init__(self, program: LiteRTProgram, given: Mapping[str, Sequence[str]]) -> None:
        self.program = program
        self.cache_length = program.cache_length
        self.given = given

    def empty_cache(self) -> dict[str, Tensor]:
        return self.program.empty_cache(1)

    def prefill_lengths(self, entry: str) -> Sequence[int]:
        return self.program.prefill_lengths(entry)

    def shapes(self, entry: str, length: int) -> Mapping[str, Sequence[int]]:
        return self.program.shapes(entry, length)

    def steps(self, entry: str, length: int) -> Sequence[Step]:
        names = list(self.shapes(entry, length))
        return [Step(SIGNATURES, names, lambda inputs: self.program.call(entry, length, dict(inputs)))]

    def outputs(self, entry: str, length: int) -> Sequence[str]:
        return self.given[signature_name(entry, length)]


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """What the runtime refuses is an error with its words."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise RungError(f"the runtime refuses {name}: {' '.join(str(error).split())[:300]}") from error
