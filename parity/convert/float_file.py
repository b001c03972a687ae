"""The float file of a model: what is exported, and the job that makes it, composed of stages or the plain way."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from models.authoring.config import ModelConfig
from models.authoring.session import SessionInputs
from parity import isolated
from parity.convert.metadata import packed, stamp
from parity.convert.stored import name_weights
from parity.convert.timings import Timings
from parity.errors import UsageError
from parity.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor

    from models.authoring.model import Model
    from models.authoring.signatures import Signature


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to export: which entry points, over how many cache slots, large enough for which sessions.

    ``plain`` lets the converter take every signature as a whole instead of composing it of stages.
    """

    prefill_lengths: tuple[int, ...]
    cache_length: int
    prefill_logits: bool = True
    plain: bool = False
    sessions: tuple[SessionInputs, ...] = (SessionInputs(),)

    def __post_init__(self) -> None:
        if not self.prefill_lengths or min(self.prefill_lengths) < 1:
            raise UsageError("--prefill takes positive lengths")
        if len(set(self.prefill_lengths)) != len(self.prefill_lengths):
            raise UsageError("--prefill names the same length twice; give each once")
        if max(self.prefill_lengths) > self.cache_length:
            raise UsageError(
                f"--prefill {max(self.prefill_lengths)} does not fit a cache of {self.cache_length}; raise --kv-cache"
            )


@dataclass(frozen=True)
class FloatFile:
    """A converted file: what it was exported as, its signatures, and the names of its weights in file order.

    ``seconds`` are those of the conversion by what they were spent on.
    """

    path: Path
    export: Export
    signatures: tuple[str, ...]
    names: tuple[str, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)


def convert(
    family: str, folder: Path, export: Export, destination: Path, on_progress: isolated.Progress | None = None
) -> isolated.Finished[FloatFile]:
    """Convert the checkpoint ``folder`` to the float file ``destination``, whole or not at all.

    Raises:
        ModelError, ParityError: the checkpoint is not usable, or the converter failed.
    """
    return isolated.run("converting", conversion(family, folder, export, destination), on_progress)


def conversion(family: str, folder: Path, export: Export, destination: Path) -> partial[FloatFile]:
    """The conversion as a job, to be started while other rungs run."""
    return partial(_convert, family, folder, export, destination)


def _convert(family: str, folder: Path, export: Export, destination: Path, progress: isolated.Progress) -> FloatFile:
    timings = Timings()
    with ExitStack() as stack:
        with timings.spent("loading"):
            model, values = stack.enter_context(for_export(family, folder, plain=export.plain))
        return write_file(model, values, whole_signatures(model, export), export, destination, progress, timings)


@contextmanager
def for_export(family: str, folder: Path, *, plain: bool = False) -> Iterator[tuple[Model, Mapping[str, Tensor]]]:
    """The model with its regions marked for the converter, and the values of its parameters by name.

    In a process that does nothing else afterwards. The converter's own way needs the values in the model; otherwise it
    has none, and they are read from the checkpoint when they are asked for.
    """
    from models import registry
    from models.authoring.stored import StoredModel

    prepare_converter()
    if plain:
        model = registry.family(family).load(folder, fused=True)
        yield model, dict(model.named_parameters())
    else:
        stored = StoredModel(registry.family(family), folder, fused=True)
        with stored.values() as values:
            yield stored.hollow, values


def prepare_converter() -> None:
    """Make a process fit for converting, and for nothing else afterwards."""
    import gc

    import torch

    # The converter's dependencies warn about each other; that goes to the job's log, and never stops a conversion.
    warnings.simplefilter("default")
    logging.getLogger().setLevel(logging.WARNING)
    gc.disable()  # this process ends with the conversion; collecting its many small graph objects costs a seventh of it
    torch.set_num_threads(1)  # tracing computes nothing large, and other rungs may be running beside it


def whole_signatures(model: Model, export: Export) -> Iterator[Signature]:
    """The signatures of an export, each a whole entry point."""
    from models.authoring.signatures import signatures

    return signatures(
        model,
        prefill_lengths=sorted(export.prefill_lengths),
        cache_length=export.cache_length,
        prefill_logits=export.prefill_logits,
        sessions=export.sessions,
    )


def write_file(
    model: Model,
    values: Mapping[str, Tensor],
    signatures: Iterable[Signature],
    export: Export,
    destination: Path,
    progress: isolated.Progress,
    timings: Timings | None = None,
) -> FloatFile:
    """Convert ``signatures`` of a model ``for_export`` to the file ``destination``, whole or not at all."""
    from parity.convert.composed import compose

    timings = timings or Timings()
    signatures = list(signatures)
    facts = rope_facts(model.config, export.cache_length)
    with whole_file(destination) as temporary:
        if export.plain:
            with timings.spent("converting"):
                _convert_whole(model, signatures, temporary, progress)
                if facts:
                    stamp(temporary, facts)
            with timings.spent("naming weights"):
                names = name_weights(temporary, values)
        else:
            names = compose(model, values, signatures, packed(facts), temporary, progress, timings)
    made = tuple(signature.name for signature in signatures)
    return FloatFile(destination, export, made, names, timings.seconds)


def _convert_whole(
    model: Model, signatures: Iterable[Signature], destination: Path, progress: isolated.Progress
) -> None:
    """The converter's own way: every signature as a whole."""
    import litert_torch

    import parity.convert.lowerings  # noqa: F401  (teaches the converter this project's operators)
    from models.authoring.signatures import EntryPoint

    converter = litert_torch.Converter()
    for signature in signatures:
        converter.add_signature(signature.name, EntryPoint(model, signature.entry), sample_kwargs=signature.inputs)
    progress(0, 1)
    converter.convert(strict_export=False).export(str(destination))


def rope_facts(config: ModelConfig, cache_length: int) -> dict[str, int | str]:
    """What a file must say about its frequencies, where they depend on how long a session gets (LongRoPE)."""
    if config.boundary is None:
        return {}
    regime = "short" if cache_length <= config.boundary else "long"
    return {"rope_regime": regime, "rope_boundary": config.boundary, "cache_length": cache_length}


def file_name(model: str, precision: str, export: Export) -> str:
    """A name that says what the file holds, such as ``smollm-135m_q8_ekv1280.tflite``."""
    return f"{model}_{precision}_ekv{export.cache_length}.tflite"


def default_cache_length(needed: int, multiple: int = 64) -> int:
    """Cache slots for ``needed`` positions, rounded up."""
    return -(-needed // multiple) * multiple
