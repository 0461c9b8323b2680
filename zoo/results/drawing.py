"""What the records' pictures share: colours that can be told apart, and text that can be read at any image size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageFont

__all__ = ["Colour", "canvas", "colour", "fitted", "font", "ink"]

Colour = tuple[int, int, int]

COLOURS = 256


def colour(index: int) -> Colour:
    """The colour of class ``index``: the same whatever the number of classes; they repeat after 256."""
    return _palette()[index % COLOURS]


@lru_cache(maxsize=1)
def _palette() -> tuple[Colour, ...]:
    """Each colour is the one farthest from all before it in OKLab (https://bottosson.github.io/posts/oklab/), among
    those that are neither near black, white nor grey."""
    steps = np.arange(0, 256, 17)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(rgb)
    strong = (lab[:, 0] > 0.4) & (lab[:, 0] < 0.9) & (np.hypot(lab[:, 1], lab[:, 2]) > 0.08)
    rgb, lab = rgb[strong], lab[strong]
    picked = [int(np.abs(rgb - (221, 51, 51)).sum(axis=1).argmin())]
    nearest = np.linalg.norm(lab - lab[picked[0]], axis=1)
    while len(picked) < COLOURS:
        picked.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[picked[-1]], axis=1))
    return tuple((int(r), int(g), int(b)) for r, g, b in rgb[picked])


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """(M, 3) sRGB 0..255 to (M, 3) OKLab, in which distance is difference as eyes see it."""
    share = rgb / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    mixed = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.asarray(np.cbrt(linear @ cones.T) @ mixed.T)


def canvas(image: Image.Image) -> Image.Image:
    """A copy of ``image`` in RGB, enlarged by a whole factor where it is too small to write on."""
    picture = image.convert("RGB")
    factor = min(-(-256 // min(picture.size)), max(1, 4096 // max(picture.size)))
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture if picture is not image else picture.copy()


def font(picture: Image.Image) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font whose letters can be read when the whole picture is looked at."""
    return ImageFont.load_default(size=max(14, round((picture.width * picture.height) ** 0.5 / 36)))


def ink(paper: Colour) -> str:
    """Black or white: the one with more contrast on ``paper`` (WCAG's, with its gamma rounded to 2.2)."""
    red, green, blue = ((v / 255) ** 2.2 for v in paper)
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"


def fitted(text: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width`` pixels."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""
