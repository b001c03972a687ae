"""What composing relies on inside the pinned converter: another version must keep it, or the test says what it lost."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tables import nodes_of
from torch import Tensor, nn

from parity.errors import RungError

# The converter's dependencies warn about each other as soon as they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

PACKAGES = ("litert-torch", "litert-converter", "torch")
#: Without what tells builds of one release apart, as in ``2.13.0+cpu``.
VERSIONS = {package: version(package).partition("+")[0] for package in PACKAGES}
HERE = ", ".join(f"{package} {found}" for package, found in VERSIONS.items())
RELIED_ON = f"parity/convert/internals.py relies on what is no longer so with {HERE}"


@pytest.fixture(scope="module")
def lowering() -> Iterator[Any]:
    """One for all tests here, as stages of a model share one."""
    from parity.convert.internals import Lowering
    from parity.convert.timings import Timings

    return Lowering(Timings())


def run(lowered: Any, module: nn.Module, **inputs: Tensor) -> dict[str, np.ndarray]:
    """What the runtime makes of a lowered graph that is given the module's weights."""
    from ai_edge_litert.interpreter import Interpreter

    from parity.convert.internals import WEIGHT

    runner = Interpreter(model_content=lowered.content, num_threads=1).get_signature_runner("stage")
    weights = {WEIGHT + name: value.detach() for name, value in module.named_parameters(remove_duplicate=False)}
    given = {**inputs, **weights}
    taken = runner.get_input_details()
    made: dict[str, np.ndarray] = runner(**{n: given[n].numpy().reshape(each["shape"]) for n, each in taken.items()})
    return made


class Small(nn.Module):
    """Two weights and two buffers, one of them infinite; outputs that are not in the order of their names."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 6)
        self.register_buffer("row", torch.linspace(-1, 1, 8))
        self.register_buffer("wall", torch.tensor([0.0, float("-inf")] * 3))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"walled": self.up(x + self.row) + self.wall, "sum": x + y}


def test_versions_are_those_that_this_was_written_for() -> None:
    """What is pinned is what is here; a pin that moves must come with a look at everything else in this file."""
    pinned = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    for package, found in VERSIONS.items():
        assert f'"{package}=={found}"' in pinned, f"{package} {found} is not what is pinned; {RELIED_ON}"


def test_a_lowered_module_takes_its_weights_as_inputs(lowering: Any) -> None:
    """Named as they are in the module; outputs have their names; the numbers are right; no weight is in the file."""
    from ai_edge_litert.interpreter import Interpreter

    from parity.convert.graphs import read_graph
    from parity.convert.internals import WEIGHT

    module, x, y = Small(), torch.randn(2, 8), torch.randn(2, 8)
    lowered = lowering.lower(module, {"x": torch.zeros(2, 8), "y": torch.zeros(2, 8)})
    runner = Interpreter(model_content=lowered.content).get_signature_runner("stage")
    shapes = {name: tuple(map(int, each["shape"])) for name, each in runner.get_input_details().items()}
    weights = {f"{WEIGHT}up.weight": (6, 8), f"{WEIGHT}up.bias": (1, 6)}
    assert shapes == {"x": (2, 8), "y": (2, 8), **weights}, f"weights are no inputs: {RELIED_ON}"
    made = {name: (tuple(each.shape), each.dtype, each.device.type) for name, each in lowered.outputs.items()}
    assert made == {"walled": ((2, 6), torch.float32, "meta"), "sum": ((2, 8), torch.float32, "meta")}
    assert set(runner.get_output_details()) == set(made), f"outputs lost their names: {RELIED_ON}"
    found = run(lowered, module, x=x, y=y)
    np.testing.assert_array_equal(found["sum"], (x + y).numpy())
    np.testing.assert_allclose(found["walled"][:, ::2], module(x, y)["walled"].detach().numpy()[:, ::2], atol=1e-6)
    assert (found["walled"][:, 1::2] <= np.finfo(np.float32).min).all()
    graph = read_graph(lowered.content, WEIGHT)
    assert {each.parameters for each in graph.constants.values()} == {("up.weight",), ("up.bias",), ()}
    literals = [each for each in graph.constants.values() if not each.parameters]
    assert max(each.bytes for each in literals) <= 8 * 4, f"a weight is left in the file: {RELIED_ON}"


def test_a_lowered_module_does_not_depend_on_its_weights(lowering: Any) -> None:
    """The same bytes for others: what makes one lowering do for every layer."""
    one, other = (lowering.lower(Small(), {"x": torch.randn(2, 8), "y": torch.randn(2, 8)}) for _ in range(2))
    assert one.content == other.content, f"contents of weights are looked at: {RELIED_ON}"


def test_ties_inside_a_module_are_named(lowering: Any) -> None:
    """A weight under two names is an input under at least one of them, and the graph reads it in both places."""
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    wrapped = Named(module)
    lowered = lowering.lower(wrapped, {"x": torch.zeros(1, 4)})
    x = torch.randn(1, 4)
    np.testing.assert_allclose(run(lowered, wrapped, x=x)["out"], module(x).detach().numpy(), atol=1e-6)


class Named(nn.Module):
    """A module whose output has a name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.inner(x)}


