"""Applying a recipe to a float file, and looking at what came out before anyone ships it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parity import isolated
from parity.convert.recipes import Recipe, entries
from parity.errors import RungError
from parity.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = (256, 128, 64, 32)
#: Smallest positive normal float16. Block scales are stored as float16; below this the runtime refuses them.
FLOAT16_TINY = float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class WeightPrecision:
    """How one weight is stored: ``precision`` such as ``int4 block 32``, ``asked`` when the recipe wanted another."""

    name: str
    precision: str
    asked: str | None = None


def quantize(
    source: Path,
    names: Sequence[str],
    recipe: Recipe,
    destination: Path,
    on_progress: isolated.Progress | None = None,
) -> isolated.Finished[list[WeightPrecision]]:
    """Write ``source`` (float) quantized by ``recipe`` to ``destination``; returns how every weight is stored.

    ``names`` are the weights' names in file order, as ``name_weights`` gives them.

    Raises:
        RungError: the quantizer failed, nothing was quantized, or the file holds scales that the runtime refuses.
    """
    job = quantization(source, names, recipe, destination)
    return isolated.run(f"quantizing to {recipe.name}", job, on_progress)


def quantization(
    source: Path, names: Sequence[str], recipe: Recipe, destination: Path
) -> partial[list[WeightPrecision]]:
    """The same as a job, for a process that is there already."""
    return partial(_quantize, source, names, recipe, destination)


def _quantize(
    source: Path, names: Sequence[str], recipe: Recipe, destination: Path, progress: isolated.Progress
) -> list[WeightPrecision]:
    from ai_edge_quantizer import quantizer

    rules = entries(recipe)
    if recipe.encoder:
        rules = rules + _for_encoders(source, recipe.encoder)
    replaced = _replacements(source, rules)
    try:
        engine = quantizer.Quantizer(str(source), rules + list(replaced.values()))
        progress(0, 1)
        quantized = engine.quantize().quantized_model
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise RungError(f"{recipe.name} cannot be applied: {' '.join(str(error).split())[:300]}") from error
    if quantized is None:
        raise RungError(f"{recipe.name} produced no file")
    with whole_file(destination) as temporary:
        temporary.write_bytes(quantized)
        asked = [_asked(weight, rules) for weight in _weights(_read(source))]
        found = list(inspect(temporary, names))
        if all(precision == "float32" for _, precision in found):
            raise RungError(f"{recipe.name} left every weight in float32; its rules match nothing in this file")
    return [
        WeightPrecision(name, precision, wanted if wanted and not precision.startswith(wanted) else None)
        for (name, precision), wanted in zip(found, asked, strict=True)
    ]


def _for_encoders(source: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """The rules of ``recipe`` for the weights that encoders read, and for no others; what it leaves alone is float.

    Raises:
        RungError: the file has no encoder, or one that cannot be told from the rest.
    """
    weights = list(_weights(_read(source)))
    encoders = [weight for weight in weights if weight.subgraph.name.startswith(b"encode")]
    if not encoders:
        raise RungError(f"{recipe.name} is for an encoder, and this model has none; leave --encoder-recipe out")
    elsewhere = {weight.scope for weight in weights} - {weight.scope for weight in encoders}
    if shared := {weight.scope for weight in weights if weight not in encoders} - elsewhere:
        raise RungError(f"{min(shared)} is read by an encoder and by others under one name; use one recipe for both")
    wanted = [(weight, _rule_for(weight, entries(recipe))) for weight in encoders]
    plain = {"operation": "*", "algorithm_key": "no_quantize", "op_config": {}}
    return [_only_for(weight, rule or plain) for weight, rule in wanted]


def _rule_for(weight: _Weight, rules: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The rule that the quantizer goes by: the last one that matches."""
    fitting = (
        rule
        for rule in reversed(rules)
        if rule["operation"] in ("*", weight.operation) and re.search(rule["regex"], weight.scope)
    )
    return next(fitting, None)


def _only_for(weight: _Weight, rule: Mapping[str, Any]) -> dict[str, Any]:
    """The rule for this weight alone. Where it was for all operators it still is: those that cannot do it are left."""
    return {**rule, "regex": f"^{re.escape(weight.scope)}$"}


def _asked(weight: _Weight, rules: Sequence[dict[str, Any]]) -> str | None:
    """What the recipe asks for, as far as ``inspect`` names it: ``int4 block 32``, ``int8``."""
    rule = _rule_for(weight, rules)
    if rule is None or rule["algorithm_key"] == "no_quantize":
        return None
    config = rule["op_config"]["weight_tensor_config"]
    kind = "float" if str(getattr(config["dtype"], "value", config["dtype"])) == "FLOAT" else "int"
    block = _block_of(rule)
    return f"{kind}{config['num_bits']}" + (f" block {block}" if block else "")


