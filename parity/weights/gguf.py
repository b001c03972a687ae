"""GGUF files as ordinary checkpoint folders: dequantized to float32 once, and kept in the user's cache.

transformers knows what a GGUF file's metadata, tensors and tokenizer are in the published layout, and the ``gguf``
package what its numbers are; both are asked, and what comes out is what the hub would have of a float32 model. That is
elementwise arithmetic with one result on every machine, so the folder's hash, and with it every recording's identity,
is that of the GGUF file and of the versions that read it.

What transformers leaves out would be another model without a word. Rotary scaling, which GGUF keeps as tensors of
factors, is put back; whatever else in the file may change the maths and did not reach the configuration is refused by
name, as in any ``config.json``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import registry
from models.authoring.checkpoint import INDEX, SINGLE
from models.authoring.config import DecoderConfig
from models.authoring.family import Family
from models.authoring.hf_config import HFConfig
from models.errors import ModelError, UnknownModelError
from parity import isolated
from parity.errors import ParityError, UsageError, WeightsError
from parity.files import content_sha256, sha256_of, whole_folder
from parity.weights.kept import kept_folder, seal, sealed

if TYPE_CHECKING:
    import numpy as np
    from gguf import ReaderTensor

SUFFIX = ".gguf"
MAGIC = b"GGUF"
#: Bytes of weights in one shard, all of which are in memory while it is filled.
SHARD_BYTES = 1_000_000_000
#: What decides the bits that come out, besides the file.
_CONVERTERS = ("gguf", "numpy", "safetensors", "tokenizers", "transformers")
_PUBLISHED = "point --weights to a folder of the published checkpoint"
#: Llama 3's factors, of whole frequencies; and LongRoPE's, of short and of long sessions.
_FACTORS = ("rope_freqs.weight",)
_LONG_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
#: Tokens that begin and end a text and fill a batch.
_MARKS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
#: Metadata of an architecture that changes nothing in inference; of some, only while it has this value.
_WITHOUT_EFFECT: Mapping[str, Any] = {
    "vocab_size": ...,  # the rows of the token table, which are held against the configuration
    "tensor_data_layout": ...,
    "rope.scaling.finetuned": ...,
    "rope.scaling.type": "none",
    "attention.causal": True,
    "use_parallel_residual": False,
    "expert_count": 0,
    "expert_used_count": 0,
}


@dataclass(frozen=True)
class Dequantized:
    """A checkpoint folder made from a GGUF file; ``sha256`` is of its weights.

    ``quantization`` counts the file's tensors by type, as in ``{"Q4_1": 210, "F32": 61}``. ``notes`` are for a person.
    """

    folder: Path
    sha256: str
    file_sha256: str
    quantization: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        """``210 Q4_1, 61 F32``."""
        return ", ".join(f"{count} {kind}" for kind, count in self.quantization.items())

    def origin(self, file: str) -> dict[str, Any]:
        """What a report says of such weights; ``file`` is the name of the GGUF file."""
        return {
            "dequantized_from": file,
            "dequantized_from_sha256": self.file_sha256,
            "quantization": dict(self.quantization),
        }


def kept(file_sha256: str) -> Dequantized | None:
    """What was made from the file with this hash, if it is in the cache and as it was made."""
    folder = _folder(file_sha256)
    manifest = sealed(folder)
    if manifest is None:
        return None
    return Dequantized(folder, manifest["sha256"], file_sha256, manifest["quantization"], tuple(manifest["notes"]))


def dequantized(
    path: Path, family: str, on_progress: isolated.Progress | None = None, file_sha256: str | None = None
) -> Dequantized:
    """The checkpoint folder of a GGUF file: from the cache, or made by reading it as one of ``family``.

    ``file_sha256`` is given where it is known already.

    Raises:
        UsageError: no such file, or a folder.
        UnknownModelError, ConfigError: it is of another family, or holds what the family cannot carry out.
        WeightsError: it is damaged, or a tensor or the tokenizer cannot be read.
        ParityError: the cache cannot be written.
    """
    import shutil

    file_sha256 = file_sha256 or _sha256_of_gguf(path)
    if found := kept(file_sha256):
        return found
    folder = _folder(file_sha256)
    shutil.rmtree(folder, ignore_errors=True)
    with whole_folder(folder) as temporary:
        isolated.run(f"dequantizing {path.name}", partial(_write, path.absolute(), family, temporary), on_progress)
    made = kept(file_sha256)
    if made is None:
        raise WeightsError(f"{folder} is not as it was made; check the disk, and try again")
    return made


def _sha256_of_gguf(path: Path) -> str:
    """The hash of a file that looks like GGUF as far as its first bytes tell."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a GGUF file; name the file in it")
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
        if magic == MAGIC:
            return content_sha256(path)
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; --weights takes a GGUF file that is") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); make it readable") from None
    raise WeightsError(f"{path} is not a GGUF file, it does not begin as one; fetch it again")


