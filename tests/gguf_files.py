"""Small GGUF files, written as llama.cpp's converter would."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

from models.authoring.checkpoint import Checkpoint

F32 = GGMLQuantizationType.F32
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, LAYERS = 4, 2, 16, 96, 2
WIDTH = HEADS * HEAD_DIM
CONTEXT = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def bytes_as_text() -> list[str]:
    """The letters that byte-level vocabularies spell bytes with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    spelled = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    return [spelled[byte] for byte in range(256)]


TOKENS = [*SPECIAL, *bytes_as_text(), "th", "Ġth", "he"]
MERGES = ["t h", "Ġ th", "h e"]

Arrays = dict[str, np.ndarray]


@dataclass
class Made:
    """What goes into a GGUF file; ``metadata`` is of the architecture, ``kinds`` says how some tensors are stored."""

    architecture: str = "llama"
    tensors: Arrays = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    general: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, GGMLQuantizationType] = field(default_factory=dict)
    raw: dict[str, tuple[np.ndarray, GGMLQuantizationType]] = field(default_factory=dict)
    tokenizer: str | None = "gpt2"
    pre: str = "default"

    def stored(self) -> Arrays:
        """The tensors as they are in the file, dequantized."""
        return {name: self._round(name, value) for name, value in self.tensors.items()}

    def _round(self, name: str, value: np.ndarray) -> np.ndarray:
        kind = self.kinds.get(name, F32)
        return np.asarray(quants.dequantize(quants.quantize(value, kind), kind), dtype=np.float32)

    def write(self, path: Path) -> Path:
        writer = GGUFWriter(path, self.architecture)
        for name, value in self.metadata.items():
            _add(writer, f"{self.architecture}.{name}", value)
        for name, value in self.general.items():
            _add(writer, name, value)
        if self.tokenizer:
            writer.add_tokenizer_model(self.tokenizer)
            writer.add_tokenizer_pre(self.pre)
            writer.add_token_list(TOKENS)
            writer.add_token_types(
                [TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(TOKENS) - len(SPECIAL))
            )
            writer.add_token_merges(MERGES)
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(2)
            writer.add_add_bos_token(False)
        for name, value in self.tensors.items():
            kind = self.kinds.get(name, F32)
            writer.add_tensor(name, quants.quantize(value, kind), raw_dtype=kind)
        for name, (content, kind) in self.raw.items():
            writer.add_tensor(name, content, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    adders: Mapping[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)


def decoder(architecture: str = "llama", *, biases: bool = False, tied: bool = True, fused: bool = False) -> Made:
    """Metadata and drawn tensors of a small decoder; norms are those of Llama."""
    draw = np.random.default_rng(18)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (draw.standard_normal((rows, columns)) / 8).astype(np.float32)

    def gains() -> np.ndarray:
        return (1 + draw.standard_normal(WIDTH) / 8).astype(np.float32)

    kv = KV_HEADS * HEAD_DIM
    tensors = {"token_embd.weight": matrix(len(TOKENS), WIDTH), "output_norm.weight": gains()}
    if not tied:
        tensors["output.weight"] = matrix(len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        attention = {"attn_qkv": WIDTH + 2 * kv} if fused else {"attn_q": WIDTH, "attn_k": kv, "attn_v": kv}
        mlp = {"ffn_up": 2 * HIDDEN} if fused else {"ffn_gate": HIDDEN, "ffn_up": HIDDEN}
        for name, rows in {**attention, "attn_output": WIDTH, **mlp}.items():
            tensors[f"{at}.{name}.weight"] = matrix(rows, WIDTH)
        tensors[f"{at}.ffn_down.weight"] = matrix(WIDTH, HIDDEN)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"{at}.{name}.weight"] = gains()
        if biases:
            for name, rows in attention.items():
                tensors[f"{at}.{name}.bias"] = matrix(1, rows)[0]
    metadata = {
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": HEAD_DIM,
    }
    return Made(architecture, tensors, metadata)


def gemma2() -> Made:
    """A small Gemma 2: norms after the blocks as well, soft-caps and windows in the metadata."""
    made = decoder("gemma2")
    for layer in range(LAYERS):
        for name in ("post_attention_norm", "post_ffw_norm"):
            made.tensors[f"blk.{layer}.{name}.weight"] = made.tensors[f"blk.{layer}.attn_norm.weight"][::-1].copy()
    made.metadata |= {
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.sliding_window": 8,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    return made


def published(folder: Path) -> Arrays:
    """The tensors of a checkpoint folder."""
    with Checkpoint(folder) as checkpoint:
        return {name: tensor.numpy().copy() for name, tensor in checkpoint.items()}
