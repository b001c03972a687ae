"""The weights of a re-authored model one stage at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.authoring.checkpoint import Checkpoint
from models.authoring.family import Family
from models.authoring.session import shipped_sessions
from models.authoring.stage import Stage, modules_of
from models.authoring.stored import StoredModel, names_of_each
from models.authoring.weight_map import assign, load_part


class ModelByStage(StoredModel):
    """The ``model`` of a checkpoint folder, of which no parameter has values but those of a stage that is loaded.

    Raises:
        ModelError: anything wrong with the folder that names, shapes and dtypes tell.
    """

    def __init__(self, family: Family, folder: Path, *, fused: bool = False) -> None:
        super().__init__(family, folder, fused=fused)
        self.model = self.build()
        paths = {module: path for path, module in self.model.named_modules()}
        tied = {name: names for names in names_of_each(self.model) for name in names}
        self._parameters: dict[str, list[list[str]]] = {}
        for stage in self._all_stages():
            modules = [module for part in modules_of(stage) for module in part.modules()]
            read = [f"{paths[each]}.{name}" for each in modules for name, _ in each.named_parameters(recurse=False)]
            self._parameters[stage.name] = [tied[name] for name in read]

    @property
    def stages(self) -> Sequence[str]:
        """The names of all stages: those of encoders, then those of the model that reads what they make."""
        return list(self._parameters)

    def parameters_of(self, stage: str) -> int:
        """How many a stage has."""
        return sum(self.model.get_parameter(names[0]).numel() for names in self._parameters[stage])

    @contextmanager
    def loaded(self, stage: str) -> Iterator[None]:
        """Give the parameters of a stage their values, under all the names that they have.

        Raises:
            CheckpointError: a tensor cannot be read, or is not finite.
        """
        names = [name for tied in self._parameters[stage] for name in tied]
        empty = {name: self.model.get_parameter(name) for name in names}
        with Checkpoint(self.folder) as checkpoint:  # closed again, so that what was read of it is not kept
            load_part(self.model, self._operations, checkpoint, names)
        try:
            yield
        finally:
            for name, parameter in empty.items():
                assign(self.model, name, parameter)

    def _all_stages(self) -> Iterator[Stage]:
        """Every stage of every entry point, in the order in which calls go through those that they do."""
        sessions = shipped_sessions(self.config, 1)
        encoders = dict.fromkeys(call.entry for session in sessions for call in session.calls)
        prefills = {session.prefill for session in sessions if session.prefill}
        entries = [*encoders, *sorted(prefills, key=len, reverse=True), "decode"]
        stages = (stage for name in entries for stage in self.model.entry(name, cache_length=1).stages)
        yield from {stage.name: stage for stage in stages}.values()
