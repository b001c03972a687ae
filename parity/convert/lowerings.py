"""How this project's own operators become StableHLO. Importing the module registers them with the converter."""

from __future__ import annotations

from typing import Any

import torch
from litert_converter.mlir import ir
from litert_converter.mlir.dialects import stablehlo
from litert_torch.backend import lowerings

import models.layers.kv_cache  # noqa: F401  (defines the operator)


@lowerings.lower(torch.ops.models.update_cache)  # type: ignore[untyped-decorator]
def _update_cache(_context: Any, cache: ir.Value, new: ir.Value, positions: ir.Value) -> Any:
    """One slice written from the first position on: the runtime's dynamic_update_slice, in place where it can."""
    scalar = ir.RankedTensorType.get([], ir.RankedTensorType(positions.type).element_type)
    first = stablehlo.slice(
        positions,
        start_indices=ir.DenseI64ArrayAttr.get([0]),
        limit_indices=ir.DenseI64ArrayAttr.get([1]),
        strides=ir.DenseI64ArrayAttr.get([1]),
    )
    start = stablehlo.reshape(scalar, first)
    zero = stablehlo.constant(ir.DenseElementsAttr.get_splat(scalar, ir.IntegerAttr.get(scalar.element_type, 0)))
    return stablehlo.dynamic_update_slice(cache, new, [zero, start, zero, zero])
