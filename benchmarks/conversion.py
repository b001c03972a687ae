"""Measure conversions: seconds and memory by depth and by number of signatures, composed and plain.

    python benchmarks/conversion.py sizes
    python benchmarks/conversion.py growth

SmolLM-135M's shape with more or fewer layers, drawn from a seed. Every conversion is a process of its own. The plain
ones, which take minutes, are run once. ``growth`` holds what more layers cost against what writing their weights does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from page import Panel, draw, machine, say, write_section

from models import registry
from models.authoring.checkpoint import Checkpoint
from models.registry import Model
from parity.weights import write_checkpoint

SHAPE = "smollm-135m"
DEPTHS = (3, 6, 12, 24, 48)
PREFILLS = (16, 64, 128, 256)
CACHE = 320
#: How often a composed conversion is run, and how often where two of them are subtracted.
ROUNDS, MORE_ROUNDS = 5, 16
#: Seconds until a conversion has lowered its first signature and begins to write.
BEFORE_WRITING = 3.0


@dataclass(frozen=True)
class Measured:
    """One export, converted both ways; megabytes are of memory at the peak, ``size`` of the file."""

    seconds: float
    peak: float
    plain_seconds: float
    plain_peak: float
    size: float


def model_of(depth: int) -> Model:
    """The shape with that many layers."""
    model = registry.get(SHAPE)
    preset = model.preset
    return replace(model, preset=replace(preset, config={**preset.config, "num_hidden_layers": depth}))


def measured(folder: Path, prefills: Sequence[int], cache: int) -> Measured:
    """Convert the checkpoint with those prefills and ``decode``, and see that the file runs."""
    extras = (("--plain", "--rounds", "1"), ("--rounds", str(ROUNDS - 1)))
    found = [_bench(folder, prefills, cache, *extra) for extra in extras]
    (plain,) = found[0]["plain"]
    ours = found[0]["float"] + found[1]["float"]
    seconds, peak = (statistics.median(made[name] for made in ours) for name in ("seconds", "peak_rss_mb"))
    return Measured(seconds, peak, plain["seconds"], plain["peak_rss_mb"], plain["bytes"] / 1e6)


def _bench(folder: Path, prefills: Sequence[int], cache: int, *extra: str) -> dict[str, list[dict[str, float]]]:
    """What it took to make each file, round by round."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bench.json"
        lengths = [word for length in prefills for word in ("--prefill", str(length))]
        command = [sys.executable, "-m", "parity", "bench", SHAPE, "--weights", str(folder), "--rung", "float"]
        command += [*lengths, "--kv-cache", str(cache), "--json", str(path), *extra]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return {rung["name"]: rung["made"] for rung in json.loads(path.read_text())["rungs"]}


