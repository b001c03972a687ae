"""Making files once: taken from the cache if they are as this run would make them, else made by a job and kept.

Kept are files, and what a ladder finds on its way to them: the ids of its prompts, and what the originals and the port
recorded of them in PyTorch. Whatever a file gives, and all that is said about any rung, each run finds out anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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
from parity.artifacts.cache import DAMAGE, ArtifactCache, Manifest, Say
from parity.artifacts.identity import (
    Identity,
    Sources,
    key_of,
    of_conversion,
    of_quantization,
    of_recording,
    of_tokens,
    sources,
    versions,
)
from parity.convert.float_file import Export, FloatFile, conversion
from parity.convert.quantize import WeightPrecision, quantization
from parity.convert.recipes import Recipe
from parity.convert.stages import StagedFile, staged_conversion
from parity.errors import ParityError
from parity.files import content_sha256, sha256_of, unread_sha256
from parity.inputs import Inputs, PromptSet
from parity.runners.base import Recorded
from parity.trace import Trace
from parity.weights import LOCAL, Weights

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
    """A file at ``destination``.

    ``what`` it is, is for people. ``identity`` is what it is made from, ``sources`` the hash of the code that makes it;
    ``intact`` is whether the checkpoint still is as it was hashed.
    """

    what: str
    destination: Path
    sources: Callable[[Sources], str]
    identity: Callable[[], Identity]
    intact: Callable[[], bool]
    write: Callable[[T], Any]
    read: Callable[[Any], T]


class Artifacts:
    """Where a run gets its files from. What stands in the way of the ``cache`` is told to ``say``; none makes all anew.

    Files that are made or taken here are not written into afterwards.
    """

    def __init__(self, cache: ArtifactCache | None, say: Say) -> None:
        self.say = say
        self.cache = cache if cache and cache.bound else None
        self.used: set[str] = set()
        #: Of each file, by its place: the SHA-256, and what it is of.
        self.known: dict[Path, tuple[str, str]] = {}
        if self.cache and not self.cache.sources:
            say("the sources are not imported from their files as they are; the cache is left alone")
            self.cache = None

    @cached_property
    def _versions(self) -> dict[str, str]:
        return versions()

    def tokens(
        self,
        prompts: PromptSet,
        model: Model,
        weights: Weights,
        destination: Path,
        tokenize: Callable[[], Inputs],
    ) -> Inputs:
        """What a checkpoint's tokenizer makes of a prompt set that is nothing but text."""
        keepsake = Keepsake(
            self,
            _Wanted(
                what=f"tokens of {prompts.name} for {_named(model, weights)}",
                destination=destination,
                sources=_of_originals,
                identity=partial(of_tokens, prompts, weights),
                intact=lambda: True,
                write=lambda _: None,
                read=lambda _: forms.read_tokens(prompts, destination),
            ),
        )
        if made := keepsake.taken():
            return made.value
        inputs = tokenize()
        forms.write_tokens(inputs, destination)
        keepsake.keep(isolated.Finished(inputs, 0.0, 0.0))
        return inputs

    def recording(
        self,
        name: str,
        model: Model,
        weights: Weights,
        inputs: Inputs,
        asked: Mapping[str, Any],
        destination: Path,
        record: Callable[[], Recorded],
        *,
        original: bool,
    ) -> Recorded:
        """What the rung ``name``, an ``original`` or the port, records at ``destination`` of ``inputs``.

        Its numbers depend on all that is ``asked``.
        """
        keepsake = Keepsake(
            self,
            _Wanted(
                what=f"{name} of {_named(model, weights)}, {inputs.name}",
                destination=destination,
                sources=_of_originals if original else _of_ports,
                identity=partial(of_recording, name, weights, inputs, asked),
                intact=partial(_intact, weights),
                write=str,
                read=forms.read_note,
            ),
        )
        if made := keepsake.taken():
            trace = Trace.load(destination)
            return Recorded(inputs, trace, made.seconds, made.peak_rss_mb, made.value, cached=True)
        recorded = record()
        keepsake.keep(isolated.Finished(recorded.note, recorded.seconds, recorded.peak_rss_mb))
        return recorded

    def floor(
        self,
        name: str,
        model: Model,
        weights: Weights,
        inputs: Inputs,
        asked: Mapping[str, Any],
        destination: Path,
        draw: Callable[[], None],
    ) -> None:
        """How far draws of float32 noise are from the port, which ``draw`` finds out and writes to ``destination``.

        They depend on all that is ``asked``.
        """
        keepsake = Keepsake(
            self,
            _Wanted(
                what=f"{name} of {_named(model, weights)}, {inputs.name}",
                destination=destination,
                sources=_of_ports,
                identity=partial(of_recording, name, weights, inputs, asked),
                intact=partial(_intact, weights),
                write=lambda _: None,
                read=lambda _: None,
            ),
        )
        if not keepsake.taken():
            draw()
            keepsake.keep(isolated.Finished(None, 0.0, 0.0))

    def float_file(self, model: Model, weights: Weights, export: Export, destination: Path) -> Making[FloatFile]:
        """The float file of a checkpoint."""
        return self._making(
            "converting",
            conversion(model.family.name, weights.folder, export, destination),
            _Wanted(
                what=f"float32 of {_described(model, weights, export)}",
                destination=destination,
                sources=_of_files,
                identity=partial(of_conversion, "float", model.family.name, weights, export),
                intact=partial(_intact, weights),
                write=forms.write_float,
                read=partial(forms.read_float, path=destination, export=export),
            ),
        )

    def staged_file(self, model: Model, weights: Weights, export: Export, destination: Path) -> Making[StagedFile]:
        """The diagnostic file of a checkpoint."""
        return self._making(
            "converting stage by stage",
            staged_conversion(model.family.name, weights.folder, export, destination),
            _Wanted(
                what=f"float32 of {_described(model, weights, export)}, stage by stage",
                destination=destination,
                sources=_of_files,
                identity=partial(of_conversion, "staged", model.family.name, weights, export),
                intact=partial(_intact, weights),
                write=forms.write_staged,
                read=partial(forms.read_staged, path=destination, export=export),
            ),
        )

    def quantized_file(self, source: FloatFile, recipe: Recipe, destination: Path) -> Making[list[WeightPrecision]]:
        """What a recipe makes of a float file that was made or taken here.

        Raises:
            UsageError: the recipe is a file, and it cannot be read.
        """
        digest, of = self._known(source.path) if self.cache else ("", "")
        encoder = f", {recipe.encoder.name} for the encoder," if recipe.encoder else ""
        return self._making(
            f"quantizing to {recipe.name}",
            quantization(source.path, source.names, recipe, destination),
            _Wanted(
                what=f"{recipe.name}{encoder} {of.removeprefix('float32 ')}",
                destination=destination,
                sources=_of_files,
                identity=partial(of_quantization, digest, source.names, recipe),
                intact=lambda: True,
                write=forms.write_precisions,
                read=forms.read_precisions,
            ),
        )

    def content_sha256(self, path: Path) -> str:
        """Of a file, which is not read again where it was made or taken here."""
        return self._known(path)[0]

    def _known(self, path: Path) -> tuple[str, str]:
        """The SHA-256 of a file, and what it is of."""
        return self.known.get(path) or (content_sha256(path), path.name)

    def _making(self, name: str, job: Callable[[isolated.Progress], T], wanted: _Wanted[T]) -> Making[T]:
        """The file wanted, which ``job`` makes unless it is there."""
        keepsake = Keepsake(self, wanted)
        return Making(keepsake.taken() or isolated.Job(name, job), keepsake.keep)

    def identity(self, wanted: _Wanted[Any], code: Sources) -> Identity:
        """All that a file is made from."""
        return {**wanted.identity(), "sources": wanted.sources(code), "versions": self._versions}


