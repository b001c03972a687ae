"""The re-authored model with the numbers that a quantized file stores: what its recipe makes of the model.

Nothing of a quantizer or a runtime is in it. A file that does what it says gives what this gives, up to rounding. Where
the runtime rounds activations to eight bits, so does this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.authoring.by_stage import ModelByStage
from models.authoring.family import Family
from models.authoring.stored import names_of_each
from parity.convert.rounding import LARGEST, Grouping
from parity.convert.stored import as_parameter, bits_of, numbers_of
from parity.errors import RungError
from parity.runners.reauthored import Reauthored

if TYPE_CHECKING:
    from torch import Tensor

    from models.authoring.model import Model
    from parity.convert.quantize import WeightPrecision

#: Rows of a weight that are rounded at a time: bounds memory whatever its size.
ROWS = 4096
#: A step is never less, so that zeros stay zeros.
_SMALLEST = 1e-30


@dataclass(frozen=True)
class Rounded(Reauthored):
    """``stored`` says how each weight is, and whether what is multiplied with it is rounded too.

    The numbers themselves are read from ``file``, whose weights have ``names`` in file order. Of a model that runs stage
    by stage no file is kept: its weights are rounded here, as ``stored`` says.
    """

    stored: tuple[WeightPrecision, ...] = ()
    file: Path | None = None
    names: tuple[str, ...] = ()

    def load(self) -> Model:
        model = super().load()
        recipe = _Recipe(self.stored, model)
        recipe.watch(model)
        if self.file:
            _take(model, self.file, self.names)
        else:
            recipe.apply(model)
        return model

    def by_stage(self) -> ModelByStage:
        from models import registry

        return _RoundedByStage(registry.family(self.family), self.folder, self.stored)


def _take(model: Model, file: Path, names: Sequence[str]) -> None:
    """Give every weight of the model the numbers that the file stores of it.

    Raises:
        RungError: the file has a weight that is no parameter of the model.
    """
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, numbers in numbers_of(file, names):
        parameter = parameters.get(f"{name}.weight")
        if parameter is None:
            raise RungError(f"{name} is a weight of the file and no parameter of the model; convert it again")
        parameter.data.copy_(torch.from_numpy(as_parameter(numbers, tuple(parameter.shape)).copy()))


class _RoundedByStage(ModelByStage):
    def __init__(self, family: Family, folder: Path, stored: tuple[WeightPrecision, ...]) -> None:
        super().__init__(family, folder)
        self._recipe = _Recipe(stored, self.model)
        self._recipe.watch(self.model)

    @contextmanager
    def loaded(self, stage: str) -> Iterator[None]:
        with super().loaded(stage):
            self._recipe.apply(self.model)
            yield


class _Recipe:
    """What happens to the weights of a model, of which each may have several names."""

    def __init__(self, stored: Sequence[WeightPrecision], model: Model) -> None:
        found: dict[str, list[WeightPrecision]] = {}
        for weight in stored:  # every operator that reads it has it listed
            found.setdefault(f"{weight.name}.weight", []).append(weight)
        self._weights = [
            (names, known)
            for names in names_of_each(model)
            if (known := [weight for name in names for weight in found.get(name, ())])
        ]

    def apply(self, model: Model) -> None:
        """Round the weights that have values, where they are."""
        for names, (weight, *_) in self._weights:
            parameter = model.get_parameter(names[0])
            if not parameter.is_meta:
                _round_weight(parameter.data, weight.precision)

    def watch(self, model: Model) -> None:
        """Round what is multiplied with the weights of which the runtime does so."""
        from torch import nn

        ways = {nn.Linear: _round_row, nn.Conv1d: _round_whole}
        for names, weights in self._weights:
            for name in names if any(weight.dynamic for weight in weights) else ():
                module = model.get_submodule(name.rpartition(".")[0])
                if way := ways.get(type(module)):
                    module.register_forward_pre_hook(way)


def _round_weight(weight: Tensor, precision: str) -> None:
    """To the nearest that ``precision`` has, in place; ``weight`` ``[out, ...]``."""
    kind, _, grouping = precision.partition(" ")
    block = int(grouping.removeprefix("block ")) if grouping.startswith("block ") else 0
    whole = weight.abs().amax() if grouping == "tensorwise" else None
    for start in range(0, len(weight), ROWS):
        rows = weight[start : start + ROWS]
        if kind == "float16":
            rows.copy_(rows.half())
        elif kind.startswith("int"):
            largest = whole if whole is not None else _tensor(Grouping(0, block).largest(rows.float().numpy()))
            largest = largest.to(rows.dtype)
            step = (largest / LARGEST[bits_of(kind)]).clamp(min=_SMALLEST)
            if block:
                step = step.half().to(rows.dtype).clamp(min=_SMALLEST)  # as they are stored
            rows.copy_((rows / step).round_().mul_(step))


def _tensor(values: Any) -> Tensor:
    import torch

    return torch.from_numpy(values)


def _round_row(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Each row by itself, as before a product with a matrix."""
    return (_to_8_bits(given[0], (-1,)), *given[1:])


def _round_whole(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All channels and times together, as before a convolution."""
    return (_to_8_bits(given[0], (-2, -1)), *given[1:])


def _to_8_bits(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """256 values from the least to the largest along ``dims``, zero among them."""
    most, least = x.amax(dims, keepdim=True).clamp(min=0), x.amin(dims, keepdim=True).clamp(max=0)
    step = ((most - least) / 255).clamp(min=_SMALLEST)
    zero = (-128 - least / step).round()
    return ((x / step).round() + zero).clamp(-128, 127).sub(zero).mul(step)
