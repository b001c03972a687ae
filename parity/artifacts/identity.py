"""What a file is made from, as plain values, and the key that follows from them.

The code counts by the contents of its sources, the libraries by their versions, a checkpoint by its hash, and what is
exported by its shapes. Whatever changes one of them makes another key, so that nothing is ever found that would come
out differently today.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.authoring.checkpoint import weight_files
from parity.convert.recipes import Recipe, entries
from parity.files import sha256_of, unread_sha256

if TYPE_CHECKING:
    from parity.convert.float_file import Export
    from parity.inputs import Inputs, PromptSet
    from parity.weights import Weights

Identity = Mapping[str, Any]

#: The packages whose code decides what is in a file, and how what is known of it is written down.
FILES = ("models", "parity.convert", "parity.artifacts")
#: Those, and modules, whose code decides what ids a text has and what an original records. No port is among them.
ORIGINALS = (
    "models.authoring.checkpoint",
    "models.authoring.config",
    "models.authoring.session",
    "parity.artifacts",
    "parity.errors",
    "parity.files",
    "parity.inputs",
    "parity.isolated",
    "parity.runners",
    "parity.trace",
)
#: What a port records is decided by all of these.
PORTS = ("models", *ORIGINALS)
#: Beginnings of the variables that tell the libraries below PyTorch how to compute.
_TOLD = ("ATEN_", "DNNL_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "TORCH_")


def key_of(identity: Identity) -> str:
    """The same 64 hexadecimal digits for the same identity, whatever the order of its names."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Sources:
    """SHA-256 over the sources that decide what is in ``files``, and what ``originals`` and ``ports`` record.

    ``None`` for those of which some are not imported from their files as they are: nobody can say what they make.
    """

    files: str | None
    originals: str | None
    ports: str | None


def sources() -> Sources | None:
    """Of the sources as this process imports them.

    ``None`` if it imports some of every kind from elsewhere than files as they are, or they cannot be read: then nobody
    can say what runs.
    """
    try:
        files, originals, ports = map(_sources, (FILES, ORIGINALS, PORTS))
    except (OSError, ImportError):  # one that came or went while they were listed
        return None
    return Sources(files, originals, ports) if files or originals or ports else None


@cache
def first_sources() -> Sources | None:
    """Those that the process found when it first asked; what it has imported since stays as it is, edited or not."""
    return sources()


def _sources(packages: Sequence[str]) -> str | None:
    whole = hashlib.sha256()
    for package in packages:
        for name, path in sorted(_modules(package)):
            spec = importlib.util.find_spec(name)
            if spec is None or type(spec.loader) is not SourceFileLoader or Path(spec.origin or "") != path:
                return None
            whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Every module of a package, or the one of this name, by name and file, whether it was imported or not.

    Files beside them that no import can name, such as an editor's lock, are none.
    """
    found = importlib.util.find_spec(package)
    if found and found.origin and not found.submodule_search_locations:
        yield package, Path(found.origin)
    for folder in map(Path, found.submodule_search_locations or () if found else ()):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if all(map(str.isidentifier, parts)):
                yield ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts))), path


def versions() -> dict[str, str]:
    """Of everything installed, because nobody knows what the converter calls in turn, and of Python and the machine.

    What is installed twice counts by what is imported, which comes first; what is not from an index by its place and
    commit as well.
    """
    installed: dict[str, str] = {}
    for each in distributions():
        if each.name:
            installed.setdefault(each.name, each.version + (each.read_text("direct_url.json") or ""))
    return {**installed, "python": platform.python_version(), "machine": platform.machine()}


def of_conversion(kind: str, family: str, weights: Weights, export: Export) -> dict[str, Any]:
    """Of a file that a checkpoint becomes. ``kind`` tells what is exported: whole entry points, or their stages."""
    return {
        "kind": kind,
        "family": family,
        "config": sha256_of([weights.folder / "config.json"], unread_sha256),
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


def of_recording(name: str, weights: Weights, inputs: Inputs, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of what the rung ``name`` records of a checkpoint, asked so. Everything beside the weights counts as well."""
    prompts = json.dumps([_exactly(prompt) for prompt in inputs.prompts], sort_keys=True)
    return {
        "kind": "recording",
        "name": name,
        "beside": _beside(weights),
        "weights": weights.sha256,
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        "asked": _exactly(asked),
        "arithmetic": _arithmetic(),
    }


def of_tokens(prompts: PromptSet, weights: Weights) -> dict[str, Any]:
    """Of what a checkpoint's tokenizer makes of text."""
    return {"kind": "tokens", "beside": _beside(weights), "prompts": _plain(prompts)}


def _arithmetic() -> dict[str, str]:
    """What decides how PyTorch's libraries round besides their versions: what they are told, what the processor can."""
    told = {name: value for name, value in os.environ.items() if name.startswith(_TOLD)}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        lines = [platform.processor()]
    can = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")
    return {**told, "processor": hashlib.sha256(can.encode()).hexdigest()}


def _beside(weights: Weights) -> dict[str, str]:
    """Everything in the folder but the weights: configuration, tokenizer, what ends a text."""
    found = {*weights.folder.iterdir()} - {*weight_files(weights.folder)}
    return {path.name: unread_sha256(path) for path in sorted(found) if path.is_file()}


def _of_export(export: Export) -> dict[str, Any]:
    """Sessions count by what they are given and how large it is: a second one of the same shapes changes no file.

    Of most arrays the converter is only given zeros of their shape, of constant ones the values of the last session.
    """
    sessions = {json.dumps(_plain(session), sort_keys=True) for session in export.sessions}
    constants = {name: value.tolist() for session in export.sessions for name, value in session.constant.items()}
    rest = {each.name: _plain(getattr(export, each.name)) for each in fields(export) if each.name != "sessions"}
    return {**rest, "sessions": sorted(sessions), "constants": constants}


def _kind(array: Any) -> list[Any]:
    return [str(array.dtype), list(array.shape)]


def _plain(value: Any, array: Callable[[Any], Any] = _kind) -> Any:
    """A value as JSON has it; of an array, its type and shape unless told otherwise."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name), array) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, array) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, array) for item in value]
    return array(value) if hasattr(value, "dtype") else value


def _exactly(value: Any) -> Any:
    """The same, with the values of arrays."""
    return _plain(value, lambda array: [*_kind(array), hashlib.sha256(array.tobytes()).hexdigest()])
