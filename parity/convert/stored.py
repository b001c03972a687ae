"""The weights in a ``.tflite`` file: which parameter each is, and how it is stored."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity.convert.rounding import Grouping, Rounding, of_codes, of_halves
from parity.errors import RungError

if TYPE_CHECKING:
    from torch import Tensor

#: Smallest positive normal float16. Block scales are stored as float16; below this the runtime refuses them.
FLOAT16_TINY = float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class Weight:
    """A weight where it is in a file: the operator that reads it, by the quantizer's name for it, and its tensor."""

    scope: str
    operation: str
    width: int
    tensor: Any
    subgraph: Any
    model: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.tensor.shape)

    def data(self, dtype: type[np.generic]) -> NDArray[Any]:
        """What is stored, as it is, flat."""
        return np.frombuffer(self.model.buffers[self.tensor.buffer].data, dtype)


def read_file(path: Path) -> Any:
    """The file as the quantizer's tables, whose buffers are read when touched."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    return tfl_flatbuffer_utils.read_model(contents(path))


def contents(path: Path) -> memoryview:
    """A file in memory, read when touched; writing to it leaves the file as it is.

    The quantizer's own way keeps every file open that it has read, and with it the disk that a removed one took.
    """
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def weights_of(model: Any) -> Iterator[Weight]:
    """The constant matrices and kernels that operators multiply with or look up in, in every signature."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    operators = {
        BuiltinOperator.FULLY_CONNECTED: ("FULLY_CONNECTED", 1),
        BuiltinOperator.EMBEDDING_LOOKUP: ("EMBEDDING_LOOKUP", 1),
        BuiltinOperator.CONV_2D: ("CONV_2D", 1),
        BuiltinOperator.DEPTHWISE_CONV_2D: ("DEPTHWISE_CONV_2D", 1),
    }
    codes = [code.builtinCode for code in model.operatorCodes]
    for subgraph in model.subgraphs:
        dequantized = {
            int(op.outputs[0]): int(op.inputs[0])
            for op in subgraph.operators
            if codes[op.opcodeIndex] == BuiltinOperator.DEQUANTIZE
        }
        for op in subgraph.operators:
            if codes[op.opcodeIndex] not in operators:
                continue
            operation, position = operators[codes[op.opcodeIndex]]
            index = int(op.inputs[position])
            # Weight-only: stored quantized, dequantized before use.
            tensor = subgraph.tensors[dequantized.get(index, index)]
            scope = tfl_flatbuffer_utils.get_op_scope(op, subgraph.tensors)
            yield Weight(scope, operation, int(tensor.shape[-1]), tensor, subgraph, model)


def weights_in(path: Path) -> Iterator[Weight]:
    """The weights of a file, of which nothing else is unpacked: a tenth of the time that ``read_file`` takes."""
    return weights_of(_Tables(contents(path)))


class _Tables:
    """A file's tables, each unpacked when it is asked for; what ``weights_of`` asks for goes by the object's names."""

    def __init__(self, content: memoryview) -> None:
        from ai_edge_litert.schema_py_generated import Model, OperatorCodeT

        model = Model.GetRootAs(content)
        codes = range(model.OperatorCodesLength())
        self.operatorCodes = [OperatorCodeT.InitFromObj(model.OperatorCodes(at)) for at in codes]
        self.subgraphs = [_Graph(model.Subgraphs(at)) for at in range(model.SubgraphsLength())]
        # Nothing here refers to itself, so the file is let go with the last weight that is looked at.
        self.buffers = _Unpacked(model.Buffers, partial(_buffer, content))


def _buffer(content: memoryview, table: Any) -> Any:
    from ai_edge_litert.schema_py_generated import BufferT

    buffer = BufferT.InitFromObj(table)
    if buffer.offset:  # outside of the tables
        buffer.data = content[buffer.offset : buffer.offset + buffer.size]
    return buffer


class _Graph:
    """A subgraph: its operators as tables know them, its tensors unpacked when they are asked for."""

    def __init__(self, table: Any) -> None:
        from ai_edge_litert.schema_py_generated import TensorT

        self.name = table.Name()
        self.operators = [_Operator(table.Operators(at)) for at in range(table.OperatorsLength())]
        self.tensors = _Unpacked(table.Tensors, TensorT.InitFromObj)


