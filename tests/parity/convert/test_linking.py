"""Linked files hold everything once, nothing in vain, and their weights where the runtime wants them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from multiprocessing import active_children
from os import getpid, kill
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, setrlimit
from signal import SIGKILL
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from made_graphs import Making, ran
from tables import counted, graphs_of, nodes_of, tables_of
from torch import Tensor

from models.errors import CheckpointError
from parity import isolated
from parity.convert import linking, writing
from parity.convert.constants import Constant, Parameter
from parity.convert.graphs import Graph
from parity.convert.linking import Linker, Value
from parity.convert.stored import names_of, read_file, weights_of
from parity.convert.writing import Writer
from parity.errors import CannotStartError, RungError

WIDTH = 96
#: A block's weights, and a table that is multiplied with as well.
SHAPES = {"table": (320, WIDTH)} | {
    f"blocks.{layer}.{name}": shape
    for layer in range(3)
    for name, shape in (("up", (200, WIDTH)), ("down", (WIDTH, 200)), ("gain", (WIDTH,)))
}
BYTES = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())


def parameters() -> dict[str, Tensor]:
    """Drawn, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in SHAPES.items()}


def embed() -> Graph:
    """Rows of a table, and a mask that every block could make for itself."""
    making = Making()
    tokens = making.given("in_0", 4, dtype="int32")
    return making.graph(
        out_0=making.run("EMBEDDING_LOOKUP", [tokens, making.weight("tokens", *SHAPES["table"])], 4, WIDTH)
    )


def product(making: Making, given: int, weight: int, *shape: int) -> int:
    return making.run("FULLY_CONNECTED", [given, weight, -1], *shape, options=schema.FullyConnectedOptionsT())


def block() -> Graph:
    """``down(up(x * (gain + 1)) * tanh(mask)) + x``, and what it could keep: ``up(x)``."""
    making = Making()
    x, mask = making.given("in_0", 4, WIDTH), making.given("in_1", 4, 1)
    one = making.literal(np.float32([1.0]))
    gain = making.run("ADD", [making.weight("parts.0.norm.weight", WIDTH), one], WIDTH, options=schema.AddOptionsT())
    scaled = making.run("MUL", [x, gain], 4, WIDTH, options=schema.MulOptionsT())
    up = product(making, scaled, making.weight("parts.0.mlp.up.weight", 200, WIDTH), 4, 200)
    gate = making.run("TANH", [mask], 4, 1)
    gated = making.run("MUL", [up, gate], 4, 200, options=schema.MulOptionsT())
    down = product(making, gated, making.weight("parts.0.mlp.down.weight", WIDTH, 200), 4, WIDTH)
    return making.graph(out_0=making.run("ADD", [x, down], 4, WIDTH, options=schema.AddOptionsT()), out_1=up)


def head() -> Graph:
    making = Making()
    x = making.given("in_0", 4, WIDTH)
    return making.graph(out_0=product(making, x, making.weight("projection", *SHAPES["table"]), 4, 320))


def linked(*, signatures: Mapping[str, tuple[str, ...]] | None = None, early: Writer | None = None) -> Linker:
    """A model of three blocks; ``signatures`` name what each gives back. ``early`` begins to write with the first."""
    wanted = signatures or {
        "prefill": ("kept_0", "kept_1", "kept_2"),
        "decode": ("logits", "kept_0", "kept_1", "kept_2"),
    }
    linker = Linker(len(wanted))
    first, middle, last = embed(), block(), head()
    for name, outputs in wanted.items():
        linker.begin(name)
        known: dict[str, Value] = {}
        linker.place("embed", first, known, {"in_0": "tokens"}, {"out_0": "hidden"}, {"tokens": "table"})
        for layer in range(3):
            places = {"mlp.up": "up", "mlp.down": "down", "norm": "gain"}
            weights = {f"parts.0.{here}.weight": f"blocks.{layer}.{there}" for here, there in places.items()}
            made = {"out_0": "hidden", "out_1": f"kept_{layer}"}
            linker.place(f"block_{layer}", middle, known, {"in_0": "hidden", "in_1": "mask"}, made, weights)
        linker.place("head", last, known, {"in_0": "hidden"}, {"out_0": "logits"}, {"projection": "table"})
        linker.finish(known, ["mask", "unused", "tokens"], outputs)
        if early and name == next(iter(wanted)):
            linker.begin_writing(early)
    return linker


