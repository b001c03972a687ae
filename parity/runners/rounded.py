"""The re-authored model with the numbers that a quantized file stores: what its recipe makes of the model.

Nothing of a quantizer or a runtime is in it. A file that does what it says gives what this gives, up to rounding. Where
the runtime rounds activations to eight bits, so does this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.authoring.by_stage import ModelByStage
from models.authoring.family import Family
from models.authoring.stored import names_of_each
from models.authoring.weight_map import assign
from models.layers.norm import LayerNorm, RMSNorm
from parity import isolated
from parity.compare.limits import UNIT_ROUNDOFF
from parity.convert.rounding import LARGEST, Grouping
from parity.convert.stored import Numbers, Reading, as_parameter, bits_of
from parity.errors import RungError
from parity.runners.reauthored import Reauthored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from models.authoring.model import Model
    from parity.convert.quantize import WeightPrecision

#: Rows of a weight that are rounded at a time: bounds memory whatever its size.
ROWS = 4096
#: How far from the middle of two integers, in steps, an activation may be that dither rounds to either. Rounding in
#: float32 moves one in ten thousand across; a file differs from PyTorch in such few, or in none. With dither one in a
#: hundred crosses, so that its draws know what that does at every position.
DITHER = 0.02
#: A constant that a converter multiplies into weights (the root of a width, a scale of scores) is no closer to one.
#: What is closer and not one is a mistake that rounding hides.
_NO_CONSTANT = 1e-3
#: Beginnings of the names of what belongs to an encoder.
_ENCODERS = ("stem", "encoder", "vision", "vision_norm", "projector", "merger")
#: A step is never less, so that zeros stay zeros.
_SMALLEST = 1e-30


@dataclass(frozen=True)
class Rounded(Reauthored):
    """``stored`` says how each weight is, and whether what is multiplied with it is rounded too.

    With ``dither``, activations are rounded now and then to the other of two integers. The ``numbers`` themselves are
    read from a file. Of a model that runs stage by stage no file is kept: its weights are
    rounded here, as ``stored`` says.
    """

    stored: tuple[WeightPrecision, ...] = ()
    numbers: Numbers | None = None
    dither: bool = False

    def load(self) -> Model:
        model = super().load()
        recipe = _Recipe(self.stored, model, dither=self.dither)
        recipe.watch(model)
        if self.numbers:
            _take(model, self.numbers)
        else:
            recipe.apply(model)
        return model

    def by_stage(self) -> ModelByStage:
        from models import registry

        return _RoundedByStage(registry.family(self.family), self.folder, self.stored, dither=self.dither)


def _take(model: Model, numbers: Numbers) -> None:
    """Give every weight of the model the numbers that a file stores of it.

    A converter may multiply a constant into weights, which is divided out again, or the gain of a norm into those that
    read what it makes. Then the numbers have it already, and the norm's own gain becomes one.

    Raises:
        RungError: the file has a weight that is none of the model's, or a gain in some of its readers only.
    """
    import torch
    from torch import nn

    known = _Parameters(model)
    tied = {name: names for names in names_of_each(model) for name in names}
    folded: set[str] = set()
    for name, reading, stored, source in numbers.read():
        parameter, times, norm = known.in_a_file(name, source)
        if norm:
            folded.add(norm)
        taken = torch.from_numpy(as_parameter(stored, tuple(parameter.shape)) / times)
        value = nn.Parameter(taken.to(parameter.dtype), requires_grad=False)
        aliases = tied[f"{name}.weight"]
        for alias in _read_so(model, aliases, reading):
            if len(aliases) > 1:
                _set_apart(model, alias)
            assign(model, alias, value)
    for name in folded:
        known.gains[name].weight.data.fill_(1.0 - getattr(known.gains[name], "gain_offset", 0.0))


def _read_so(model: Model, names: Sequence[str], reading: Reading) -> Sequence[str]:
    """Of the names of a tied parameter, those that are read in this way; all, if that tells none of them apart.

    A table may be stored in one way for looking up and in another for multiplying, or for an encoder alone.
    """
    from torch import nn

    def is_lookup(name: str) -> bool:
        return isinstance(model.get_submodule(name.removesuffix(".weight")), nn.Embedding)

    found = [name for name in names if is_lookup(name) == reading.lookup] or list(names)
    return [name for name in found if (name.partition(".")[0] in _ENCODERS) == reading.encoder] or found


def _set_apart(model: Model, name: str) -> None:
    """Give a parameter's name a layer of its own: one that several parts share has one value for all."""
    owner = name.removesuffix(".weight")
    parent, _, leaf = owner.rpartition(".")
    apart = copy(model.get_submodule(owner))
    apart._parameters = dict(apart._parameters)  # noqa: SLF001  (what a copy of a layer shares with it)
    setattr(model.get_submodule(parent), leaf, apart)


