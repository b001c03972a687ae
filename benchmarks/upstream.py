"""Measure files against those that litert-torch makes by itself of the same weights, in three ways.

    python benchmarks/upstream.py

The converter's plain path with this project's model, litert-torch's own example for the model, and its ``export_hf``.
The last two import a module of TensorFlow's, which they no longer require, for the file format alone: LiteRT's own copy
stands in for it.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from page import machine, say, write_section
from processes import Spent, spent

from models import registry
from parity.convert.recipes import RECIPES, entries
from parity.files import scratch_folder
from parity.weights import write_checkpoint

MODEL = "smollm-135m"
PREFILLS, CACHE = (16, 64), 128
#: Calls of each that a rate is the median of.
CALLS = 20
OURS, PLAIN, EXAMPLE, EXPORT_HF = "composed", "plain", "litert-torch's example", "export_hf"


@dataclass(frozen=True)
class Rates:
    """Positions a second of the longest prefill, and tokens a second of ``decode``."""

    prefill: float
    decode: float


def by_parity(checkpoint: Path, path: Path, *extra: str) -> Spent:
    """Convert with the command line."""
    lengths = [word for length in PREFILLS for word in ("--prefill", str(length))]
    command = ["-m", "parity", "convert", MODEL, "--weights", str(checkpoint), "-o", str(path), *lengths]
    cache = {**os.environ, "XDG_CACHE_HOME": str(checkpoint.parent / "cache")}
    return spent([sys.executable, *command, "--kv-cache", str(CACHE), *extra], cache)


def by_upstream(way: str, checkpoint: Path, path: Path) -> Spent:
    """Convert with a script of litert-torch's."""
    made = spent([sys.executable, __file__, way, str(checkpoint), str(path.parent / way)])
    (file,) = (path.parent / way).glob("*.tflite")
    file.rename(path)
    return made


def example(checkpoint: str, folder: str) -> None:
    """In a process of its own: what the example's script does."""
    stand_in_for_tensorflow()
    from litert_torch.generative.examples.smollm import smollm
    from litert_torch.generative.utilities import converter
    from litert_torch.generative.utilities.export_config import ExportConfig

    Path(folder).mkdir()
    model = smollm.build_model(checkpoint, mask_cache_size=CACHE)
    converter.convert_to_tflite(
        model,
        output_path=folder,
        output_name_prefix="model",
        prefill_seq_len=list(PREFILLS),
        kv_cache_max_len=CACHE,
        quantize="none",
        export_config=ExportConfig(),
    )


def export_hf(checkpoint: str, folder: str) -> None:
    """In a process of its own: ``export_hf`` of the checkpoint as transformers loads it."""
    stand_in_for_tensorflow()
    from litert_torch.generative.export_hf import export

    export.export(
        checkpoint,
        folder,
        prefill_lengths=list(PREFILLS),
        cache_length=CACHE,
        quantization_recipe="",
        bundle_litert_lm=False,
        keep_temporary_files=True,
    )


