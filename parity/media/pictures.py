"""Pictures by name, the same on every machine, and pictures from files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parity.errors import PromptError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Modes whose conversion to RGB keeps what a person sees; the others hold numbers without a colour.
COLOURED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def shapes() -> Image:
    """Filled and outlined shapes on a plain ground, 96 x 64."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (96, 64), (240, 236, 220))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((8, 10, 44, 46), fill=(200, 30, 40))
    pen.rectangle((50, 20, 88, 56), fill=(20, 70, 160), outline=(0, 0, 0), width=3)
    pen.polygon([(40, 60), (56, 4), (72, 60)], outline=(10, 120, 40), width=2)
    return picture


def gradient() -> Image:
    """Three ramps in three directions, upright, 40 x 120."""
    down, across = np.mgrid[0:120, 0:40]
    planes = (across * 255 // 39, down * 255 // 119, (across + down) * 255 // 158)
    return _from_array(np.stack(planes, axis=-1))


def sign() -> Image:
    """Words and a number on a board, wide, 160 x 48."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (160, 48), (250, 220, 60))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((2, 2, 157, 45), outline=(30, 30, 30), width=2)
    font = ImageFont.load_default_imagefont()  # the bitmap font, which needs no library to rasterize it
    pen.text((12, 8), "FERRY TO THE ISLAND", fill=(0, 0, 0), font=font)
    pen.text((12, 26), "departs 07:45, pier 3", fill=(120, 0, 0), font=font)
    return picture


def noise() -> Image:
    """Every pixel for itself, 56 x 56."""
    raw = np.random.Philox(key=20).random_raw(56 * 56 * 3)
    return _from_array((raw >> np.uint64(56)).reshape(56, 56, 3))


def rings() -> Image:
    """Concentric rings whose distance shrinks outwards, grey, 75 x 75."""
    down, across = np.mgrid[-37:38, -37:38]
    squared = across**2 + down**2
    return _from_array(np.where(squared // 90 % 2 == 0, 230, 25))


def night() -> Image:
    """Nearly black, with a few lights, 128 x 72."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (128, 72), (4, 5, 12))
    pen = ImageDraw.Draw(picture)
    for i in range(14):
        x, y = (i * 47) % 124, (i * 29) % 68
        pen.rectangle((x, y, x + 2, y + 2), fill=(255, 240 - 9 * i, 120 + 7 * i))
    return picture


def landscape() -> Image:
    """Sky, a sun, hills and a house, 112 x 84."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (112, 84), (130, 190, 240))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((80, 8, 102, 30), fill=(255, 230, 90))
    hills = [(x, 50 - round(10 * math.sin(x / 13))) for x in range(113)]
    pen.polygon([(0, 84), *hills, (112, 84)], fill=(60, 140, 60))
    pen.rectangle((24, 44, 46, 64), fill=(180, 90, 60))
    pen.polygon([(20, 44), (35, 30), (50, 44)], fill=(90, 30, 20))
    return picture


def flag() -> Image:
    """Three stripes and a ring, small, 60 x 36."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (60, 36), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, 59, 11), fill=(0, 90, 60))
    pen.rectangle((0, 24, 59, 35), fill=(190, 20, 50))
    pen.ellipse((34, 8, 54, 28), outline=(20, 20, 120), width=3)
    return picture


def icon() -> Image:
    """A tick on a ground of two colours, as small as a letter, 24 x 24."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (24, 24), (220, 240, 220))
    pen = ImageDraw.Draw(picture)
    pen.polygon([(0, 0), (23, 0), (0, 23)], fill=(120, 160, 210))
    pen.line([(5, 12), (10, 18), (19, 5)], fill=(10, 60, 10), width=3)
    return picture


PICTURES: dict[str, Callable[[], Image]] = {
    made.__name__: made for made in (shapes, gradient, sign, noise, rings, night, landscape, flag, icon)
}


def open_picture(name: str, folder: Path) -> Image:
    """The project's picture of that name, else the file, relative to ``folder``; in RGB.

    Raises:
        PromptError: neither; not a picture, or cut short; or numbers without a colour.
    """
    from PIL import Image

    if name in PICTURES:
        return PICTURES[name]()
    path = folder / name
    try:
        with Image.open(path) as picture:
            picture.load()
    except FileNotFoundError:
        raise PromptError(
            f"no picture is called {name!r} and {path} is no file; there are {', '.join(PICTURES)}"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PromptError(
            f"{path} cannot be read as a picture ({' '.join(str(error).split())[:200]}); save it again as PNG or JPEG"
        ) from None
    if picture.mode not in COLOURED:
        raise PromptError(f"{path} is of mode {picture.mode}, which has no colours; convert it to RGB")
    return picture.convert("RGB")


def _from_array(values: NDArray[np.integer]) -> Image:
    """``[height, width, 3]``, or grey ``[height, width]``, of 0 to 255."""
    from PIL import Image

    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
