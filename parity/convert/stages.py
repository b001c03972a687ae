"""The diagnostic export: the float file of a check with every stage a signature of its own, to look into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from parity import isolated
from parity.convert.float_file import Export, FloatFile, for_export, whole_signatures, write_file
from parity.runners.litert import LiteRTProgram
from parity.runners.stages import FileCalls, FileStages, Layout, refusals


@dataclass(frozen=True)
class StagedFile:
    """The diagnostic ``file``; ``layout`` is that of the file it explains, ``stages`` and ``given`` its signatures'.

    ``stages`` has for each signature its stages in order and what each takes, ``given`` what its caller is given.
    """

    file: FloatFile
    layout: Layout
    stages: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
    given: Mapping[str, Sequence[str]]
    cache: Mapping[str, Sequence[int]]


def staged_conversion(family: str, folder: Path, export: Export, destination: Path) -> partial[StagedFile]:
    """The conversion as a job."""
    return partial(_convert, family, folder, export, destination)


def _convert(family: str, folder: Path, export: Export, destination: Path, progress: isolated.Progress) -> StagedFile:
    from models.authoring.signatures import stage_signatures

    with for_export(family, folder) as (model, values):
        whole = list(whole_signatures(model, export))
        file = write_file(model, values, stage_signatures(whole), export, destination, progress)
    layout = Layout(
        export.cache_length,
        {each.name: {name: tuple(value.shape) for name, value in each.inputs.items()} for each in whole},
    )
    stages = {
        each.name: [(stage.name, tuple(dict.fromkeys(stage.inputs))) for stage in each.entry.stages] for each in whole
    }
    return StagedFile(
        file,
        layout,
        stages,
        {each.name: tuple(each.entry.outputs) for each in whole},
        {name: tuple(value.shape) for name, value in model.empty_cache(export.cache_length).items()},
    )


@contextmanager
def file_stages(name: str, files: Sequence[tuple[Path, StagedFile]], threads: int) -> Iterator[list[FileStages]]:
    """The stages of ``files``, each at its path: the diagnostic file itself, or what a recipe has made of it."""
    from ai_edge_litert.interpreter import Interpreter

    with refusals(name):
        yield [
            FileStages(
                Interpreter(str(path), num_threads=threads),
                staged.layout,
                staged.stages,
                staged.given,
                {tensor: np.zeros(shape, np.float32) for tensor, shape in staged.cache.items()},
            )
            for path, staged in files
        ]


@contextmanager
def real_files(name: str, files: Sequence[tuple[Path, StagedFile]], threads: int) -> Iterator[list[FileCalls]]:
    """The real files at their paths, each with the diagnostic file that explains it."""
    from ai_edge_litert.interpreter import Interpreter

    with refusals(name):
        yield [
            FileCalls(LiteRTProgram(Interpreter(str(path), num_threads=threads)), staged.given)
            for path, staged in files
        ]
