"""Composing gives the converter's own file: the same signatures, operators and numbers, for every preset."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tables import counted, graphs_of, nodes_of, tables_of
from torch import nn

from models import registry
from models.authoring.config import (
    DecoderConfig,
    EncoderDecoderConfig,
    ModelConfig,
    NormConfig,
    SiglipConfig,
    StackConfig,
    VisionLanguageConfig,
)
from models.authoring.hf_config import HFConfig
from models.authoring.model import Entry
from models.authoring.signatures import Signature
from models.authoring.stage import Stage
from parity import isolated
from parity.compare.limits import UNIT_ROUNDOFF
from parity.compare.roundings import encoder_roundings, logit_roundings
from parity.convert.float_file import Export, FloatFile, conversion
from parity.convert.stored import read_file, weights_of
from parity.inputs import read_prompts, tokenize
from parity.ladder import fit
from parity.pipeline import GENERATED_TOKENS
from parity.weights import resolve, write_checkpoint

Tensors = Mapping[str, NDArray[Any]]


def _both(
    family: str, folder: Path, exports: list[Export], destination: Path, progress: isolated.Progress
) -> list[tuple[FloatFile, FloatFile]]:
    """The composed and the plain file of each export; in one process, for starting one costs as much as converting."""
    made = []
    for number, export in enumerate(exports):
        composed, plain = (
            conversion(family, folder, replace(export, plain=plain), destination / f"{number}_{plain}.tflite")(progress)
            for plain in (False, True)
        )
        made.append((composed, plain))
    return made


@pytest.mark.parametrize("name", [model.name for model in registry.models()])
def test_the_files_of_a_check_are_those_of_the_converter(name: str, tmp_path: Path) -> None:
    """Signatures, operators, weights by name, and every bit of what comes out; but for ``known_difference``."""
    model = registry.get(name)
    folder = resolve(model, "tiny").folder
    config = model.family.config_from(HFConfig.load(folder))
    inputs = tokenize(read_prompts(model.prompts(tiny=True)), folder, config)
    exports = fit(config, inputs, (), None, GENERATED_TOKENS)
    assert len(exports) == (2 if config.boundary else 1)
    isolated.prepare(converter=True)
    job = partial(_both, model.family.name, folder, list(exports), tmp_path)
    for composed, plain in isolated.run("converting", job).value:
        assert composed.signatures == plain.signatures
        assert_same_operators(composed.path, plain.path, config)
        assert_weights_stand_once(composed, config)
        assert_nothing_called_twice(composed.path)
        assert_same_names(composed, plain, config)
        assert_same_numbers(composed.path, plain.path, config)
        assert composed.path.stat().st_size <= plain.path.stat().st_size


@dataclass(frozen=True)
class Known:
    """What is not the same: the ``operators`` that only the composed file has, and the outputs that are rounded."""

    operators: Counter[str] = field(default_factory=Counter)
    outputs: str = ""


def known_difference(config: ModelConfig, signature: str) -> Known:
    """Where the converter multiplies into weights what a file that stores every weight once leaves to the runtime.

    The gain of a LayerNorm goes into a copy of each projection of a whole sequence that reads it, and its bias into
    theirs, where it has one: in Phi-2's prefill and in SigLIP. So does that of Moonshine's encoder, where only the
    projections for the decoder differ, and no operator goes, for the rows themselves are an output too. T5's factor on
    logits goes into a copy of the embedding.
    """
    match config:
        case DecoderConfig() if signature.startswith("prefill"):
            norms = [*(block.attention_norm for block in config.blocks), config.final_norm]
            return _without_gains_and_biases(norms, "logits|kv_cache_[kv]_[0-9]+")
        case VisionLanguageConfig(vision=SiglipConfig(stack=stack)) if signature == "encode":
            norms = [norm for block in stack.blocks for norm in (block.attention_norm, block.mlp_norm)]
            return _without_gains_and_biases([*norms, stack.final_norm], "encoded")
        case EncoderDecoderConfig(encoder=StackConfig(final_norm=NormConfig(kind="layer"))) if signature == "encode":
            return Known(Counter(), "cross_[kv]_[0-9]+")
        case EncoderDecoderConfig() if signature == "decode" and config.head_scale != 1.0:
            return Known(Counter(MUL=1), "logits")
    return Known()


def _without_gains_and_biases(norms: Iterable[NormConfig | None], outputs: str) -> Known:
    count = sum(norm is not None and norm.kind == "layer" and norm.bias for norm in norms)
    return Known(Counter(MUL=count, ADD=count), outputs) if count else Known()


def assert_same_operators(composed: Path, plain: Path, config: ModelConfig) -> None:
    """As many of each, in every signature."""
    models = tables_of(composed), tables_of(plain)
    ours, theirs = ({name: counted(model, graph) for name, graph in graphs_of(model).items()} for model in models)
    assert ours == {name: counts + known_difference(config, name).operators for name, counts in theirs.items()}


def worked_head(config: ModelConfig) -> bool:
    """Whether the head is the embedding table multiplied by a factor: T5's on logits, or the inverse of a soft-cap."""
    if isinstance(config, EncoderDecoderConfig):
        return config.tied_head and config.head_scale != 1.0
    text = config.text if isinstance(config, VisionLanguageConfig) else config
    return text.tied_head and text.final_softcap is not None


