"""``parity convert``: from weights to one file that says what it holds."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from models.authoring.config import EncoderDecoderConfig, ModelConfig, VisionLanguageConfig, WindowedVisionConfig
from models.authoring.hf_config import HFConfig
from models.authoring.session import shipped_sessions
from models.registry import Model
from parity import isolated
from parity.artifacts.cache import ArtifactCache
from parity.artifacts.making import Artifacts
from parity.convert.float_file import Export, FloatFile, file_name, rope_facts
from parity.convert.quantize import summarize
from parity.convert.recipes import Recipe, get_recipe, with_encoder
from parity.convert.timings import Timings
from parity.errors import UsageError
from parity.files import scratch_folder, whole_file, writable
from parity.media.sounds import MOST_SECONDS, RATE
from parity.progress import Reporter
from parity.weights import local_name, resolve

#: Prefill signatures of a shipped file unless told otherwise; longer by a picture where a prompt goes in whole.
PREFILL_LENGTHS = (64, 128)
#: Cache slots unless told otherwise, if the model knows so many positions.
CACHE_LENGTH = 1280
#: The longest audio unless told otherwise.
AUDIO_SECONDS = 10.0


#: Tensors that there are one or two of for each layer.
_FOLDED = ("kv_cache_", "cross_")


@dataclass(frozen=True)
class ConvertedFile:
    """What was written: ``signatures`` name their tensors and shapes, ``notes`` say what a person should know.

    ``spent`` says on what the ``seconds`` were.
    """

    path: Path
    size: int
    seconds: float
    signatures: Mapping[str, str]
    notes: tuple[str, ...]
    spent: Mapping[str, float]


def to_file(
    model: Model,
    weights: str,
    output: Path,
    *,
    recipe: str | None,
    encoder_recipe: str | None = None,
    prefill_lengths: tuple[int, ...],
    cache_length: int | None,
    prefill_logits: bool,
    grids: Sequence[str] = (),
    reporter: Reporter,
    audio_seconds: float | None = None,
    cache: ArtifactCache | None = None,
    plain: bool = False,
) -> ConvertedFile:
    """Convert, quantize if a recipe is given, and put the file in place only when it is complete.

    What is in the ``cache`` is not made again, and what is made goes into it.

    A model that hears takes up to ``audio_seconds``; ``grids`` are those of the pictures that a prompt may hold, such
    as ``32x32`` patches down and across.

    Raises:
        UsageError: lengths, grids, recipe or place cannot be used.
        ParityError, ModelError: the weights or the converter failed; nothing is left behind.
    """
    began = time.perf_counter()
    timings = Timings()
    # What is decided before the weights are here is decided by the preset's configuration.
    expected = model.family.config_from(HFConfig(model.preset.values(tiny=weights == "tiny"), model.name))
    cache_length = cache_length or min(CACHE_LENGTH, expected.max_positions)
    seconds = _audio_seconds(expected, audio_seconds)
    export = Export(
        prefill_lengths=prefill_lengths or PREFILL_LENGTHS,
        cache_length=cache_length,
        prefill_logits=prefill_logits,
        plain=plain,
    )
    if encoder_recipe and not recipe:
        raise UsageError("--encoder-recipe goes with a --recipe for the rest; name both")
    chosen = with_encoder(get_recipe(recipe), encoder_recipe) if recipe else None
    name = local_name(weights) or model.name
    called = f"{name}_{seconds:g}s" if seconds else name
    file = file_name(called, chosen.suffix if chosen else "f32", export)
    destination = output / file if _is_folder(output) else output
    writable(destination)
    isolated.prepare(converter=True)
    with timings.spent("weights"), reporter.step(f"{name}: weights") as progress:
        checkpoint = resolve(model, weights, progress, reporter.note)
    config = model.family.config_from(HFConfig.load(checkpoint.folder))
    if cache_length > config.max_positions:
        known = config.max_positions
        raise UsageError(f"--kv-cache {cache_length} is more than the {known} positions {name} knows; lower it")
    export = _for_any_session(
        export,
        config,
        samples=round((seconds or 0) * RATE),
        grids=_grids(grids, config, name),
        asked=bool(prefill_lengths),
    )
    with scratch_folder(destination.parent, destination.name) as scratch:
        made = scratch / "float.tflite"
        artifacts = Artifacts(cache, reporter.note)
        with (
            timings.spent("cache"),
            reporter.step("converting") as progress,
            artifacts.float_file(model, checkpoint, export, made) as making,
        ):
            found = making.result(progress)
        if not found.cached:
            timings.seconds["cache"] -= found.seconds
            timings.seconds.update(found.value.seconds)
            timings.seconds["starting processes"] = found.seconds - sum(found.value.seconds.values())
        notes: tuple[str, ...] = ()
        cached = found.cached
        if chosen:
            with timings.spent("quantizing"):
                made, notes, cached = _quantized(found.value, chosen, artifacts, reporter)
        with timings.spent("reading the file"):
            signatures = isolated.run("reading the file", partial(_signatures, made)).value
        with whole_file(destination) as temporary:
            if made.stat().st_nlink > 1:
                shutil.copyfile(made, temporary)  # a person may write into it, which must not change the kept file
            else:
                made.replace(temporary)
        if cached:
            notes = (*notes, "taken from the cache; --no-cache makes it anew")
    if facts := rope_facts(config, cache_length):
        said = (
            f"frequencies: {facts['rope_regime']} factors; a cache of up to {facts['rope_boundary']} has the short ones"
        )
        notes = (said, *notes)
    size, seconds = destination.stat().st_size, time.perf_counter() - began
    return ConvertedFile(destination, size, seconds, signatures, notes, timings.seconds)


def _audio_seconds(config: ModelConfig, asked: float | None) -> float | None:
    """The longest audio that the file takes; ``None`` for a model that hears nothing.

    Raises:
        UsageError: too short for a row, too long, or for nobody.
    """
    stem = config.stem if isinstance(config, EncoderDecoderConfig) else None
    if stem is None:
        if asked is not None:
            raise UsageError("--audio-seconds is for models that hear, and this one does not; leave it out")
        return None
    seconds = AUDIO_SECONDS if asked is None else asked
    if not stem.shortest / RATE <= seconds <= MOST_SECONDS:
        least = stem.shortest / RATE
        raise UsageError(f"--audio-seconds {seconds:g} makes no file; choose between {least:.3f} and {MOST_SECONDS}")
    return seconds


def _grids(asked: Sequence[str], config: ModelConfig, name: str) -> list[tuple[int, int]]:
    """Grids as they were written, which the model must have a use for."""
    vision = config.vision if isinstance(config, VisionLanguageConfig) else None
    if asked and not isinstance(vision, WindowedVisionConfig):
        raise UsageError(f"--grid {asked[0]} means nothing to {name}, which takes no pictures of different grids")
    grids = []
    for grid in asked:
        match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", grid)
        if match is None:
            raise UsageError(f"--grid {grid} is no grid; write patches down and across, such as 32x32")
        down, across = int(match[1]), int(match[2])
        if isinstance(vision, WindowedVisionConfig) and (down % vision.merge or across % vision.merge):
            raise UsageError(f"--grid {grid} is not filled by squares of {vision.merge} by {vision.merge} patches")
        grids.append((down, across))
    return grids


def _for_any_session(
    export: Export, config: ModelConfig, *, samples: int, grids: Sequence[tuple[int, int]], asked: bool
) -> Export:
    """The export with every entry point, and with prefills that hold a picture and words where prompts go in whole.

    Such a prompt cannot leave its last token to ``decode``, whose logits the others would not have seen: its prefill
    has logits.

    Raises:
        UsageError: no prefill that was asked for holds a picture.
    """
    longest = max(export.prefill_lengths)
    export = replace(export, sessions=shipped_sessions(config, longest, samples=samples, grids=grids))
    if not any(session.whole for session in export.sessions):
        return export
    rows = max(sum(call.rows for call in session.calls) for session in export.sessions)
    if not asked:
        lengths = tuple(length + rows for length in export.prefill_lengths)
        return replace(export, prefill_lengths=lengths, prefill_logits=True)
    if max(export.prefill_lengths) <= rows:
        raise UsageError(
            f"--prefill {max(export.prefill_lengths)} has no room for a picture of {rows} tokens; raise it"
        )
    return replace(export, prefill_logits=True)


def _is_folder(output: Path) -> bool:
    return output.is_dir() or output.suffix != ".tflite"


def _quantized(
    source: FloatFile, recipe: Recipe, artifacts: Artifacts, reporter: Reporter
) -> tuple[Path, tuple[str, ...], bool]:
    """The quantized file, what there is to say of its weights, and whether it was taken from the cache."""
    destination = source.path.with_name("quantized.tflite")
    with (
        reporter.step(f"quantizing to {recipe.name}") as progress,
        artifacts.quantized_file(source, recipe, destination) as making,
    ):
        made = making.result(progress)
    facts = summarize(made.value)
    counts = ", ".join(f"{count} {precision}" for precision, count in facts["weights"].items())
    exceptions = (f"{e['weight']}: {e['precision']}, not {e['asked']}" for e in facts["exceptions"])
    return destination, (f"weights: {counts}", *exceptions), made.cached


def _signatures(path: Path, progress: isolated.Progress) -> dict[str, str]:
    """Each signature's inputs and outputs with their shapes, those of every layer folded into one word."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    described = {}
    for number, name in enumerate(interpreter.get_signature_list()):
        progress(number, 0)
        runner = interpreter.get_signature_runner(name)
        sides = []
        for details in (runner.get_input_details(), runner.get_output_details()):
            shapes = {key: list(map(int, value["shape"])) for key, value in details.items()}
            plain = sorted(
                (f"{key} {shape}" for key, shape in shapes.items() if not key.startswith(_FOLDED)), reverse=True
            )
            counts = {prefix: sum(key.startswith(prefix) for key in shapes) for prefix in _FOLDED}
            folded = [
                f"{count} {prefix.strip('_').replace('kv_', '')} tensors" for prefix, count in counts.items() if count
            ]
            sides.append(", ".join([*plain, *folded]))
        described[name] = f"{sides[0]} -> {sides[1]}"
    return described
