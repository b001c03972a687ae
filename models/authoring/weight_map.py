"""Weight maps: a table of invertible operations between a checkpoint's tensors and a model's parameters.

A table is applied strictly. Every source tensor is consumed exactly once or dropped by name; every parameter is
produced exactly once; shapes, dtypes and finiteness are checked. The inverse writes the checkpoint's layout back.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Self

from models.errors import CheckpointError

if TYPE_CHECKING:  # tables are written by the families, which must be cheap to list
    from torch import Tensor, nn

#: Storage dtypes that convert to float32, and to float64, without loss.
READABLE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Operation(ABC):
    """One row of the table. Names may hold ``{}``, the layer index.

    ``source_fields`` and ``target_fields`` are those that hold names of checkpoint tensors and of parameters.
    """

    source_fields: ClassVar[tuple[str, ...]] = ("source",)
    target_fields: ClassVar[tuple[str, ...]] = ("target",)

    @property
    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """Checkpoint tensors that the row consumes."""

    @property
    @abstractmethod
    def targets(self) -> tuple[str, ...]:
        """Parameters that the row produces."""

    @property
    def made(self) -> tuple[str, ...]:
        """All names of the parameters that the row produces."""
        return self.targets

    @abstractmethod
    def apply(self, *sources: Tensor) -> tuple[Tensor, ...]:
        """Source tensors to parameters."""

    @abstractmethod
    def invert(self, *targets: Tensor) -> tuple[Tensor, ...]:
        """Parameters back to source tensors."""

    @property
    def description(self) -> str:
        """How the row changes the tensor, for people."""
        return type(self).__name__.lower()

    def at_layer(self, layer: int) -> Self:
        """This row with every ``{}`` replaced by ``layer``."""
        return self._with_names((field.name for field in fields(self)), lambda name: name.replace("{}", str(layer)))

    def renamed(self, source: Callable[[str], str], target: Callable[[str], str]) -> Self:
        """This row with other names for the checkpoint's tensors and for the parameters: a part of a larger model."""
        row = self._with_names(self.source_fields, source)
        return row._with_names(self.target_fields, target)  # noqa: SLF001  (of its own kind)

    def _with_names(self, among: Iterable[str], change: Callable[[str], str]) -> Self:
        def changed(value: object) -> object:
            if isinstance(value, str):
                return change(value)
            if isinstance(value, tuple):
                return tuple(changed(item) for item in value)
            return value

        return replace(self, **{field: changed(getattr(self, field)) for field in among})


@dataclass(frozen=True)
class _OneToOne(Operation, ABC):
    source: str
    target: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)


@dataclass(frozen=True)
class _SameValues(_OneToOne, ABC):
    def apply(self, *sources: Tensor) -> tuple[Tensor, ...]:
        return sources

    def invert(self, *targets: Tensor) -> tuple[Tensor, ...]:
        return targets


@dataclass(frozen=True)
class Rename(_SameValues):
    """The same values under another name."""


@dataclass(frozen=True)
class Transpose(_OneToOne):
    """A matrix stored the other way round."""

    def apply(self, *sources: Tensor) -> tuple[Tensor, ...]:
        return (sources[0].t().contiguous(),)

    def invert(self, *targets: Tensor) -> tuple[Tensor, ...]:
        return (targets[0].t().contiguous(),)


@dataclass(frozen=True)
class Flatten(_OneToOne):
    """A tensor of ``shape`` as a matrix, its first axis by all the others in order: a convolution of whole patches."""

    shape: tuple[int, ...]

    def apply(self, *sources: Tensor) -> tuple[Tensor, ...]:
        return (sources[0].flatten(1),)

    def invert(self, *targets: Tensor) -> tuple[Tensor, ...]:
        return (targets[0].reshape(self.shape),)


@dataclass(frozen=True)
class AddConstant(_OneToOne):
    """``parameter = source + constant``; the inverse is exact to one rounding."""

    constant: float

    def apply(self, *sources: Tensor) -> tuple[Tensor, ...]:
        return (sources[0] + self.constant,)

    def invert(self, *targets: Tensor) -> tuple[Tensor, ...]:
        return (targets[0] - self.constant,)

    @property
    def description(self) -> str:
        return f"add {self.constant:g}"


