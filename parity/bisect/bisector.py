"""Where did it break? Every stage of a rung fed what the reference's stages made, one job a side.

The port against the original: the oracle gives the inputs, and the float32 original, fed with the same, the noise floor;
of the exact port, that in units of float64. A file against the exact port: that gives the inputs, draws of float32 noise
the floor, and the file is taken apart into one signature a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    judge_recipe,
    with_signatures,
    with_stored,
)
from parity.compare.floor import IN_FLOAT64
from parity.compare.limits import EXACT, PORT_LIMITS, STAGE_LIMITS, Limit, stage_limits
from parity.convert.recipes import Recipe, weight_bits
from parity.errors import RungError
from parity.ladder import Ladder
from parity.runners.boundaries import measure_original, record_boundaries
from parity.runners.original import Original
from parity.runners.precision import Precision
from parity.trace import SIGNATURES, STAGE_PHASES, Phase
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
        mine = ReauthoredSide(
            family=ladder.model.family.name,
            folder=ladder.weights.folder,
            cache_lengths=tuple(export.cache_length for export in ladder.exports),
            threads=threads,
            inputs=inputs,
            boundaries=scratch,
            precision=precision,
        )
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
        """The diagnostic file after a recipe against the re-authored model.

        Raises:
            ParityError, ModelError: the diagnostic file could not be made, quantized or run.
        """
        side = self._file_side()
        paths: list[Path] = []
        stored: list[tuple[str, Mapping[str, float]]] = []
        for each in side.files:
            path = each.file.path.with_name(f"staged_quantized_{each.layout.cache_length}.tflite")
            with (
                self.ladder.reporter.step(f"quantizing to {recipe.name}") as progress,
                self.ladder.artifacts.quantized_file(each.file, recipe, path) as making,
            ):
                found = making.result(progress).value
            stored += [(weight.name, weight.rounding.metrics) for weight in found if weight.rounding]
            paths.append(path)
        own, chained = self._run(f"{recipe.name}, stage by stage", partial(side.measure, recipe.name, paths))
        limits = {phase: stage_limit(recipe, phase) for phase in STAGE_PHASES}
        bisection = self._conclude(recipe.name, EXACT, judge_recipe(own, chained, limits))
        bisection = with_stored(bisection, broken_stages(stored))
        return self._found(bisection, partial(side.keep, recipe.name, paths))

    def _file_side(self) -> FileSide:
        """The diagnostic files, what the re-authored model makes of their calls in float64, and its noise."""
        if self._staged is None:
            ladder, family = self.ladder, self.ladder.model.family.name
            files = []
            for export in ladder.exports:
                destination = ladder.scratch / f"staged_{export.cache_length}.tflite"
                with (
                    ladder.reporter.step("converting stage by stage") as progress,
                    ladder.artifacts.staged_file(ladder.model, ladder.weights, export, destination) as making,
                ):
                    files.append(making.result(progress).value)
            side = FileSide(
                family=family,
                folder=ladder.weights.folder,
                files=tuple(files),
                threads=ladder.threads,
                inputs=ladder.inputs,
                calls=ladder.scratch,
                config=ladder.config,
            )
            self._run("reauthored in float64, stage by stage", side.record)
            floor, whole_floor = self._run("noise floor, stage by stage", side.measure_floor)
            self._staged = replace(side, floor=floor, whole_floor=whole_floor)
        return self._staged

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


def stage_limit(recipe: Recipe, phase: Phase) -> Limit:
    """What the recipe, or the one that encoders have instead, may cost a stage.

    Raises:
        RungError: no limit is known.
    """
    by = recipe.encoder if recipe.encoder and phase == "encode" else recipe
    limits = stage_limits(by.name, weight_bits(by))
    if not limits:
        raise RungError(f"no limits are known for {by.name}; measure some and add them to the table")
    return limits[0]
