"""What a run was made with: versions that the numbers depend on, and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
        "revision": revision(),
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


def revision(checkout: Path = Path(__file__).parents[1]) -> str | None:
    """The git revision of the project's checkout, ``+`` after it where files that git knows were changed since.

    ``None`` where the project is no checkout (it was installed, be it below another one), and where git is missing, too
    slow, or does not trust the folder.
    """
    top, head = _git(checkout, "rev-parse", "--show-toplevel"), _git(checkout, "rev-parse", "HEAD")
    if not top or not head or Path(top).resolve() != checkout.resolve():
        return None
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return None if changed is None else f"{head}+" if changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says of a folder, and of no other one that the environment may name; ``None`` if it says nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Looking must not write: another git may be at work.
    environment |= {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],  # noqa: S607  (whichever git there is)
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