class _Operator:
    """What an operator is, and the places of what it reads and makes."""

    def __init__(self, table: Any) -> None:
        self.opcodeIndex = table.OpcodeIndex()
        self._table = table

    @property
    def inputs(self) -> Any:
        return self._table.InputsAsNumpy()

    @property
    def outputs(self) -> Any:
        return self._table.OutputsAsNumpy()


class _Unpacked:
    """Objects by their place, each unpacked once, when it is asked for."""

    def __init__(self, table: Callable[[int], Any], unpack: Callable[[Any], Any]) -> None:
        self._table = table
        self._unpack = unpack
        self._known: dict[int, Any] = {}

    def __getitem__(self, place: int) -> Any:
        place = int(place)
        if place not in self._known:
            self._known[place] = self._unpack(self._table(place))
        return self._known[place]


def names_of(model: Any) -> tuple[str, ...]:
    """The parameter that each weight of a composed file came from, in file order: its tensors are named so."""
    names = (weight.tensor.name.decode().partition("/")[2] for weight in weights_of(model))
    return tuple(name.partition("+")[0].removesuffix(".weight") for name in names)


def name_weights(path: Path, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The parameter that each weight of a float file came from, in file order.

    The exporter's own names mix up weights whose operators it has merged, so they are told apart by shape and first
    row, into which a norm's gains may have been multiplied. A weight that is no parameter keeps the exporter's name.
    """
    rows: dict[tuple[int, ...], dict[str, NDArray[np.float32]]] = {}
    for name, parameter in parameters.items():
        for stored in _layouts(parameter.numpy()):
            rows.setdefault(stored.shape, {})[name] = stored.reshape(-1)[: stored.shape[-1]]
    model = read_file(path)
    names = []
    for weight in weights_of(model):
        stored = np.frombuffer(model.buffers[weight.tensor.buffer].data, np.float32, count=weight.width)
        gains = [p.numpy() for p in parameters.values() if tuple(p.shape) == (weight.width,)]
        candidates = rows.get(tuple(int(size) for size in weight.tensor.shape), {})
        plain = (name for name, row in candidates.items() if np.array_equal(row, stored))
        scaled = (name for name, row in candidates.items() for gain in gains if np.array_equal(row * gain, stored))
        names.append(next(chain(plain, scaled), weight.scope).removesuffix(".weight"))
    return tuple(names)


def _layouts(parameter: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """How a file may store a parameter: a matrix as it is, the kernel ``[O, I, K]`` of a convolution with I last."""
    yield parameter
    if parameter.ndim == 3:
        last = parameter.transpose(0, 2, 1)[:, None]
        yield last
        if parameter.shape[1] == 1:
            yield last.transpose(3, 1, 2, 0)


@dataclass(frozen=True)
class Storage:
    """How one weight is stored.

    ``kind`` is ``float32``, ``float16``, ``int8``, ``int4``; ``scales`` are those of integers, with as many axes as the
    weight and to be broadcast to it; ``block`` is how many values in a row share one.
    """

    kind: str
    scales: NDArray[np.floating] | None = None
    block: int = 0

    @property
    def precision(self) -> str:
        """As it is shown: ``int4 block 32``, ``int8 channelwise``."""
        if self.scales is None:
            return self.kind
        grouping = "channelwise" if self.scales.size > 1 else "tensorwise"
        return f"{self.kind} " + (f"block {self.block}" if self.block else grouping)

    @property
    def bits(self) -> int:
        """Of each value."""
        return bits_of(self.kind)


def bits_of(precision: str) -> int:
    """Of each value: of ``int4 block 32`` or ``float16``."""
    return int(precision.partition(" ")[0].lstrip("abcdefghijklmnopqrstuvwxyz"))


def storage_of(weight: Weight, name: str) -> Storage:
    """How a weight is stored.

    Raises:
        RungError: a scale that is zero, not finite, or (blockwise) subnormal in float16; the weight is named.
    """
    from ai_edge_litert.schema_py_generated import QuantizationDetails, TensorType

    type_names = {value: key.lower() for key, value in vars(TensorType).items() if isinstance(value, int)}
    kind: str = type_names[weight.tensor.type]
    quantization = weight.tensor.quantization
    if quantization is None or (quantization.scale is None and quantization.details is None):
        return Storage(kind)
    if quantization.detailsType == QuantizationDetails.BlockwiseQuantization:
        tensor = weight.subgraph.tensors[quantization.details.scales]
        scales: NDArray[np.floating] = np.frombuffer(weight.model.buffers[tensor.buffer].data, np.float16)
        _check_scales(name, scales, FLOAT16_TINY)
        block = int(quantization.details.blockSize)
        return Storage(kind, np.repeat(scales.reshape(*weight.shape[:-1], -1), block, axis=-1), block)
    scales = np.asarray(quantization.scale, np.float32)
    _check_scales(name, scales, 0.0)
    shape = [1] * len(weight.shape)
    shape[int(quantization.quantizedDimension) if scales.size > 1 else 0] = scales.size
    return Storage(kind, scales.reshape(shape))


class Reading(NamedTuple):
    """Who reads a weight: a lookup or a multiplication, in an encoder or elsewhere. Each may have it stored its way."""

    lookup: bool
    encoder: bool


@dataclass(frozen=True)
class Numbers:
    """The very numbers that the quantized file ``path`` stores of its weights.

    ``source`` is the float file that it was made from, and ``names`` are those of its weights in file order.
    """

    path: Path
    source: Path
    names: tuple[str, ...]

    def read(self) -> Iterator[tuple[str, Reading, NDArray[np.float64], NDArray[np.float32]]]:
        """Every weight once for each way it is read in: its name, who reads it, its numbers (codes times scales), and
        what the source has of it, both in the file's shape.

        Raises:
            RungError: a weight in a form that is not known here.
        """
        done: set[tuple[str, Reading]] = set()
        pairs = zip(self.names, weights_in(self.path), weights_in(self.source), strict=True)
        for name, weight, exact in pairs:
            reading = Reading(weight.operation == "EMBEDDING_LOOKUP", weight.subgraph.name.startswith(b"encode"))
            if (name, reading) not in done:
                done.add((name, reading))
                values = numbers_of(weight, name)
                yield name, reading, values, exact.data(np.float32).reshape(exact.shape)


def numbers_of(weight: Weight, name: str) -> NDArray[np.float64]:
    """What is stored of a weight as numbers, in its shape.

    Raises:
        RungError: in a form that is not known here.
    """
    storage = storage_of(weight, name)
    if storage.scales is not None and storage.kind in ("int8", "int4"):
        return codes_of(weight, storage).astype(np.float64) * storage.scales.astype(np.float64)
    if storage.kind in ("float32", "float16"):
        return weight.data(np.dtype(storage.kind).type).reshape(weight.shape).astype(np.float64)
    raise RungError(f"{name} is stored as {storage.precision}, whose numbers cannot be read here")


def codes_of(weight: Weight, storage: Storage) -> NDArray[np.int8]:
    """The integers that are stored of a weight, in its shape."""
    codes = weight.data(np.int8)
    if storage.bits == 4:  # two to a byte, the lower half first
        codes = np.stack([np.left_shift(codes, 4) >> 4, codes >> 4], axis=-1).reshape(-1)
    return codes[: math.prod(weight.shape)].reshape(weight.shape)


def as_parameter(stored: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Values as a file has them, as the parameter of this ``shape`` has them; the inverse of how kernels are stored.

    Raises:
        RungError: they cannot be of that parameter.
    """
    if stored.shape == shape:
        return stored
    if len(shape) == 3 and stored.ndim == 4:
        out, given, width = shape
        if stored.shape == (out, 1, width, given):
            return stored[:, 0].transpose(0, 2, 1)
        if stored.shape == (1, 1, width, out):
            return stored.transpose(3, 1, 2, 0)[:, 0].transpose(0, 2, 1)
    raise RungError(f"values of shape {list(stored.shape)} are none of a parameter of {list(shape)}; convert it again")


def rounding_of(weight: Weight, source: Weight, storage: Storage, wanted: Grouping) -> Rounding | None:
    """How what is stored of a weight compares with the float weight of ``source``; ``None`` where that is float32."""
    if storage.kind == "float32":
        return None
    exact = source.data(np.float32).reshape(source.shape)
    if storage.scales is None:
        return of_halves(exact, weight.data(np.float16).reshape(exact.shape))
    return of_codes(exact, codes_of(weight, storage).reshape(exact.shape), storage.scales, storage.bits, wanted)


def _check_scales(name: str, scales: NDArray[np.floating], smallest: float) -> None:
    values = np.abs(scales.astype(np.float64))
    bad = np.flatnonzero(~np.isfinite(values) | (values < smallest) | (values == 0))
    if bad.size:
        raise RungError(
            f"{name} has {bad.size} of {values.size} scales that are zero, subnormal or not finite "
            f"(first: {values[bad[0]]:.3g}); the runtime would refuse or flush them, use another recipe"
        )
