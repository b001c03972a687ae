"""Typed descriptions of a model. Fields decide behaviour; a model's name never does.

Plain dataclasses, no torch: reading a configuration costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """``kind`` ``rms`` (gain only) or ``layer`` (mean removed, gain and, unless switched off, ``bias``).

    ``gain_offset`` is added to the stored gain: 1 where a checkpoint stores ``gain - 1``.
    """

    kind: Literal["rms", "layer"]
    eps: float
    gain_offset: float = 0.0
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's frequency scaling. Context lengths in tokens, factors dimensionless."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE: frequencies divided by a factor each, one set up to ``original_max_positions`` and one beyond.

    ``attention_factor`` multiplies cosines and sines in both regimes.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding over the first ``rotary_dim`` channels of a head.

    Channel ``k`` is rotated together with channel ``k + rotary_dim / 2``, or, ``interleaved``, with its neighbour. With
    ``sections`` a token has a position on each of as many axes: the first so many pairs of channels turn with its
    position on the first axis, the next so many with that on the second, and so on.
    """

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scaling: Llama3Scaling | LongRopeScaling | None = None
    sections: tuple[int, ...] | None = None

    @property
    def boundary(self) -> int | None:
        """Positions up to which a session has other frequencies than beyond, if there is such a boundary."""
        return self.scaling.original_max_positions if isinstance(self.scaling, LongRopeScaling) else None


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention: ``num_heads`` query heads share ``num_kv_heads`` key/value heads block-wise.

    ``softcap`` bounds the scores by ``cap * tanh(score / cap)`` before the mask is added. With a ``window`` of ``W``,
    the position ``p`` sees ``p - W + 1 .. p``. ``qk_norm`` normalizes each head of q and k before rotation, which
    ``rotary`` switches off.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    softcap: float | None = None
    window: int | None = None
    qk_norm: NormConfig | None = None
    rotary: bool = True

    @property
    def fused_rows(self) -> tuple[int, int, int]:
        """Rows of q, k and v in a checkpoint that stores them as one tensor."""
        kv_rows = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv_rows, kv_rows


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Feed-forward block of width ``hidden``; ``gated`` multiplies the activated half by a linear half."""

    hidden: int
    activation: Activation
    gated: bool
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One pre-norm decoder block.

    Without an ``mlp_norm`` the block is parallel: attention and feed-forward read the same normalized stream and are
    added to it together. The ``post`` norms, where given, are applied to what a sub-block adds.
    """

    attention_norm: NormConfig
    attention: AttentionConfig
    mlp_norm: NormConfig | None
    mlp: MLPConfig
    post_attention_norm: NormConfig | None = None
    post_mlp_norm: NormConfig | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only model: embedding, ``blocks`` in order, final norm, head.

    ``embedding_scale`` multiplies the embedded tokens; ``final_softcap`` bounds the logits.
    """

    vocab_size: int
    width: int
    max_positions: int
    rope: RopeConfig
    blocks: tuple[BlockConfig, ...]
    final_norm: NormConfig
    tied_head: bool
    head_bias: bool = False
    embedding_scale: float = 1.0
    final_softcap: float | None = None

    @property
    def boundary(self) -> int | None:
        """Positions up to which a session has other frequencies than beyond, if there is such a boundary."""
        return self.rope.boundary


@dataclass(frozen=True, kw_only=True)
class RelativeBiasConfig:
    """A learned bias per head and distance, distances gathered in ``buckets`` that grow up to ``max_distance``.

    ``bidirectional`` has buckets of its own for keys to the right of the query.
    """

    num_heads: int
    buckets: int
    max_distance: int
    bidirectional: bool


@dataclass(frozen=True, kw_only=True)
class AudioStemConfig:
    """Three convolutions without padding that turn samples into rows, ``kernels`` and ``strides`` in order.

    After the first of them everything is normalized together, with ``norm_eps``.
    """

    kernels: tuple[int, int, int]
    strides: tuple[int, int, int]
    norm_eps: float

    def rows(self, samples: int) -> int:
        """How many rows so many samples make; none if they are too few."""
        count = samples
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            count = max(0, (count - kernel) // stride + 1)
        return count

    @property
    def shortest(self) -> int:
        """The fewest samples that make a row."""
        count = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            count = (count - 1) * stride + kernel
        return count


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Blocks in order and a final norm, over positions that are rotated, biased, or neither."""

    blocks: tuple[BlockConfig, ...]
    final_norm: NormConfig
    rope: RopeConfig | None = None
    relative_bias: RelativeBiasConfig | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """An encoder over the whole source, and a decoder whose layers read it through ``cross_attention``.

    The source is audio for the ``stem``, without one it is tokens of the decoder's own table. Every session of the
    decoder begins with ``decoder_start``. ``head_scale`` multiplies what the head projects.
    """

    vocab_size: int
    width: int
    max_positions: int
    decoder_start: int
    encoder: StackConfig
    decoder: StackConfig
    cross_norm: NormConfig
    cross_attention: AttentionConfig
    tied_head: bool
    stem: AudioStemConfig | None = None
    head_scale: float = 1.0

    @property
    def boundary(self) -> None:
        """No frequencies that depend on the length of a session."""
        return


@dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """SigLIP's tower: a square picture in square patches, a learned position for each, blocks that see everything.

    Sizes in pixels. A projector makes ``projected`` channels of the tower's ``width``.
    """

    image_size: int
    patch_size: int
    channels: int
    width: int
    stack: StackConfig
    projected: int

    @property
    def rows(self) -> int:
        """Patches of a picture, which is how many rows it becomes."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class WindowedVisionConfig:
    """A tower for pictures of any grid of patches, which it gets flat: ``time`` slots of a square of ``channels``.

    Patches are rotated by their row and by their column, each with all frequencies of ``rope``. They see the patches of
    their window, a square of ``window`` by ``window`` of the rows that the tower makes; in ``whole_blocks`` they see
    all. In the end squares of ``merge`` by ``merge`` patches, which come one after the other, are normalized and become
    one row of ``projected`` channels each, through ``merger``.
    """

    patch_size: int
    channels: int
    time: int
    merge: int
    window: int
    whole_blocks: tuple[int, ...]
    width: int
    rope: RopeConfig
    blocks: tuple[BlockConfig, ...]
    norm: NormConfig
    merger: MLPConfig
    projected: int

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.time * self.patch_size**2

    def rows(self, grid: tuple[int, int]) -> tuple[int, int]:
        """What a picture of ``grid``, patches down and across, becomes: rows down and across."""
        return grid[0] // self.merge, grid[1] // self.merge


@dataclass(frozen=True, kw_only=True)
class VisionLanguageConfig:
    """A decoder-only model in whose prompts pictures may stand, each as a run of rows that the tower made.

    In the token ids a picture is ``image_start``, then ``image_token`` once for each of its rows, then ``image_end``.
    Nothing can stand in the place of a ``video_token``. With a ``bidirectional_prefix`` the tokens of a prompt all see
    each other; what is generated is causal.
    """

    text: DecoderConfig
    vision: SiglipConfig | WindowedVisionConfig
    image_token: int
    image_start: tuple[int, ...] = ()
    image_end: tuple[int, ...] = ()
    video_token: int | None = None
    bidirectional_prefix: bool = False

    @property
    def vocab_size(self) -> int:
        """Of the text model."""
        return self.text.vocab_size

    @property
    def max_positions(self) -> int:
        """Of the text model; rows of pictures take positions like tokens."""
        return self.text.max_positions

    @property
    def boundary(self) -> int | None:
        """Of the text model."""
        return self.text.boundary


ModelConfig = DecoderConfig | EncoderDecoderConfig | VisionLanguageConfig
