"""Applying a recipe to a float file, and looking at what came out before anyone ships it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity import isolated
from parity.convert.recipes import Recipe, entries
from parity.errors import RungError
from parity.files import whole_file

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
    source: Path, recipe: Recipe, destination: Path, on_progress: isolated.Progress | None = None
) -> isolated.Finished[list[WeightPrecision]]:
    """Write ``source`` (float) quantized by ``recipe`` to ``destination``; returns how every weight is stored.

    Raises:
        RungError: the quantizer failed, nothing was quantized, or the file holds scales that the runtime refuses.
    """
    return isolated.run(f"quantizing to {recipe.name}", partial(_quantize, source, recipe, destination), on_progress)


def _quantize(source: Path, recipe: Recipe, destination: Path, progress: isolated.Progress) -> list[WeightPrecision]:
    from ai_edge_quantizer import quantizer

    rules = entries(recipe)
    replaced = _replacements(source, rules)
    try:
        engine = quantizer.Quantizer(str(source), rules + [rule for rule, _ in replaced.values()])
        progress(0, 1)
        quantized = engine.quantize().quantized_model
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise RungError(f"{recipe.name} cannot be applied: {' '.join(str(error).split())[:300]}") from error
    if quantized is None:
        raise RungError(f"{recipe.name} produced no file")
    with whole_file(destination) as temporary:
        temporary.write_bytes(quantized)
        found = list(inspect(temporary))
        if all(weight.precision == "float32" for weight in found):
            raise RungError(f"{recipe.name} left every weight in float32; its rules match nothing in this file")
    asked = {scope: wanted for scope, (_, wanted) in replaced.items()}
    return [WeightPrecision(w.name, w.precision, asked.get(w.name)) for w in found]


def _replacements(source: Path, rules: list[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], str]]:
    """Rules for the weights whose width is no multiple of the recipe's block, by weight name.

    The quantizer refuses such a weight outright. It gets the largest smaller block that divides its width (never less
    accurate than what was asked for), or stays in float32 where none does; either way the report says so.
    """
    blockwise = [rule for rule in rules if _block_of(rule)]
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for weight in _weights(_read(source)):
        for rule in blockwise:
            block = _block_of(rule)
            if rule["operation"] not in ("*", weight.operation) or not re.search(rule["regex"], weight.scope):
                continue
            if weight.width % block == 0:
                continue
            smaller = next((size for size in BLOCKS if size < block and weight.width % size == 0), None)
            replacement = {**rule, "regex": f"^{re.escape(weight.scope)}$", "operation": weight.operation}
            if smaller is None:
                replacement["algorithm_key"] = "no_quantize"
            else:
                config = rule["op_config"]
                tensor = {**config["weight_tensor_config"], "granularity": f"BLOCKWISE_{smaller}"}
                tensor.pop("block_size", None)
                replacement["op_config"] = {**config, "weight_tensor_config": tensor}
            asked = f"int{rule['op_config']['weight_tensor_config']['num_bits']} block {block}"
            found[weight.scope] = (replacement, asked)
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


def _read(path: Path) -> Any:
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    return tfl_flatbuffer_utils.read_model(str(path))


def _weights(model: Any) -> Iterator[_Weight]:
    """The constant matrices that fully-connected and embedding operators read, in every signature."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    operators = {
        BuiltinOperator.FULLY_CONNECTED: ("FULLY_CONNECTED", 1),
        BuiltinOperator.EMBEDDING_LOOKUP: ("EMBEDDING_LOOKUP", 1),
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
            yield _Weight(scope, operation, int(tensor.shape[-1]), tensor, (model, subgraph))


def inspect(path: Path) -> Iterator[WeightPrecision]:
    """How each weight of a file is stored, by the scope of the operator that reads it, in file order.

    Raises:
        RungError: a scale that is zero, not finite, or (blockwise) subnormal in float16; the tensor is named.
    """
    for weight in _weights(_read(path)):
        yield WeightPrecision(weight.scope, _precision(weight))


def _precision(weight: _Weight) -> str:
    from ai_edge_litert.schema_py_generated import QuantizationDetails, TensorType

    names = {value: name.lower() for name, value in vars(TensorType).items() if isinstance(value, int)}
    stored: str = names[weight.tensor.type]
    quantization = weight.tensor.quantization
    if quantization is None or (quantization.scale is None and quantization.details is None):
        return stored
    if quantization.detailsType == QuantizationDetails.BlockwiseQuantization:
        model, subgraph = weight.subgraph
        scales_tensor = subgraph.tensors[quantization.details.scales]
        scales = np.frombuffer(model.buffers[scales_tensor.buffer].data, np.float16)
        _check_scales(weight, scales, FLOAT16_TINY)
        return f"{stored} block {quantization.details.blockSize}"
    scales = np.asarray(quantization.scale, np.float32)
    _check_scales(weight, scales, 0.0)
    return f"{stored} {'channelwise' if scales.size > 1 else 'tensorwise'}"


def _check_scales(weight: _Weight, scales: Any, smallest: float) -> None:
    values = np.abs(scales.astype(np.float64))
    bad = np.flatnonzero(~np.isfinite(values) | (values < smallest) | (values == 0))
    if bad.size:
        raise RungError(
            f"{readable(weight.scope)} has {bad.size} of {values.size} scales that are zero, subnormal or not finite "
            f"(first: {values[bad[0]]:.3g}); the runtime would refuse or flush them, use another recipe"
        )


def readable(scope: str) -> str:
    """A weight's name for people: ``blocks.0.attention.q_proj`` instead of the exporter's paths of classes.

    Where the exporter has merged operators, the scope joins their paths by ``;`` and the deepest is the weight's own.
    """
    if scope.removesuffix(";").endswith("logits_output"):
        return "head.projection"
    path = max(scope.split(";"), key=lambda path: path.count("/"))
    parts = [re.sub(r"^.*\.[A-Za-z0-9]+_", "", part) for part in path.split("/")]
    parts = [part for part in parts if part and "." not in part and part != "model"]
    return ".".join(f"blocks.{part}" if part.isdigit() else part for part in parts) or scope


def summarize(found: list[WeightPrecision]) -> dict[str, Any]:
    """Counts by precision, and every weight that did not get what the recipe asked for."""
    unique = {readable(weight.name): weight for weight in found}
    counts: dict[str, int] = {}
    for weight in unique.values():
        counts[weight.precision] = counts.get(weight.precision, 0) + 1
    exceptions = [
        {"weight": name, "asked": weight.asked, "precision": weight.precision}
        for name, weight in unique.items()
        if weight.asked
    ]
    return {"weights": counts, "exceptions": exceptions}