def _folder(file_sha256: str) -> Path:
    """Where the checkpoint made from a file is kept: the name is of the file and of all that converts it."""
    versions = [version(package) for package in _CONVERTERS]
    made_from = json.dumps([file_sha256, versions, sha256_of([Path(__file__)])])
    return kept_folder("gguf", hashlib.sha256(made_from.encode()).hexdigest()[:16])


def _write(path: Path, family_name: str, folder: Path, progress: isolated.Progress) -> None:
    """Make the checkpoint folder of a GGUF file, and seal it."""
    from gguf import GGUFReader

    progress(0, 1)
    with _damaged(path):
        metadata = _metadata(path)
        reader = GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _configuration(path, metadata, tensors, registry.family(family_name))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(_generation(metadata, config), indent=1))
    notes = _write_tokenizer(path, metadata, folder)
    _write_weights(path, config, tensors, folder, progress)
    counts = Counter(tensor.tensor_type.name for tensor in tensors.values())
    seal(folder, quantization=dict(counts.most_common()), notes=notes)


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Whatever a reader stumbles over is damage to the file."""
    try:
        yield
    except (ModelError, ParityError):
        raise
    except MemoryError:
        raise WeightsError(f"{path} asks for more memory than there is; it may be damaged, fetch it again") from None
    except Exception as error:  # damaged bytes can raise anything
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise WeightsError(
            f"{path} is truncated, damaged or no GGUF that is known ({reason}); fetch it again"
        ) from error


def _metadata(path: Path) -> dict[str, Any]:
    """All keys and values; of long lists of texts only the lengths.

    The library's newer reader is asked first: its older one, and that of ``gguf``, go on forever in damaged headers.
    """
    from transformers.integrations.gguf import read_gguf_metadata

    metadata: dict[str, Any] = read_gguf_metadata(str(path))[0]
    if (parts := metadata.get("split.count", 1)) > 1:
        raise UsageError(
            f"{path} is one of {parts} parts of a model; merge them into one file (llama-gguf-split --merge)"
        )
    return metadata


def _configuration(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, ReaderTensor], family: Family
) -> dict[str, Any]:
    """A ``config.json`` as the hub would have it, which the family has read.

    Raises:
        UnknownModelError, ConfigError: of another family, or not all of the file would be carried out.
    """
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.integrations import GGUF_CONFIG_MAPPING

    architecture = metadata["general.architecture"]
    if architecture not in GGUF_CONFIG_MAPPING:
        raise UnknownModelError(
            f"{path} is of architecture {architecture!r}, which transformers does not read from GGUF; {_PUBLISHED}"
        )
    with _damaged(path):
        read = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).to_dict()
        # What a configuration of any model has is the library's bookkeeping, and so is what begins with a stroke.
        bookkeeping = PreTrainedConfig().to_dict().keys() - {"model_type"}
        values = {key: value for key, value in read.items() if key not in bookkeeping and key[0] != "_"}
        values["torch_dtype"] = "float32"
        # Those that the file does not name are nobody's: the library would take another model's.
        values |= {name: metadata.get(key) for name, key in _MARKS.items()}
        restored = _restored(path, values, metadata, tensors, family)
    config = family.config_from(HFConfig(values, str(path)))
    if not isinstance(config, DecoderConfig):
        raise UnknownModelError(f"{path} is of architecture {architecture!r}, of which no GGUF is read; {_PUBLISHED}")
    known = {key for key, name in GGUF_CONFIG_MAPPING[architecture].items() if name not in (None, -1)}
    for key, value in metadata.items():
        prefix, _, name = key.partition(".")
        if prefix == architecture and name not in known | restored and not _carried_out(name, value, config):
            raise WeightsError(
                f"{path}: {key} = {value!r} may change the maths, and transformers does not read it so; {_PUBLISHED}"
            )
    return values


def _carried_out(name: str, value: Any, config: DecoderConfig) -> bool:
    """Whether what the metadata says is in the configuration already, or has no effect."""
    attention = config.blocks[0].attention
    windows = {block.attention.window for block in config.blocks}
    said: dict[str, Any] = {
        "rope.dimension_count": config.rope.rotary_dim,
        "rope.freq_base": config.rope.theta,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": config.final_softcap,
    }
    if name == "attention.sliding_window":
        return value in windows or value == 0 or (windows == {None} and value >= config.max_positions)
    if name in said:
        return bool(value == said[name])
    return name in _WITHOUT_EFFECT and _WITHOUT_EFFECT[name] in (..., value)


def _restored(
    path: Path,
    values: dict[str, Any],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, ReaderTensor],
    family: Family,
) -> set[str]:
    """Put what the file says of rotary positions and windows into ``values``, where transformers leaves it out.

    The names of the metadata that is accounted for.
    """
    architecture = metadata["general.architecture"]
    told = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    done: set[str] = set()
    if values["model_type"] == "phi3":
        head_dim = values["hidden_size"] // values["num_attention_heads"]
        rope = values["rope_parameters"]
        rope["partial_rotary_factor"] = told.get("rope.dimension_count", head_dim) / head_dim
        values["sliding_window"] = told.get("attention.sliding_window") or None
        if set(_LONG_FACTORS) <= tensors.keys():
            original = told["rope.scaling.original_context_length"]
            short, long = (_values(tensors[name]).tolist() for name in _LONG_FACTORS)
            rope |= {"rope_type": "longrope", "short_factor": short, "long_factor": long}
            rope["original_max_position_embeddings"] = values["original_max_position_embeddings"] = original
            ratio = values["max_position_embeddings"] / original
            implied = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
            done.add("rope.scaling.original_context_length")
            if math.isclose(told.get("rope.scaling.attn_factor", implied), implied, rel_tol=1e-6):
                done.add("rope.scaling.attn_factor")
    if _FACTORS[0] in tensors:
        values["rope_parameters"] = _llama3(path, values, _values(tensors[_FACTORS[0]]), family)
        done |= {"rope.scaling.original_context_length"}
    return done


def _llama3(path: Path, values: Mapping[str, Any], factors: np.ndarray, family: Family) -> dict[str, Any]:
    """The scaling whose factors these are: a published one, at whatever strength.

    Raises:
        WeightsError: there is none.
    """
    import numpy as np

    rope: dict[str, Any] = values["rope_parameters"]
    pairs = (values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]) // 2
    if factors.shape == (pairs,) and (factors == 1).all():
        return rope
    published = (preset.config.get("rope_scaling") or {} for preset in family.presets)
    for scaling in (found for found in published if found.get("rope_type") == "llama3"):
        tried = {**rope, **scaling, "factor": float(factors.max())}
        frequencies = rope["rope_theta"] ** -(np.arange(pairs) / pairs)
        turns = frequencies * tried["original_max_position_embeddings"] / math.tau
        low, high = tried["low_freq_factor"], tried["high_freq_factor"]
        whole = np.clip((turns - low) / (high - low), 0, 1)
        made = 1 / ((1 - whole) / tried["factor"] + whole)
        if factors.shape == made.shape and np.allclose(factors, made, rtol=1e-5, atol=0):
            return tried
    raise WeightsError(f"{path}: {_FACTORS[0]} holds the factors of no rotary scaling that is known; {_PUBLISHED}")


def _generation(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``generation_config.json``: the tokens that begin a text and that end it, or a turn."""
    ends = [config.get("eos_token_id"), metadata.get("tokenizer.ggml.eot_token_id")]
    named = list(dict.fromkeys(token for token in ends if token is not None))
    tokens = {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": named if len(named) > 1 else (named or [None])[0],
    }
    return {name: token for name, token in tokens.items() if token is not None}