class Hidden(nn.Module):
    """A weight that a marked region reads without being given it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        from models.layers.composite import composite

        return {"out": composite("odml.rms_norm", {"epsilon": 1e-5}, lambda a, b: a * self.weight + b, x, x + 1)}


def test_a_weight_that_cannot_be_an_input_is_an_error(lowering: Any) -> None:
    """It would be in every copy of the stage; the message names it and the way out."""
    with pytest.raises(RungError, match=re.escape("the converter hides a weight") + ".*<weight>.*--plain"):
        lowering.lower(Hidden(), {"x": torch.zeros(2, 4)})


class Buffers(nn.Module):
    """Buffers of one shape, added to the input one by one."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        for number, value in enumerate(values):
            self.register_buffer(f"buffer_{number}", torch.full((64,), value))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: x + value for name, value in self.named_buffers()}


def test_buffers_do_not_take_each_others_places(lowering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter knows constants by address, and writes over infinities: neither reaches the module or its like.

    A copy that is gone when the next is made has its address, and would lend it its contents.
    """
    values = [1.0, float("inf"), 2.0, float("-inf"), 3.0, 4.0, float("inf"), 5.0]
    from parity.convert.internals import inline_consts

    fix, fixed = inline_consts.tensor_lowering_placeholder_lowering, []

    def watched(context: Any, copy: Tensor) -> Any:
        # Whether an address is handed out again is up to the system; that none can be is up to us.
        assert all(each() is not None for each in fixed), "a copy is gone before the last one is made"
        fixed.append(weakref.ref(copy))
        return fix(context, copy)

    monkeypatch.setattr(inline_consts, "tensor_lowering_placeholder_lowering", watched)
    x = torch.zeros(1, 64)
    for several in (values, [value + 1 for value in values[::-1]]):
        fixed.clear()
        module = Buffers(several)
        found = run(lowering.lower(module, {"x": x}), module, x=x)
        limits = np.finfo(np.float32)
        for number, value in enumerate(several):
            expected = np.full((1, 64), np.clip(value, limits.min, limits.max), np.float32)
            np.testing.assert_array_equal(found[f"buffer_{number}"], expected, err_msg=RELIED_ON)
        assert [float(buffer[0]) for buffer in module.buffers()] == several
        assert len(fixed) == len(several)


class Repeated(nn.Module):
    """One tensor under two names, and a view of it."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.arange(64.0)
        self.register_buffer("one", table)
        self.register_buffer("same", table)
        self.register_buffer("part", table[:32])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"one": x + self.one, "same": x - self.same, "part": x[..., :32] * self.part}


def test_buffers_that_share_memory_keep_their_shapes(lowering: Any) -> None:
    """Equal addresses, other extents."""
    module, x = Repeated(), torch.randn(1, 64)
    found = run(lowering.lower(module, {"x": torch.zeros(1, 64)}), module, x=x)
    for name, value in module(x).items():
        np.testing.assert_array_equal(found[name], value.numpy())


class Bounded(nn.Module):
    """An operator that the converter lowers by way of JAX, given a number."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": torch.clamp(x, max=self.most)}


def test_what_another_module_had_is_not_lowered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time of lowering goes to operators by way of JAX; one that is written otherwise is another."""
    from litert_torch.backend.jax_bridge import _wrap

    from parity.convert.internals import Lowering
    from parity.convert.timings import Timings

    lower, lowered = _wrap._stablehlo_to_vhlo, []
    monkeypatch.setattr(_wrap, "_stablehlo_to_vhlo", lambda text: lowered.append(text) or lower(text))
    lowering = Lowering(Timings())
    x = 4 * torch.randn(2, 8)
    for most, anew in ((2.0, True), (2.0, False), (3.0, True), (2.0, False), (2, True), (2, False)):
        lowered.clear()
        module = Bounded(most)
        found = run(lowering.lower(module, {"x": torch.zeros_like(x)}), module, x=x)["out"]
        assert bool(lowered) == anew, f"{most} was {'not ' * anew}lowered again: {RELIED_ON}"
        np.testing.assert_array_equal(found, module(x)["out"].numpy())


def test_arithmetic_on_weights_is_left_to_be_worked_out(lowering: Any) -> None:
    """``weight + 1`` is in the graph as it is written, and gone when it is read: nothing of it is run."""
    from parity.convert.graphs import read_graph
    from parity.convert.internals import WEIGHT

    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x * (self.weight + 1.0)}

    import ai_edge_litert.schema_py_generated as schema

    lowered = lowering.lower(Gain(), {"x": torch.zeros(2, 8)})
    model = schema.ModelT.InitFromPackedBuf(lowered.content, 0)
    assert [node.name for node in nodes_of(model, model.subgraphs[0])] == ["ADD", "MUL"], RELIED_ON
    graph = read_graph(lowered.content, WEIGHT)
    assert [node.name for node in graph.nodes] == ["MUL"]
    assert "weight+ADD" in {constant.name for constant in graph.constants.values()}
