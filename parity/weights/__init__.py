"""Where a model's weights come from: drawn (``tiny``, ``synthetic``), downloaded (``hub``,
``kaggle``), or a local folder.

Whatever the kind, the rest of the project sees a local checkpoint folder in the hub's layout.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

from models.authoring.checkpoint import INDEX, SINGLE, STATE_DICT, weight_files
from models.authoring.config import DecoderConfig, EncoderDecoderConfig, ModelConfig, VisionLanguageConfig
from models.authoring.hf_config import HFConfig
from models.errors import CheckpointError
from models.registry import Model
from parity import isolated
from parity.errors import UsageError, WeightsError
from parity.files import sha256_of, unread_sha256, whole_folder
from parity.inputs import tokenizer_files
from parity.media.sounds import PROCESSOR
from parity.weights.draw import Drawn, Manner, plan, write_safetensors
from parity.weights.published import completed, with_tokenizer

KINDS = ("tiny", "synthetic", "hub", "kaggle", "path")
#: Bytes of weights in one shard of a synthetic checkpoint.
SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Weights:
    """A local checkpoint folder and what identifies it.

    ``label`` is short and stable (the kind, or the folder's name for a path); ``sha256`` covers the weight files.
    """

    kind: str
    label: str
    folder: Path
    sha256: str
    revision: str | None

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in weight_files(self.folder))


def kind_of(weights: str) -> str:
    """What ``weights`` names: a drawn kind, ``hub[@REVISION]``, ``kaggle[@HANDLE]``, else a ``path``."""
    kind = weights.partition("@")[0] if weights.startswith(("hub@", "kaggle@")) else weights
    return kind if kind in KINDS else "path"


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
        UsageError: a path that is not a folder, or a preset that Kaggle is not known to have.
        WeightsError: a drawn checkpoint differs from its committed hash, or a download failed.
        ModelError: a local folder without a usable configuration or weights.
    """
    kind, revision = kind_of(weights), None
    if kind in ("tiny", "synthetic"):
        folder, sha256 = _drawn(model, tiny=kind == "tiny", on_progress=on_progress)
        return Weights(kind, kind, folder, sha256, revision)
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
        folder = Path(weights).expanduser().resolve()
        if not folder.is_dir():
            raise UsageError(f"{weights} is not a folder; --weights takes tiny, synthetic, hub, kaggle, or a folder")
        if not (folder / "config.json").is_file() and not any(folder.glob(f"*{STATE_DICT}")):
            raise UsageError(f"{folder} has no config.json; point --weights to a checkpoint folder in the hub's layout")
    label = folder.name if kind == "path" else kind
    folder = completed(folder, model.preset, say)
    model.family.config_from(HFConfig.load(folder))  # refuse what cannot be carried out before anything heavy starts
    return Weights(kind, label, folder, sha256_of(weight_files(folder), unread_sha256), revision)


def _drawn(model: Model, *, tiny: bool, on_progress: isolated.Progress | None) -> tuple[Path, str]:
    """The folder of a drawn checkpoint and its SHA-256: made on first use, and again whenever it is not as made."""
    import platformdirs

    kind, values = "tiny" if tiny else "synthetic", model.preset.values(tiny=tiny)
    processor = model.preset.processor_values(tiny=tiny)
    made_from = json.dumps([values, drawing_version(), processor], sort_keys=True).encode()
    # The name says what it is made from, so that two versions of this project do not undo each other's.
    name = f"{model.name}-{hashlib.sha256(made_from).hexdigest()[:12]}"
    folder = platformdirs.user_cache_path("parity", appauthor=False) / "weights" / kind / name
    if sha256 := _intact(folder):
        return folder, sha256
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as temporary:
        job = partial(write_checkpoint, temporary, model, tiny=tiny)
        sha256 = isolated.run(f"drawing {kind} weights", job, on_progress).value
    return folder, sha256


def _intact(folder: Path) -> str | None:
    """The SHA-256 of a drawn checkpoint's weights if it is there and as it was made."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["companions"] != _companions(folder):
            return None
        sha256 = sha256_of(weight_files(folder), unread_sha256)
        return sha256 if sha256 == manifest["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CheckpointError):
        return None


def drawing_version() -> str:
    """Identifies the code that draws and the tokenizer, so that checkpoints made by older ones are made again."""
    with as_file(files("parity") / "assets" / "tiny_tokenizer") as tokenizer:
        return sha256_of([Path(__file__).with_name("draw.py"), *Path(tokenizer).glob("*.json")])[:16]


def _companions(folder: Path) -> str:
    """SHA-256 of what lies beside the weights: config, index and tokenizer."""
    return sha256_of(path for path in folder.glob("*.json") if path.name != "manifest.json")


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
    sha256 = sha256_of(weight_files(folder))
    (folder / "manifest.json").write_text(json.dumps({"companions": _companions(folder), "sha256": sha256}))
    return sha256


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