def write(linker: Linker, path: Path, values: Mapping[str, Tensor] | None = None, **metadata: bytes) -> Path:
    with Writer(path, parameters() if values is None else values) as writer:
        linker.write(writer, metadata, lambda *_: None)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(linked(), tmp_path_factory.mktemp("linked") / "model.tflite")


INPUTS = {"tokens": np.int32([3, 1, 300, 7]), "mask": np.float32([[0.5], [-0.25], [2.0], [0.125]])}


def expected() -> dict[str, np.ndarray]:
    """In float64."""
    values = {name: value.double().numpy() for name, value in parameters().items()}
    x, found = values["table"][INPUTS["tokens"]], {}
    for layer in range(3):
        up, down, gain = (values[f"blocks.{layer}.{name}"] for name in ("up", "down", "gain"))
        found[f"kept_{layer}"] = (x * (gain + 1)) @ up.T
        x = x + (found[f"kept_{layer}"] * np.tanh(INPUTS["mask"])) @ down.T
    return {**found, "logits": x @ values["table"].T}


def assert_right(path: Path) -> None:
    """Both signatures give what the model says."""
    for signature in ("prefill", "decode"):
        made = ran(path, signature, **INPUTS)
        for name, value in made.items():
            error = np.linalg.norm(value - expected()[name]) / np.linalg.norm(expected()[name])
            # Far more than ten products in a row can round, far less than a wrong weight would do.
            assert error < 1e-5, name


def test_copies_of_stages_give_the_models_numbers(file: Path) -> None:
    """Every copy with its own weights, in every signature, and inputs and outputs in the order asked for."""
    assert_right(file)
    model = tables_of(file)
    by_name = {each.signatureKey.decode(): each for each in model.signatureDefs}
    assert [each.name.decode() for each in by_name["decode"].inputs] == ["mask", "tokens"]
    assert [each.name.decode() for each in by_name["decode"].outputs] == ["logits", "kept_0", "kept_1", "kept_2"]


def test_every_weight_is_there_once(file: Path) -> None:
    """Whatever the number of signatures, also where a head is tied to a table: parameters, and a few tables."""
    assert BYTES < file.stat().st_size < BYTES + 16_000
    found: dict[str, set[int]] = {}
    for name, weight in zip(names_of(read_file(file)), weights_of(read_file(file)), strict=True):
        found.setdefault(name, set()).add(weight.tensor.buffer)
    assert set(found) == {name for name, shape in SHAPES.items() if len(shape) == 2}
    assert {len(buffers) for buffers in found.values()} == {1}
    readers = [weight.operation for weight in weights_of(read_file(file)) if weight.shape == SHAPES["table"]]
    assert sorted(readers) == ["EMBEDDING_LOOKUP", "EMBEDDING_LOOKUP", "FULLY_CONNECTED"]


def test_equal_work_is_done_once(file: Path) -> None:
    """What three stages would each make of the mask, one makes; gains are worked out before anything runs."""
    model = tables_of(file)
    counts = {name: counted(model, graph) for name, graph in graphs_of(model).items()}
    assert counts["decode"] == Counter(EMBEDDING_LOOKUP=1, TANH=1, MUL=6, FULLY_CONNECTED=7, ADD=3)


def test_what_no_output_needs_is_gone(file: Path) -> None:
    """A prefill without logits ends with what it keeps: no ``down`` of the last block, no head, and their inputs."""
    model = tables_of(file)
    graphs = graphs_of(model)
    assert counted(model, graphs["prefill"]) == Counter(EMBEDDING_LOOKUP=1, TANH=1, MUL=5, FULLY_CONNECTED=5, ADD=2)
    for graph in graphs.values():
        read = {place for node in nodes_of(model, graph) for place in node.inputs} - {-1}
        made = {place for node in nodes_of(model, graph) for place in node.outputs}
        assert set(range(len(graph.tensors))) == read | made | set(map(int, graph.outputs))
        assert set(map(int, graph.inputs)) <= read
    names = [tensor.name.decode() for tensor in graphs["prefill"].tensors]
    assert [name for name in names if "blocks.2.down" in name or "head" in name] == []


