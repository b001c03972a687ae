"""Pictures as rows: https://arxiv.org/abs/2010.11929."""

from __future__ import annotations

import torch
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


def windows(rows: int, columns: int, side: int) -> Tensor:
    """A frame of ``rows`` by ``columns`` cells, numbered row by row, cut into squares of ``side``: int ``[W, cells]``.

    Squares come row by row, and so do the cells in each; where the frame ends within a square, -1 stands for what is
    missing. A side longer than the frame's is the frame's.
    """
    high, wide = min(side, rows), min(side, columns)
    frame = torch.full((-(-rows // high) * high, -(-columns // wide) * wide), -1)
    frame[:rows, :columns] = torch.arange(rows * columns).view(rows, columns)
    squares = frame.view(-1, high, frame.shape[1] // wide, wide).transpose(1, 2)
    return squares.reshape(-1, high * wide)


def cells(rows: int, columns: int, side: int) -> Tensor:
    """Row and column of each cell of a frame that is numbered square after square of ``side``: int ``[cells, 2]``.

    The squares fill the frame, else there is no such numbering.
    """
    order = windows(rows, columns, side).flatten()
    return torch.stack([order // columns, order % columns], dim=-1)
