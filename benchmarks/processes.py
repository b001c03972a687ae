"""What a command takes, with all the processes it starts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spent:
    """Wall seconds, and the peak memory of all processes together in MB."""

    seconds: float
    peak: float


def spent(command: Sequence[str], environment: Mapping[str, str] | None = None, ends: Collection[int] = (0,)) -> Spent:
    """Run a command that may end with these codes; any other stops the benchmark, with what the command said."""
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, together(process.pid))
            time.sleep(0.5)
        seconds = time.perf_counter() - began
        if process.returncode not in ends:
            said = process.stderr.read().decode() if process.stderr else ""
            raise SystemExit(f"{said}{' '.join(command)} ended with {process.returncode}")
    return Spent(seconds, peak)


def together(root: int) -> float:
    """MB of a process and all that come from it, what they share counted once."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {root}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for process in family:
        with suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e3
