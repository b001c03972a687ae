"""The smallest mistake that is caught, by place, and float ratios by size; writes docs/power.md.

    python benchmarks/power.py [tiny] [sample] [QUESTION...]
    python benchmarks/power.py width [MODEL...]
    python benchmarks/power.py page

One place of a model is changed by a relative error, all prompts are run and judged as ``parity check`` judges them, and
the change is undone. What is found is kept in benchmarks/results/power.jsonl, so a run goes on where one was ended.
Questions are port, rounding, weight_only_int8, dynamic_int8, stored and "old rule".
"""

from __future__ import annotations

import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import power_page
from inprocess import Bench, Quantized, begin, described, figures_of, in_memory
from lines import FOLDER, Lines, read
from numpy.typing import NDArray
from page import say

from models import registry
from models.authoring.hf_config import HFConfig
from parity import environment
from parity.compare.limits import STORED_LIMITS
from parity.convert.rounding import Grouping
from parity.convert.stored import contents, rounding_of, storage_of, weights_in, weights_of
from parity.files import scratch_folder
from parity.inputs import read_prompts, tokenize
from parity.ladder import fit
from parity.weights import resolve

MODEL = "smollm2-135m"
WEIGHTS = ("tiny", "sample")
RESULTS = FOLDER / "power.jsonl"
#: Powers of ten that are injected: the least and the most.
LEAST, MOST = -15, -1
#: Where the search begins.
GUESSES = {"port": -13, "rounding": -5, "weight_only_int8": -5, "dynamic_int8": -2, "stored": -4, "old rule": -4}
RECIPES = ("weight_only_int8", "dynamic_int8")
#: What a correct port was allowed before: so many times the pooled distance of the original in float32.
OLD_RATIO = 8.0
WIDTHS = ("smollm-135m", "openelm-270m", "openelm-450m", "qwen2.5-0.5b")


@dataclass(frozen=True)
class Place:
    """Where an error goes: a tensor of a module, or its score scale. ``{}`` stands for the middle layer."""

    name: str
    module: str
    tensor: str = "weight"


PLACES = (
    Place("embedding table", "embed.tokens"),
    Place("attention norm gain", "blocks.{}.attention_norm"),
    Place("q projection", "blocks.{}.attention.q_proj"),
    Place("k projection", "blocks.{}.attention.k_proj"),
    Place("v projection", "blocks.{}.attention.v_proj"),
    Place("o projection", "blocks.{}.attention.o_proj"),
    Place("rotary frequencies", "embed.rope", "frequencies"),
    Place("score scale", "blocks.{}.attention", "scale"),
    Place("mlp norm gain", "blocks.{}.mlp_norm"),
    Place("gate projection", "blocks.{}.mlp.gate_proj"),
    Place("up projection", "blocks.{}.mlp.up_proj"),
    Place("down projection", "blocks.{}.mlp.down_proj"),
    Place("final norm gain", "head.norm"),
    Place("head", "head.projection"),
)


def wrong(values: NDArray[Any], error: float, name: str = "") -> NDArray[Any]:
    """Values times ``1 + error``, each with a sign of its own that follows from ``name``; all with plus without one."""
    signs = np.random.default_rng(zlib.crc32(name.encode())).choice((-1.0, 1.0), values.shape) if name else 1.0
    return (values.astype(np.float64) * (1.0 + error * signs)).astype(values.dtype)