def assert_same_names(composed: FloatFile, plain: FloatFile, config: ModelConfig) -> None:
    """Of the weights; the head goes by the table's name, where the plain one cannot be told for a worked copy of it."""
    (table,) = {name for name in composed.names if name.rpartition(".")[2] == "tokens"}
    known = set(composed.names)
    assert bool(set(plain.names) - known) == worked_head(config)
    assert Counter(composed.names) == Counter(name if name in known else table for name in plain.names)


def assert_weights_stand_once(composed: FloatFile, config: ModelConfig) -> None:
    """Each parameter that is multiplied with or looked up in has one buffer; each tensor has a name of its own.

    But for a table that is also a head with a soft-cap: the converter multiplies the cap's inverse into the head,
    whether it sees the weights or not, and the table stays as it is.
    """
    model = read_file(composed.path)
    tensors = [weight.tensor for weight in weights_of(model)]
    stored = {(tensor.name.decode().partition("/")[2], int(tensor.buffer)) for tensor in tensors}
    assert len(stored) == len({name for name, _ in stored}) == len({buffer for _, buffer in stored})
    assert {name.partition("+")[0].removesuffix(".weight") for name, _ in stored} == set(composed.names)
    capped = worked_head(config) and not isinstance(config, EncoderDecoderConfig)
    assert len(stored) - len(set(composed.names)) == capped
    assert sum(name.endswith("embed.tokens.weight+MUL") for name, _ in stored) == capped
    names = Counter(tensor.name for graph in model.subgraphs for tensor in graph.tensors)
    assert [name for name, count in names.items() if count > 1] == []


def assert_nothing_called_twice(path: Path) -> None:
    """The runtime is slow to run a subgraph that several operators share."""
    model = tables_of(path)
    called = [number for graph in model.subgraphs for node in nodes_of(model, graph) for number in node.calls.values()]
    assert len(called) == len(set(called)) == len(model.subgraphs) - len(model.signatureDefs)


