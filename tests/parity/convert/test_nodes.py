"""Operators that run graphs of their own: which, by what option, and under other numbers elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from parity.convert.nodes import Node
from parity.errors import RungError


def node(name: str, **options: Any) -> Node:
    operator = schema.OperatorT(inputs=np.int32([0]), outputs=np.int32([1]), **options)
    return Node.of(operator, schema.OperatorCodeT(builtinCode=getattr(schema.BuiltinOperator, name)))


def test_the_graphs_that_an_operator_runs_are_found_and_renumbered() -> None:
    """In a copy of its table; it has several itself, and runs them still."""
    loop = node("WHILE", builtinOptions=schema.WhileOptionsT(condSubgraphIndex=1, bodySubgraphIndex=2))
    assert loop.calls == {"condSubgraphIndex": 1, "bodySubgraphIndex": 2}
    moved = loop.calling({1: 7, 2: 8}).builtinOptions
    assert (moved.condSubgraphIndex, moved.bodySubgraphIndex) == (7, 8)
    assert (loop.operator.builtinOptions.condSubgraphIndex, loop.operator.builtinOptions.bodySubgraphIndex) == (1, 2)


def test_most_operators_run_none() -> None:
    """With options, without, or with the number of none."""
    assert node("ADD", builtinOptions=schema.AddOptionsT()).calls == {}
    assert node("TANH").calls == {}
    composite = schema.StableHLOCompositeOptionsT(decompositionSubgraphIndex=-1)
    assert node("STABLEHLO_COMPOSITE", builtinOptions2=composite).calls == {}


def test_graphs_that_are_run_in_an_unknown_way_are_refused() -> None:
    """Rather than left pointing at whatever has their numbers in the new file."""
    case = schema.StablehloCaseOptionsT(branchSubgraphIndices=np.int32([1, 2]))
    with pytest.raises(RungError, match="STABLEHLO_CASE runs subgraphs in a way that is not known here"):
        _ = node("STABLEHLO_CASE", builtinOptions2=case).calls