@contextmanager
def injected(model: Any, place: Place, error: float) -> Iterator[None]:
    """The model with an error for the block. A table that is tied is wrong in this place only."""
    import torch
    from torch import nn

    module = model.get_submodule(place.module.format(len(model.blocks) // 2))
    if place.tensor == "scale":
        config = module.config
        module.config = replace(config, scale=config.scale * (1.0 + error))
        try:
            yield
        finally:
            module.config = config
        return
    kept = getattr(module, place.tensor)
    changed = torch.from_numpy(wrong(kept.detach().numpy(), error, place.name))
    setattr(
        module, place.tensor, nn.Parameter(changed, requires_grad=False) if isinstance(kept, nn.Parameter) else changed
    )
    try:
        yield
    finally:
        setattr(module, place.tensor, kept)


@dataclass(frozen=True)
class Spot:
    """Numbers in a file: where they begin, and what is there."""

    offset: int
    values: NDArray[Any]


class Edited:
    """A copy of a file in which numbers are changed in place and put back.

    A weight's float values are changed, or its scales; the gain of a norm and the rotary frequencies wherever the file
    has them. The converter has no score scale: it is a factor of the queries' weights, and is changed there.
    """

    def __init__(self, source: Path, names: Sequence[str], frequencies: NDArray[np.float32], copy: Path) -> None:
        shutil.copyfile(source, copy)
        self.path = copy
        self._names = names
        self._frequencies = frequencies

    @contextmanager
    def injected(self, place: Place, layer: int, error: float) -> Iterator[None]:
        """The file with an error for the block."""
        spots = self.spots(place, layer)
        signs = "" if place.tensor == "scale" else place.name
        try:
            self._write({spot.offset: wrong(spot.values, error, signs) for spot in spots})
            yield
        finally:
            self._write({spot.offset: spot.values for spot in spots})

    def _write(self, values: Mapping[int, NDArray[Any]]) -> None:
        with self.path.open("r+b") as file:
            for offset, each in values.items():
                file.seek(offset)
                file.write(each.tobytes())

    def spots(self, place: Place, layer: int) -> list[Spot]:
        """Where the numbers of a place are, each once however many signatures read them.

        Raises:
            SystemExit: the file has no such place.
        """
        view = contents(self.path)
        base = np.frombuffer(view, np.uint8).ctypes.data
        model = _tables(view)
        found = {}
        for values in self._found(model, place, layer):
            offset = values.ctypes.data - base
            if not 0 <= offset < len(view):
                raise SystemExit(f"{place.name}: its numbers are not in {self.path} itself")
            found[offset] = Spot(offset, values.copy())
        if not found:
            raise SystemExit(f"{self.path} has no {place.name}")
        return list(found.values())

    def _found(self, model: Any, place: Place, layer: int) -> Iterator[NDArray[Any]]:
        name = {"head.projection": "embed.tokens"}.get(place.module, place.module).format(layer)
        name = f"{name}.q_proj" if place.tensor == "scale" else name
        for each, weight in zip(self._names, weights_of(model), strict=True):
            if each == name:
                scale = weight.tensor.quantization.scale if weight.tensor.quantization else None
                yield weight.data(np.float32).reshape(weight.shape) if scale is None else np.asarray(scale)
        for subgraph in model.subgraphs:
            for tensor in subgraph.tensors:
                data = model.buffers[tensor.buffer].data
                if data is None or tensor.type != 0 or len(data) % 4:
                    continue
                values = np.frombuffer(data, np.float32)
                named = tensor.name.decode().partition("/")[2] == f"{name}.weight" and "norm" in name
                if named or (place.tensor == "frequencies" and np.array_equal(values, self._frequencies)):
                    yield values


def _tables(view: memoryview) -> Any:
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    return tfl_flatbuffer_utils.read_model(view)


class Power:
    """One model with one kind of weights."""

    def __init__(self, kind: str, scratch: Path, keep: Callable[[Mapping[str, Any]], None]) -> None:
        model = registry.get(MODEL)
        weights = resolve(model, kind)
        config = model.family.config_from(HFConfig.load(weights.folder))
        inputs = tokenize(read_prompts("short"), weights.folder, config)
        (export,) = fit(config, inputs, (), None, 8)
        self.kind = kind
        self.bench = Bench(model, weights, inputs, export, scratch, at_once=True)
        self.layer = len(config.blocks) // 2
        self.scratch = scratch
        self._keep = keep

    def run(self, known: Sequence[Mapping[str, Any]], questions: Sequence[str]) -> None:
        """Search every place under these questions; what is ``known`` is not run again."""
        asks = {
            "port": lambda: self.port,
            "rounding": self.rounding,
            **{recipe: partial(self.fidelity, recipe) for recipe in RECIPES},
            "stored": lambda: self.stored,
            "old rule": lambda: self.old_rule,
        }
        for question in questions:
            self._search(question, asks[question](), known)

    def _search(
        self, question: str, ask: Callable[[Place, float], dict[str, Any]], known: Sequence[Mapping[str, Any]]
    ) -> None:
        self._sound(question, ask, known)
        for place in PLACES:
            if question == "stored" and not _is_weight(place):
                continue
            before = {
                line["exponent"]: line
                for line in known
                if (line.get("weights"), line.get("question"), line.get("place")) == (self.kind, question, place.name)
            }
            caught = partial(self._caught, question, ask, place, before)
            found = smallest_caught(caught, GUESSES[question], LEAST, MOST)
            say(f"{self.kind}, {question}, {place.name}: {'nothing' if found is None else f'1e{found}'}")

    def _sound(
        self, question: str, ask: Callable[[Place, float], dict[str, Any]], known: Sequence[Mapping[str, Any]]
    ) -> None:
        """Nothing injected: what is there without any mistake."""
        if any(line.get("question") == question and line.get("weights") == self.kind for line in known):
            return
        if question == "stored":
            return
        self._note(question, "nothing", None, ask(PLACES[0], 0.0), 0.0)

    def _caught(
        self,
        question: str,
        ask: Callable[[Place, float], dict[str, Any]],
        place: Place,
        before: Mapping[int, Mapping[str, Any]],
        exponent: int,
    ) -> bool:
        if exponent in before:
            return bool(before[exponent]["verdict"] != "PASS")
        began = time.perf_counter()
        found = ask(place, 10.0**exponent)
        self._note(question, place.name, exponent, found, time.perf_counter() - began)
        return bool(found["verdict"] != "PASS")

    def _note(self, question: str, place: str, exponent: int | None, found: Mapping[str, Any], seconds: float) -> None:
        self._keep(
            {
                "weights": self.kind,
                "question": question,
                "place": place,
                "exponent": exponent,
                **found,
                "seconds": round(seconds, 2),
            }
        )

    def port(self, place: Place, error: float) -> dict[str, Any]:
        """The exact port with the error, against the oracle."""
        bench = self.bench
        bench.trace(bench.exact)  # the floor is of the model as it should be
        with injected(bench.exact.model, place, error):
            trace = bench.exact.answer(bench.inputs)
        return figures_of(bench.judged("port", trace))

    def old_rule(self, place: Place, error: float) -> dict[str, Any]:
        """The same, held against one float32 run of the original over all positions together."""
        bench = self.bench
        with injected(bench.exact.model, place, error):
            trace = bench.exact.answer(bench.inputs)
        ours, theirs = (bench.pooled(each) for each in (trace, bench.trace(bench.original)))
        ratio = max(ours[phase] / theirs[phase] for phase in ours)
        return {"pooled_ratio": ratio, "verdict": "PASS" if ratio <= OLD_RATIO else "FAIL"}

    def rounding(self) -> Callable[[Place, float], dict[str, Any]]:
        """The float file with the error in it, against the oracle."""
        edited = self._edited(self.bench.float_file.path, "float")

        def ask(place: Place, error: float) -> dict[str, Any]:
            with edited.injected(place, self.layer, error):
                trace = self.bench.file("float", edited.path).answer(self.bench.inputs)
            return figures_of(self.bench.judged("rounding", trace))

        return ask

    def fidelity(self, recipe: str) -> Callable[[Place, float], dict[str, Any]]:
        """The quantized file with the error in it, against PyTorch with the numbers that it had before."""
        quantized = self.bench.quantized(recipe)
        edited = self._edited(quantized.path, recipe)

        def ask(place: Place, error: float) -> dict[str, Any]:
            with edited.injected(place, self.layer, error):
                trace = self.bench.file(recipe, edited.path).answer(self.bench.inputs)
            return figures_of(self.bench.judged("fidelity", trace, quantized))

        return ask

    def stored(self, place: Place, error: float) -> dict[str, Any]:
        """What is read off a file with the error in a weight's scales, without running it."""
        quantized: Quantized = self.bench.quantized(RECIPES[0])
        names = self.bench.float_file.names
        edited = self._edited(quantized.path, "stored")
        with edited.injected(place, self.layer, error):
            name = {"head.projection": "embed.tokens"}.get(place.module, place.module).format(self.layer)
            pairs = zip(names, weights_in(edited.path), weights_in(self.bench.float_file.path))  # noqa: B905
            weight, exact = next((w, e) for each, w, e in pairs if each == name)
            found = rounding_of(weight, exact, storage_of(weight, name), Grouping(0))
        figures = found.metrics if found else {}
        held = all(limit.holds(figures[limit.metric]) for limit in STORED_LIMITS)
        return {**figures, "verdict": "PASS" if held else "FAIL"}

    def _edited(self, source: Path, name: str) -> Edited:
        frequencies = self.bench.plain.model.embed.rope.frequencies.numpy()
        names = self.bench.float_file.names
        return Edited(source, names, frequencies, self.scratch / f"{name} edited.tflite")


def _is_weight(place: Place) -> bool:
    """Whether a quantized file has scales of it."""
    return place.tensor == "weight" and "norm" not in place.module


def smallest_caught(caught: Callable[[int], bool], guess: int, least: int, most: int) -> int | None:
    """The least exponent that is caught while the one below it is not, searched for from a guess on.

    Down from one that is caught, up from one that is not; ``None`` if not even the most is.
    """
    exponent = guess
    if caught(exponent):
        while exponent > least and caught(exponent - 1):
            exponent -= 1
        return exponent
    while exponent < most:
        exponent += 1
        if caught(exponent):
            return exponent
    return None


def width(model: str) -> dict[str, Any]:
    """The exact port and the float file of a model at its full published size, weights drawn from a seed."""
    from ladder import ladder  # its neighbours are called as others elsewhere are

    done = ladder(model, "--weights", "synthetic", "--rung", "reauthored64", "--rung", "float")
    config = registry.get(model).preset.config
    rungs = {
        edge["candidate"]: {
            **{name: edge["metrics"].get(name) for name in ("floor_ratio", "worst_position_ratio", "draws", "rel_l2")},
            "verdict": edge["verdict"],
        }
        for edge in done.report["edges"]
    }
    size = config.get("hidden_size") or config.get("model_dim")
    return {
        "width": model,
        "parameters": registry.get(model).preset.parameters,
        "hidden": size,
        "rungs": rungs,
        "seconds": round(done.seconds),
    }


def _results() -> tuple[Lines, list[dict[str, Any]]]:
    model = registry.get(MODEL)
    each = {kind: described(resolve(model, kind)) for kind in WEIGHTS}
    results = Lines(
        RESULTS,
        {
            "model": MODEL,
            "limits": each["tiny"]["limits"],
            "sha256": {kind: found["sha256"] for kind, found in each.items()},
            "environment": environment.describe(),
        },
    )
    return results, results.open()


def main(*asked: str) -> None:
    """Measure what is asked for, and write the page."""
    if asked[:1] == ("width",):
        results, known = _results()
        done = {line["width"] for line in known if "width" in line}
        for model in [model for model in asked[1:] or WIDTHS if model not in done]:
            say(model)
            results.append(width(model))
    elif asked != ("page",):
        if set(asked) - {*WEIGHTS, *GUESSES}:
            raise SystemExit(__doc__)
        begin()
        results, known = _results()
        questions = [question for question in GUESSES if question in asked] or list(GUESSES)
        for kind in [kind for kind in WEIGHTS if kind in asked] or WEIGHTS:
            with scratch_folder(in_memory()) as scratch:
                Power(kind, scratch, results.append).run(known, questions)
    power_page.write(*read(RESULTS))


if __name__ == "__main__":
    main(*sys.argv[1:])
