"""The encoder-decoder model: an encoder that is run once a source, a decoder that reads it through cross-attention."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from models.authoring.config import BlockConfig, EncoderDecoderConfig, RopeConfig, StackConfig
from models.authoring.model import Entry, Model, cache_names, cross_names, empty_cache
from models.authoring.stage import Stage
from models.layers.attention import Attention
from models.layers.audio import AudioStem
from models.layers.mask import causal_mask, padding_mask
from models.layers.mlp import build_mlp
from models.layers.norm import build_norm
from models.layers.relative_bias import RelativeBias
from models.layers.rope import RopeTables


class Positions(nn.Module):
    """What a stack's blocks need to know about positions: rotary tables, and a mask that carries the relative bias."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.rope = RopeTables(config.rope) if config.rope else None
        self.bias = RelativeBias(config.relative_bias) if config.relative_bias else None

    def forward(self, positions: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """``positions`` ``[T]``, ``mask`` ``[1, 1, T, S]`` -> the mask, and cos and sin ``[T, R/2]`` where rotated."""
        if self.bias is not None:
            mask = mask + self.bias(positions, mask.shape[-1])
        return (mask,) if self.rope is None else (mask, *self.rope(positions))


class EncoderBlock(nn.Module):
    """Pre-norm block in which every position sees every other."""

    def __init__(self, config: BlockConfig, width: int, *, rope: RopeConfig | None = None, fused: bool = False) -> None:
        super().__init__()
        self.attention_norm = build_norm(config.attention_norm, width, fused=fused)
        self.attention = Attention(config.attention, width, rope=rope, fused=fused)
        self.mlp_norm = build_norm(config.mlp_norm, width, fused=fused)
        self.mlp = build_mlp(config.mlp, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cos: Tensor | None = None, sin: Tensor | None = None
    ) -> Tensor:
        """``x`` ``[B, T, D]``, ``mask`` ``[1, 1, T, T]`` or what broadcasts to it, if any, tables ``[T, R/2]``."""
        x = x + self.attention.within(self.attention_norm(x), cos, sin, mask)
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result


class DecoderBlock(nn.Module):
    """Pre-norm block: causal self-attention, attention to the encoder's keys and values, feed-forward."""

    def __init__(self, config: BlockConfig, model: EncoderDecoderConfig, *, fused: bool = False) -> None:
        super().__init__()
        width = model.width
        self.attention_norm = build_norm(config.attention_norm, width, fused=fused)
        self.attention = Attention(config.attention, width, rope=model.decoder.rope, fused=fused)
        self.cross_norm = build_norm(model.cross_norm, width, fused=fused)
        self.cross_attention = Attention(model.cross_attention, width, fused=fused)
        self.mlp_norm = build_norm(config.mlp_norm, width, fused=fused)
        self.mlp = build_mlp(config.mlp, width)

    def forward(
        self,
        x: Tensor,
        cross_mask: Tensor,
        positions: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        cross_k: Tensor,
        cross_v: Tensor,
        mask: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in ``Attention``; returns the new stream and both updated caches."""
        normed = self.attention_norm(x)
        attended, k_cache, v_cache = self.attention(normed, cos, sin, mask, positions, k_cache, v_cache)
        x = x + attended
        x = x + self.cross_attention.across(self.cross_norm(x), None, None, cross_mask, cross_k, cross_v)
        return x + self.mlp(self.mlp_norm(x)), k_cache, v_cache


class Stack(nn.Module):
    """Blocks, what they know of positions, and the norm after the last of them."""

    def __init__(self, config: StackConfig, blocks: list[nn.Module], width: int, *, fused: bool = False) -> None:
        super().__init__()
        self.positions = Positions(config)
        self.blocks = nn.ModuleList(blocks)
        self.norm = build_norm(config.final_norm, width, fused=fused)
        self.tables = ("rope_cos", "rope_sin") if config.rope else ()


class TokenStem(nn.Module):
    """A source of tokens, by the decoder's own table."""

    inputs = ("source_tokens",)

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.tokens = embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, D]``."""
        embedded: Tensor = self.tokens(tokens)
        return embedded


class EncoderDecoderModel(Model):
    """``encode`` reads a source once; ``decode`` takes one token.

    Beside the names that all models share: ``encoder_rows`` int ``[1]``, how many rows of ``encoded`` are real, the
    rest being padding that nothing sees; ``cross_k_{i}`` and ``cross_v_{i}`` ``[B, rows, K, H]``, which ``encode``
    gives and ``decode`` takes.
    """

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig, *, fused: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.stem = AudioStem(config.stem, width) if config.stem else TokenStem(self.tokens)
        rope = config.encoder.rope
        encoder: list[nn.Module] = [
            EncoderBlock(block, width, rope=rope, fused=fused) for block in config.encoder.blocks
        ]
        decoder: list[nn.Module] = [DecoderBlock(block, config, fused=fused) for block in config.decoder.blocks]
        self.encoder = Stack(config.encoder, encoder, width, fused=fused)
        self.decoder = Stack(config.decoder, decoder, width, fused=fused)
        self.projection = nn.Linear(width, config.vocab_size, bias=False)
        if config.tied_head:
            self.projection.weight = self.tokens.weight

    def entry(self, name: str, cache_length: int, *, logits: bool = True) -> Entry:  # noqa: ARG002  (decode has them)
        layers = range(len(self.decoder.blocks))
        if name == "encode":
            return Entry(self._encode(), ["encoded", *(cross for i in layers for cross in cross_names(i))])
        return Entry(self._decode(cache_length), ["logits", *(cache for i in layers for cache in cache_names(i))])

    def empty_cache(self, cache_length: int, batch: int = 1) -> dict[str, Tensor]:
        return empty_cache([block.attention for block in self.config.decoder.blocks], cache_length, batch)

    def _encode(self) -> list[Stage]:
        tables, blocks = self.encoder.tables, self.encoder.blocks
        known = Stage(
            name="positions", run=self._source_positions, inputs=("hidden", "encoder_rows"), outputs=("mask", *tables)
        )
        stem = Stage(name="stem", run=self.stem, inputs=self.stem.inputs, outputs=("hidden",))
        layers = [
            Stage(name=f"encoder_{i}", run=block, inputs=("hidden", "mask", *tables), outputs=("hidden",))
            for i, block in enumerate(blocks)
        ]
        norm = Stage(name="encoder_norm", run=self.encoder.norm, inputs=("hidden",), outputs=("encoded",))
        cross = [
            Stage(
                name=f"cross_{i}",
                run=block.cross_attention.keys_and_values,  # type: ignore[union-attr, arg-type]
                inputs=("encoded",),
                outputs=cross_names(i),
            )
            for i, block in enumerate(self.decoder.blocks)
        ]
        return [stem, known, *layers, norm, *cross]

    def _source_positions(self, hidden: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        length = hidden.shape[1]
        known: tuple[Tensor, ...] = self.encoder.positions(torch.arange(length), padding_mask(rows, length))
        return known

    def _decode(self, cache_length: int) -> list[Stage]:
        tables = self.decoder.tables
        embed = Stage(
            name="embed",
            run=partial(self._embed, cache_length=cache_length),
            inputs=("tokens", "input_pos", "encoder_rows", "cross_k_0"),
            outputs=("hidden", "cross_mask", "mask", *tables),
        )
        layers = [
            Stage(
                name=f"decoder_{i}",
                run=block,
                inputs=("hidden", "cross_mask", "input_pos", *cache_names(i), *cross_names(i), "mask", *tables),
                outputs=("hidden", *cache_names(i)),
            )
            for i, block in enumerate(self.decoder.blocks)
        ]
        return [embed, *layers, Stage(name="head", run=self._head, inputs=("hidden",), outputs=("logits",))]

    def _embed(
        self, tokens: Tensor, positions: Tensor, rows: Tensor, cross_k: Tensor, *, cache_length: int
    ) -> tuple[Tensor, ...]:
        """The cross keys tell only how many rows there are, padding included."""
        known = self.decoder.positions(positions, causal_mask(positions, cache_length))
        return self.tokens(tokens), padding_mask(rows, cross_k.shape[1]), *known

    def _head(self, hidden: Tensor) -> Tensor:
        normed = self.decoder.norm(hidden)
        logits: Tensor = self.projection(normed if self.config.head_scale == 1.0 else normed * self.config.head_scale)
        return logits