def stand_in_for_tensorflow() -> None:
    """Give ``tensorflow.lite.python.schema_py_generated``, and nothing else of it."""
    from ai_edge_litert import schema_py_generated

    for name in ("tensorflow", "tensorflow.lite", "tensorflow.lite.python"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
    sys.modules["tensorflow.lite.python"].schema_py_generated = schema_py_generated  # type: ignore[attr-defined]
    sys.modules["tensorflow.lite.python.schema_py_generated"] = schema_py_generated


def quantized(source: Path, recipe: str, path: Path) -> bool:
    """Whether the AI Edge Quantizer by itself makes a file of litert-torch's after the recipe.

    It refuses a width that is no multiple of the recipe's block, where this project takes a smaller block.
    """
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(str(source))
    quantizer.load_quantization_recipe(entries(RECIPES[recipe]))
    try:
        quantizer.quantize().export_model(str(path), overwrite=True)
    except ValueError as error:
        say(f"{path.name}: {error}")
        return False
    return True


def run(*paths: str) -> None:
    """In a process of its own: print the rates of files, called in turn so that all meet the same machine.

    What they compute on does not matter here.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreters = [Interpreter(path, num_threads=2) for path in paths]
    found: list[dict[str, float]] = [{} for _ in paths]
    for phase, positions in (("prefill", max(PREFILLS)), ("decode", 1)):
        calls = [caller(interpreter, phase) for interpreter in interpreters]
        for call in calls:
            call()  # packs the weights
        rounds = [[timed(call) for call in calls] for _ in range(CALLS)]
        for rates, seconds in zip(found, zip(*rounds, strict=True), strict=True):
            rates[phase] = positions / statistics.median(seconds)
    sys.stdout.write(json.dumps(found))


def caller(interpreter: Any, phase: str) -> Callable[[], object]:
    """Calls the signature of a phase, the longest for prefill."""
    import numpy as np

    begins = f"prefill_{max(PREFILLS)}" if phase == "prefill" else "decode"
    runner = interpreter.get_signature_runner(
        next(name for name in interpreter.get_signature_list() if name.startswith(begins))
    )
    details = runner.get_input_details()
    inputs = {name: np.zeros(detail["shape"], detail["dtype"]) for name, detail in details.items()}
    inputs["input_pos"] = np.arange(inputs["input_pos"].size, dtype=inputs["input_pos"].dtype)
    return partial(runner, **inputs)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def rates(files: dict[str, Path]) -> dict[str, list[Rates]]:
    """The rates of each file in every round."""
    found: dict[str, list[Rates]] = {way: [] for way in files}
    for order in orders(list(files)):
        command = [sys.executable, __file__, "run", *(files[way] for way in order)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        for way, each in zip(order, json.loads(done.stdout), strict=True):
            found[way].append(Rates(**each))
    return found


def orders(ways: list[str]) -> list[list[str]]:
    """One for every round, such that each file is as often before another one as behind it.

    Four copies of one file gave 51.1, 52.8, 53.3 and 53.6 tokens a second, in the order in which they were loaded.
    """
    turned = ways[len(ways) // 2 :] + ways[: len(ways) // 2]
    return [ways, ways[::-1], turned, turned[::-1]]


def tables(checkpoint: Path, folder: Path) -> Iterator[str]:
    """The float files, how they are made and how they run; then how those of each recipe run."""
    files = {way: folder / f"{number}.tflite" for number, way in enumerate((OURS, PLAIN, EXAMPLE, EXPORT_HF))}
    made = {
        OURS: by_parity(checkpoint, files[OURS], "--no-cache"),
        PLAIN: by_parity(checkpoint, files[PLAIN], "--no-cache", "--plain"),
        EXAMPLE: by_upstream("example", checkpoint, files[EXAMPLE]),
        EXPORT_HF: by_upstream("export_hf", checkpoint, files[EXPORT_HF]),
    }
    say(f"{made}")
    ran = rates(files)
    yield "| float32 file | seconds | peak MB | file MB | prefill /s | decode /s |"
    yield "|---|---:|---:|---:|---:|---:|"
    for way, path in files.items():
        cost = f"{made[way].seconds:.1f} | {made[way].peak:.0f} | {path.stat().st_size / 1e6:.0f}"
        yield f"| {way} | {cost} | {middle(ran[way]).prefill:.0f} | {middle(ran[way]).decode:.1f} |"
    yield "\nProportions of composed to the others, prefill and decode rates; a dash where the AI Edge Quantizer by"
    yield "itself refuses the recipe:\n"
    yield f"| | {' | '.join(list(files)[1:])} |"
    yield "|---" * len(files) + "|"
    yield proportions("float32", ran)
    for recipe in RECIPES:
        say(recipe)
        small = {way: folder / f"{path.stem}_{recipe}.tflite" for way, path in files.items()}
        by_parity(checkpoint, small[OURS], "--recipe", recipe)
        there = {OURS} | {way for way in files if way != OURS and quantized(files[way], recipe, small[way])}
        yield proportions(recipe, rates({way: path for way, path in small.items() if way in there}))
        for path in small.values():
            path.unlink(missing_ok=True)


def middle(values: Iterable[Rates]) -> Rates:
    """Their medians."""
    pairs = [(each.prefill, each.decode) for each in values]
    return Rates(*(statistics.median(column) for column in zip(*pairs, strict=True)))


def proportions(name: str, ran: dict[str, list[Rates]]) -> str:
    """A row of the second table, the medians of each round's; a dash where there is no such file."""
    cells = []
    for way in (PLAIN, EXAMPLE, EXPORT_HF):
        pairs = zip(ran[OURS], ran.get(way, ()), strict=way in ran)
        ratios = [Rates(ours.prefill / other.prefill, ours.decode / other.decode) for ours, other in pairs]
        cells.append(f"{middle(ratios).prefill:.2f}, {middle(ratios).decode:.2f}" if ratios else "-")
    ours = middle(ran[OURS])
    row = f"| {name} ({ours.prefill:.0f}, {ours.decode:.1f} a second) | {' | '.join(cells)} |"
    say(row)
    return row


def main(what: str = "", *arguments: str) -> None:
    """Measure, and write the section; or be one of the processes that are measured."""
    processes = {"example": example, "export_hf": export_hf, "run": run}
    if what:
        processes[what](*arguments)
        return
    with scratch_folder() as scratch:
        checkpoint = scratch / MODEL
        checkpoint.mkdir()
        write_checkpoint(checkpoint, registry.get(MODEL), lambda _done, _total: None, tiny=False)
        lines = list(tables(checkpoint, scratch))
    write_section(
        "upstream",
        [
            "## Against litert-torch's own ways\n",
            f"`python benchmarks/upstream.py` ({machine()}): {MODEL} at full size, signatures",
            f"{', '.join(f'prefill_{length}' for length in PREFILLS)} and `decode`, a cache of {CACHE}. Seconds and",
            "memory are of whole processes, importing included. Rates are of LiteRT's interpreter with two threads,",
            f"all files of a row called in turn in one process, {CALLS} times each: medians of four processes, for",
            "proportions of those in each. What is loaded first is up to 5 % slower there, so the order changes from",
            "process to process, each file as often before another as behind it.\n",
            *lines,
        ],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
