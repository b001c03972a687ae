"""Reading checkpoint folders: safetensors, one file or sharded by an index, memory-mapped, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open

from models.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, sorted by name.

    Raises:
        CheckpointError: none there, two sets of them, or an index that is unreadable or names a file outside the
            folder.
    """
    single = (folder / SINGLE).is_file()
    if (folder / INDEX).is_file():
        names = sorted(set(_read_index(folder / INDEX).values()))
        if single and names != [SINGLE]:
            raise CheckpointError(f"{folder} has {SINGLE} and shards beside it; remove those that are not the model's")
        for name in names:
            _require_file(folder / name)
        return [folder / name for name in names]
    if single:
        return [folder / SINGLE]
    raise CheckpointError(
        f"{folder} has neither {SINGLE} nor {INDEX}; only safetensors checkpoints are read (pickles never are)"
    )


class Checkpoint(Mapping[str, "Tensor"]):
    """The tensors of a checkpoint folder by name; use as a context manager. Values are read on access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._where: dict[str, Any] = {}
        self._shard_of: dict[str, str] = {}
        try:
            for path in weight_files(folder):
                self._open(path)
            self._check_index()
        except BaseException:
            self._stack.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            handle = self._stack.enter_context(safe_open(path, framework="pt"))
            names = list(handle.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or not safetensors ({error}); fetch it again") from None
        for name in names:
            if name in self._where:
                raise CheckpointError(f"{name} is in two shards of {self.folder}; fetch the checkpoint again")
            self._where[name] = handle
            self._shard_of[name] = path.name

    def _check_index(self) -> None:
        index = self.folder / INDEX
        if not index.is_file():
            return
        listed = _read_index(index)
        if missing := sorted(listed.keys() - self._where.keys()):
            raise CheckpointError(f"{index} lists {missing[0]}, which no shard holds; fetch the checkpoint again")
        if unlisted := sorted(self._where.keys() - listed.keys()):
            raise CheckpointError(f"{unlisted[0]} is in a shard but not in {index}; fetch the checkpoint again")
        if misplaced := sorted(name for name, file in listed.items() if self._shard_of[name] != file):
            raise CheckpointError(f"{misplaced[0]} is not in the shard that {index} names; fetch the checkpoint again")

    def __getitem__(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._where[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{name} cannot be read from {self.folder} ({error}); fetch it again") from None
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _require_file(path: Path) -> None:
    try:
        there = path.is_file()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); fetch the checkpoint again") from None
    if not there:
        raise CheckpointError(f"{path} is named by the index but is not there; fetch the checkpoint again")


def _read_index(path: Path) -> dict[str, str]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a shard index ({error}); fetch it again") from None
    if not files:
        raise CheckpointError(f"{path} lists no tensors; fetch it again")
    for name, file in files.items():
        # Links are fine (the hub's cache is made of them); names that walk out of the folder are not.
        if file in ("", ".", "..") or any(mark in file for mark in ("/", "\\", "\0", ":")):
            raise CheckpointError(f"{path} sends {name} to {file!r}, outside the folder; do not trust this checkpoint")
    return files