@dataclass(frozen=True)
class Split(Operation):
    """One stored tensor, cut along its first axis into ``rows`` rows for each parameter, in order."""

    source: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    target_fields = ("parts",)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def targets(self) -> tuple[str, ...]:
        return self.parts

    def apply(self, *sources: Tensor) -> tuple[Tensor, ...]:
        return _cut(sources[0], self.rows)

    def invert(self, *targets: Tensor) -> tuple[Tensor, ...]:
        import torch

        return (torch.cat(targets),)

    @property
    def description(self) -> str:
        return f"split rows {' + '.join(map(str, self.rows))}"


@dataclass(frozen=True)
class Fuse(Operation):
    """Several stored tensors of ``rows`` rows, stacked along the first axis into one parameter, in order."""

    parts: tuple[str, ...]
    target: str
    rows: tuple[int, ...]
    source_fields = ("parts",)

    @property
    def sources(self) -> tuple[str, ...]:
        return self.parts

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    def apply(self, *sources: Tensor) -> tuple[Tensor, ...]:
        import torch

        return (torch.cat(sources),)

    def invert(self, *targets: Tensor) -> tuple[Tensor, ...]:
        return _cut(targets[0], self.rows)

    @property
    def description(self) -> str:
        return f"fuse rows {' + '.join(map(str, self.rows))}"


@dataclass(frozen=True)
class Tie(_SameValues):
    """The parameter ``alias`` is the parameter ``target``.

    Files may repeat the table under the names of ``copies``; what they then hold must be equal to ``source``, else the
    file and its configuration contradict each other.
    """

    alias: str
    copies: tuple[str, ...]
    source_fields = ("source", "copies")
    target_fields = ("target", "alias")

    @property
    def made(self) -> tuple[str, ...]:
        return (self.target, self.alias)

    @property
    def description(self) -> str:
        return f"tie, also {self.alias}"


@dataclass(frozen=True)
class Drop(Operation):
    """A stored tensor that is not needed, present or not."""

    source: str
    reason: str
    target_fields = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def targets(self) -> tuple[str, ...]:
        return ()

    def apply(self, *_: Tensor) -> tuple[Tensor, ...]:
        return ()

    def invert(self, *_: Tensor) -> tuple[Tensor, ...]:
        return ()

    @property
    def description(self) -> str:
        return f"drop: {self.reason}"


def _cut(tensor: Tensor, rows: Sequence[int]) -> tuple[Tensor, ...]:
    import torch

    return tuple(part.contiguous() for part in torch.split(tensor, list(rows)))


def per_layer(operations: Sequence[Operation], layers: int) -> Iterator[Operation]:
    """The rows once for every layer, in layer order."""
    for layer in range(layers):
        for operation in operations:
            yield operation.at_layer(layer)


def load_weights(model: nn.Module, operations: Iterable[Operation], source: Mapping[str, Tensor]) -> None:
    """Fill ``model`` (which may be on the meta device) from ``source``, one row at a time, in PyTorch's default type.

    Tensors on the meta device are held against the model as far as they tell: all but their values.

    Raises:
        CheckpointError: a tensor is missing, left over, of the wrong shape or dtype, or not finite; or the table does
            not produce every parameter exactly once.
    """
    waiting = dict(model.named_parameters())  # a tied parameter appears once
    left = set(source)
    for operation in operations:
        if isinstance(operation, Drop):
            left.discard(operation.source)
            continue
        tensors = [_consume(source, left, name) for name in operation.sources]
        _check_shapes(operation, waiting, tensors)
        for target, value in zip(operation.targets, operation.apply(*tensors), strict=True):
            _fill(model, waiting, operation, target, value)
        if isinstance(operation, Tie):
            assign(model, operation.alias, model.get_parameter(operation.target))
            for copy in left.intersection(operation.copies):
                _require_equal(operation, tensors[0], copy, _consume(source, left, copy))
    if waiting:
        raise CheckpointError(f"the weight map produces no {min(waiting)}")
    if left:
        raise CheckpointError(
            f"{min(left)} is in the checkpoint but has no place in the model ({len(left)} such tensors); "
            "it is another architecture, or the weight map lacks a row"
        )


def load_part(
    model: nn.Module, operations: Iterable[Operation], source: Mapping[str, Tensor], names: Collection[str]
) -> None:
    """Fill the parameters ``names`` of a model whose whole map has been held against all of ``source`` before.

    Raises:
        CheckpointError: values that are not finite, or cannot be read.
    """
    wanted = set(names)
    for operation in operations:
        if not wanted.isdisjoint(operation.made):
            for name, value in values_of(operation, source).items():
                if name in wanted:
                    assign(model, name, _parameter(value))