def misstored(
    family: str, folder: Path, files: Sequence[tuple[Path, tuple[str, ...]]], progress: isolated.Progress
) -> tuple[str, str] | None:
    """A job: the first weight of the float ``files`` that is not what the checkpoint has, and how it differs.

    A file is given with the names of its weights in file order. What rounding hides of a weight's mistake in whatever
    the file computes is seen here, bit for bit.
    """
    from models import registry

    progress(0, 1)
    known = _Parameters(registry.family(family).load(folder))
    for path, names in files:
        for name, _, _, exact in Numbers(path, path, names).read():
            try:
                known.in_a_file(name, exact)
            except RungError as error:
                return name, str(error)
    return None


class _Parameters:
    """Those of a model, to tell which one a weight of a float file is, and what was multiplied into it."""

    def __init__(self, model: Model) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self.gains = {name: norm for name, norm in model.named_modules() if isinstance(norm, (RMSNorm, LayerNorm))}

    def in_a_file(self, name: str, source: NDArray[np.float32]) -> tuple[Tensor, float, str | None]:
        """The parameter, how many times it the file has, and the norm whose gain is in it, if one is.

        Raises:
            RungError: there is no such parameter, or what the file has is not made of it.
        """
        import torch

        parameter = self._parameters.get(f"{name}.weight")
        if parameter is None:
            raise RungError(f"{name} is a weight of the file and no parameter of the model; convert it again")
        exact = torch.from_numpy(as_parameter(source, tuple(parameter.shape)).copy())
        times = _times(exact, parameter)
        if times is None:
            return parameter, 1.0, _gain_in(name, exact, parameter, self.gains)
        if times != 1 and abs(times - 1) < _NO_CONSTANT:
            raise RungError(f"the file has {times:.9g} times what the checkpoint has of {name}; convert it again")
        return parameter, times, None


def _times(exact: Tensor, parameter: Tensor) -> float | None:
    """How many times the parameter a weight of the float file is; ``None`` if it is no multiple of it."""
    import torch

    if torch.equal(exact, parameter.float()):
        return 1.0
    mine = parameter.double()
    at = int(mine.abs().argmax())
    times = float(exact.double().flatten()[at] / mine.flatten()[at])
    # A product has been rounded once more, and so has the quotient of its largest value.
    within = 4 * UNIT_ROUNDOFF * exact.double().abs()
    return times if bool(((mine * times - exact).abs() <= within).all()) else None


def _gain_in(name: str, exact: Tensor, parameter: Tensor, gains: Mapping[str, Any]) -> str:
    """The norm whose gain is in what a file has of a weight: the nearest one by name, if several fit."""
    import torch

    def fits(norm: Any) -> bool:
        gain = norm.weight.float() + getattr(norm, "gain_offset", 0.0)
        return gain.shape == exact.shape[-1:] and torch.equal(parameter.float() * gain, exact)

    found = [at for at, norm in gains.items() if fits(norm)]
    if not found:
        raise RungError(f"what the file has of {name} is not what the checkpoint has; convert it again")
    return max(found, key=lambda at: SequenceMatcher(None, at, name).find_longest_match().size)


class _RoundedByStage(ModelByStage):
    def __init__(self, family: Family, folder: Path, stored: tuple[WeightPrecision, ...], *, dither: bool) -> None:
        super().__init__(family, folder)
        self._recipe = _Recipe(stored, self.model, dither=dither)
        self._recipe.watch(self.model)

    @contextmanager
    def loaded(self, stage: str) -> Iterator[None]:
        with super().loaded(stage):
            self._recipe.apply(self.model)
            yield


class _Recipe:
    """What happens to the weights of a model, of which each may have several names, and to what they multiply."""

    def __init__(self, stored: Sequence[WeightPrecision], model: Model, *, dither: bool) -> None:
        self._dither = DITHER if dither else 0.0
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

        # Each row by itself before a product with a matrix; all channels and times together before a convolution.
        dims = {nn.Linear: (-1,), nn.Conv1d: (-2, -1)}
        for names, weights in self._weights:
            for name in names if any(weight.dynamic for weight in weights) else ():
                module = model.get_submodule(name.rpartition(".")[0])
                if type(module) in dims:
                    module.register_forward_pre_hook(partial(_round_given, dims[type(module)], self._dither))


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


def _round_given(dims: tuple[int, ...], dither: float, _: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a layer is given, rounded."""
    return (_to_8_bits(given[0], dims, dither), *given[1:])


def _to_8_bits(x: Tensor, dims: tuple[int, ...], dither: float = 0.0) -> Tensor:
    """256 values from the least to the largest along ``dims``, zero among them.

    With ``dither`` a value may be rounded the other way that is at most so many steps from the middle of two.
    """
    import torch

    most, least = x.amax(dims, keepdim=True).clamp(min=0), x.amin(dims, keepdim=True).clamp(max=0)
    step = ((most - least) / 255).clamp(min=_SMALLEST)
    zero = (-128 - least / step).round()
    steps = x / step
    if dither:
        steps = steps + (torch.rand_like(steps) * 2 - 1) * dither
    return (steps.round() + zero).clamp(-128, 127).sub(zero).mul(step)
