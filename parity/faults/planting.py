"""Planting a fault: sources rewritten as they are imported, in every process of one run and nowhere else.

Nothing on disk changes and nothing in the project knows of it: a folder in front of the import path holds a
``sitecustomize`` that Python runs in every process that it starts, the jobs of a check among them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

_CUSTOMIZE = """\
from pathlib import Path

from parity.faults.planting import activate

activate(Path(__file__).parent)
"""
_REWRITES = "rewrites.json"


@dataclass(frozen=True)
class Rewrite:
    """In the source of ``module``, ``sound`` stands once; ``broken`` is what a careless port has there."""

    module: str
    sound: str
    broken: str

    def found(self) -> int:
        """How often ``sound`` stands in the module as it is now; anything but once and the rewrite is out of date."""
        return source_of(self.module).read_text(encoding="utf-8").count(self.sound)


def source_of(module: str) -> Path:
    """The file of a module, which is not imported for it.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    package, _, name = module.rpartition(".")
    found = importlib.util.find_spec(package)
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        if (path := Path(folder, f"{name}.py")).is_file():
            return path
    raise ModuleNotFoundError(f"there is no module {module} to plant a fault in")


def plant(rewrites: Sequence[Rewrite], folder: Path) -> None:
    """Make ``folder`` one that plants ``rewrites`` in every Python that has it in front of its import path."""
    (folder / _REWRITES).write_text(json.dumps([asdict(rewrite) for rewrite in rewrites]), encoding="utf-8")
    (folder / "sitecustomize.py").write_text(_CUSTOMIZE, encoding="utf-8")


def planted(folder: Path) -> set[str]:
    """The modules that were imported with their rewrites since ``plant``, by any process."""
    return {path.name.removeprefix("planted.") for path in folder.glob("planted.*")}


def activate(folder: Path) -> None:
    """Rewrite modules that this process imports from now on."""
    rewrites = [Rewrite(**each) for each in json.loads((folder / _REWRITES).read_text(encoding="utf-8"))]
    modules = {rewrite.module for rewrite in rewrites}
    of = {module: [rewrite for rewrite in rewrites if rewrite.module == module] for module in modules}
    sys.meta_path.insert(0, _Finder(of, folder))


class _Finder(MetaPathFinder):
    """Finds the modules that are to be rewritten where they are, and has them loaded in another way."""

    def __init__(self, rewrites: Mapping[str, Sequence[Rewrite]], folder: Path) -> None:
        self.rewrites = rewrites
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.rewrites:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return None
        loader = _Loader(fullname, spec.origin, self.rewrites[fullname], self.folder)
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


class _Loader(SourceFileLoader):
    """Compiles the rewritten source; bytecode is neither read nor written."""

    def __init__(self, fullname: str, path: str, rewrites: Sequence[Rewrite], folder: Path) -> None:
        super().__init__(fullname, path)
        self.rewrites = rewrites
        self.folder = folder

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text(encoding="utf-8")
        for rewrite in self.rewrites:
            if source.count(rewrite.sound) != 1:
                raise ImportError(f"{fullname} no longer has what a fault rewrites: {rewrite.sound.strip()!r}")
            source = source.replace(rewrite.sound, rewrite.broken)
        (self.folder / f"planted.{fullname}").touch()
        code: CodeType = self.source_to_code(source.encode(), self.path)
        return code
