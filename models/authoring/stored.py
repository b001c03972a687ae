"""A model whose parameters stay in its checkpoint until they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from models.authoring.checkpoint import Checkpoint
from models.authoring.config import ModelConfig
from models.authoring.family import Family
from models.authoring.hf_config import HFConfig
from models.authoring.weight_map import Operation, assign, load_weights, values_of

if TYPE_CHECKING:
    from torch import Tensor

    from models.authoring.model import Model

#: Bytes of parameters after which a checkpoint is opened again: what was read of a mapped file counts as used memory.
_KEPT = 1 << 27


class StoredModel:
    """The model of a checkpoint folder, which has been held against it as far as names, shapes and dtypes tell.

    Raises:
        ModelError: anything of these that is wrong with the folder.
    """

    def __init__(self, family: Family, folder: Path, *, fused: bool = False) -> None:
        self.folder = folder
        self.config: ModelConfig = family.config_from(HFConfig.load(folder))
        self._family, self._fused = family, fused
        with Checkpoint(folder) as checkpoint:
            self._operations = list(family.weight_map_of(self.config, checkpoint))
            headers = {name: checkpoint[name].to("meta") for name in checkpoint}
        self._checked = self.build()
        load_weights(self._checked, self._operations, headers)
        self._names = names_of_each(self._checked)

    def build(self) -> Model:
        """The model on the meta device."""
        return self._family.build(self.config, fused=self._fused, device="meta")

    @cached_property
    def hollow(self) -> Model:
        """The model with room for its parameters, which is not taken as long as nobody writes to it."""
        import torch
        from torch import nn

        for tied in self._names:
            like = self._checked.get_parameter(tied[0])
            room = nn.Parameter(torch.empty_like(like, device="cpu"), requires_grad=False)
            for name in tied:
                assign(self._checked, name, room)
        return self._checked

    @contextmanager
    def values(self) -> Iterator[Mapping[str, Tensor]]:
        """The values of the parameters by their names, as float32, each read when it is asked for and not kept.

        Asking raises ``CheckpointError`` for values that cannot be read, or are not finite.
        """
        names = {tied[0] for tied in self._names}
        with ExitStack() as stack:
            yield _Values(self.folder, self._operations, names, stack)


class _Values(Mapping[str, "Tensor"]):
    """Of what an operation makes, the parameters that have not been asked for yet are kept: they will be next."""

    def __init__(self, folder: Path, operations: Sequence[Operation], names: set[str], stack: ExitStack) -> None:
        self._folder = folder
        self._names = names
        self._operations = {name: operation for operation in operations for name in operation.made}
        self._waiting: dict[str, Tensor] = {}
        self._stack = stack
        self._checkpoint = stack.enter_context(Checkpoint(folder))
        self._read = 0

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._waiting:
            made = values_of(self._operations[name], self._checkpoint)
            self._waiting |= {each: value for each, value in made.items() if each in self._names}
            self._read += sum(value.nbytes for value in made.values())
            if self._read > _KEPT:
                self._stack.close()
                self._checkpoint = self._stack.enter_context(Checkpoint(self._folder))
                self._read = 0
        return self._waiting.pop(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def names_of_each(model: Model) -> list[list[str]]:
    """All names of every parameter; a tied one has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())
