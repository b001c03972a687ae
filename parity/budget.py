"""The budget of a run: from the command line, else from the project's own file, else the tier of each recipe.

A project writes its budget into ``[tool.parity.budget]`` of its ``pyproject.toml``, or into ``[budget]`` of a
``parity.toml`` beside it: either ``tier = "good"``, or limits such as ``kl_typical = 0.05``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parity.compare.budgets import TIERS, Budget, own_budget
from parity.errors import UsageError

#: What ``[tool.parity]`` may hold.
_SECTIONS = ("budget",)


def budget_of(asked: Sequence[str], folder: Path | None = None) -> Budget | None:
    """The budget ``asked`` for on the command line, or the one of the project in ``folder`` or above it, if any.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    return _asked(asked) if asked else _of_project(folder or Path.cwd())


def _asked(asked: Sequence[str]) -> Budget:
    """Tiers have no ``=``; everything else is ``METRIC=VALUE``."""
    if len(asked) == 1 and "=" not in asked[0]:
        return _tier(asked[0], "--budget")
    values: dict[str, object] = {}
    for each in asked:
        metric, found, value = each.partition("=")
        if not found:
            raise UsageError(f"--budget {each} stands beside others; give one tier, or only METRIC=VALUE")
        if metric in values:
            raise UsageError(f"--budget names {metric} twice; give each metric once")
        try:
            values[metric] = float(value)
        except ValueError:
            raise UsageError(f"--budget {each}: {value!r} is no number; write it as kl_typical=0.05") from None
    return own_budget(values, "--budget")


def _tier(name: str, where: str) -> Budget:
    if name not in TIERS:
        near = difflib.get_close_matches(name, TIERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TIERS)}"
        raise UsageError(f"{where}: no tier is called {name!r}; {hint}, or write METRIC=VALUE")
    return TIERS[name]


def _of_project(folder: Path) -> Budget | None:
    """Of the nearest folder upwards that has a file with a budget; files of others are not looked at beyond it."""
    for place in (folder, *folder.parents):
        own, shared = place / "parity.toml", place / "pyproject.toml"
        if own.is_file():
            return _read(_table(own), own)
        if shared.is_file():
            tool = _table(shared).get("tool", {})
            if isinstance(tool, dict) and "parity" in tool:
                return _read(tool["parity"], shared)
            return None
    return None


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({' '.join(str(error).split())}); mend it") from None


def _read(section: object, path: Path) -> Budget | None:
    if not isinstance(section, dict):
        raise UsageError(f"{path}: the section of parity is no table; write [tool.parity.budget]")
    if unknown := sorted(set(section) - set(_SECTIONS)):
        near = difflib.get_close_matches(unknown[0], _SECTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(_SECTIONS)}"
        raise UsageError(f"{path}: {unknown[0]} means nothing to parity; {hint}")
    if "budget" not in section:
        return None
    values = section["budget"]
    if isinstance(values, str):
        return _tier(values, str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path}: budget is no table; write the name of a tier, or limits such as kl_typical = 0.1")
    if "tier" in values:
        if len(values) > 1:
            raise UsageError(f"{path}: budget has a tier and limits; leave one of them out")
        return _tier(str(values["tier"]), str(path))
    return own_budget(values, str(path))