def _replacements(source: Path, rules: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rules for the weights whose width is no multiple of the recipe's block, by weight name.

    The quantizer refuses such a weight outright. It gets the largest smaller block that divides its width (never less
    accurate than what was asked for), or stays in float32 where none does; either way the report says so.
    """
    found: dict[str, dict[str, Any]] = {}
    for weight in _weights(_read(source)):
        rule = _rule_for(weight, rules)
        block = _block_of(rule) if rule else 0
        if rule is None or not block or weight.width % block == 0:
            continue
        smaller = next((size for size in BLOCKS if size < block and weight.width % size == 0), None)
        replacement = _only_for(weight, rule)
        if smaller is None:
            replacement["algorithm_key"] = "no_quantize"
        else:
            config = rule["op_config"]
            tensor = {**config["weight_tensor_config"], "granularity": f"BLOCKWISE_{smaller}"}
            tensor.pop("block_size", None)
            replacement["op_config"] = {**config, "weight_tensor_config": tensor}
        found[weight.scope] = replacement
    return found


def _block_of(rule: dict[str, Any]) -> int:
    """The block size a rule asks for, 0 when it is not blockwise."""
    config = rule.get("op_config", {}).get("weight_tensor_config", {})
    granularity = str(getattr(config.get("granularity"), "value", config.get("granularity", "")))
    if granularity.startswith("BLOCKWISE_"):
        return int(granularity.removeprefix("BLOCKWISE_"))
    return int(config.get("block_size", 0))


@dataclass(frozen=True)
class _Weight:
    scope: str
    operation: str
    width: int
    tensor: Any
    subgraph: Any
    model: Any


def _read(path: Path) -> Any:
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    return tfl_flatbuffer_utils.read_model(str(path))


def _weights(model: Any) -> Iterator[_Weight]:
    """The constant matrices and kernels that operators multiply with or look up in, in every signature."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    operators = {
        BuiltinOperator.FULLY_CONNECTED: ("FULLY_CONNECTED", 1),
        BuiltinOperator.EMBEDDING_LOOKUP: ("EMBEDDING_LOOKUP", 1),
        BuiltinOperator.CONV_2D: ("CONV_2D", 1),
        BuiltinOperator.DEPTHWISE_CONV_2D: ("DEPTHWISE_CONV_2D", 1),
    }
    for subgraph in model.subgraphs:
        made_by = {int(output): op for op in subgraph.operators for output in op.outputs}
        for op in subgraph.operators:
            code = model.operatorCodes[op.opcodeIndex].builtinCode
            if code not in operators:
                continue
            operation, position = operators[code]
            index = int(op.inputs[position])
            maker = made_by.get(index)
            if maker and model.operatorCodes[maker.opcodeIndex].builtinCode == BuiltinOperator.DEQUANTIZE:
                index = int(maker.inputs[0])  # weight-only: stored quantized, dequantized before use
            tensor = subgraph.tensors[index]
            scope = tfl_flatbuffer_utils.get_op_scope(op, subgraph.tensors)
            yield _Weight(scope, operation, int(tensor.shape[-1]), tensor, subgraph, model)


def name_weights(path: Path, parameters: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The parameter that each weight of a float file came from, in file order.

    The exporter's own names mix up weights whose operators it has merged, so they are told apart by shape and first
    row, into which a norm's gains may have been multiplied. A weight that is no parameter keeps the exporter's name.
    """
    rows: dict[tuple[int, ...], dict[str, NDArray[np.float32]]] = {}
    for name, parameter in parameters.items():
        for stored in _layouts(parameter.numpy()):
            rows.setdefault(stored.shape, {})[name] = stored.reshape(-1)[: stored.shape[-1]]
    model = _read(path)
    names = []
    for weight in _weights(model):
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


def inspect(path: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and storage of each weight of a file, in file order.

    Raises:
        RungError: a scale that is zero, not finite, or (blockwise) subnormal in float16; the weight is named.
    """
    for name, weight in zip(names, _weights(_read(path)), strict=True):
        yield name, _precision(name, weight)


def _precision(name: str, weight: _Weight) -> str:
    from ai_edge_litert.schema_py_generated import QuantizationDetails, TensorType

    type_names = {value: key.lower() for key, value in vars(TensorType).items() if isinstance(value, int)}
    stored: str = type_names[weight.tensor.type]
    quantization = weight.tensor.quantization
    if quantization is None or (quantization.scale is None and quantization.details is None):
        return stored
    if quantization.detailsType == QuantizationDetails.BlockwiseQuantization:
        scales_tensor = weight.subgraph.tensors[quantization.details.scales]
        scales = np.frombuffer(weight.model.buffers[scales_tensor.buffer].data, np.float16)
        _check_scales(name, scales, FLOAT16_TINY)
        return f"{stored} block {quantization.details.blockSize}"
    scales = np.asarray(quantization.scale, np.float32)
    _check_scales(name, scales, 0.0)
    return f"{stored} {'channelwise' if scales.size > 1 else 'tensorwise'}"


def _check_scales(name: str, scales: NDArray[np.floating], smallest: float) -> None:
    values = np.abs(scales.astype(np.float64))
    bad = np.flatnonzero(~np.isfinite(values) | (values < smallest) | (values == 0))
    if bad.size:
        raise RungError(
            f"{name} has {bad.size} of {values.size} scales that are zero, subnormal or not finite "
            f"(first: {values[bad[0]]:.3g}); the runtime would refuse or flush them, use another recipe"
        )


def summarize(found: list[WeightPrecision]) -> dict[str, Any]:
    """Counts by precision, and every weight that did not get what the recipe asked for."""
    unique = {weight.name: weight for weight in found}  # every signature reads the same weights
    counts: dict[str, int] = {}
    for weight in unique.values():
        counts[weight.precision] = counts.get(weight.precision, 0) + 1
    exceptions = [
        {"weight": name, "asked": weight.asked, "precision": weight.precision}
        for name, weight in unique.items()
        if weight.asked
    ]
    return {"weights": counts, "exceptions": exceptions}
