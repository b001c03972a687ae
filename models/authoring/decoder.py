"""The decoder-only model: embed, block 0..L-1, head, each a stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from models.authoring.config import BlockConfig, DecoderConfig, RopeConfig
from models.authoring.model import Entry, Model, cache_names, empty_cache
from models.authoring.stage import Stage
from models.layers.attention import Attention, soft_cap
from models.layers.mask import causal_mask
from models.layers.mlp import build_mlp
from models.layers.norm import build_norm
from models.layers.rope import RopeTables


class Embed(nn.Module):
    """Token embedding, and what the blocks need to know about positions: rotary tables and masks."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.rope = RopeTables(config.rope)
        self.scale = config.embedding_scale
        self.windows = windows(config)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        rotated: Tensor,
        prefix: Tensor | None = None,
        *,
        cache_length: int,
    ) -> tuple[Tensor, ...]:
        """``tokens`` ``[B, T]``, ``positions`` ``[T]`` -> hidden ``[B, T, D]``, cos and sin ``[T, R/2]``, masks.

        ``rotated`` are the positions by which heads are rotated: the same, or with sections ``[axes, T]``. ``prefix``
        ``[1]`` is how many positions, from the first on, all see each other.
        """
        hidden = self.tokens(tokens)
        if self.scale != 1.0:
            hidden = hidden * self.scale
        masks = (causal_mask(positions, cache_length, window, prefix) for window in self.windows)
        return hidden, *self.rope(rotated, cache_length=cache_length), *masks


class Block(nn.Module):
    """Pre-norm decoder block: attention, then feed-forward, or both at once, added to the residual stream."""

    def __init__(self, config: BlockConfig, width: int, *, rope: RopeConfig | None = None, fused: bool = False) -> None:
        super().__init__()
        self.attention_norm = build_norm(config.attention_norm, width, fused=fused)
        self.attention = Attention(config.attention, width, rope=rope, fused=fused)
        self.post_attention_norm = build_norm(config.post_attention_norm, width, fused=fused)
        self.mlp_norm = build_norm(config.mlp_norm, width, fused=fused)
        self.mlp = build_mlp(config.mlp, width)
        self.post_mlp_norm = build_norm(config.post_mlp_norm, width, fused=fused)
        self.parallel = config.mlp_norm is None

    def forward(
        self,
        x: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        mask: Tensor,
        positions: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in ``Attention.forward``; returns the new stream and both updated caches."""
        normed = self.attention_norm(x)
        attended, k_cache, v_cache = self.attention(normed, cos, sin, mask, positions, k_cache, v_cache)
        attended = self.post_attention_norm(attended)
        if self.parallel:
            return x + attended + self.post_mlp_norm(self.mlp(normed)), k_cache, v_cache
        x = x + attended
        return x + self.post_mlp_norm(self.mlp(self.mlp_norm(x))), k_cache, v_cache


class Head(nn.Module):
    """Final norm and projection to logits ``[B, T, V]``."""

    def __init__(self, config: DecoderConfig, embedding: nn.Embedding, *, fused: bool = False) -> None:
        super().__init__()
        self.norm = build_norm(config.final_norm, config.width, fused=fused)
        self.projection = nn.Linear(config.width, config.vocab_size, bias=config.head_bias)
        self.softcap = config.final_softcap
        if config.tied_head:
            self.projection.weight = embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.projection(self.norm(x))
        return logits if self.softcap is None else soft_cap(logits, self.softcap)


class DecoderOnlyModel(Model):
    """A causal language model: ``prefill`` and ``decode``, which differ only in how many tokens they take.

    ``fused`` marks attention and RMSNorm for the converter's kernels; the numbers in PyTorch are the same.
    """

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, *, fused: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embed = Embed(config)
        self.blocks = nn.ModuleList(
            Block(block, config.width, rope=config.rope, fused=fused) for block in config.blocks
        )
        self.head = Head(config, self.embed.tokens, fused=fused)

    def stages(self, cache_length: int, *, prefix: bool = False) -> list[Stage]:
        """The model in order, for a cache of ``cache_length`` slots; with a ``prefix`` it takes ``prefix_length``."""
        tables = ("rope_cos", "rope_sin")
        rotated = "input_pos" if self.config.rope.sections is None else "rope_pos"
        stages = [
            Stage(
                name="embed",
                run=partial(self.embed, cache_length=cache_length),
                inputs=("tokens", "input_pos", rotated, *(("prefix_length",) if prefix else ())),
                outputs=("hidden", *tables, *map(mask_name, windows(self.config))),
            )
        ]
        for i, (block, config) in enumerate(zip(self.blocks, self.config.blocks, strict=True)):
            cache = cache_names(i)
            stages.append(
                Stage(
                    name=f"block_{i}",
                    run=block,
                    inputs=("hidden", *tables, mask_name(config.attention.window), "input_pos", *cache),
                    outputs=("hidden", *cache),
                )
            )
        stages.append(Stage(name="head", run=self.head, inputs=("hidden",), outputs=("logits",)))
        return stages

    def entry(self, name: str, cache_length: int, *, logits: bool = True) -> Entry:  # noqa: ARG002  (both are the same)
        return self.entry_of(self.stages(cache_length), logits=logits)

    def entry_of(self, stages: Sequence[Stage], *, logits: bool) -> Entry:
        """An entry point of these stages, the head among them left out without ``logits``."""
        outputs = [cache for layer in range(len(self.blocks)) for cache in cache_names(layer)]
        return Entry(stages, ["logits", *outputs]) if logits else Entry(stages[:-1], outputs)

    def forward(
        self, tokens: Tensor, input_pos: Tensor, cache: dict[str, Tensor], *, logits: bool = True
    ) -> dict[str, Tensor]:
        """Run the tokens at their positions; prefill and decode differ only in how many there are.

        Args:
            tokens: int ``[B, T]``.
            input_pos: int ``[T]``, consecutive.
            cache: ``kv_cache_k_{i}`` and ``kv_cache_v_{i}``, each ``[B, S, K, H]``.
            logits: ``False`` leaves the head out (a prefill that only fills the cache).

        Returns:
            ``logits`` ``[B, T, V]`` at every position, unless left out, and the updated cache.
        """
        entry = self.entry("prefill", cache["kv_cache_k_0"].shape[1], logits=logits)
        return entry({"tokens": tokens, "input_pos": input_pos, **cache})

    def empty_cache(self, cache_length: int, batch: int = 1) -> dict[str, Tensor]:
        return empty_cache([block.attention for block in self.config.blocks], cache_length, batch)


def windows(config: DecoderConfig) -> tuple[int | None, ...]:
    """The distinct attention windows of a model, in order of appearance; ``None`` sees everything before."""
    return tuple(dict.fromkeys(block.attention.window for block in config.blocks))


def mask_name(window: int | None) -> str:
    """The name of the mask for a window."""
    return "mask" if window is None else f"mask_{window}"
