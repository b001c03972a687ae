"""SigLIP's vision tower (https://arxiv.org/abs/2303.15343) and the projector after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.authoring.config import SiglipConfig
from models.authoring.encoder_decoder import EncoderBlock, Stack
from models.authoring.stage import Stage
from models.layers.vision import PatchEmbedding


class PictureStem(nn.Module):
    """Embedded patches, and a learned position added to each."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.patches = PatchEmbedding(config.channels, config.patch_size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.rows, config.width))

    def forward(self, pixels: Tensor) -> Tensor:
        """``[B, C, height, width]`` -> ``[B, patches, D]``."""
        embedded: Tensor = self.patches(pixels) + self.positions
        return embedded


class SiglipTower(nn.Module):
    """One picture at a time: patches, blocks in which each sees all, final norm, projector."""

    def __init__(self, config: SiglipConfig, *, fused: bool = False) -> None:
        super().__init__()
        blocks: list[nn.Module] = [EncoderBlock(block, config.width, fused=fused) for block in config.stack.blocks]
        self.stem = PictureStem(config)
        self.stack = Stack(config.stack, blocks, config.width, fused=fused)
        self.projector = nn.Linear(config.width, config.projected)

    def stages(self) -> list[Stage]:
        """``pixel_values`` ``[1, C, height, width]`` to ``encoded`` ``[1, patches, projected]``."""
        layers = [
            Stage(name=f"vision_{i}", run=block, inputs=("hidden",), outputs=("hidden",))
            for i, block in enumerate(self.stack.blocks)
        ]
        return [
            Stage(name="stem", run=self.stem, inputs=("pixel_values",), outputs=("hidden",)),
            *layers,
            Stage(name="vision_norm", run=self.stack.norm, inputs=("hidden",), outputs=("hidden",)),
            Stage(name="projector", run=self.projector, inputs=("hidden",), outputs=("encoded",)),
        ]