def values_of(operation: Operation, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a row of such a map makes of ``source``, by parameter.

    Raises:
        CheckpointError: values that are not finite, or cannot be read.
    """
    tensors = [_read(source, name) for name in operation.sources]
    values = dict(zip(operation.targets, operation.apply(*tensors), strict=True))
    if isinstance(operation, Tie):
        values[operation.alias] = values[operation.target]
        for copy in source.keys() & set(operation.copies):
            _require_equal(operation, tensors[0], copy, _read(source, copy))
    return values


def _check_shapes(operation: Operation, waiting: Mapping[str, nn.Parameter], tensors: Sequence[Tensor]) -> None:
    """Hold the stored shapes against what the inverse makes of the waiting parameters' shapes."""
    for target in operation.targets:
        if target not in waiting:
            raise CheckpointError(f"the weight map produces {target}, which is no parameter or was produced before")
    wanted = operation.invert(*(waiting[target].detach().to("meta") for target in operation.targets))
    for name, tensor, expected in zip(operation.sources, tensors, wanted, strict=True):
        if tensor.shape != expected.shape:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)} where the configuration asks for {list(expected.shape)}; "
                "config.json and weights do not belong together"
            )


def _fill(model: nn.Module, waiting: dict[str, nn.Parameter], operation: Operation, target: str, value: Tensor) -> None:
    """Put ``value`` in the place of the parameter ``target``, which must still be waiting for it."""
    shape = waiting.pop(target).shape
    if value.shape != shape:
        made_of = " and ".join(operation.sources)
        raise CheckpointError(f"{made_of} give {target} the shape {list(value.shape)} instead of {list(shape)}")
    assign(model, target, _parameter(value))


def _parameter(value: Tensor) -> nn.Parameter:
    from torch import nn

    return nn.Parameter(value, requires_grad=False)


def _require_equal(operation: Tie, table: Tensor, name: str, stored: Tensor) -> None:
    import torch

    if not table.is_meta and not torch.equal(table, stored):
        raise CheckpointError(
            f"{name} differs from {operation.source} although the configuration ties them; "
            "set tie_word_embeddings to false, or fetch the file again"
        )


def original_layout(model: nn.Module, operations: Iterable[Operation]) -> dict[str, Tensor]:
    """The model's parameters under the checkpoint's names and layout: the inverse of ``load_weights``.

    On the meta device it tells the shapes a checkpoint must have.
    """
    layout: dict[str, Tensor] = {}
    for operation in operations:
        targets = [model.get_parameter(name).detach() for name in operation.targets]
        if targets:
            layout.update(zip(operation.sources, operation.invert(*targets), strict=True))
    return layout


def _consume(source: Mapping[str, Tensor], left: set[str], name: str) -> Tensor:
    """Read a tensor that nobody has read yet, in PyTorch's default type."""
    if name in source and name not in left:
        raise CheckpointError(f"the weight map consumes {name} twice")
    left.discard(name)
    return _read(source, name)


def _read(source: Mapping[str, Tensor], name: str) -> Tensor:
    """Read a tensor in PyTorch's default type, float32 or float64: neither loses anything of what is stored."""
    import torch

    if name not in source:
        near = difflib.get_close_matches(name, source, n=1)
        hint = f"; the nearest name it has is {near[0]}" if near else "; fetch the checkpoint again"
        raise CheckpointError(f"the checkpoint has no tensor {name}{hint}")
    tensor = source[name]
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in READABLE_DTYPES:
        raise CheckpointError(f"{name} is stored as {dtype}; use a float32, bfloat16 or float16 checkpoint")
    tensor = tensor.to(torch.get_default_dtype())
    if not tensor.is_meta and not _finite(tensor):
        raise CheckpointError(f"{name} holds NaN or infinity; the file is damaged or was saved from a diverged model")
    return tensor


def _finite(tensor: Tensor) -> bool:
    """The least and the largest value are NaN if any is, and found without a copy."""
    return not tensor.numel() or all(math.isfinite(extreme) for extreme in tensor.aminmax())


def assign(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter in the place of the one of this name."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)
