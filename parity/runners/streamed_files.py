"""An exported file that never is: each of its stages is converted, quantized, run in the runtime and deleted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.convert.cutting import MOST, base_name
from parity.convert.float_file import Export, prepare_converter
from parity.convert.recipes import Recipe
from parity.files import sha256_of
from parity.runners.conveyor import Line
from parity.runners.driver import DrivenSession
from parity.runners.stages import FileStages, refusals
from parity.runners.streamed_driven import DrivenLine

if TYPE_CHECKING:
    from models.authoring.by_stage import ModelByStage
    from parity.convert.one_stage import StageFiles
    from parity.convert.quantize import WeightPrecision


@dataclass(frozen=True)
class StreamedFiles:
    """What ``exports`` make of the checkpoint ``folder``, quantized by ``recipe`` if there is one; ``facts`` is a file.

    It will say of the rung's files what would be said of whole ones.
    """

    name: str
    family: str
    folder: Path
    exports: tuple[Export, ...]
    threads: int
    end_tokens: frozenset[int]
    facts: Path
    recipe: Recipe | None = None
    #: Parameters of a stage that is not cut.
    most: int = MOST
    one_row: bool = True
    at_once: bool = False

    @contextmanager
    def open(self) -> Iterator[DrivenSession]:
        raise NotImplementedError(f"{self.name} is never whole here")
        yield

    @contextmanager
    def stream(self) -> Iterator[Line]:
        """Lower what there is to lower; the weights have been checked."""
        from models import registry
        from models.authoring.by_stage import ModelByStage
        from parity.convert.one_stage import StageFiles

        prepare_converter()
        parts = ModelByStage(registry.family(self.family), self.folder, fused=True)
        with refusals(self.name), TemporaryDirectory() as scratch:
            files = [StageFiles(parts, export, self.most) for export in self.exports]
            source = _Files(self, parts, files, Path(scratch))
            yield DrivenLine(parts.config, source, source.programs, self.end_tokens)
            self.facts.write_text(json.dumps(source.facts()), encoding="utf-8")


class _Files:
    """Makes and opens the files of a stage, one for each export."""

    def __init__(self, runner: StreamedFiles, parts: ModelByStage, files: Sequence[StageFiles], scratch: Path) -> None:
        self.runner = runner
        self.parts = parts
        self.files = files
        self.scratch = scratch
        self.programs = [
            FileStages(
                None,
                each.layout,
                each.stages,
                each.given,
                {name: np.zeros(shape, np.float32) for name, shape in each.cache.items()},
                pieces=each.pieces,
            )
            for each in files
        ]
        #: Of every stage's files, by name: how large, their hash, and how their weights are stored.
        self.sizes: dict[str, int] = {}
        self.hashes: dict[str, str] = {}
        self.stored: dict[str, list[WeightPrecision]] = {}

    @property
    def stages(self) -> Sequence[str]:
        found: list[str] = []
        for stage in self.parts.stages:
            pieces = [piece.name for piece in self.files[0].pieces.values() if piece.stage == stage]
            found += [name for name in pieces or [stage] if any(each.has(name) for each in self.files)]
        return found

    @contextmanager
    def loaded(self, stage: str) -> Iterator[None]:
        from ai_edge_litert.interpreter import Interpreter

        paths = {number: self.scratch / f"{number}.tflite" for number, each in enumerate(self.files) if each.has(stage)}
        with ExitStack() as stack:
            piece = self.files[0].pieces.get(stage)
            names = {}
            with self.parts.loaded(piece.stage if piece else stage):
                for number, path in paths.items():
                    stack.callback(path.unlink, missing_ok=True)
                    names[number] = self.files[number].write(stage, path)
            for number, path in paths.items():
                file = f"{stage} {number}"
                if names[number]:
                    self.stored[file] = self._quantize(stage, path, names[number])
                self.sizes[file] = path.stat().st_size
                self.hashes[file] = sha256_of([path])
                self.programs[number].opened(Interpreter(str(path), num_threads=self.runner.threads))
                stack.callback(self.programs[number].opened, None)
            yield

    def _quantize(self, stage: str, path: Path, names: Sequence[str]) -> list[WeightPrecision]:
        """Put what the recipe makes of a file, whose weights have these names, in its place; how they are stored."""
        from parity.convert.quantize import quantization

        recipe = self.runner.recipe
        if recipe is None:
            return []
        signatures = self.files[0].stages.items()
        encodes = any(name.startswith("encode") and stage in dict(stages) for name, stages in signatures)
        recipe = recipe.encoder if encodes and recipe.encoder else replace(recipe, encoder=None)
        made = path.with_suffix(".quantized")
        found = quantization(path, names, recipe, made, part=True)(lambda _done, _total: None)
        made.replace(path)
        return [replace(weight, name=base_name(weight.name)) for weight in found]

    def facts(self) -> Mapping[str, Any]:
        """Size, hash and signatures of all files together, and how weights are stored: in short, and each by itself."""
        from parity.artifacts.forms import write_precisions
        from parity.convert.quantize import require_quantized, summarize

        stored = [weight for found in self.stored.values() for weight in found]
        if self.runner.recipe:
            require_quantized(self.runner.recipe, stored)
        return {
            "bytes": sum(self.sizes.values()),
            "sha256": hashlib.sha256(json.dumps(self.hashes, sort_keys=True).encode()).hexdigest(),
            "signatures": list(self.files[0].stages),
            **(summarize(stored) | {"stored": write_precisions(stored)} if self.runner.recipe else {}),
        }
