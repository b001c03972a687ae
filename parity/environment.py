"""What a run was made with: versions that the numbers depend on, and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "ai-edge-litert",
    "ai-edge-quantizer",
    "litert-converter",
    "litert-torch",
    "numpy",
    "parity",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


def threads() -> int:
    """Threads a rung may use: the processors this process is allowed."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, object]:
    """Versions, Python, machine, threads; no names of people or hosts."""
    return {
        "packages": versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": threads(),
    }


def versions() -> dict[str, str]:
    """The installed version of every package that the numbers depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
