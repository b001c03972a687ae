"""Pictures as rows: https://arxiv.org/abs/2010.11929."""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """Pictures in square patches, row by row, each projected to ``width`` channels.

    A convolution whose kernel is as large as its step is a product with one matrix, and stored as one it is quantized
    like every other.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels * patch * patch, width)
        self.patch = patch

    def forward(self, pixels: Tensor) -> Tensor:
        """``[B, C, height, width]`` -> ``[B, patches, D]``; a patch is C planes of pixels, as the matrix has them."""
        batch, channels, height, width = pixels.shape
        down, across = height // self.patch, width // self.patch
        planes = pixels.reshape(batch, channels, down, self.patch, across, self.patch)
        patches = planes.permute(0, 2, 4, 1, 3, 5).reshape(batch, down * across, -1)
        projected: Tensor = self.projection(patches)
        return projected
