"""Making files once: taken from the cache if they are as this run would make them, else made by a job and kept.

Nothing but files is kept. What a run says about them it finds out anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from models.authoring.checkpoint import weight_files
from models.errors import ModelError
from models.registry import Model
from parity import isolated
from parity.artifacts import forms
from parity.artifacts.cache import DAMAGE, ArtifactCache, Manifest, Say, sha256
from parity.artifacts.identity import Identity, key_of, of_conversion, of_quantization, sources, versions
from parity.convert.float_file import Export, FloatFile, conversion
from parity.convert.quantize import WeightPrecision, quantization
from parity.convert.recipes import Recipe
from parity.convert.stages import StagedFile, staged_conversion
from parity.errors import ParityError
from parity.files import sha256_of
from parity.weights import Weights

T = TypeVar("T")


@dataclass(frozen=True)
class Made(Generic[T]):
    """What a job returned, and what it cost: in this run, or in the one whose file was ``cached``."""

    value: T
    seconds: float
    peak_rss_mb: float
    cached: bool


class Making(Generic[T]):
    """A file that is there already, or under way. Leaving the ``with`` block ends its job whatever happened."""

    def __init__(self, made: Made[T] | isolated.Job[T], on_finished: Callable[[isolated.Finished[T]], None]) -> None:
        self._made = made
        self._on_finished = on_finished

    def result(self, on_progress: isolated.Progress | None = None) -> Made[T]:
        """Wait for it.

        Raises:
            ParityError, ModelError: as the job's ``result``.
        """
        if isinstance(self._made, Made):
            return self._made
        finished = self._made.result(on_progress)
        self._on_finished(finished)
        return Made(finished.value, finished.seconds, finished.peak_rss_mb, cached=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._made, isolated.Job):
            self._made.__exit__(kind, error, trace)


@dataclass(frozen=True, kw_only=True)
class _Wanted(Generic[T]):
    """A file that ``job`` makes at ``destination``.

    ``name`` is the job's; ``what`` it makes is for people. ``identity`` is what it makes it from, ``intact`` whether
    the checkpoint still is as it was hashed.
    """

    name: str
    what: str
    destination: Path
    job: Callable[[isolated.Progress], T]
    identity: Callable[[], Identity]
    intact: Callable[[], bool]
    write: Callable[[T], Any]
    read: Callable[[Any], T]


class Artifacts:
    """Where a run gets its files from. What stands in the way of the ``cache`` is told to ``say``; none makes all anew.

    Files that are made or taken here are not written into afterwards.
    """

    def __init__(self, cache: ArtifactCache | None, say: Say) -> None:
        self._say = say
        self._cache = cache if cache and cache.bound else None
        self._used: set[str] = set()
        #: Of each file, by its place: the SHA-256, and what it is of.
        self._known: dict[Path, tuple[str, str]] = {}
        if self._cache and not self._cache.sources:
            say("the sources are not imported from their files as they are; the cache is left alone")
            self._cache = None

    @cached_property
    def _versions(self) -> dict[str, str]:
        return versions()

    def float_file(self, model: Model, weights: Weights, export: Export, destination: Path) -> Making[FloatFile]:
        """The float file of a checkpoint."""
        return self._making(
            _Wanted(
                name="converting",
                what=f"float32 of {_described(model, weights, export)}",
                destination=destination,
                job=conversion(model.family.name, weights.folder, export, destination),
                identity=partial(of_conversion, "float", model.family.name, weights, export),
                intact=partial(_intact, weights),
                write=forms.write_float,
                read=partial(forms.read_float, path=destination, export=export),
            )
        )

    def staged_file(self, model: Model, weights: Weights, export: Export, destination: Path) -> Making[StagedFile]:
        """The diagnostic file of a checkpoint."""
        return self._making(
            _Wanted(
                name="converting stage by stage",
                what=f"float32 of {_described(model, weights, export)}, stage by stage",
                destination=destination,
                job=staged_conversion(model.family.name, weights.folder, export, destination),
                identity=partial(of_conversion, "staged", model.family.name, weights, export),
                intact=partial(_intact, weights),
                write=forms.write_staged,
                read=partial(forms.read_staged, path=destination, export=export),
            )
        )

    def quantized_file(self, source: FloatFile, recipe: Recipe, destination: Path) -> Making[list[WeightPrecision]]:
        """What a recipe makes of a float file that was made or taken here.

        Raises:
            UsageError: the recipe is a file, and it cannot be read.
        """
        digest, of = self._known[source.path] if self._cache else ("", "")
        encoder = f", {recipe.encoder.name} for the encoder," if recipe.encoder else ""
        return self._making(
            _Wanted(
                name=f"quantizing to {recipe.name}",
                what=f"{recipe.name}{encoder} {of.removeprefix('float32 ')}",
                destination=destination,
                job=quantization(source.path, source.names, recipe, destination),
                identity=partial(of_quantization, digest, source.names, recipe),
                intact=lambda: True,
                write=forms.write_precisions,
                read=forms.read_precisions,
            )
        )

    def _making(self, wanted: _Wanted[T]) -> Making[T]:
        if self._cache is None:
            return Making(isolated.Job(wanted.name, wanted.job), lambda _: None)
        identity = self._identity(wanted, self._cache)
        made = self._taken(wanted, identity, self._cache)
        return Making(made or isolated.Job(wanted.name, wanted.job), partial(self._keep, wanted, identity, self._cache))

    def _identity(self, wanted: _Wanted[Any], cache: ArtifactCache) -> Identity:
        return {**wanted.identity(), "sources": cache.sources, "versions": self._versions}

    def _taken(self, wanted: _Wanted[T], identity: Identity, cache: ArtifactCache) -> Made[T] | None:
        key = key_of(identity)
        manifest = cache.take(key, wanted.destination, self._say)
        if manifest is None:
            return None
        try:
            value = wanted.read(manifest.value)
        except DAMAGE as error:
            wanted.destination.unlink(missing_ok=True)
            cache.discard(key, str(error), self._say)
            return None
        self._used.add(key)
        self._known[wanted.destination] = manifest.sha256, wanted.what
        return Made(value, manifest.seconds, manifest.peak_rss_mb, cached=True)

    def _keep(
        self, wanted: _Wanted[T], identity: Identity, cache: ArtifactCache, finished: isolated.Finished[T]
    ) -> None:
        """Keep a file, unless what it was made from has changed while it was made: then nobody knows what it is of."""
        digest = sha256(wanted.destination)
        self._known[wanted.destination] = digest, wanted.what
        if not self._unchanged(wanted, identity, cache):
            self._say(f"{wanted.what} is not kept for the next run: what it is made from has changed meanwhile")
            return
        manifest = Manifest(
            what=wanted.what,
            identity=identity,
            size=wanted.destination.stat().st_size,
            sha256=digest,
            value=wanted.write(finished.value),
            seconds=finished.seconds,
            peak_rss_mb=finished.peak_rss_mb,
            made=time.time(),
        )
        cache.put(key_of(identity), wanted.destination, manifest, self._say, self._used)
        self._used.add(key_of(identity))

    def _unchanged(self, wanted: _Wanted[Any], identity: Identity, cache: ArtifactCache) -> bool:
        try:
            again = self._identity(wanted, cache)
        except (OSError, ParityError):
            return False
        return key_of(again) == key_of(identity) and sources() == cache.sources and wanted.intact()


def _described(model: Model, weights: Weights, export: Export) -> str:
    name = weights.label if weights.kind == "path" else f"{model.name} {weights.kind}"
    lengths = ", ".join(map(str, export.prefill_lengths))
    return f"{name}, prefill {lengths}, {export.cache_length} slots" + (", plain" if export.plain else "")


def _intact(weights: Weights) -> bool:
    """Whether the weights are those that were hashed: a file that was edited since may have been read either way."""
    try:
        return sha256_of(weight_files(weights.folder)) == weights.sha256
    except (OSError, ModelError):
        return False
