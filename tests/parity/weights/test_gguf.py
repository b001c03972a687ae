"""GGUF files as weights: what comes out is what is in them, in the published layout; what would be lost is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, quants
from gguf_files import (
    CONTEXT,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    SPECIAL,
    TOKENS,
    WIDTH,
    Made,
    decoder,
    gemma2,
    published,
)

from models import registry
from models.authoring.config import DecoderConfig, Llama3Scaling, LongRopeScaling
from models.authoring.end_tokens import end_tokens
from models.authoring.hf_config import HFConfig
from models.errors import ModelError, UnknownModelError
from parity import isolated
from parity.compare.verdict import Verdict
from parity.errors import UsageError, WeightsError
from parity.golden import GoldenStore
from parity.inputs import TOKENIZER_FILES
from parity.pipeline import Request, check
from parity.progress import Reporter
from parity.report.figures import weights_text
from parity.report.notes import remarks
from parity.weights import Weights, gguf, kind_of, local_name, resolve

IN_A_PROCESS = isolated.run
LLAMA, QWEN2, GEMMA, PHI = (registry.get(name) for name in ("llama", "qwen2", "gemma", "phi"))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The user's cache folder, for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parity" / "weights" / "gguf"


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs that ran, which they do in this process."""
    ran: list[str] = []

    def run(name: str, job: Callable[[isolated.Progress], Any], progress: isolated.Progress | None = None) -> None:
        ran.append(name)
        job(progress or (lambda _done, _total: None))

    monkeypatch.setattr(isolated, "run", run)
    return ran


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection as GGUF has those of Llama: the two halves of a head's channels interleaved."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def config_of(weights: Weights, model: registry.Model = LLAMA) -> DecoderConfig:
    config = model.family.config_from(HFConfig.load(weights.folder))
    assert isinstance(config, DecoderConfig)
    return config


def failure(kind: type[Exception], path: Path, model: registry.Model = LLAMA) -> str:
    """The one line that ends it; nothing is left in the cache."""
    with pytest.raises(kind) as caught:
        resolve(model, str(path))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    folder = gguf.kept_folder("gguf")
    assert not folder.exists() or list(folder.iterdir()) == []
    return message


# -- what comes out


def test_names() -> None:
    """A file by its suffix, wherever it is; a report calls it by its name without the suffix."""
    assert kind_of("somewhere/Model.Q4_1.gguf") == kind_of("MODEL.GGUF") == "gguf"
    assert kind_of("gguf") == "gguf"
    assert kind_of("folder") == "path"
    assert local_name("somewhere/Model.Q4_1.gguf") == "Model.Q4_1"
    assert local_name("hub") is None


