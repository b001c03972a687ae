"""What is run in processes of their own: the sides of a bisection, measured and, once it is known where, kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from models.authoring.config import ModelConfig
from parity import isolated
from parity.bisect.watching import (
    CallsReference,
    Comparer,
    Keeper,
    LiveReference,
    Recorder,
    Reference,
    RowsReference,
    Sample,
)
from parity.compare.bisect import Measured, Place, Tally, together
from parity.compare.floor import FIRST_DRAWS
from parity.convert.stages import StagedFile, file_stages, real_files
from parity.errors import RungError
from parity.inputs import Inputs
from parity.runners.boundaries import read_rows
from parity.runners.precision import Precision
from parity.runners.reauthored import Reauthored
from parity.runners.stages import Stages, Whole, torch_stages, walk

Measurements = dict[Place, Measured]
#: What a prompt, by its place in the set, is held against. Made anew for every pass.
Expecting = Callable[[int], Reference]


@dataclass(frozen=True, kw_only=True)
class ReauthoredSide:
    """``ours``, the re-authored model, between the boundaries of an original, which lie in ``boundaries``."""

    ours: Reauthored
    inputs: Inputs
    boundaries: Path

    def measure(self, progress: isolated.Progress) -> tuple[Measurements, Measurements]:
        """A job: each stage's own error, and the accumulated one."""
        with self._open() as (config, models):
            return _measure(config, models, self.inputs, partial(self._expected, config), progress)

    def keep(self, place: Place, progress: isolated.Progress) -> Sample:
        """A job: the call in which the stage at ``place`` is furthest off."""
        with self._open() as (config, models):
            return _keep(config, models, self.inputs, partial(self._expected, config), place, progress)

    def _open(self) -> AbstractContextManager[tuple[ModelConfig, Sequence[Stages]]]:
        return torch_stages(self.ours)

    def _expected(self, config: ModelConfig, number: int) -> RowsReference:
        return RowsReference(read_rows(self.boundaries, number), config, self.inputs.prompts[number])


@dataclass(frozen=True, kw_only=True)
class FileSide:
    """Files against ``ours``, the model in PyTorch, whose calls in float64 lie in ``calls``. One file a cache length.

    ``files`` are those with a signature for every stage; ``floor`` is how far draws of float32 noise are off, stage by
    stage, and ``whole_floor`` call by call.
    """

    ours: Reauthored
    files: tuple[StagedFile, ...]
    threads: int
    inputs: Inputs
    calls: Path
    config: ModelConfig
    floor: Measurements = field(default_factory=dict)
    whole_floor: Measurements = field(default_factory=dict)

    def record(self, progress: isolated.Progress) -> None:
        """A job: what the model makes of the files' calls in float64, stage by stage."""
        with self._stages(precision="float64") as (config, models):
            for number, prompt in enumerate(self.inputs.prompts):
                progress(number, len(self.inputs.prompts))
                recorder = Recorder()
                for _ in walk(config, models, prompt, recorder):
                    pass
                recorder.save(self._calls(number))

    def measure_floor(self, progress: isolated.Progress) -> tuple[Measurements, Measurements]:
        """A job: the noise of stages, each fed what float64 has made, and that of calls one after the other."""
        stages, calls = [], []
        with self._stages(noisy=True) as (config, models):
            whole = [Whole(each) for each in models]
            for _ in range(FIRST_DRAWS):
                stages.append(_measure(config, models, self.inputs, self._expected, progress)[0])
                calls.append(_measure(config, whole, self.inputs, self._expected, progress)[1])
        return together(stages), together(calls)

    def measure(
        self, rung: str, paths: Sequence[Path], progress: isolated.Progress
    ) -> tuple[Measurements, Measurements]:
        """A job: the stages' own and accumulated errors, of the files at ``paths``."""
        with file_stages(rung, self._at(paths), self.threads) as models:
            return _measure(self.config, models, self.inputs, self._expected, progress)

    def measure_whole(self, paths: Sequence[Path], progress: isolated.Progress) -> Measurements:
        """A job: how far off the real files at ``paths`` are, call after call."""
        with real_files("float", self._at(paths), self.threads) as models:
            _, found = _measure(self.config, models, self.inputs, self._expected, progress)
        return found

    def keep(self, rung: str, paths: Sequence[Path], place: Place, progress: isolated.Progress) -> Sample:
        """A job: the call in which the stage at ``place`` is furthest off."""
        with file_stages(rung, self._at(paths), self.threads) as models:
            return _keep(self.config, models, self.inputs, self._expected, place, progress)

    def keep_whole(self, paths: Sequence[Path], place: Place, progress: isolated.Progress) -> Sample:
        """A job: the call of the real files that is furthest off, each given what the re-authored model was."""
        with (
            self._stages() as (_, models),
            real_files("float", self._at(paths), self.threads) as files,
        ):
            live = LiveReference({each.cache_length: Whole(each) for each in models})
            return _keep(self.config, files, self.inputs, lambda _: live, place, progress)

    def _stages(
        self, *, precision: Precision = "float32", noisy: bool = False
    ) -> AbstractContextManager[tuple[ModelConfig, Sequence[Stages]]]:
        layouts = [file.layout for file in self.files]
        lengths = tuple(layout.cache_length for layout in layouts)
        return torch_stages(replace(self.ours, cache_lengths=lengths, precision=precision, noisy=noisy), layouts)

    def _at(self, paths: Sequence[Path]) -> list[tuple[Path, StagedFile]]:
        return list(zip(paths, self.files, strict=True))

    def _calls(self, number: int) -> Path:
        return self.calls / f"calls_{number}.safetensors"

    def _expected(self, number: int) -> CallsReference:
        from safetensors.numpy import load_file

        return CallsReference(load_file(self._calls(number)))


def _measure(
    config: ModelConfig,
    models: Sequence[Stages],
    inputs: Inputs,
    expected: Expecting,
    progress: isolated.Progress,
) -> tuple[Measurements, Measurements]:
    """Own errors, every stage fed what the reference made, and accumulated ones, fed what the models made."""
    own, chained = Tally(), Tally()
    for number, prompt in enumerate(inputs.prompts):
        progress(number, len(inputs.prompts))
        for tally, feeding in ((own, True), (chained, False)):
            for _ in walk(config, models, prompt, Comparer(expected(number), tally, feeding=feeding)):
                pass
    return own.measured(), chained.measured()


def _keep(
    config: ModelConfig,
    models: Sequence[Stages],
    inputs: Inputs,
    expected: Expecting,
    place: Place,
    progress: isolated.Progress,
) -> Sample:
    samples = []
    for number, prompt in enumerate(inputs.prompts):
        progress(number, len(inputs.prompts))
        keeper = Keeper(expected(number), place)
        for _ in walk(config, models, prompt, keeper):
            pass
        if keeper.sample is not None:
            samples.append((keeper.error, number, keeper.sample))
    if not samples:
        raise RungError(f"{place.stage} was not run again in {place.phase}; report it")
    return max(samples)[-1]