def test_an_input_that_nothing_needs_is_none(tmp_path: Path) -> None:
    """The first thing a model keeps does not depend on the mask."""
    path = write(linked(signatures={"only": ("kept_0",)}), tmp_path / "model.tflite")
    (definition,) = tables_of(path).signatureDefs
    assert [each.name.decode() for each in definition.inputs] == ["tokens"]
    np.testing.assert_allclose(ran(path, "only", tokens=INPUTS["tokens"])["kept_0"], expected()["kept_0"], atol=1e-5)


def test_names_are_unique_and_say_what_a_tensor_is(file: Path) -> None:
    """Signature, stage and module of what is made, signature and parameter of what is stored."""
    model = tables_of(file)
    names = [tensor.name.decode() for graph in model.subgraphs for tensor in graph.tensors]
    assert len(set(names)) == len(names)
    assert {"decode/tokens", "decode/mask", "prefill/table", "decode/blocks.1.gain+ADD"} <= set(names)
    read = {weight.scope.rpartition(".")[0] for weight in weights_of(read_file(file))}
    assert {"prefill/block_1/mlp/up", "decode/block_2/mlp/down"} <= read
    # What no weight was read for goes by the converter's word for it.
    assert any(name.startswith("decode/block_0/x") for name in names)
    assert {name.partition("/")[0] for name in names} == {"prefill", "decode"}


def test_parameters_in_two_shapes_have_two_names(tmp_path: Path) -> None:
    """And those that are worked on in two ways; both lead to the parameter."""
    making = Making()
    x = making.given("x", 2, 8)
    as_matrix, as_row = making.weight("w", 1, 8), making.weight("w", 8)
    out = product(making, x, as_matrix, 2, 1)
    for value in (1.0, 2.0):
        more = making.run("ADD", [as_row, making.literal(np.float32([value]))], 8, options=schema.AddOptionsT())
        x = making.run("MUL", [x, more], 2, 8, options=schema.MulOptionsT())
    x = making.run("MUL", [x, as_row], 2, 8, options=schema.MulOptionsT())
    linker = Linker(1)
    linker.begin("run")
    known: dict[str, Value] = {}
    linker.place("s", making.graph(a=out, b=x), known, {"x": "x"}, {"a": "a", "b": "b"}, {"w": "model.w"})
    linker.finish(known, ["x"], ["a", "b"])
    weight, given = torch.arange(8.0), np.ones((2, 8), np.float32)
    path = write(linker, tmp_path / "model.tflite", {"model.w": weight})
    names = sorted(t.name.decode() for t in tables_of(path).subgraphs[0].tensors if "model.w" in t.name.decode())
    assert names == ["run/model.w", "run/model.w+2", "run/model.w+ADD", "run/model.w+ADD+2"]
    assert names_of(read_file(path)) == ("model.w",)
    made = ran(path, "run", x=given)
    w = weight.numpy()
    np.testing.assert_array_equal(made["a"], np.full((2, 1), w.sum()))
    np.testing.assert_array_equal(made["b"], np.tile((w + 1) * (w + 2) * w, (2, 1)))


def test_large_constants_lie_where_kernels_want_them(file: Path) -> None:
    """At multiples of 64 bytes, behind everything else, none over another, and the file ends with the last."""
    content = file.read_bytes()
    root = schema.Model.GetRootAs(content, 0)
    spans = []
    for number in range(root.BuffersLength()):
        table = root.Buffers(number)
        if table.DataLength() > 1024:
            start = table._tab.Vector(table._tab.Offset(4))
            assert start % writing.ALIGNMENT == 0
            assert int.from_bytes(content[start - 4 : start], "little") == table.DataLength()
            spans.append((start, start + table.DataLength()))
    assert len(spans) == sum(len(shape) == 2 for shape in SHAPES.values())
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    assert spans[-1][1] == len(content)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as it would be if it were too large for its tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_REACH", BYTES)
        return write(linked(), tmp_path_factory.mktemp("outside") / "model.tflite")