def assert_same_numbers(composed: Path, plain: Path, config: ModelConfig) -> None:
    """Bit for bit what the converter's file gives; where its operators are others, within their rounding."""
    from ai_edge_litert.interpreter import Interpreter

    ours, theirs = (Interpreter(str(path), num_threads=1) for path in (composed, plain))
    assert list(ours.get_signature_list()) == list(theirs.get_signature_list())
    for signature in theirs.get_signature_list():
        one, other = (each.get_signature_runner(signature) for each in (ours, theirs))
        shapes = {name: tuple(map(int, each["shape"])) for name, each in other.get_input_details().items()}
        assert described(one.get_input_details()) == described(other.get_input_details())
        assert described(one.get_output_details()) == described(other.get_output_details())
        given = drawn(shapes, config, np.random.default_rng(0))
        a, b = one(**given), other(**given)
        # Outputs that say nothing would be equal too.
        assert all(np.ptp(each) > 0 for each in b.values())
        known = known_difference(config, signature)
        apart = {name: distance(a[name], b[name]) for name in b if not np.array_equal(a[name], b[name])}
        assert set(apart) == {name for name in b if re.fullmatch(known.outputs, name)}
        # Each of both may be off by c u sqrt(n), see parity.compare.roundings; with c = 2 that is 4 u sqrt(n) together.
        roundings = encoder_roundings(config) if signature.startswith("encode") else logit_roundings(config)
        assert max(apart.values(), default=0) <= 4 * UNIT_ROUNDOFF * math.sqrt(roundings)


def described(details: Mapping[str, Any]) -> dict[str, Any]:
    """The shape and dtype of each tensor, by name."""
    return {name: (tuple(map(int, each["shape"])), np.dtype(each["dtype"])) for name, each in details.items()}


def distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Relative, in the Euclidean norm."""
    exact = b.astype(np.float64)
    return float(np.linalg.norm(a - exact) / np.linalg.norm(exact))


def drawn(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, random: np.random.Generator) -> Tensors:
    """Inputs of these shapes that a host could give: ids that exist, positions in order, rows that are there."""
    length = shapes.get("input_pos", (1,))[0]
    slots = next((shape[1] for name, shape in shapes.items() if name.startswith("kv_cache")), length)
    begin = int(random.integers(slots - length + 1))
    rows = shapes.get("encoded", next((s for n, s in shapes.items() if n.startswith("cross")), (1, 1)))[1]
    stem = config.stem if isinstance(config, EncoderDecoderConfig) else None
    samples = int(random.integers(stem.shortest, shapes["audio"][1])) if stem and "audio" in shapes else 0
    if samples and stem:
        rows = stem.rows(samples)
    elif "source_tokens" in shapes:
        rows = shapes["source_tokens"][1]

    def some(high: int, low: int = 0) -> Callable[[tuple[int, ...]], NDArray[Any]]:
        return lambda shape: random.integers(low, high, shape)

    def consecutive(shape: tuple[int, ...]) -> NDArray[Any]:
        return np.broadcast_to(begin + np.arange(length), shape)

    integers: dict[str, Callable[[tuple[int, ...]], NDArray[Any]]] = {
        "tokens": some(config.vocab_size),
        "source_tokens": some(config.vocab_size),
        "input_pos": consecutive,
        "rope_pos": consecutive,
        "image_rows": some(rows, -1),
        "prefix_length": some(slots + 1, 1),
        "encoder_rows": lambda shape: np.full(shape, rows) if samples else random.integers(1, rows + 1, shape),
        "samples": lambda shape: np.full(shape, samples),
    }
    return {
        name: integers[name](shape).astype(np.int32)
        if name in integers
        else random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def test_a_prefill_without_logits_ends_with_the_cache(tmp_path: Path) -> None:
    """Of the last block it computes keys and values, nothing more; and every weight says where it is read."""
    model = registry.get("smollm-135m")
    folder = resolve(model, "tiny").folder
    layers = len(model.family.config_from(HFConfig.load(folder)).blocks)
    export = Export(prefill_lengths=(4,), cache_length=8, prefill_logits=False)
    isolated.prepare(converter=True)
    file = isolated.run("converting", conversion("llama", folder, export, tmp_path / "model.tflite")).value
    tables = tables_of(file.path)
    counts = {name: counted(tables, graph) for name, graph in graphs_of(tables).items()}
    assert counts["decode"]["FULLY_CONNECTED"] == 7 * layers + 1
    assert counts["prefill_4"]["FULLY_CONNECTED"] == 7 * (layers - 1) + 2
    places = {}
    for name, weight in zip(file.names, weights_of(read_file(file.path)), strict=True):
        signature, stage, module = re.fullmatch(r"(\w+)/(\w+)/([\w/]+)\.[0-9]+;", weight.scope).groups()
        places.setdefault(signature, {})[f"{stage}/{module}"] = name
    projections = ("attention/q_proj", "attention/k_proj", "attention/v_proj", "attention/o_proj")
    parts = (*projections, "mlp/gate_proj", "mlp/up_proj", "mlp/down_proj")
    blocks = {f"block_{n}/{p}": f"blocks.{n}.{p.replace('/', '.')}" for n in range(layers) for p in parts}
    ends = {"embed/tokens": "embed.tokens", "head/projection": "embed.tokens"}
    assert places["decode"] == {**blocks, **ends}
    left_out = {f"block_{layers - 1}/{p}" for p in parts} - {f"block_{layers - 1}/{p}" for p in projections[1:3]}
    assert places["prefill_4"] == {k: v for k, v in places["decode"].items() if k not in {*left_out, "head/projection"}}


class _Layers(nn.Module):
    """So many square matrices one after the other, of which a stage each."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))

    def signature(self) -> Signature:
        stages = [
            Stage(name=f"layer_{n}", run=layer, inputs=("x",), outputs=("x",)) for n, layer in enumerate(self.layers)
        ]
        return Signature("run", Entry(stages, ["x"]), {"x": torch.zeros(1, self.layers[0].in_features)})


