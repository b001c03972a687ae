"""Tables that are laid out once and copied say the same as tables that are packed one by one."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.convert.nodes import _contents
from parity.convert.packing import Alike, Builder, Once, shallow

NUMBERS = st.lists(st.integers(-1, 2**31 - 1), max_size=5).map(lambda numbers: np.array(numbers, np.int32))
NAMES = st.text(max_size=20).map(str.encode)
QUANTIZATION = schema.QuantizationParametersT(scale=np.float32([0.5, 0.25]), zeroPoint=np.int64([0, 3]))

TENSORS = st.builds(
    schema.TensorT,
    shape=NUMBERS | st.none(),
    type=st.sampled_from([0, schema.TensorType.INT32, schema.TensorType.BOOL]),
    buffer=st.sampled_from([0, 7, 70_000]),
    quantization=st.none() | st.builds(Once, st.just(QUANTIZATION)),
    isVariable=st.booleans(),
    shapeSignature=NUMBERS | st.none(),
    hasRank=st.booleans(),
)
OPERATORS = st.builds(
    schema.OperatorT,
    opcodeIndex=st.integers(0, 300),
    builtinOptionsType=st.just(schema.BuiltinOptions.ReshapeOptions),
    builtinOptions=st.builds(schema.ReshapeOptionsT, newShape=NUMBERS | st.none()),
    customOptions=st.none() | st.binary(max_size=5).map(lambda data: np.frombuffer(data, np.uint8)),
    intermediates=NUMBERS | st.none(),
    # Eight bytes, which must be where a number of eight bytes may be.
    largeCustomOptionsOffset=st.sampled_from([0, 2**40]),
    debugMetadataIndex=st.sampled_from([-1, 5]),
)
#: A few tables, and for each of several that are written: like which it is, and what it has as its own.
GRAPHS = st.tuples(
    st.lists(TENSORS, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), NAMES), max_size=12),
    st.lists(OPERATORS, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), NUMBERS, NUMBERS), max_size=12),
)


def packed(tensors: list[Any], operators: list[Any], builder: flatbuffers.Builder) -> bytearray:
    graph = schema.SubGraphT(tensors=tensors, operators=operators, name=b"graph")
    builder.Finish(schema.ModelT(version=3, subgraphs=[graph]).Pack(builder), file_identifier=b"TFL3")
    return builder.Output()


def both_ways(drawn: Any) -> tuple[bytearray, bytearray]:
    """A graph of tables like others, and the same of tables of their own."""
    likes, named, nodes, wired = drawn
    tensors = [(likes[number % len(likes)], {"name": name}) for number, name in named]
    operators = [(nodes[number % len(nodes)], {"inputs": a, "outputs": b}) for number, a, b in wired]
    copied = packed([Alike(t, **own) for t, own in tensors], [Alike(t, **own) for t, own in operators], Builder(16))
    alone = packed(
        [shallow(t, **own) for t, own in tensors], [shallow(t, **own) for t, own in operators], flatbuffers.Builder(16)
    )
    return copied, alone


@given(GRAPHS)
@settings(deadline=None)
def test_copies_say_what_tables_of_their_own_do(drawn: Any) -> None:
    """Whatever they share and have as their own, and wherever the first one came to be."""
    copied, alone = (schema.ModelT.InitFromPackedBuf(content, 0) for content in both_ways(drawn))
    assert _contents(copied) == _contents(alone)


@given(GRAPHS)
@settings(deadline=None)
def test_tables_are_where_their_numbers_may_be(drawn: Any) -> None:
    """Every table at a multiple of four bytes, and numbers of eight bytes at a multiple of eight."""
    content, _ = both_ways(drawn)
    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    for number in range(graph.TensorsLength()):
        table = graph.Tensors(number)._tab
        assert table.Pos % 4 == 0
        assert (name := table.Offset(10)) == 0 or table.Indirect(table.Pos + name) % 4 == 0
    for number in range(graph.OperatorsLength()):
        table = graph.Operators(number)._tab
        assert (large := table.Offset(22)) == 0 or (table.Pos + large) % 8 == 0
