"""An image that a network made."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..errors import OutputError

__all__ = ["ImageResult"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageResult:
    """One image, and which part of the input image it was made of."""

    pixels: np.ndarray
    """(H, W, C) uint8: grey (C = 1) or RGB (C = 3)."""
    box: tuple[int, int, int, int] | None = None
    """Left, top, right, bottom of that part in the pixels of the upright original; None: it was made of no image."""

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])

    def image(self) -> Image.Image:
        """As a Pillow image of mode L or RGB."""
        return Image.fromarray(self.pixels[:, :, 0] if self.pixels.shape[2] == 1 else self.pixels)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: size, channels, and the sha256 of the pixels."""
        return {
            "width": self.width,
            "height": self.height,
            "channels": int(self.pixels.shape[2]),
            "sha256": hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes()).hexdigest(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the image in the format of the file's suffix. Raises OutputError."""
        try:
            self.image().save(path)
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(f"{os.fspath(path)}: cannot be written: {error}") from None

    def draw(self, image: Image.Image) -> Image.Image:
        """Before and after, side by side at the result's height: the part of ``image`` that it was made of on the left."""
        before = image.convert("RGB") if self.box is None else image.convert("RGB").crop(self.box)
        width = max(1, round(before.width * self.height / before.height))
        sheet = Image.new("RGB", (width + self.width, self.height))
        sheet.paste(before.resize((width, self.height), Image.Resampling.NEAREST), (0, 0))
        sheet.paste(self.image().convert("RGB"), (width, 0))
        return sheet
