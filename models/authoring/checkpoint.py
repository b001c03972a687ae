"""Reading checkpoint folders, memory-mapped, one tensor at a time.

Safetensors, one file or sharded by an index; or, as Kaggle has them, one ``.ckpt`` state dict of PyTorch's. That is a
pickle, and PyTorch's restricted reader, which makes tensors and calls nothing else, is the only one that opens it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from safetensors import SafetensorError, safe_open

from models.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: The suffix of a state dict, whatever it is called.
STATE_DICT = ".ckpt"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint folder, sorted by name: safetensors, else one state dict.

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
    pickled = sorted(path for path in folder.glob(f"*{STATE_DICT}") if path.is_file())
    if len(pickled) > 1:
        raise CheckpointError(f"{folder} has {len(pickled)} {STATE_DICT} files; leave only the model's in it")
    if not pickled:
        raise CheckpointError(
            f"{folder} has neither {SINGLE} nor {INDEX} nor a {STATE_DICT}; only safetensors and Kaggle's state dicts "
            "are read (other pickles never are)"
        )
    return pickled


class Checkpoint(Mapping[str, "Tensor"]):
    """The tensors of a checkpoint folder by name; use as a context manager. Values are read on access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._read: dict[str, Callable[[], Tensor]] = {}
        self._shard_of: dict[str, str] = {}
        try:
            for path in weight_files(folder):
                self._open(path)
            self._check_index()
        except BaseException:
            self._stack.close()
            raise

    def _open(self, path: Path) -> None:
        tensors = _state_dict(path) if path.suffix == STATE_DICT else self._safetensors(path)
        for name, read in tensors.items():
            if name in self._read:
                raise CheckpointError(f"{name} is in two shards of {self.folder}; fetch the checkpoint again")
            self._read[name] = read
            self._shard_of[name] = path.name

    def _safetensors(self, path: Path) -> dict[str, Callable[[], Tensor]]:
        try:
            handle = self._stack.enter_context(safe_open(path, framework="pt"))
            return {name: partial(handle.get_tensor, name) for name in handle.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or not safetensors ({error}); fetch it again") from None

    def _check_index(self) -> None:
        index = self.folder / INDEX
        if not index.is_file():
            return
        listed = _read_index(index)
        if missing := sorted(listed.keys() - self._read.keys()):
            raise CheckpointError(f"{index} lists {missing[0]}, which no shard holds; fetch the checkpoint again")
        if unlisted := sorted(self._read.keys() - listed.keys()):
            raise CheckpointError(f"{unlisted[0]} is in a shard but not in {index}; fetch the checkpoint again")
        if misplaced := sorted(name for name, file in listed.items() if self._shard_of[name] != file):
            raise CheckpointError(f"{misplaced[0]} is not in the shard that {index} names; fetch the checkpoint again")

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._read[name]()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{name} cannot be read from {self.folder} ({error}); fetch it again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _state_dict(path: Path) -> dict[str, Callable[[], Tensor]]:
    """The tensors of a state dict as gemma_pytorch saves it: mapped into memory, read when touched.

    Raises:
        CheckpointError: it would run code, is damaged or of an older format, or holds something else than tensors.
    """
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # noqa: BLE001  (a damaged pickle can raise anything)
        if code := _code_in(path):
            raise CheckpointError(
                f"{path} is refused, it would run code when read ({code}); do not trust it, fetch the published file"
            ) from None
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise CheckpointError(f"{path} is truncated or not PyTorch's zip format ({reason}); fetch it again") from None
    tensors = loaded.get("model_state_dict") if isinstance(loaded, dict) else None
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(f"{path} holds no model_state_dict; only {STATE_DICT} files as Kaggle has them are read")
    for name, tensor in tensors.items():
        plain = isinstance(tensor, torch.Tensor) and tensor.is_cpu and tensor.layout is torch.strided
        if not isinstance(name, str) or not plain:
            raise CheckpointError(f"{path} is no state dict, {name} is not a dense tensor; fetch the published file")
    return {name: tensor.detach for name, tensor in tensors.items()}


def _code_in(path: Path) -> str:
    """What a pickle asks for and a state dict does not need, if anything; found without running it."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    with suppress(Exception):
        return min(get_unsafe_globals_in_checkpoint(path), default="")
    return ""


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