def seconds_to_store(folder: Path) -> list[float]:
    """What ``store`` prints, from a process of its own."""
    done = subprocess.run([sys.executable, __file__, "store", folder], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def store(folder: str) -> None:
    """Print the seconds to read what is stored and to write it as float32, until the system and until the disk has it.

    In a process of its own, as far into it as conversions begin to write: the system gives memory that another process
    has just given back at a fifth of the price.
    """
    import torch

    torch.set_num_threads(1)  # as a conversion does
    time.sleep(BEFORE_WRITING)
    with tempfile.TemporaryDirectory() as scratch, Checkpoint(Path(folder)) as checkpoint:
        began = time.perf_counter()
        with (Path(scratch) / "weights").open("wb") as file:
            for tensor in checkpoint.values():
                tensor.float().numpy().tofile(file)
            written = time.perf_counter() - began
            os.fsync(file)
        sys.stdout.write(json.dumps([written, time.perf_counter() - began]))


def growth(few: int, many: int) -> Iterator[str]:
    """What more layers cost, and what writing their weights costs by itself, measured in turn on the same disk."""
    seconds: dict[int, list[tuple[float, float, float]]] = {few: [], many: []}
    megabytes = {}
    with drawn(few, many) as folders:
        for turn in range(MORE_ROUNDS):
            for depth in (few, many) if turn % 2 else (many, few):
                (made,) = _bench(folders[depth], PREFILLS[:2], 128, "--rounds", "1")["float"]
                seconds[depth].append((made["seconds"], *seconds_to_store(folders[depth])))
                megabytes[depth] = made["bytes"] / 1e6
                say(f"{depth} layers: {seconds[depth][-1]}")
    medians = {depth: _medians(found) for depth, found in seconds.items()}
    more = _medians([b - a for a, b in zip(*each, strict=True)] for each in zip(*seconds.values(), strict=True))
    yield "## Conversion of more layers, against writing their weights\n"
    yield f"`python benchmarks/conversion.py growth` ({machine()}): {SHAPE} with {few} and with {many} layers,"
    yield "signatures as above. Writing is to read what is stored and to write it as float32, in a process that does"
    yield f"nothing else, until the system and until the disk has it. Medians of {MORE_ROUNDS}, in turn, each depth"
    yield "first every other time; of what more layers cost, those of the differences in each turn, for machines get"
    yield "slower and faster meanwhile.\n"
    yield "| layers | file MB | conversion s | writing s | to the disk s |"
    yield "|---:|---:|---:|---:|---:|"
    rows = {str(depth): (megabytes[depth], medians[depth]) for depth in (few, many)}
    for name, (size, took) in {**rows, "more": (megabytes[many] - megabytes[few], more)}.items():
        yield f"| {name} | {size:.0f} | {' | '.join(f'{each:.2f}' for each in took)} |"
    yield f"\nMore layers cost {more[0] / more[1]:.2f} times what writing their weights does."


def _medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """Of every column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def table(heading: str, rows: dict[int, Measured]) -> Iterator[str]:
    """A row for each number of what the heading says."""
    yield f"| {heading} | composed s | plain s | ratio | composed, peak MB | plain, peak MB | file MB |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    for number, row in rows.items():
        seconds = f"{row.seconds:.1f} | {row.plain_seconds:.1f} | {row.plain_seconds / row.seconds:.1f}"
        yield f"| {number} | {seconds} | {row.peak:.0f} | {row.plain_peak:.0f} | {row.size:.0f} |"


def panels(across: str, rows: dict[int, Measured]) -> list[Panel]:
    """Seconds and memory."""

    def series(ours: str, plain: str) -> dict[str, list[tuple[float, float]]]:
        return {
            label: [(number, getattr(row, name)) for number, row in rows.items()]
            for label, name in (("composed", ours), ("plain", plain))
        }

    return [
        Panel("seconds to convert", across, series("seconds", "plain_seconds")),
        Panel("peak memory in MB", across, series("peak", "plain_peak")),
    ]


@contextmanager
def drawn(*depths: int) -> Iterator[dict[int, Path]]:
    """Checkpoints of the shape with that many layers."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {depth: Path(scratch) / f"layers_{depth}" for depth in depths}
        for depth, folder in folders.items():
            folder.mkdir()
            write_checkpoint(folder, model_of(depth), lambda _done, _total: None, tiny=False)
        yield folders


def sizes() -> Iterator[str]:
    """Seconds and memory by depth and by number of signatures."""
    by_depth, by_signatures = {}, {}
    with drawn(*DEPTHS) as folders:
        for depth, folder in folders.items():
            by_depth[depth] = measured(folder, PREFILLS[:2], 128)
            say(f"{depth} layers: {by_depth[depth]}")
        for count in range(1, len(PREFILLS) + 1):
            by_signatures[count + 1] = measured(folders[12], PREFILLS[:count], CACHE)
            say(f"{count + 1} signatures: {by_signatures[count + 1]}")
    yield "## Conversion\n"
    yield f"`python benchmarks/conversion.py sizes` ({machine()}): the shape of {SHAPE} with more or fewer"
    yield "layers, float32; `prefill_16`, `prefill_64` and `decode`, a cache of 128. Composed: median of"
    yield f"{ROUNDS}; plain: once, just before.\n"
    yield from table("layers", by_depth)
    yield "\n" + draw("conversion-by-depth", panels("layers", by_depth)) + "\n"
    yield f"By the number of signatures: 12 layers, prefills {', '.join(map(str, PREFILLS))} and `decode`,"
    yield f"a cache of {CACHE}.\n"
    yield from table("signatures", by_signatures)
    yield "\n" + draw("conversion-by-signatures", panels("signatures", by_signatures))


def main(what: str = "", *arguments: str) -> None:
    """Measure, and write the section; or be one of the processes that are measured."""
    sections = {"sizes": ("conversion", sizes), "growth": ("growth", lambda: growth(6, 48))}
    if what == "store":
        store(*arguments)
    elif what in sections:
        name, measure = sections[what]
        write_section(name, measure())
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
