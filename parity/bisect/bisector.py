"""Where did it break? Every stage of a rung fed what the reference's stages made, one job a side.

The port against the original: the oracle gives the inputs, and the float32 original, fed with the same, the noise
floor; of the exact port, that in units of float64. A file against the exact port: that gives the inputs, draws of
float32 noise the floor, and the file is taken apart into one signature a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from parity import isolated
from parity.bisect.jobs import FileSide, ReauthoredSide
from parity.bisect.watching import Sample
from parity.compare.bisect import (
    Bisection,
    Place,
    StageErrors,
    broken_stages,
    conclude,
    judge_floats,
    with_signatures,
    with_stored,
)
from parity.compare.floor import IN_FLOAT64
from parity.compare.limits import EXACT, PORT_LIMITS, STAGE_LIMITS, Limit
from parity.convert.quantize import WeightPrecision
from parity.convert.recipes import Recipe
from parity.convert.stages import StagedFile
from parity.convert.stored import Numbers
from parity.ladder import Ladder
from parity.runners.boundaries import measure_original, record_boundaries
from parity.runners.original import Original
from parity.runners.precision import Precision
from parity.runners.reauthored import Reauthored
from parity.runners.rounded import Rounded
from parity.trace import SIGNATURES
from parity.weights.published import published

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """What bisecting a rung found; ``sample``, if kept, is the call in which its first bad stage is furthest off."""

    bisection: Bisection
    sample: Sample | None = None


class Bisector:
    """Bisects the rungs of a ladder on all of its inputs. What several rungs need is made once.

    ``keeping`` a sample of a bad stage takes another pass.
    """

    def __init__(self, ladder: Ladder, *, keeping: bool = False) -> None:
        self.ladder = ladder
        self.keeping = keeping
        self._staged: FileSide | None = None
        self._files: tuple[StagedFile, ...] = ()

    def port(self) -> Found:
        """The exact port against the oracle, both in float64.

        Raises:
            ParityError, ModelError: a side could not be run to its end.
        """
        return self._against_the_original(EXACT, "float64", PORT_LIMITS)

    def reauthored(self) -> Found:
        """The re-authored model in float32 against the oracle, in units of the original's own noise.

        Raises:
            ParityError, ModelError: a side could not be run to its end.
        """
        return self._against_the_original("reauthored", "float32", STAGE_LIMITS)

    def _against_the_original(self, rung: str, precision: Precision, limits: Sequence[Limit]) -> Found:
        ladder = self.ladder
        scratch, threads, inputs = ladder.scratch, ladder.threads, ladder.inputs
        with published(ladder.model.family.name, ladder.weights.folder, scratch, ladder.reporter) as folder:
            oracle = Original(folder, "float64", threads, ladder.remote_code)
            self._run("oracle, stage by stage", partial(record_boundaries, oracle, inputs, scratch))
            original = Original(folder, "float32", threads, ladder.remote_code)
            floor = self._run("original, stage by stage", partial(measure_original, original, inputs, scratch))
        # The original places the rows of pictures as it embeds words: one boundary of its own for two of ours.
        floor = {**floor, **{at._replace(stage="place"): noise for at, noise in floor.items() if at.stage == "embed"}}
        lengths = tuple(export.cache_length for export in ladder.exports)
        ours = Reauthored(ladder.model.family.name, ladder.weights.folder, lengths, threads, precision=precision)
        mine = ReauthoredSide(ours=ours, inputs=inputs, boundaries=scratch)
        own, chained = self._run(f"{rung}, stage by stage", mine.measure)
        unit = IN_FLOAT64 if precision == "float64" else 1.0
        bisection = self._conclude(rung, "original64", judge_floats(own, chained, floor, limits, unit))
        return self._found(bisection, mine.keep)

    def float_file(self, files: Sequence[Path]) -> Found:
        """The float ``files``, one for each export, against the re-authored model.

        Raises:
            ParityError, ModelError: the diagnostic file could not be made or run.
        """
        side = self._file_side()
        paths = [each.file.path for each in side.files]
        own, chained = self._run("float, stage by stage", partial(side.measure, "float", paths))
        bisection = self._conclude("float", EXACT, judge_floats(own, chained, side.floor, STAGE_LIMITS))
        whole = self._run("float, as it is", partial(side.measure_whole, files))
        bisection = with_signatures(bisection, judge_floats(whole, whole, side.whole_floor, STAGE_LIMITS))
        if bisection.first == SIGNATURES:
            return self._found(bisection, partial(side.keep_whole, files))
        return self._found(bisection, partial(side.keep, "float", paths))

    def recipe(self, recipe: Recipe) -> Found:
        """The diagnostic file after a recipe against PyTorch with the numbers that it stores.

        Raises:
            ParityError, ModelError: the diagnostic file could not be made, quantized or run.
        """
        paths: list[Path] = []
        stored: list[WeightPrecision] = []
        for each in self._file_side().files:
            path = each.file.path.with_name(f"staged_quantized_{each.layout.cache_length}.tflite")
            with (
                self.ladder.reporter.step(f"quantizing to {recipe.name}") as progress,
                self.ladder.artifacts.quantized_file(each.file, recipe, path) as making,
            ):
                stored += making.result(progress).value
            paths.append(path)
        source = self._file_side().files[0].file
        numbers = Numbers(paths[0], source.path, source.names)
        ours = Rounded(*self._ours, stored=tuple(stored), numbers=numbers)
        side = self._recorded(f"{recipe.name} in PyTorch", ours, self.ladder.scratch / recipe.name)
        own, chained = self._run(f"{recipe.name}, stage by stage", partial(side.measure, recipe.name, paths))
        rows = judge_floats(own, chained, side.floor, STAGE_LIMITS)
        bisection = self._conclude(recipe.name, f"{recipe.name} in PyTorch", rows)
        read = [(weight.name, weight.rounding.metrics) for weight in stored if weight.rounding]
        bisection = with_stored(bisection, broken_stages(read))
        return self._found(bisection, partial(side.keep, recipe.name, paths))

    @property
    def _ours(self) -> tuple[str, Path, tuple[int, ...], int]:
        """What the re-authored model is run with."""
        ladder = self.ladder
        lengths = tuple(export.cache_length for export in ladder.exports)
        return ladder.model.family.name, ladder.weights.folder, lengths, ladder.threads

    def _file_side(self) -> FileSide:
        """The diagnostic files, what the exact port makes of their calls, and its noise."""
        if self._staged is None:
            ladder = self.ladder
            files = []
            for export in ladder.exports:
                destination = ladder.scratch / f"staged_{export.cache_length}.tflite"
                with (
                    ladder.reporter.step("converting stage by stage") as progress,
                    ladder.artifacts.staged_file(ladder.model, ladder.weights, export, destination) as making,
                ):
                    files.append(making.result(progress).value)
            self._files = tuple(files)
            self._staged = self._recorded(EXACT, Reauthored(*self._ours), ladder.scratch)
        return self._staged

    def _recorded(self, name: str, ours: Reauthored, calls: Path) -> FileSide:
        """A side of the diagnostic files, with what ``ours`` makes of their calls and the noise of that."""
        calls.mkdir(exist_ok=True)
        side = FileSide(
            ours=ours,
            files=self._files,
            threads=self.ladder.threads,
            inputs=self.ladder.inputs,
            calls=calls,
            config=self.ladder.config,
        )
        self._run(f"{name}, stage by stage", side.record)
        floor, whole_floor = self._run(f"noise floor of {name}, stage by stage", side.measure_floor)
        return replace(side, floor=floor, whole_floor=whole_floor)

    def _conclude(self, rung: str, reference: str, rows: tuple[StageErrors, ...]) -> Bisection:
        return conclude(rung, reference, [prompt.id for prompt in self.ladder.inputs.prompts], rows)

    def _found(self, bisection: Bisection, keep: Callable[..., Sample]) -> Found:
        """With a sample of the first bad stage, where one is wanted; ``keep`` is the job that makes it at a place."""
        if not self.keeping or bisection.first is None or bisection.phase is None:
            return Found(bisection)
        place = Place(bisection.phase, bisection.first)
        return Found(bisection, self._run(f"keeping a call of {place.stage}", partial(keep, place)))

    def _run(self, what: str, job: Callable[[isolated.Progress], T]) -> T:
        with self.ladder.reporter.step(what) as progress:
            return isolated.run(what, job, progress).value
