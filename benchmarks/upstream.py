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
from collections.abc import Iterator
from dataclasses import dataclass
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
#: How often files are run, each in a process of its own, all in turn.
ROUNDS = 5
#: Calls that a rate is the median of.
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


def run(path: str) -> None:
    """In a process of its own: print the rates of a file. What it computes on does not matter here."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=2)

    def seconds(signature: str) -> float:
        runner = interpreter.get_signature_runner(signature)
        details = runner.get_input_details()
        inputs = {name: np.zeros(detail["shape"], detail["dtype"]) for name, detail in details.items()}
        inputs["input_pos"] = np.arange(inputs["input_pos"].size, dtype=inputs["input_pos"].dtype)
        runner(**inputs)  # packs the weights
        return statistics.median(timed(runner, inputs) for _ in range(CALLS))

    longest = max(PREFILLS)
    prefill = next(name for name in interpreter.get_signature_list() if name.startswith(f"prefill_{longest}"))
    sys.stdout.write(json.dumps({"prefill": longest / seconds(prefill), "decode": 1 / seconds("decode")}))


def timed(runner: Any, inputs: Any) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    runner(**inputs)
    return time.perf_counter() - began


def rates(files: dict[str, Path]) -> dict[str, Rates]:
    """The rates of each file, medians over rounds."""
    found: dict[str, list[Rates]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        for name, path in files.items():
            done = subprocess.run([sys.executable, __file__, "run", path], check=True, capture_output=True, text=True)
            found[name].append(Rates(**json.loads(done.stdout)))
    return {
        name: Rates(*(statistics.median(getattr(each, rate) for each in runs) for rate in ("prefill", "decode")))
        for name, runs in found.items()
    }


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
        yield f"| {way} | {cost} | {ran[way].prefill:.0f} | {ran[way].decode:.1f} |"
    yield "\nProportions of composed to the others, prefill and decode rates; a dash where the AI Edge Quantizer by"
    yield "itself refuses the recipe:\n"
    yield f"| | {' | '.join(list(files)[1:])} |"
    yield "|---" * len(files) + "|"
    yield proportions("float32", ran)
    for recipe in RECIPES:
        say(recipe)
        small = {way: folder / f"{path.stem}_{recipe}.tflite" for way, path in files.items()}
        by_parity(checkpoint, small[OURS], "--recipe", recipe)
        by_parity(checkpoint, small[PLAIN], "--recipe", recipe, "--plain")
        there = {OURS, PLAIN} | {way for way in (EXAMPLE, EXPORT_HF) if quantized(files[way], recipe, small[way])}
        yield proportions(recipe, rates({way: path for way, path in small.items() if way in there}))
        for path in small.values():
            path.unlink(missing_ok=True)


def proportions(name: str, ran: dict[str, Rates]) -> str:
    """A row of the second table; a dash where there is no such file."""
    ours = ran[OURS]
    others = [ran.get(way) for way in (PLAIN, EXAMPLE, EXPORT_HF)]
    cells = [f"{ours.prefill / each.prefill:.2f}, {ours.decode / each.decode:.2f}" if each else "-" for each in others]
    return f"| {name} ({ours.prefill:.0f}, {ours.decode:.1f} a second) | {' | '.join(cells)} |"


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
            "memory are of whole processes, importing included; rates are of LiteRT's interpreter with two threads,",
            f"the median of {ROUNDS} processes in turn.\n",
            *lines,
        ],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