def test_files_beyond_a_tables_reach_keep_their_weights_outside(file: Path, outside: Path) -> None:
    """The runtime and the quantizer find them there, and the numbers are the same."""
    root = schema.Model.GetRootAs(outside.read_bytes(), 0)
    places = [root.Buffers(number) for number in range(root.BuffersLength())]
    large = [each for each in places if each.Offset()]
    assert len(large) == sum(len(shape) == 2 for shape in SHAPES.values())
    assert all(each.Offset() % writing.ALIGNMENT == 0 and each.DataLength() == 0 for each in large)
    assert max(each.DataLength() for each in places) <= 1024
    assert_right(outside)
    for signature in ("prefill", "decode"):
        ours, theirs = (ran(path, signature, **INPUTS) for path in (outside, file))
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert names_of(read_file(outside)) == names_of(read_file(file))


def test_the_header_counts_towards_a_tables_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that would just fit by themselves do not fit behind it."""
    monkeypatch.setattr(writing, "_REACH", BYTES + 64 * len(SHAPES))
    root = schema.Model.GetRootAs(write(linked(), tmp_path / "model.tflite").read_bytes(), 0)
    assert any(root.Buffers(number).Offset() for number in range(root.BuffersLength()))


@pytest.mark.parametrize("which", ["file", "outside"])
def test_the_quantizer_reads_it(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Wherever the weights are; what it writes has them as integers."""
    from parity.convert.quantize import quantize
    from parity.convert.recipes import get_recipe

    source = request.getfixturevalue(which)
    made = tmp_path / "quantized.tflite"
    found = quantize(source, names_of(read_file(source)), get_recipe("weight_only_int8"), made).value
    assert {weight.name for weight in found} == {name for name, shape in SHAPES.items() if len(shape) == 2}
    assert {weight.precision for weight in found} == {"int8 channelwise"}
    for name, value in ran(made, "decode", **INPUTS).items():
        error = np.linalg.norm(value - expected()[name]) / np.linalg.norm(expected()[name])
        assert 1e-5 < error < 0.05, name


class OneAtATime(Mapping[str, Tensor]):
    """Parameters that are made when they are asked for, and must be gone when the next one is.

    What is asked for, in whichever process, is noted in a file.
    """

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._last: Any = lambda: None

    @property
    def asked(self) -> list[str]:
        return self._notes.read_text().split()

    def __getitem__(self, name: str) -> Tensor:
        assert self._last() is None, f"{self.asked[-1]} is still there when {name} is asked for"
        with self._notes.open("a") as notes:
            notes.write(f"{name}\n")
        value = parameters()[name].clone()
        self._last = weakref.ref(value.untyped_storage())
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(SHAPES)

    def __len__(self) -> int:
        return len(SHAPES)


def test_weights_are_asked_for_one_at_a_time(file: Path, tmp_path: Path) -> None:
    """Each large one once, when its turn comes, and none of them is held on to."""
    source = OneAtATime(tmp_path / "asked")
    again = write(linked(), tmp_path / "model.tflite", source)
    assert Counter(name for name in source.asked if len(SHAPES[name]) == 2) == Counter(
        name for name, shape in SHAPES.items() if len(shape) == 2
    )
    assert again.read_bytes() == file.read_bytes()


def write_early(path: Path, values: Mapping[str, Tensor]) -> Path:
    """The file, begun with its first signature."""
    with Writer(path, values, early=True) as writer:
        linked(early=writer).write(writer, {}, lambda *_: None)
    return path


@pytest.mark.parametrize("reach", [writing._REACH, BYTES])
def test_weights_are_written_while_signatures_are_linked(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reach: int
) -> None:
    """Each once, behind room that graphs turn out not to need, inside of tables or outside; nothing else changes."""
    monkeypatch.setattr(writing, "_REACH", reach)
    source = OneAtATime(tmp_path / "asked")
    early = write_early(tmp_path / "early.tflite", source)
    assert max(Counter(name for name in source.asked if len(SHAPES[name]) == 2).values()) == 1
    assert early.stat().st_size > file.stat().st_size
    assert_right(early)
    assert names_of(read_file(early)) == names_of(read_file(file))


