"""A checkpoint's tensors for whoever places them: names and shapes at once, values when they are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.errors import RungError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: Bytes that are read and converted at once.
PIECE = 64_000_000
#: By the names that the files have for them.
_DTYPES = {"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}


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


class Store:
    """The safetensors files of a checkpoint folder; nothing of them stays in memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self.file_of: dict[str, Path] = {}
        self.shapes: dict[str, Sequence[int]] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  (no mapping)
                        self.file_of[name] = path
                        self.shapes[name] = file.get_slice(name).get_shape()
            except (SafetensorError, OSError) as error:
                raise RungError(f"{path} is truncated or not safetensors ({error}); fetch it again") from None

    def promises(self) -> dict[str, Promise]:
        """Every tensor by name, not read."""
        return {name: Promise(name, shape) for name, shape in self.shapes.items()}

    def read(self, wanted: Iterable[tuple[str, torch.dtype]]) -> list[Tensor]:
        """Tensors in the dtypes that are wanted.

        What is stored in that dtype is mapped, from the very place in the file where the library's own reader would
        leave it: how a product of matrices is rounded can depend on where they begin in memory. Anything else is
        converted piece by piece, so that nothing is in memory twice.
        """
        from safetensors import SafetensorError, safe_open
        from torch.utils._python_dispatch import _disable_current_modes

        made = []
        with _disable_current_modes(), ExitStack() as stack:  # bytes are what they are, also for the oracle
            opened: dict[tuple[Path, str], Any] = {}

            def file(path: Path, backend: str) -> Any:
                if (path, backend) not in opened:
                    opened[path, backend] = stack.enter_context(safe_open(path, framework="pt", backend=backend))
                return opened[path, backend]

            for name, dtype in wanted:
                path = self.file_of[name]
                try:
                    mapped = file(path, "mmap").get_slice(name)  # to look at it would read it
                    same = _DTYPES.get(mapped.get_dtype()) == str(dtype)
                    made.append(mapped[...] if same else _converted(file(path, "pread"), name, dtype))
                except (SafetensorError, OSError) as error:
                    raise RungError(f"{name} cannot be read from {path} ({error}); fetch it again") from None
        return made


def _converted(file: Any, name: str, dtype: torch.dtype) -> Tensor:
    import torch

    stored = file.get_slice(name)
    made = torch.empty(stored.get_shape(), dtype=dtype)
    rows = max(1, PIECE * len(made) // made.nbytes)
    for start in range(0, len(made), rows):
        piece = slice(start, min(start + rows, len(made)))
        made[piece].copy_(stored[piece])
    return made
