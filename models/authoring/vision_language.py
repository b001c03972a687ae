"""The vision-language model: a tower that makes rows of pictures, a decoder-only model in whose prompts they stand.

A picture is encoded by a call of its own, and ``prefill_pixel`` takes all the rows there are, with for each token the
row that stands in its place. So the tower is compared on its own and runs once however often the text around a picture
is tried; a prompt may hold any number of pictures anywhere; and the token table stays inside the file, where a prefill
over embeddings would need a copy of it on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.authoring.config import SiglipConfig, VisionLanguageConfig, WindowedVisionConfig
from models.authoring.decoder import DecoderOnlyModel
from models.authoring.model import Entry, Model
from models.authoring.session import grid_of
from models.authoring.siglip import SiglipTower
from models.authoring.stage import Stage
from models.authoring.windowed_vision import WindowedTower


class VisionLanguageModel(Model):
    """``encode`` for a picture; ``prefill_pixel`` for a prompt with pictures, ``prefill`` for one without; ``decode``.

    A tower for pictures of any grid has an ``encode_{down}x{across}`` for each. Beside the names that all models share:
    ``pixel_values`` float, one picture, ``[1, C, height, width]`` or for a grid ``[patches, values]``;
    ``image_rows`` int ``[T]``, which row of ``encoded`` stands in the place of each token, -1 for the token itself;
    and, where prompts see themselves in both directions, ``prefix_length`` int ``[1]``, the tokens of the prompt. Such
    a prompt cannot be cut: a token in a first piece would not see those in a second.
    """

    config: VisionLanguageConfig

    def __init__(self, config: VisionLanguageConfig, *, fused: bool = False) -> None:
        super().__init__()
        self.config = config
        self.vision = _tower(config.vision, fused=fused)
        self.text = DecoderOnlyModel(config.text, fused=fused)

    def entry(self, name: str, cache_length: int, *, logits: bool = True) -> Entry:
        if (grid := grid_of(name)) is not None:
            return Entry(self.vision.stages(*grid), ["encoded"])
        # Only a prompt lies within the prefix: a token that comes after it is causal without being told.
        prefix = self.config.bidirectional_prefix and name != "decode"
        embed, *rest = self.text.stages(cache_length, prefix=prefix)
        stages = [embed, PLACE, *rest] if name == "prefill_pixel" else [embed, *rest]
        return self.text.entry_of(stages, logits=logits)

    def empty_cache(self, cache_length: int, batch: int = 1) -> dict[str, Tensor]:
        return self.text.empty_cache(cache_length, batch)


def _tower(config: SiglipConfig | WindowedVisionConfig, *, fused: bool) -> SiglipTower | WindowedTower:
    match config:
        case SiglipConfig():
            return SiglipTower(config, fused=fused)
        case WindowedVisionConfig():
            return WindowedTower(config, fused=fused)


def place_rows(hidden: Tensor, encoded: Tensor, rows: Tensor) -> Tensor:
    """``hidden`` ``[B, T, D]`` with row ``rows[t]`` of ``encoded`` ``[B, N, D]`` at ``t``, where that is not negative.

    Rows of pictures are taken as they are: the scale of embedded tokens is not theirs.
    """
    placed = encoded[:, rows.clamp(min=0)]
    return torch.where((rows >= 0)[None, :, None], placed, hidden)


PLACE = Stage(name="place", run=place_rows, inputs=("hidden", "encoded", "image_rows"), outputs=("hidden",))