def test_graphs_that_outgrow_their_room_have_everything_written_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the one that was not begun early."""
    monkeypatch.setattr(linking, "_SPARE", 0.1)
    assert write_early(tmp_path / "early.tflite", parameters()).read_bytes() == file.read_bytes()


def test_a_weight_that_cannot_be_read_ends_the_file(tmp_path: Path) -> None:
    """With its own message, whichever process it was asked for by."""

    class Torn(OneAtATime):
        def __getitem__(self, name: str) -> Tensor:
            if name == "blocks.1.up":
                raise CheckpointError(f"{name} holds NaN")
            return super().__getitem__(name)

    with pytest.raises(CheckpointError, match=r"blocks\.1\.up holds NaN"):
        write_early(tmp_path / "early.tflite", Torn(tmp_path / "asked"))


def test_a_conversion_that_fails_stops_the_writing(tmp_path: Path) -> None:
    """Nothing more is asked for once the writer is left."""

    class Slow(OneAtATime):
        def __getitem__(self, name: str) -> Tensor:
            value = super().__getitem__(name)
            sleep(60)
            return value

    def fail(writer: Writer) -> None:
        linked(early=writer)
        while not source.asked and monotonic() < began + 60:
            sleep(0.01)
        raise ArithmeticError("lowering failed")

    source = Slow(tmp_path / "asked")
    (tmp_path / "asked").touch()
    began = monotonic()
    with (
        pytest.raises(ArithmeticError, match="lowering"),
        Writer(tmp_path / "model.tflite", source, early=True) as writer,
    ):
        fail(writer)
    assert len(source.asked) == 1
    assert monotonic() - began < 60


def test_a_process_that_is_killed_while_it_writes_is_an_error(tmp_path: Path) -> None:
    """As when memory is short; the reason is said."""

    class Deadly(OneAtATime):
        def __getitem__(self, name: str) -> Tensor:
            if getpid() != here:
                kill(getpid(), SIGKILL)
            return super().__getitem__(name)

    here = getpid()
    with pytest.raises(RungError, match="writing weights was killed by SIGKILL; the machine may have run out"):
        write_early(tmp_path / "early.tflite", Deadly(tmp_path / "asked"))


def test_a_process_that_was_killed_before_it_had_to_write_is_an_error(tmp_path: Path) -> None:
    """The same one, said when the file is finished."""
    with Writer(tmp_path / "early.tflite", parameters(), early=True) as writer:
        (process,) = (each for each in active_children() if each.name == "writing weights")
        process.kill()
        process.join()
        linker = linked(early=writer)
        with pytest.raises(RungError, match="writing weights was killed by SIGKILL"):
            linker.write(writer, {}, lambda *_: None)


def test_where_no_process_can_be_forked_everything_is_written_at_the_end(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system counts room for the weights as if it were taken when a process forks."""

    def refuse(name: str, _: object) -> None:
        raise CannotStartError(f"{name} cannot be started ([Errno 12] Cannot allocate memory)")

    monkeypatch.setattr(isolated, "fork", refuse)
    path = tmp_path / "model.tflite"
    with Writer(path, parameters(), early=True) as writer:
        assert not writer.early
        linked().write(writer, {}, lambda *_: None)
    assert path.read_bytes() == file.read_bytes()


