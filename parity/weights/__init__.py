"""Where a model's weights come from: drawn (``tiny``, ``synthetic``), downloaded (``hub``, ``kaggle``, ``sample``), a
GGUF file, or a local folder.

Whatever the kind, the rest of the project sees a local checkpoint folder in the hub's layout.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from models.authoring.checkpoint import INDEX, SINGLE, STATE_DICT, weight_files
from models.authoring.config import DecoderConfig, EncoderDecoderConfig, ModelConfig, VisionLanguageConfig
from models.authoring.hf_config import HFConfig
from models.registry import Model
from parity import isolated
from parity.errors import UsageError, WeightsError
from parity.files import sha256_of, unread_sha256, whole_folder
from parity.inputs import tokenizer_files
from parity.media.sounds import PROCESSOR
from parity.weights.draw import Drawn, Manner, plan, write_safetensors
from parity.weights.gguf import SUFFIX, Dequantized, dequantized, kept
from parity.weights.kept import kept_folder, seal, sealed
from parity.weights.published import completed, with_tokenizer

KINDS = ("tiny", "synthetic", "sample", "hub", "kaggle", "gguf", "path")
#: Kinds that stand for a file or folder of the caller's, of any size the family has.
LOCAL = ("gguf", "path")
#: What ``--weights`` takes, for a person.
TAKES = "tiny, synthetic, sample, hub, hub@REVISION, kaggle, a .gguf file, or a folder"
#: Bytes of weights in one shard of a synthetic checkpoint.
SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Weights:
    """A local checkpoint folder and what identifies it.

    ``label`` is short and stable (the kind, or the name of the caller's file or folder); ``sha256`` covers the weight
    files. ``origin`` says what they were made from, where that is no checkpoint: it goes into the report. ``asked`` is
    what ``--weights`` calls them, from whatever folder.
    """

    kind: str
    label: str
    folder: Path
    sha256: str
    revision: str | None
    origin: Mapping[str, Any] = field(default_factory=dict)
    asked: str = ""

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in weight_files(self.folder))


def kind_of(weights: str) -> str:
    """What ``weights`` names: a kind, ``hub[@REVISION]``, ``kaggle[@HANDLE]``, a ``gguf`` file, else a ``path``."""
    if weights.lower().endswith(SUFFIX):
        return "gguf"
    kind = weights.partition("@")[0] if weights.startswith(("hub@", "kaggle@")) else weights
    return kind if kind in KINDS else "path"


def local_name(weights: str) -> str | None:
    """What a file or folder of the caller's is called, without the suffix of a file; ``None`` for other weights."""
    path = Path(weights).expanduser().resolve()
    return {"gguf": path.stem, "path": path.name}.get(kind_of(weights))


def resolve(
    model: Model,
    weights: str,
    on_progress: isolated.Progress | None = None,
    say: Callable[[str], None] | None = None,
    *,
    remote_code: bool = False,
) -> Weights:
    """The checkpoint that ``weights`` means for ``model``. A download tells what it does through ``say``.

    ``remote_code`` fetches the code published beside a checkpoint as well; it takes more to run it.

    Raises:
        UsageError: a path that is not there, or a preset without a sample or a known place on Kaggle.
        WeightsError: a download failed, or a GGUF file is damaged.
        ModelError: a local folder without a usable configuration or weights.
    """
    found = _resolved(model, weights, on_progress, say, remote_code=remote_code)
    local = kind_of(weights) in LOCAL
    return replace(found, asked=str(Path(weights).expanduser().absolute()) if local else weights)


def _resolved(
    model: Model,
    weights: str,
    on_progress: isolated.Progress | None,
    say: Callable[[str], None] | None,
    *,
    remote_code: bool,
) -> Weights:
    kind, revision = kind_of(weights), None
    if kind in ("tiny", "synthetic"):
        folder, sha256 = _drawn(model, tiny=kind == "tiny", on_progress=on_progress)
        return Weights(kind, kind, folder, sha256, revision)
    if kind == "gguf":
        path = Path(weights).expanduser()
        return _dequantized(model, path, dequantized(path, model.family.name, on_progress), say)
    if kind == "sample":
        return _sampled(model, on_progress, say)
    if kind == "hub":
        from parity.weights.hub import CHECKPOINT, CHECKPOINT_AND_CODE, TOKENIZER, download

        asked, wanted = weights.partition("@")[2], CHECKPOINT_AND_CODE if remote_code else CHECKPOINT
        folder, revision = download(model.preset.repo, asked or model.preset.revision, wanted, on_progress=say)
        if model.preset.tokenizer and not tokenizer_files(folder):
            tokenizer, _ = download(model.preset.tokenizer, "main", TOKENIZER, on_progress=say)
            folder = with_tokenizer(folder, tokenizer)
    elif kind == "kaggle":
        from parity.weights.kaggle import download as download_from_kaggle

        handle = weights.partition("@")[2] or model.preset.kaggle
        if handle is None:
            raise UsageError(f"{model.name} has no known place on Kaggle; use hub, or name one as kaggle@HANDLE")
        folder, revision = download_from_kaggle(handle, on_progress=say)
    else:
        folder = _local(weights)
    label = folder.name if kind == "path" else kind
    folder = completed(folder, model.preset, say)
    model.family.config_from(HFConfig.load(folder))  # refuse what cannot be carried out before anything heavy starts
    return Weights(kind, label, folder, sha256_of(weight_files(folder), unread_sha256), revision)


def _local(weights: str) -> Path:
    """The caller's folder."""
    folder = Path(weights).expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(f"{weights} is not a folder; --weights takes {TAKES}")
    if not (folder / "config.json").is_file() and not any(folder.glob(f"*{STATE_DICT}")):
        if files := sorted(folder.glob(f"*{SUFFIX}")):
            raise UsageError(f"{folder} has no config.json but a GGUF file; name the file: --weights {files[0]}")
        raise UsageError(f"{folder} has no config.json; point --weights to a checkpoint folder in the hub's layout")
    return folder


def _dequantized(model: Model, path: Path, made: Dequantized, say: Callable[[str], None] | None) -> Weights:
    """The weights made from a GGUF file, which is named in what goes wrong and in the report."""
    source = HFConfig.load(made.folder)
    source.source = str(path)
    model.family.config_from(source)
    if say:
        say(f"{path.name} is dequantized to float32 ({made.summary})")
        for note in made.notes:
            say(f"{path.name}: {note}")
    return Weights("gguf", path.stem, made.folder, made.sha256, None, {"path": path.stem, **made.origin(path.name)})


def _sampled(model: Model, on_progress: isolated.Progress | None, say: Callable[[str], None] | None) -> Weights:
    """The preset's sample: the GGUF file in a package, dequantized."""
    from parity.weights.sample import member, sample_of

    sample = sample_of(model)
    if say:
        say(f"{model.name} sample: {sample.origin}; {sample.licence}; in the package {sample.package} {sample.version}")
    made = kept(sample.member_sha256)
    if made is None:
        with member(sample, on_progress) as path:
            made = dequantized(path, model.family.name, on_progress, sample.member_sha256)
    file = Path(sample.member)
    package = {"package": sample.package, "version": sample.version, "licence": sample.licence}
    found = _dequantized(model, file, made, say)
    return replace(found, kind="sample", label="sample", origin={**made.origin(file.name), **package})


def _drawn(model: Model, *, tiny: bool, on_progress: isolated.Progress | None) -> tuple[Path, str]:
    """The folder of a drawn checkpoint and its SHA-256: made on first use, and again whenever it is not as made."""
    kind, values = "tiny" if tiny else "synthetic", model.preset.values(tiny=tiny)
    processor = model.preset.processor_values(tiny=tiny)
    made_from = json.dumps([values, drawing_version(), processor], sort_keys=True).encode()
    name = f"{model.name}-{hashlib.sha256(made_from).hexdigest()[:12]}"
    folder = kept_folder(kind, name)
    if manifest := sealed(folder):
        return folder, manifest["sha256"]
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as temporary:
        job = partial(write_checkpoint, temporary, model, tiny=tiny)
        sha256 = isolated.run(f"drawing {kind} weights", job, on_progress).value
    return folder, sha256


def drawing_version() -> str:
    """Identifies the code that draws and the tokenizer, so that checkpoints made by older ones are made again."""
    with as_file(files("parity") / "assets" / "tiny_tokenizer") as tokenizer:
        return sha256_of([Path(__file__).with_name("draw.py"), *Path(tokenizer).glob("*.json")])[:16]


def write_checkpoint(folder: Path, model: Model, progress: isolated.Progress, *, tiny: bool) -> str:
    """Draw a whole checkpoint into ``folder`` and return the weights' SHA-256.

    It has a config, tokenizer, weights and manifest, and a processor where the published one does.
    """
    from models.authoring.weight_map import original_layout

    values = model.preset.values(tiny=tiny)
    config = model.family.config_from(HFConfig(values, model.name))
    meta = model.family.build(config, device="meta")
    shapes = {name: tuple(t.shape) for name, t in original_layout(meta, model.family.weight_map(config)).items()}
    seed = f"{model.name}/{'tiny' if tiny else 'synthetic'}"
    dtype = str(values["torch_dtype"])
    shards = _shards(plan(shapes, seed, manner_of(config)), itemsize=4 if dtype == "float32" else 2)
    for number, (name, tensors) in enumerate(shards.items()):
        progress(number, len(shards))
        write_safetensors(folder / name, tensors, dtype=dtype, seed=seed)
    if len(shards) > 1:
        index = {drawn.name: name for name, tensors in shards.items() for drawn in tensors}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    if processor := model.preset.processor_values(tiny=tiny):
        (folder / PROCESSOR).write_text(json.dumps(processor, indent=1))
    _copy_tokenizer(folder)
    return seal(folder)


def manner_of(config: ModelConfig) -> Manner:
    """What the drawing must know of a model's arithmetic."""
    match config:
        case DecoderConfig():
            return Manner(
                gain_offset=config.final_norm.gain_offset,
                embedding_scale=config.embedding_scale,
                post_norms=config.blocks[0].post_attention_norm is not None,
            )
        case EncoderDecoderConfig():
            attention = config.cross_attention
            return Manner(head_scale=config.head_scale, score_scale=attention.scale * math.sqrt(attention.head_dim))
        case VisionLanguageConfig():
            return manner_of(config.text)


def _shards(tensors: list[Drawn], itemsize: int) -> dict[str, list[Drawn]]:
    shards: list[list[Drawn]] = [[]]
    filled = 0
    for drawn in tensors:
        size = itemsize * math.prod(drawn.shape)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(drawn)
        filled += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i + 1:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards)}


def _copy_tokenizer(folder: Path) -> None:
    with as_file(files("parity") / "assets" / "tiny_tokenizer") as source:
        found = sorted(Path(source).glob("*.json"))
        if not found:
            raise WeightsError("the tiny tokenizer is missing from the installation; install the project again")
        for path in found:
            shutil.copyfile(path, folder / path.name)