def test_published_layout(tmp_path: Path) -> None:
    """Every tensor has its published name; queries and keys have their channels back; a tied head is left out."""
    made = decoder()
    query, key = (made.tensors[f"blk.1.attn_{name}.weight"] for name in "qk")
    plain = query.copy(), key.copy()
    query[:], key[:] = permuted(query, HEADS), permuted(key, KV_HEADS)
    weights = resolve(LLAMA, str(made.write(tmp_path / "small.gguf")))
    tensors = published(weights.folder)
    assert len(tensors) == len(made.tensors)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    np.testing.assert_array_equal(tensors["model.layers.1.self_attn.q_proj.weight"], plain[0])
    np.testing.assert_array_equal(tensors["model.layers.1.self_attn.k_proj.weight"], plain[1])
    np.testing.assert_array_equal(tensors["model.layers.0.mlp.down_proj.weight"], made.tensors["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], made.tensors["token_embd.weight"])
    assert (weights.kind, weights.label, weights.revision) == ("gguf", "small", None)
    LLAMA.family.load(weights.folder)


@pytest.mark.parametrize(
    "kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1], ids=lambda kind: kind.name
)
def test_quantized_values(tmp_path: Path, kind: Kind) -> None:
    """They are what the ``gguf`` package says they are, and what transformers makes of them, bit for bit."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    made = decoder(tied=False)
    made.kinds = {name: kind for name, value in made.tensors.items() if value.ndim == 2}
    path = made.write(tmp_path / "small.gguf")
    weights = resolve(LLAMA, str(path))
    tensors = published(weights.folder)
    stored = made.stored()
    np.testing.assert_array_equal(tensors["lm_head.weight"], stored["output.weight"])
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.up_proj.weight"], stored["blk.1.ffn_up.weight"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(weights.folder))
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    assert tensors.keys() == theirs.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, theirs[name].float().numpy())
    assert weights.origin["quantization"] == {kind.name: 7 * LAYERS + 2, "F32": 2 * LAYERS + 1}


def test_configuration(tmp_path: Path) -> None:
    """It says what the file does, as the hub would, and nothing of the library's bookkeeping."""
    made = decoder()
    made.general = {"general.name": "A Small Model", "tokenizer.ggml.eot_token_id": 0}
    weights = resolve(LLAMA, str(made.write(tmp_path / "small.gguf")))
    values = json.loads((weights.folder / "config.json").read_text())
    assert not [key for key in values if key.startswith("_") or "quantization" in key or "transformers" in key]
    assert (values["model_type"], values["torch_dtype"]) == ("llama", "float32")
    assert values["tie_word_embeddings"] is True
    config = config_of(weights)
    attention = config.blocks[0].attention
    assert (config.width, len(config.blocks), config.max_positions) == (WIDTH, LAYERS, CONTEXT)
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
    assert config.vocab_size == len(TOKENS)
    assert (values["bos_token_id"], values["eos_token_id"], values["pad_token_id"]) == (1, 2, None)
    assert end_tokens(weights.folder) == {0, 2}


def test_tokenizer(tmp_path: Path) -> None:
    """It is that of the file: its merges, its marks, its ids."""
    from transformers import AutoTokenizer

    weights = resolve(LLAMA, str(decoder().write(tmp_path / "small.gguf")))
    tokenizer = AutoTokenizer.from_pretrained(weights.folder)
    assert [TOKENS[token] for token in tokenizer("the thé<|im_end|>").input_ids] == [
        "th",
        "e",
        "Ġth",
        "Ã",
        "©",
        "<|im_end|>",
    ]
    assert tokenizer.bos_token_id == SPECIAL.index("<|im_start|>")
    assert tokenizer.decode(tokenizer("déjà vu").input_ids) == "déjà vu"


def test_rule_that_transformers_does_not_know_is_said(tmp_path: Path) -> None:
    """Text that may be split otherwise than by the published tokenizer is not passed over."""
    said: list[str] = []
    made = decoder()
    made.pre = "tekken-of-tomorrow"
    resolve(LLAMA, str(made.write(tmp_path / "small.gguf")), say=said.append)
    assert said[0] == f"small.gguf is dequantized to float32 ({len(made.tensors)} F32)"
    assert "'tekken-of-tomorrow'" in said[1]


def test_smollm_splits_numbers_into_digits(tmp_path: Path) -> None:
    """As the published tokenizer does; transformers takes its rule for GPT-2's, which keeps digits together."""
    from transformers import AutoTokenizer

    said: list[str] = []
    made = decoder()
    made.pre = "smollm"
    folder = resolve(LLAMA, str(made.write(tmp_path / "small.gguf")), say=said.append).folder
    assert len(said) == 1
    splits = AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer
    assert [part for part, _ in splits.pre_tokenize_str("the 1234")] == ["the", "Ġ", "1", "2", "3", "4"]


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model is written in parts; the tensors are the same."""
    path = decoder().write(tmp_path / "small.gguf")
    whole = published(resolve(LLAMA, str(path)).folder)
    monkeypatch.setattr(gguf, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(gguf, "_CONVERTERS", ("gguf",))  # another folder
    folder = resolve(LLAMA, str(path)).folder
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    parts = published(folder)
    assert parts.keys() == whole.keys()
    assert all((parts[name] == whole[name]).all() for name in whole)
    LLAMA.family.load(folder)


def test_same_bytes_wherever_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, configuration and tokenizer files of two makings are equal, whatever the file and folder are called."""
    made = decoder()
    made.kinds = {"token_embd.weight": Kind.Q4_1}
    first = resolve(LLAMA, str(made.write(tmp_path / "one.gguf")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    (tmp_path / "folder").mkdir()
    second = resolve(LLAMA, str(made.write(tmp_path / "folder" / "another.gguf")))
    assert first.folder != second.folder
    assert first.sha256 == second.sha256
    names = {path.name for path in first.folder.iterdir()}
    assert names == {path.name for path in second.folder.iterdir()}
    assert names & set(TOKENIZER_FILES)
    for name in names:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name


def test_made_once(tmp_path: Path, job: list[str]) -> None:
    """The second time the folder is there; if it is not as it was made, it is made again."""
    path = decoder().write(tmp_path / "small.gguf")
    first = resolve(LLAMA, str(path))
    assert job == ["dequantizing small.gguf"]
    assert resolve(LLAMA, str(path)) == first
    assert len(job) == 1
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        intact = (first.folder / name).read_bytes()
        (first.folder / name).write_bytes(intact[:-1])
        assert resolve(LLAMA, str(path)) == first
        assert (first.folder / name).read_bytes() == intact
    assert len(job) == 4


# -- families


def test_qwen2(tmp_path: Path) -> None:
    """Biases of queries, keys and values; no channels to put back."""
    made = decoder("qwen2", biases=True, tied=False)
    weights = resolve(QWEN2, str(made.write(tmp_path / "small.gguf")))
    tensors = published(weights.folder)
    np.testing.assert_array_equal(tensors["model.layers.0.self_attn.q_proj.bias"], made.tensors["blk.0.attn_q.bias"])
    np.testing.assert_array_equal(
        tensors["model.layers.0.self_attn.k_proj.weight"], made.tensors["blk.0.attn_k.weight"]
    )
    assert not config_of(weights, QWEN2).tied_head
    QWEN2.family.load(weights.folder)


def test_gemma2(tmp_path: Path) -> None:
    """Gains lose the one that GGUF adds to them; soft-caps and windows are those of the file."""
    made = gemma2()
    weights = resolve(GEMMA, str(made.write(tmp_path / "small.gguf")))
    tensors = published(weights.folder)
    np.testing.assert_array_equal(tensors["model.norm.weight"], made.tensors["output_norm.weight"] - 1)
    attention = config_of(weights, GEMMA).blocks[0].attention
    assert (attention.softcap, attention.window, attention.head_dim) == (50.0, 8, HEAD_DIM)
    GEMMA.family.load(weights.folder)


def long_factors(made: Made) -> Made:
    """LongRoPE on three quarters of each head, from an original context of a quarter."""
    half = HEAD_DIM * 3 // 4 // 2
    made.tensors["rope_factors_short.weight"] = np.linspace(1, 1.5, half, dtype=np.float32)
    made.tensors["rope_factors_long.weight"] = np.linspace(1, 9, half, dtype=np.float32)
    original = CONTEXT // 4
    made.metadata |= {
        "rope.dimension_count": HEAD_DIM * 3 // 4,
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(original)),
    }
    return made


def test_phi3(tmp_path: Path) -> None:
    """What transformers leaves out is put back: LongRoPE's factors, the part that is rotated, the window."""
    made = long_factors(decoder("phi3", tied=False, fused=True))
    made.metadata["attention.sliding_window"] = 256
    weights = resolve(PHI, str(made.write(tmp_path / "small.gguf")))
    config = config_of(weights, PHI)
    assert config.rope.rotary_dim == HEAD_DIM * 3 // 4
    assert config.blocks[0].attention.window == 256
    assert isinstance(config.rope.scaling, LongRopeScaling)
    assert config.rope.scaling.original_max_positions == CONTEXT // 4
    assert config.rope.scaling.long_factors == tuple(made.tensors["rope_factors_long.weight"].tolist())
    PHI.family.load(weights.folder)


def test_plain_phi3(tmp_path: Path) -> None:
    """Without factors and window it has none."""
    weights = resolve(PHI, str(decoder("phi3", tied=False, fused=True).write(tmp_path / "small.gguf")))
    config = config_of(weights, PHI)
    assert (config.rope.scaling, config.blocks[0].attention.window) == (None, None)


def llama3_factors(factor: float, dtype: type = np.float32) -> np.ndarray:
    """As llama.cpp's converter writes them, for an original context of 8192."""
    factors = []
    for channel in range(0, HEAD_DIM, 2):
        wavelength = 2 * math.pi * 500000.0 ** (channel / HEAD_DIM)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=dtype)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3(tmp_path: Path, factor: float) -> None:
    """The factors that transformers leaves out become the scaling that makes them."""
    made = decoder()
    made.metadata["rope.freq_base"] = 500000.0
    made.tensors["rope_freqs.weight"] = llama3_factors(factor)
    weights = resolve(LLAMA, str(made.write(tmp_path / "small.gguf")))
    assert config_of(weights).rope.scaling == Llama3Scaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )
    assert len(published(weights.folder)) == len(made.tensors) - 1


# -- whole runs


def test_check_of_a_quantized_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original and ours agree on it, and the report says what the weights are."""
    monkeypatch.setattr(isolated, "run", IN_A_PROCESS)
    made = decoder()
    made.kinds = {name: Kind.Q8_0 for name, value in made.tensors.items() if value.ndim == 2}
    path = made.write(tmp_path / "small.Q8_0.gguf")
    request = Request(model=registry.get("smollm2-135m"), weights=str(path), rungs=("reauthored",))
    assert request.name == "llama"
    report = check(request, Reporter(None, quiet=True))  # type: ignore[arg-type]
    assert report.verdict is Verdict.PASS, report.cause
    assert report.weights["kind"] == "gguf"
    assert report.weights["dequantized_from"] == "small.Q8_0.gguf"
    assert report.weights["dequantized_from_sha256"] == gguf.content_sha256(path)
    assert report.weights["quantization"] == {"Q8_0": 7 * LAYERS + 1, "F32": 2 * LAYERS + 1}
    assert weights_text(report).startswith("small.Q8_0 ")
    (said,) = [text for word, text in remarks(report) if word == "weights"]
    assert said.startswith("dequantized to float32 from small.Q8_0.gguf ")
    assert "15 Q8_0, 5 F32" in said


def test_place_of_a_recording(tmp_path: Path) -> None:
    """Under the family and the file's name."""
    weights = resolve(LLAMA, str(decoder().write(tmp_path / "small.gguf")))
    assert GoldenStore(tmp_path).of("llama", weights, "short").name == "llama/small/short"


def test_weights_are_named_as_they_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From whatever folder: a file by its path, and a folder made of a file by its own."""
    decoder().write(tmp_path / "small.gguf")
    monkeypatch.chdir(tmp_path)
    found = resolve(LLAMA, "small.gguf")
    assert found.asked == str(tmp_path / "small.gguf")
    assert resolve(LLAMA, str(found.folder)).asked == str(found.folder)


# -- what is refused


def test_missing_file(tmp_path: Path) -> None:
    """Wrong use, and so is a folder by such a name."""
    assert "is not there" in failure(UsageError, tmp_path / "none.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert "is a folder" in failure(UsageError, tmp_path / "folder.gguf")


def test_folder_with_a_file_in_it(tmp_path: Path) -> None:
    """A folder of GGUF files is no checkpoint; the file is what to name."""
    decoder().write(tmp_path / "small.gguf")
    with pytest.raises(UsageError, match=r"name the file: --weights .*small\.gguf"):
        resolve(LLAMA, str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"GG", b"safetensors", bytes(4096)], ids=["empty", "short", "other", "zeros"])
def test_not_gguf(tmp_path: Path, content: bytes) -> None:
    """Whatever does not begin as one."""
    path = tmp_path / "small.gguf"
    path.write_bytes(content)
    assert "is not a GGUF file" in failure(WeightsError, path)


@pytest.mark.parametrize(
    ("name", "code", "words"), [("damaged.gguf", 3, "is not a GGUF file"), ("none.gguf", 2, "is not there")]
)
def test_exit_codes(tmp_path: Path, name: str, code: int, words: str) -> None:
    """A file that says nothing is inconclusive, one that is not there wrong use; one line either way."""
    (tmp_path / "damaged.gguf").write_bytes(bytes(4096))
    command = [sys.executable, "-m", "parity", "weights", "llama", "--weights", str(tmp_path / name)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout) == (code, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("parity: ")
    assert words in line


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 0.9, 0.9999])
def test_truncated(tmp_path: Path, share: float) -> None:
    """Cut anywhere: in the metadata, in the list of tensors, in their values."""
    path = decoder().write(tmp_path / "small.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "is truncated, damaged or no GGUF" in failure(WeightsError, path)


@pytest.mark.parametrize("at", [4, 8, 16, 24, 60])
def test_overwritten_header(tmp_path: Path, at: int) -> None:
    """Absurd counts and lengths end it as well, and at once."""
    path = decoder().write(tmp_path / "small.gguf")
    content = bytearray(path.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert "fetch it again" in failure(WeightsError, path)


def test_zeros_in_the_middle(tmp_path: Path) -> None:
    """A header that was never written."""
    path = decoder().write(tmp_path / "small.gguf")
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 4))
    failure(WeightsError, path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    """No model has them."""
    made = decoder()
    made.tensors["blk.0.ffn_up.weight"][3, 3] = np.nan
    assert "blk.0.ffn_up.weight holds values that are not finite" in failure(
        WeightsError, made.write(tmp_path / "x.gguf")
    )


def test_part_of_a_model(tmp_path: Path) -> None:
    """One of several files is no model by itself."""
    made = decoder()
    made.general["split.count"] = 3
    assert "is one of 3 parts" in failure(UsageError, made.write(tmp_path / "x.gguf"))


@pytest.mark.parametrize("architecture", ["gemma", "clip", "whatever"])
def test_unknown_architecture(tmp_path: Path, architecture: str) -> None:
    """One that transformers does not read."""
    path = decoder(architecture).write(tmp_path / "x.gguf")
    assert f"is of architecture {architecture!r}" in failure(UnknownModelError, path)


def test_architecture_without_a_family_or_of_another(tmp_path: Path) -> None:
    """It is named like any other checkpoint of another family, whether it is made or kept."""
    path = decoder("qwen2", biases=True).write(tmp_path / "x.gguf")
    expected = f"{path} is of model_type 'qwen2', llama reads 'llama'; name the family that fits"
    assert failure(UnknownModelError, path) == expected
    resolve(QWEN2, str(path))
    with pytest.raises(UnknownModelError) as caught:
        resolve(LLAMA, str(path))
    assert str(caught.value) == expected


def test_tokenizer_that_cannot_be_rebuilt(tmp_path: Path) -> None:
    """Of a kind that is unknown, or missing."""
    made = decoder()
    made.tokenizer = "rwkv"
    assert "the tokenizer in" in failure(WeightsError, made.write(tmp_path / "x.gguf"))
    made.tokenizer = None
    made.metadata["vocab_size"] = len(TOKENS)
    assert "the tokenizer in" in failure(WeightsError, made.write(tmp_path / "y.gguf"))


def test_type_that_cannot_be_dequantized(tmp_path: Path) -> None:
    """It is named with the tensor."""
    made = decoder()
    blocks = np.zeros((HEADS * HEAD_DIM, WIDTH // 32 * 40), dtype=np.uint8)
    del made.tensors["blk.0.attn_output.weight"]
    made.raw["blk.0.attn_output.weight"] = (blocks, Kind.Q8_1)
    message = failure(WeightsError, made.write(tmp_path / "x.gguf"))
    assert "blk.0.attn_output.weight is stored as Q8_1, which cannot be dequantized" in message


def change(made: Made, *, add: dict[str, Any] | None = None, tensor: str = "", drop: str = "") -> Made:
    made.metadata |= add or {}
    if tensor:
        made.tensors[tensor] = np.ones(WIDTH, dtype=np.float32)
    made.tensors.pop(drop, None)
    return made


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            partial(change, add={"rope.scaling.type": "linear"}),
            "llama.rope.scaling.type = 'linear' may change the maths",
        ),
        (partial(change, add={"attention.key_length": 32}), "llama.attention.key_length = 32 may change"),
        (partial(change, add={"attention.sliding_window": 64}), "llama.attention.sliding_window = 64 may change"),
        (partial(change, add={"logit_scale": 0.5}), "llama.logit_scale = 0.5 may change"),
        (partial(change, add={"expert_count": 8}), "llama.expert_count = 8 may change"),
        (
            partial(change, tensor="blk.0.attn_q_norm.weight"),
            "holds blk.0.attn_q_norm.weight, of which transformers makes",
        ),
        (partial(change, tensor="rope_freqs.weight"), "rope_freqs.weight holds the factors of no rotary scaling"),
        (partial(change, drop="output_norm.weight"), "lacks model.norm.weight"),
        (
            partial(change, tensor="blk.0.ffn_up.weight"),
            "blk.0.ffn_up.weight is of shape (64,), the model has (96, 64)",
        ),
    ],
)
def test_what_would_be_lost(tmp_path: Path, changed: Callable[[Made], Made], words: str) -> None:
    """Whatever may change the maths and is not carried out, or does not fit."""
    assert words in failure(WeightsError, changed(decoder()).write(tmp_path / "x.gguf"))


def test_factors_of_nothing(tmp_path: Path) -> None:
    """Factors of one leave the frequencies as they are."""
    made = decoder()
    made.tensors["rope_freqs.weight"] = np.ones(HEAD_DIM // 2, dtype=np.float32)
    assert config_of(resolve(LLAMA, str(made.write(tmp_path / "x.gguf")))).rope.scaling is None


def test_what_has_no_effect(tmp_path: Path) -> None:
    """Metadata that says what is so anyway."""
    made = change(decoder(), add={"attention.key_length": HEAD_DIM, "rope.scaling.type": "none", "expert_count": 0})
    made.metadata["attention.sliding_window"] = CONTEXT
    resolve(LLAMA, str(made.write(tmp_path / "x.gguf")))


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and nothing half-written."""
    import safetensors.numpy

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    path = decoder().write(tmp_path / "x.gguf")
    with pytest.raises(Exception, match="make room") as caught:
        resolve(LLAMA, str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert list(gguf.kept_folder("gguf").iterdir()) == []


def test_reader_sees_what_was_written(tmp_path: Path) -> None:
    """The files of these tests are GGUF as the package reads it."""
    made = decoder()
    made.kinds = {"token_embd.weight": Kind.Q4_1}
    reader = GGUFReader(made.write(tmp_path / "x.gguf"))
    (found,) = [tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"]
    np.testing.assert_array_equal(quants.dequantize(found.data, found.tensor_type), made.stored()["token_embd.weight"])
    assert not issubclass(WeightsError, ModelError)
