"""A file's tables, as tests look at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from parity.convert.nodes import NAMES, Node


def tables_of(path: Path) -> Any:
    """All of them, read at once."""
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def graphs_of(model: Any) -> dict[str, Any]:
    """The graph of each signature, by its name."""
    return {each.signatureKey.decode(): model.subgraphs[each.subgraphIndex] for each in model.signatureDefs}


def nodes_of(model: Any, graph: Any) -> Iterator[Node]:
    """Its operators, in order."""
    return (Node.of(operator, model.operatorCodes[operator.opcodeIndex]) for operator in graph.operators or ())


def counted(model: Any, graph: Any) -> Counter[str]:
    """How often it runs each operator; those of graphs that an operator runs count every time, under its name."""
    found: Counter[str] = Counter()
    for node in nodes_of(model, graph):
        name = NAMES[node.code.builtinCode]
        found[name] += 1
        for number in node.calls.values():
            for inner, count in counted(model, model.subgraphs[number]).items():
                found[f"{name}/{inner}"] += count
    return found
