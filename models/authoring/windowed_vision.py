"""A vision tower whose blocks look through windows, for pictures of any grid (https://arxiv.org/abs/2502.13923).

Everything that depends on the grid is constant: an entry point is of one grid. The stream is kept window by window from
the first block to the last, windows that the frame cuts off filled up, so that attention inside of windows is one
product over a batch of them, and its cost grows with the number of patches, not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from models.authoring.config import RopeConfig, WindowedVisionConfig
from models.authoring.encoder_decoder import EncoderBlock
from models.authoring.stage import Stage
from models.layers.mask import BLOCKED
from models.layers.mlp import ACTIVATIONS
from models.layers.norm import build_norm
from models.layers.rope import inverse_frequencies
from models.layers.vision import cells, windows


@dataclass(frozen=True)
class Frame:
    """What blocks must know of a grid whose patches lie in ``W`` windows of ``S`` slots.

    ``patches`` int ``[W * S]``, the patch in each slot (the first one where there is none); ``slots`` int ``[rows]``,
    which square of slots each row of the result is made of; ``cos`` and ``sin`` ``[W, S, H/2]``; ``mask``
    ``[W, 1, 1, S]`` blocks the slots without a patch, if there are any.
    """

    patches: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, config: WindowedVisionConfig, grid: tuple[int, int]) -> Frame:
        """The frame of a picture of ``grid``, patches down and across."""
        square = config.merge**2
        seen = windows(*config.rows(grid), config.window)
        patches = (seen[..., None] * square + torch.arange(square)).flatten(1)
        real = patches >= 0
        patches = patches.clamp(min=0)
        angles = axial_angles(config.rope, cells(*grid, config.merge)[patches])
        order = seen.flatten()
        slots = torch.argsort(torch.where(order < 0, order.numel(), order))[: int((order >= 0).sum())]
        return cls(
            patches=patches.flatten(),
            slots=slots,
            cos=angles.cos().to(torch.get_default_dtype()),
            sin=angles.sin().to(torch.get_default_dtype()),
            mask=None if bool(real.all()) else torch.where(real, 0.0, BLOCKED)[:, None, None],
        )


def axial_angles(rope: RopeConfig, places: Tensor) -> Tensor:
    """Angles for ``places`` ``[..., axes]``: all frequencies by the first axis, then all by the next, float64."""
    return (places[..., None] * inverse_frequencies(rope)).flatten(-2)


class Merger(nn.Module):
    """Squares of patches, put end to end, through two matrices: one row for each."""

    def __init__(self, config: WindowedVisionConfig, *, fused: bool = False) -> None:
        super().__init__()
        joined = config.width * config.merge**2
        self.norm = build_norm(config.norm, config.width, fused=fused)
        self.up_proj = nn.Linear(joined, config.merger.hidden, bias=config.merger.bias)
        self.down_proj = nn.Linear(config.merger.hidden, config.projected, bias=config.merger.bias)
        self.activation = ACTIVATIONS[config.merger.activation]

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        """``x`` ``[W, S, D]``, of whose squares each row is made -> ``[1, rows, projected]``."""
        joined = self.norm(x).reshape(-1, self.up_proj.in_features)[slots]
        merged: Tensor = self.down_proj(self.activation(self.up_proj(joined)))
        return merged[None]


class WindowedTower(nn.Module):
    """One picture at a time, as flat patches: projection, blocks in windows or over the whole, merger."""

    def __init__(self, config: WindowedVisionConfig, *, fused: bool = False) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Linear(config.patch_values, config.width, bias=False)
        self.blocks = nn.ModuleList(EncoderBlock(block, config.width, fused=fused) for block in config.blocks)
        self.merger = Merger(config, fused=fused)

    def stages(self, down: int, across: int) -> list[Stage]:
        """``pixel_values`` ``[patches, values]`` of a grid to ``encoded`` ``[1, rows, projected]``."""
        frame = Frame.of(self.config, (down, across))
        known = ("rope_cos", "rope_sin") if frame.mask is None else ("rope_cos", "rope_sin", "mask")
        layers = [
            Stage(
                name=f"vision_{i}",
                run=partial(over_all if i in self.config.whole_blocks else in_windows, block),  # type: ignore[arg-type]
                inputs=("hidden", *known),
                outputs=("hidden",),
            )
            for i, block in enumerate(self.blocks)
        ]
        return [
            Stage(
                name="stem",
                run=partial(in_frame, self.patches, frame),
                inputs=("pixel_values",),
                outputs=("hidden", *known),
            ),
            *layers,
            Stage(name="merger", run=partial(self.merger, slots=frame.slots), inputs=("hidden",), outputs=("encoded",)),
        ]


def in_frame(projection: nn.Linear, frame: Frame, pixels: Tensor) -> tuple[Tensor, ...]:
    """Embedded patches in their windows ``[W, S, D]``, and what blocks know of the frame."""
    hidden = projection(pixels)[frame.patches].view(*frame.cos.shape[:2], -1)
    return hidden, frame.cos, frame.sin, *(() if frame.mask is None else (frame.mask,))


def in_windows(block: EncoderBlock, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
    """``x`` ``[W, S, D]``, tables ``[W, S, H/2]``, mask ``[W, 1, 1, S]``: each window is a sequence of its own."""
    seen: Tensor = block(x, mask, cos, sin)
    return seen


def over_all(block: EncoderBlock, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same shapes; all windows together are one sequence."""
    mask = None if mask is None else mask.reshape(1, 1, 1, -1)
    seen: Tensor = block(x.flatten(0, 1)[None], mask, cos.flatten(0, 1), sin.flatten(0, 1))
    return seen.view(x.shape)