class Keepsake(Generic[T]):
    """A file that a run wants: taken from the cache, or kept in it once it is there."""

    def __init__(self, artifacts: Artifacts, wanted: _Wanted[T]) -> None:
        self._artifacts = artifacts
        self._wanted = wanted
        self._cache = artifacts.cache
        self._identity: Identity = {}
        try:
            if self._cache:
                assert self._cache.sources is not None, "a cache without sources is left alone"
                self._identity = artifacts.identity(wanted, self._cache.sources)
        except OSError as error:
            why = f"{error.filename} cannot be read ({error.strerror})"
            artifacts.say(f"{wanted.what} is made anew and not kept: {why}")
            self._cache = None

    def taken(self) -> Made[T] | None:
        """It, if an earlier run has made it."""
        if self._cache is None:
            return None
        key, destination = key_of(self._identity), self._wanted.destination
        manifest = self._cache.take(key, destination, self._artifacts.say)
        if manifest is None:
            return None
        try:
            value = self._wanted.read(manifest.value)
        except DAMAGE as error:
            destination.unlink(missing_ok=True)
            self._cache.discard(key, str(error), self._artifacts.say)
            return None
        self._artifacts.used.add(key)
        self._artifacts.known[destination] = manifest.sha256, self._wanted.what
        return Made(value, manifest.seconds, manifest.peak_rss_mb, cached=True)

    def keep(self, finished: isolated.Finished[T]) -> None:
        """Keep it, unless what it was made from has changed while it was made: then nobody knows what it is of."""
        if self._cache is None:
            return
        wanted, key = self._wanted, key_of(self._identity)
        digest = content_sha256(wanted.destination)
        self._artifacts.known[wanted.destination] = digest, wanted.what
        if not self._unchanged():
            self._artifacts.say(
                f"{wanted.what} is not kept for the next run: what it is made from has changed meanwhile"
            )
            return
        manifest = Manifest(
            what=wanted.what,
            identity=self._identity,
            size=wanted.destination.stat().st_size,
            sha256=digest,
            value=wanted.write(finished.value),
            seconds=finished.seconds,
            peak_rss_mb=finished.peak_rss_mb,
            made=time.time(),
        )
        self._cache.put(key, wanted.destination, manifest, self._artifacts.say, self._artifacts.used)
        self._artifacts.used.add(key)

    def _unchanged(self) -> bool:
        code = sources()
        if code is None:
            return False
        try:
            again = self._artifacts.identity(self._wanted, code)
        except (OSError, ParityError):
            return False
        return key_of(again) == key_of(self._identity) and self._wanted.intact()


def _of_files(code: Sources) -> str:
    return code.files


def _of_originals(code: Sources) -> str:
    return code.originals


def _of_ports(code: Sources) -> str:
    return code.ports


def _named(model: Model, weights: Weights) -> str:
    return weights.label if weights.kind in LOCAL else f"{model.name} {weights.kind}"


def _described(model: Model, weights: Weights, export: Export) -> str:
    lengths = ", ".join(map(str, export.prefill_lengths))
    plain = ", plain" if export.plain else ""
    return f"{_named(model, weights)}, prefill {lengths}, {export.cache_length} slots{plain}"


def _intact(weights: Weights) -> bool:
    """Whether the weights are those that were hashed: a file that was edited since may have been read either way."""
    try:
        return sha256_of(weight_files(weights.folder), unread_sha256) == weights.sha256
    except (OSError, ModelError):
        return False
