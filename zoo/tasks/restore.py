"""A better image of a damaged one, the numpy half: super-resolution, denoising, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ..data import Dataset
from ..errors import ZooError
from ..inputs import ImageInput
from ..results import ImageResult
from .pictures import PictureTask

__all__ = ["Restore"]


class Restore(PictureTask):
    """The image is taken as it is, of any size, and made ``scale`` times as large. With ``holes`` it has a fourth channel,
    alpha: 0 where nothing is known. PSNR is that of luma, without a rim of ``scale`` pixels, as the literature gives it.
    """

    metric_name = "PSNR-Y"
    score_name = "PSNR-Y"
    on_luma = True

    def __init__(self, *, scale: int = 1, multiple: int = 1, holes: bool = False, degrade: str = "") -> None:
        """``degrade``: how images are damaged of which only the good form is at hand (:mod:`zoo.data.degrading`). Raises
        ZooError where a setting is out of range."""
        super().__init__(scale=scale, multiple=multiple)
        if holes and scale != 1:
            raise ZooError(f"an image with holes is filled at its own size: scale is 1, not {scale}")
        self.holes = holes
        self.degrade = degrade or ("holes" if holes else f"bicubic:{scale}" if scale > 1 else "noise:25")
        self.settings |= {"holes": holes, "degrade": self.degrade}

    def samples(self, data: Dataset, spec: ImageInput, labels: Sequence[str], count: int = 0) -> Dataset:
        """Good images alone are damaged here, each in the same way every time. Raises DataError for a pair of another
        ratio than the network's, and for a damage that does not fit it, ImageError."""
        from ..data.degrading import degraded

        super().samples(data, spec, labels, count)
        return replace(
            data,
            samples=tuple(
                s if s.target is not None else degraded(s, self.degrade, scale=self.scale) for s in data.samples
            ),
        )

    def compose(self, image: Image.Image, result: ImageResult) -> ImageResult:
        """Of an image with holes, its known pixels as they are, to the bit."""
        if not self.holes or image.mode != "RGBA":
            return result
        box = result.box or (0, 0, result.width, result.height)
        pixels = np.asarray(image.crop(box))
        known = pixels[:, :, 3:] > 127
        return replace(result, pixels=np.where(known, pixels[:, :, :3], result.pixels))