def _write_tokenizer(path: Path, metadata: Mapping[str, Any], folder: Path) -> list[str]:
    """Save the tokenizer as transformers rebuilds it; what a person should know of it."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    rule = metadata.get("tokenizer.ggml.pre")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        if rule == "smollm":
            # As published: every digit by itself, then GPT-2's rule.
            splits = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence(splits)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # a tokenizer that is not what it says it is can raise anything
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise WeightsError(f"the tokenizer in {path} cannot be rebuilt ({reason}); {_PUBLISHED}") from error
    known = metadata.get("tokenizer.ggml.model") != "gpt2" or rule in (None, "default", "gpt-2", "smollm")
    if known or rule in GGUF_PRE_TOKENIZER_SPLITS:
        return []
    return [
        f"its tokenizer splits text by the rule {rule!r}, which transformers takes for GPT-2's; ids may differ a little"
    ]


def _write_weights(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, ReaderTensor],
    folder: Path,
    progress: isolated.Progress,
) -> None:
    """Dequantize every tensor and write it under its published name, shard by shard."""
    from safetensors.numpy import save_file

    expected, names, processor = _published_names(path, config)
    aside = [name for name in tensors if name in (*_FACTORS, *_LONG_FACTORS)]  # in the configuration, see _restored
    if unknown := sorted(tensors.keys() - names.keys() - set(aside)):
        raise WeightsError(
            f"{path} holds {unknown[0]}, of which transformers makes nothing in a {config['model_type']}; {_PUBLISHED}"
        )
    if missing := sorted(expected.keys() - {names[name] for name in tensors.keys() & names.keys()}):
        raise WeightsError(f"{path} lacks {missing[0]}; fetch it again, or {_PUBLISHED}")
    shards = _shards([name for name in tensors if name not in aside], tensors)
    index: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        made: dict[str, np.ndarray] = {}
        for name in shard:
            progress(done, len(tensors))
            done += 1
            made[names[name]] = _dequantize(path, tensors[name], processor, expected[names[name]])
        save_file(made, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(made, file)
    if len(shards) > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))


def _published_names(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, str], Any]:
    """The published tensors with their shapes, the names of GGUF for them, and what undoes GGUF's layout."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    with _damaged(path), torch.device("meta"):
        kind = AutoConfig.for_model(**config)
        model = AutoModelForCausalLM.from_config(kind)
        processor = TENSOR_PROCESSORS.get(config["model_type"], TensorProcessor)(config=dict(config))
        names: dict[str, str] = get_gguf_hf_weights_map(model, processor)
        tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    return shapes, {ours: theirs for ours, theirs in names.items() if theirs in shapes}, processor


