"""Pictures of a prompt as its original takes them, and their places among its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.authoring.config import SiglipConfig, VisionLanguageConfig, WindowedVisionConfig
from models.authoring.session import Tensors, image_lengths
from parity.errors import PromptError
from parity.media.pictures import open_picture

#: Where in a prompt's text a picture stands.
MARKER = "<image>"


class ImageReader:
    """The image processor in a checkpoint folder."""

    def __init__(self, folder: Path, config: VisionLanguageConfig) -> None:
        from transformers import AutoImageProcessor

        self.folder = folder
        self.config = config
        try:
            # Pillow's resampling is exact integer arithmetic, the same on every machine.
            self.processor = AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = " ".join(str(error).split())[:200]
            raise PromptError(
                f"the image processor in {folder} cannot be loaded ({said}); copy the original's "
                "preprocessor_config.json into it"
            ) from None

    def read(self, who: str, names: Sequence[str], beside: Path) -> Tensors:
        """The pictures of a prompt by the original's names; paths are relative to ``beside``.

        Raises:
            PromptError: a picture cannot be read, or the processor makes it of another size than the model takes.
        """
        if not names:
            return {}
        pictures = [open_picture(name, beside) for name in names]
        try:
            made = self.processor(images=pictures, return_tensors="np")
        except ValueError as error:
            said = " ".join(str(error).split())[:200]
            raise PromptError(
                f"the image processor refuses the pictures of prompt {who} ({said}); choose others"
            ) from None
        media = {name: np.asarray(value) for name, value in made.items()}
        misfits = _misfits(self.config.vision, self.processor, media)
        if misfits:
            raise PromptError(
                f"the image processor in {self.folder} makes {misfits}; preprocessor_config.json belongs to another "
                "model"
            )
        return media


def _misfits(vision: SiglipConfig | WindowedVisionConfig, processor: Any, media: Tensors) -> str:
    """What of a processor and of what it made the tower does not take; empty where it takes all."""
    match vision:
        case SiglipConfig():
            have, wanted = media["pixel_values"].shape[1:], (vision.channels, vision.image_size, vision.image_size)
            return "" if have == wanted else f"pictures of {list(have)}, the model takes {list(wanted)}"
        case WindowedVisionConfig():
            if "image_grid_thw" not in media:
                return "whole pictures, the model takes patches and their grid"
            sizes = {"patch_size": vision.patch_size, "merge_size": vision.merge, "temporal_patch_size": vision.time}
            for name, size in sizes.items():
                if getattr(processor, name, None) != size:
                    return f"patches with {name} {getattr(processor, name, None)}, the model takes {size}"
            for time, down, across in media["image_grid_thw"].tolist():
                if time != 1 or down % vision.merge or across % vision.merge:
                    squares = f"squares of {vision.merge} by {vision.merge}"
                    return f"a grid of {time} x {down} x {across} patches, the model takes {squares} of a still picture"
            return ""


def with_images(who: str, text: str, tokenizer: Any, config: VisionLanguageConfig, media: Tensors) -> list[int]:
    """Token ids of a text in which every marker is a picture.

    What the tokenizer puts before a text comes once, before the first words: after the pictures that are in front of
    them.

    Raises:
        PromptError: markers without pictures, pictures without markers, or an image token that is neither.
    """
    first, *others = text.split(MARKER)
    lengths = image_lengths(config, media) if media else []
    if len(others) != len(lengths):
        raise PromptError(
            f"prompt {who} has {len(lengths)} images and {len(others)} times {MARKER} in its text; give one for each"
        )
    ids: list[int] = []
    begun = False
    for number, piece in enumerate([first, *others]):
        if number:
            ids += [*config.image_start, *[config.image_token] * lengths[number - 1], *config.image_end]
        if piece or (number == len(others) and not begun):
            words = tokenizer(piece, add_special_tokens=not begun).input_ids
            if config.image_token in words:
                raise PromptError(f"prompt {who} has an image token in its text; write {MARKER} and name an image")
            if config.video_token in words:
                raise PromptError(f"prompt {who} has a video token in its text; only still pictures are supported")
            ids += words
            begun = True
    return ids
