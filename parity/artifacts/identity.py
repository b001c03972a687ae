"""What a file is made from, as plain values, and the key that follows from them.

The code counts by the contents of its sources, the libraries by their versions, a checkpoint by its hash, and what is
exported by its shapes. Whatever changes one of them makes another key, so that nothing is ever found that would come
out differently today.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.machinery import SourceFileLoader
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.convert.recipes import Recipe, entries
from parity.files import sha256_of

if TYPE_CHECKING:
    from parity.convert.float_file import Export
    from parity.weights import Weights

Identity = Mapping[str, Any]

#: The packages whose code decides what is in a file, and how what is known of it is written down.
PACKAGES = ("models", "parity.convert", "parity.artifacts")


def key_of(identity: Identity) -> str:
    """The same 64 hexadecimal digits for the same identity, whatever the order of its names."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def sources() -> str | None:
    """SHA-256 over the sources of ``PACKAGES`` as this process imports them.

    ``None`` if it does not import them all from files as they are: then nobody can say what runs.
    """
    whole = hashlib.sha256()
    for package in PACKAGES:
        for name, path in sorted(_modules(package)):
            spec = importlib.util.find_spec(name)
            if spec is None or type(spec.loader) is not SourceFileLoader or Path(spec.origin or "") != path:
                return None
            whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Every module of a package by name and file, whether it was imported or not."""
    found = importlib.util.find_spec(package)
    for folder in map(Path, found.submodule_search_locations or () if found else ()):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts))), path


def versions() -> dict[str, str]:
    """Of everything installed, because nobody knows what the converter calls in turn, and of Python and the machine."""
    installed = {each.name: each.version for each in distributions() if each.name}
    return {**installed, "python": platform.python_version(), "machine": platform.machine()}


def of_conversion(kind: str, family: str, weights: Weights, export: Export) -> dict[str, Any]:
    """Of a file that a checkpoint becomes. ``kind`` tells what is exported: whole entry points, or their stages."""
    return {
        "kind": kind,
        "family": family,
        "config": sha256_of([weights.folder / "config.json"]),
        "weights": weights.sha256,
        "export": _of_export(export),
    }


def of_quantization(source: str, names: Sequence[str], recipe: Recipe) -> dict[str, Any]:
    """Of what a recipe makes of the float file with the SHA-256 ``source``, whose weights have these names."""
    return {
        "kind": "quantized",
        "source": source,
        "names": hashlib.sha256(json.dumps(list(names)).encode()).hexdigest(),
        "rules": entries(recipe),
        "encoder_rules": entries(recipe.encoder) if recipe.encoder else None,
    }


def _of_export(export: Export) -> dict[str, Any]:
    """Sessions count by what they are given and how large it is: a second one of the same shapes changes no file.

    Of most arrays the converter is only given zeros of their shape, of constant ones the values of the last session.
    """
    sessions = {json.dumps(_plain(session), sort_keys=True) for session in export.sessions}
    constants = {name: value.tolist() for session in export.sessions for name, value in session.constant.items()}
    rest = {each.name: _plain(getattr(export, each.name)) for each in fields(export) if each.name != "sessions"}
    return {**rest, "sessions": sorted(sessions), "constants": constants}


def _plain(value: Any) -> Any:
    """A value as JSON has it, an array as its type and shape."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "dtype"):
        return [str(value.dtype), list(value.shape)]
    return value