def _shards(names: list[str], tensors: Mapping[str, ReaderTensor]) -> list[list[str]]:
    """The tensors in the file's order, as many at a time as make a shard."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in names:
        size = 4 * int(tensors[name].n_elements)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _values(tensor: ReaderTensor) -> np.ndarray:
    """A tensor of the file as float32. Raises ``NotImplementedError`` for a type that cannot be dequantized."""
    import numpy as np
    from gguf import dequantize

    return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)


def _dequantize(path: Path, tensor: ReaderTensor, processor: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor in the published layout.

    Raises:
        WeightsError: its type cannot be dequantized, or its values are not those of such a tensor.
    """
    import numpy as np

    where = f"{path}: {tensor.name}"
    try:
        values = _values(tensor)
    except NotImplementedError:
        raise WeightsError(
            f"{where} is stored as {tensor.tensor_type.name}, which cannot be dequantized; take another file"
        ) from None
    with _damaged(path):
        values = np.ascontiguousarray(processor.process(weights=values, name=tensor.name).weights)
    if values.shape != shape:
        raise WeightsError(f"{where} is of shape {values.shape}, the model has {shape}; fetch the file again")
    if not np.isfinite(values).all():
        raise WeightsError(f"{where} holds values that are not finite; fetch the file again")
    return values