def test_a_process_that_writes_much_waits_for_nobody(tmp_path: Path) -> None:
    """What it says meanwhile fits the pipe, however many weights there are."""
    said: list[tuple[int, int]] = []
    places = {Constant((1,), "float32", Parameter(str(number))): 64 * number for number in range(1, 5000)}
    values = {str(number): torch.tensor([float(number)]) for number in range(1, 5000)}
    with (tmp_path / "file").open("wb") as file:
        writing._write(file, places, values, lambda done, total: said.append((done, total)))
    assert 50 < len(said) <= 100
    written = np.frombuffer((tmp_path / "file").read_bytes(), np.float32)
    assert [written[start // 4] for start in places.values()] == [float(number) for number in range(1, 5000)]


def test_what_the_disk_says_while_weights_are_written_beside(tmp_path: Path) -> None:
    """Is raised as if it had been said here."""

    class Full(OneAtATime):
        def __getitem__(self, name: str) -> Tensor:
            if getpid() != here:
                setrlimit(RLIMIT_FSIZE, (100, RLIM_INFINITY))
            return super().__getitem__(name)

    here = getpid()
    with pytest.raises(OSError, match="File too large"):
        write_early(tmp_path / "early.tflite", Full(tmp_path / "asked"))


def single(making: Making, tmp_path: Path, *, keep: Mapping[str, int], copies: int = 1, **metadata: bytes) -> Path:
    """A signature ``run`` of copies of one stage, which all read ``x``; each gives back what is to be kept."""
    linker = Linker(1)
    linker.begin("run")
    known: dict[str, Value] = {}
    graph, kept = making.graph(**keep), []
    for copy in range(copies):
        outputs = {name: f"{name}_{copy}" for name in keep}
        kept += outputs.values()
        linker.place(f"stage_{copy}", graph, known, {"x": "x"}, outputs, {})
    linker.finish(known, ["x"], kept)
    return write(linker, tmp_path / "model.tflite", {}, **metadata)


def test_operators_keep_outputs_that_nobody_reads(tmp_path: Path) -> None:
    """The runtime writes every output of an operator, so there is a tensor for each."""
    making = Making()
    x = making.given("x", 2, 6)
    halves = making.run_all(
        "SPLIT", [making.literal(np.int32(1)), x], [(2, 3), (2, 3)], options=schema.SplitOptionsT(numSplits=2)
    )
    path = single(making, tmp_path, keep={"half": halves[1]})
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(ran(path, "run", x=values)["half_0"], values[:, 3:])
    model = tables_of(path)
    (node,) = nodes_of(model, model.subgraphs[0])
    assert min(node.outputs) >= 0


@pytest.mark.parametrize(("operator", "runs"), [("TANH", 1), ("RANDOM_UNIFORM", 2)])
def test_only_functions_of_their_inputs_are_run_once(tmp_path: Path, operator: str, runs: int) -> None:
    """What gives something else every time does so for every stage."""
    making = Making()
    making.given("x", 2)
    out = making.run(operator, [0], 2, options=schema.RandomOptionsT() if runs == 2 else None)
    model = tables_of(single(making, tmp_path, keep={"out": out}, copies=2))
    assert counted(model, model.subgraphs[0]) == Counter({operator: runs})


def test_options_tell_operators_apart(tmp_path: Path) -> None:
    """The same inputs to the same operator, with another axis."""
    making = Making()
    x = making.given("x", 2, 2)
    outs = {
        f"axis_{axis}": making.run("CONCATENATION", [x, x], *shape, options=schema.ConcatenationOptionsT(axis=axis))
        for axis, shape in enumerate([(4, 2), (2, 4)])
    }
    path = single(making, tmp_path, keep=outs)
    values = np.arange(4, dtype=np.float32).reshape(2, 2)
    made = ran(path, "run", x=values)
    for axis in (0, 1):
        np.testing.assert_array_equal(made[f"axis_{axis}_0"], np.concatenate([values, values], axis))


def test_what_comes_out_tells_operators_apart(tmp_path: Path) -> None:
    """A CAST says nowhere else what it casts to."""
    making = Making()
    x = making.given("x", 2)
    outs = {dtype: making.run("CAST", [x], 2, dtype=dtype) for dtype in ("int32", "bool", "int64")}
    made = ran(single(making, tmp_path, keep=outs), "run", x=np.float32([0, 3]))
    for dtype in outs:
        np.testing.assert_array_equal(made[f"{dtype}_0"], np.array([0, 3]).astype(dtype), strict=True)


def test_a_constant_of_another_size_than_it_says_ends_the_file(tmp_path: Path) -> None:
    """Or everything behind it would be somewhere else."""
    values = {**parameters(), "table": parameters()["table"].double()}
    with pytest.raises(RungError, match=r"table has \d+ bytes, not \d+; convert with --plain"):
        write(linked(), tmp_path / "model.tflite", values)


def test_a_file_asks_for_the_latest_runtime_of_its_stages(tmp_path: Path) -> None:
    """Version by version, not letter by letter; and says besides what it is told to say."""
    linker = Linker(1)
    linker.begin("run")
    known: dict[str, Value] = {}
    for number, version in enumerate((b"2.9.0\0\0", b"2.17.0\0", b"1.14.0\0")):
        making = Making(metadata={"min_runtime_version": version, "other": b"said"})
        out = making.run("TANH", [making.given("in", 2)], 2)
        linker.place(f"s{number}", making.graph(out=out), known, {"in": f"x{number}"}, {"out": f"x{number + 1}"}, {})
    linker.finish(known, ["x0"], ["x3"])
    model = tables_of(write(linker, tmp_path / "model.tflite", {}, parity=b"facts"))
    said = {each.name.decode(): bytes(model.buffers[each.buffer].data) for each in model.metadata}
    assert said == {"min_runtime_version": b"2.17.0\0", "other": b"said", "parity": b"facts"}
