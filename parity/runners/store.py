"""A checkpoint's tensors for whoever places them: names and shapes at once, values when they are wanted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parity.errors import RungError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: Bytes that are read and converted at once.
PIECE = 64_000_000


class Promise:
    """Stands for a stored tensor while the library places it: all that it does with one is to ask for it in a dtype."""

    def __init__(self, name: str, shape: Sequence[int]) -> None:
        self.name = name
        self.shape = shape

    def __getitem__(self, _: object) -> Promise:
        return self

    def to(self, device: object = None, dtype: object = None) -> nn.Parameter:  # noqa: ARG002  (there is no device yet)
        """A parameter of that dtype without values, which knows whose it is to have."""
        import torch

        empty = torch.empty(tuple(self.shape), dtype=dtype, device="meta")  # type: ignore[call-overload]
        parameter = torch.nn.Parameter(empty, requires_grad=False)
        parameter.source = self.name  # type: ignore[attr-defined]
        return parameter


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: the file, the first of its bytes, what kind of numbers they are, and its shape."""

    path: Path
    start: int
    kind: str
    shape: Sequence[int]


class Store:
    """The safetensors files of a checkpoint folder; nothing of them stays in memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.tensors: dict[str, Stored] = {}
        for path in files:
            self.tensors |= _stored(path)

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Of every tensor, by name."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    def promises(self) -> dict[str, Promise]:
        """Every tensor by name, not read."""
        return {name: Promise(name, shape) for name, shape in self.shapes.items()}

    def read(self, wanted: Iterable[tuple[str, torch.dtype]]) -> list[Tensor]:
        """Tensors in the dtypes that are wanted.

        What is stored in that dtype is mapped, from the very place in the file where the library's own reader would
        leave it: how a product of matrices is rounded can depend on where they begin in memory. Anything else is
        converted piece by piece, so that nothing is in memory twice.
        """
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes():  # bytes are what they are, also for the oracle
            return [self._read(name, dtype) for name, dtype in wanted]

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        from safetensors import SafetensorError, safe_open

        stored = self.tensors[name]
        kind = _dtypes().get(stored.kind)
        if kind is None:
            raise RungError(f"{name} is stored as {stored.kind}; use a float32, bfloat16 or float16 checkpoint")
        try:
            if kind != dtype:
                return _converted(stored, kind, dtype)
            with safe_open(stored.path, framework="pt") as file:
                mapped: Tensor = file.get_slice(name)[...]
                return mapped
        except (SafetensorError, OSError) as error:
            raise RungError(f"{name} cannot be read from {stored.path} ({error}); fetch it again") from None


def _stored(path: Path) -> dict[str, Stored]:
    """Every tensor of a file, by name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):  # refuses a file that is not what its header says
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise RungError(f"{path} is truncated or not safetensors ({error}); fetch it again") from None
    header.pop("__metadata__", None)
    return {
        name: Stored(path, 8 + length + entry["data_offsets"][0], entry["dtype"], entry["shape"])
        for name, entry in header.items()
    }


def _converted(stored: Stored, kind: torch.dtype, dtype: torch.dtype) -> Tensor:
    import torch

    made = torch.empty(tuple(stored.shape), dtype=dtype)
    flat = made.view(-1)
    count = PIECE // kind.itemsize
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.start)
        for start in range(0, len(flat), count):
            values = flat[start : start + count]
            room = bytearray(len(values) * kind.itemsize)
            if file.readinto(room) != len(room):
                raise OSError("it ends before its last byte")
            values.copy_(torch.frombuffer(room, dtype=kind))
    return made


def _dtypes() -> Mapping[str, torch.dtype]:
    """By the names that the files have for them."""
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