def _compose_layers(width: int, count: int, path: Path, progress: isolated.Progress) -> tuple[str, ...]:
    """The names of the weights in the file that is made of them."""
    from parity.convert.composed import compose
    from parity.convert.timings import Timings

    model = _Layers(width, count)
    return compose(model, dict(model.named_parameters()), [model.signature()], {}, path, progress, Timings())


def test_memory_holds_the_weights_once(tmp_path: Path) -> None:
    """A conversion's peak is the bare process, the model's weights, and at most one weight on its way to the file."""
    width, count = 2048, 12
    matrix, weights = width**2 * 4 / 2**20, count * width**2 * 4 / 2**20
    assert weights == 192
    isolated.prepare(converter=True)
    bare = isolated.run("converting", partial(_compose_layers, 8, count, tmp_path / "small.tflite"))
    full = isolated.run("converting", partial(_compose_layers, width, count, tmp_path / "large.tflite"))
    assert full.value == bare.value == tuple(f"layers.{n}" for n in range(count))
    assert weights <= (tmp_path / "large.tflite").stat().st_size / 2**20 < weights + 0.1
    assert full.peak_rss_mb - bare.peak_rss_mb < weights + matrix


def _wide(hidden: int) -> registry.Model:
    """A tiny model whose MLPs are that large."""
    model = registry.get("smollm-135m")
    tiny = {**model.preset.tiny, "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": 10}
    return replace(model, preset=replace(model.preset, tiny=tiny))


def test_memory_does_not_hold_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    """They go from where they are stored into the file, one at a time; some of what was read is kept by the system."""
    isolated.prepare(converter=True)
    peaks, sizes = [], []
    for hidden in (72, 1152):
        folder = tmp_path / str(hidden)
        folder.mkdir()
        write_checkpoint(folder, _wide(hidden), lambda _done, _total: None, tiny=True)
        export = Export(prefill_lengths=(4,), cache_length=8, prefill_logits=False)
        made = isolated.run("converting", conversion("llama", folder, export, tmp_path / f"{hidden}.tflite"))
        peaks.append(made.peak_rss_mb)
        sizes.append(made.value.path.stat().st_size / 2**20)
    assert sizes[1] - sizes[0] > 700
    assert peaks[1] - peaks[0] < 350
