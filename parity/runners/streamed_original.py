"""An original of transformers with the weights of one stage at a time.

The library's own forward computes everything. Where it comes to a unit (an embedding, a layer, a norm, a head) whose
weights are not there, the call stops. Once they are it runs again from its beginning, is given what the units before
have made, and gets further. So nothing of any architecture is written down here.

The library's own reader places the weights, too, from the names and shapes that the headers of the files tell: what it
is given instead of tensors become parameters that know from which tensor they are to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from parity.errors import RungError
from parity.runners.base import Ask, Decode, Extend, Prefill
from parity.runners.conveyor import Asked, Call
from parity.runners.original import ImageTextOriginal, OriginalSession, end_tokens_of, session_of
from parity.runners.store import Store


@dataclass(frozen=True)
class Unit:
    """A module that is run as one, and the stack of like ones that it is in, if any."""

    name: str
    module: Any
    stack: str | None

    @property
    def slots(self) -> Iterator[tuple[Any, str, Any]]:
        """Where its parameters are: the module, the name in it, and the parameter, which has no values."""
        for module in self.module.modules():
            for name, parameter in module.named_parameters(recurse=False):
                yield module, name, parameter

    @property
    def bytes(self) -> int:
        """What it takes when it is loaded."""
        return sum(parameter.nbytes for _, _, parameter in self.slots)


class Waiting(BaseException):
    """A call cannot go on before the stage is loaded. No error, and nothing in the library may take it for one."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class Journey:
    """One call of the model, which is run again and again, each time further."""

    def __init__(self) -> None:
        self.passed: list[tuple[Unit, Any]] = []
        self.at = 0
        self.loaded: str | None = None

    def through(self, unit: Unit, stage: str, compute: Callable[[], Any]) -> Any:
        """What the unit makes, now or before.

        Raises:
            Waiting: neither.
        """
        if self.at == len(self.passed):
            if self.loaded != stage:
                raise Waiting(stage)
            made = compute()
            if self.passed and unit.stack is not None:
                before, earlier = self.passed[-1]
                if before.stack == unit.stack:
                    # Nobody else takes what one layer makes for the next. Who did would find no values: an error.
                    self.passed[-1] = (before, emptied(earlier))
            self.passed.append((unit, made))
        self.at += 1
        return self.passed[self.at - 1][1]


def emptied(made: Any) -> Any:
    """Tensors of the same shapes, without values."""
    import torch
    from torch.utils import _pytree

    return _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), made)


def units_of(model: Any) -> list[Unit]:
    """The smallest parts of a model that are worth loading by themselves: each layer, and what is around them.

    Raises:
        RungError: a parameter is in none of them.
    """
    units = list(_units(model, ""))
    inside = {id(parameter) for unit in units for _, _, parameter in unit.slots}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside:
            raise RungError(f"{name} is in no layer and in nothing around them; run this original without --streamed")
    return units


def _units(module: Any, path: str) -> Iterator[Unit]:
    from torch.nn import ModuleList

    for name, child in module.named_children():
        if next(child.parameters(), None) is None:
            continue
        if isinstance(child, ModuleList):
            yield from (Unit(f"{path}{name}.{number}", each, path + name) for number, each in enumerate(child))
        elif any(isinstance(part, ModuleList) for part in child.modules()):
            yield from _units(child, f"{path}{name}.")
        else:
            yield Unit(path + name, child, None)


def staged(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Units that are loaded together, in order: as many as take no more than the largest must anyway."""
    largest = max(unit.bytes for unit in units)
    stages: list[list[Unit]] = []
    for unit in units:
        if not stages or sum(each.bytes for each in stages[-1]) + unit.bytes > largest:
            stages.append([])
        stages[-1].append(unit)
    return {stage[0].name: stage for stage in stages}


class OriginalLine:
    """A model of transformers whose parameters have no values, see ``promised``."""

    note = ""

    def __init__(self, model: Any, store: Store) -> None:
        if model.config.is_encoder_decoder:
            raise RungError("a model with an encoder and a decoder is small; run it without --streamed")
        self.model = model
        self.store = store
        self.end_tokens = end_tokens_of(model)
        self.journey = Journey()
        self._stages = staged(units_of(model))
        for stage, units in self._stages.items():
            for unit in units:
                self._stop_at(unit, stage)

    @property
    def stages(self) -> Sequence[str]:
        return list(self._stages)

    @contextmanager
    def loaded(self, stage: str) -> Iterator[None]:
        import torch

        slots = [slot for unit in self._stages[stage] for slot in unit.slots]
        values = self.store.read((parameter.source, parameter.dtype) for _, _, parameter in slots)
        for module, name, _ in slots:
            setattr(module, name, torch.nn.Parameter(values.pop(0), requires_grad=False))
        try:
            yield
        finally:
            for module, name, parameter in slots:
                setattr(module, name, parameter)

    def lane(self) -> OriginalLane:
        return OriginalLane(self)

    def _stop_at(self, unit: Unit, stage: str) -> None:
        forward = unit.module.forward

        def through(*positional: Any, **named: Any) -> Any:
            return self.journey.through(unit, stage, lambda: forward(*positional, **named))

        unit.module.forward = through


class OriginalLane:
    """A cache of the library, of which a call sees what will be in it once the calls before it have come through."""

    def __init__(self, line: OriginalLine) -> None:
        from transformers import DynamicCache

        self.line = line
        self.cache = DynamicCache(config=line.model.config)
        self.filled = 0
        self.calls = 0
        self.closed = False
        #: How far positions are ahead of tokens after pictures, which the library keeps in the model.
        self.deltas: Any = None

    def ask(self, ask: Ask) -> Asked:
        call = self._call(ask, self.filled, self.calls)
        self.calls += 1
        match ask:
            case Prefill():
                self.filled += len(ask.prompt.prompt)
            case Decode():
                self.filled += 1
            case Extend():
                self.filled += len(ask.tokens)
        return Asked([call], lambda results: results[0])

    def close(self) -> None:
        self.closed = True

    def _call(self, ask: Ask, filled: int, number: int) -> Call:
        journey = Journey()
        while True:
            self.line.journey = journey
            journey.at = 0
            session = session_of(self.line.model)
            text = session.text if isinstance(session, ImageTextOriginal) else session
            assert isinstance(text, OriginalSession)  # an encoder and a decoder are refused
            text.cache = seen = self._seen(filled, number)
            text.fresh = partial(_same, seen)
            axial = isinstance(session, ImageTextOriginal) and session.axial
            if axial:
                self.line.model.model.rope_deltas = self.deltas
            try:
                return ask.of(session)
            except Waiting as waiting:
                stage = waiting.stage
            finally:
                if axial:
                    self.deltas = self.line.model.model.rope_deltas
            yield stage
            journey.loaded = stage

    def _seen(self, filled: int, number: int) -> Any:
        """The cache as call ``number`` sees it, after so many tokens; what it adds goes to the real one."""
        import torch
        from transformers import DynamicCache

        seen = DynamicCache(config=self.line.model.config)
        for layer, real in zip(seen.layers, self.cache.layers, strict=True):
            if filled:
                nothing = torch.empty((1, 1, filled, 1), device="meta")
                layer.update(nothing, nothing)
            layer.update = partial(self._update, real, number)
        return seen

    def _update(self, layer: Any, number: int, *positional: Any, **named: Any) -> Any:
        kept = layer.update(*positional, **named)
        if self.closed and number == self.calls - 1:
            layer.reset()
        return kept


def _same(value: Any) -> Any:
    return value
