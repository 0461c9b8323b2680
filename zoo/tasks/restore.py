"""A better image of a damaged one, the numpy half: super-resolution, denoising, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ..data import Dataset
from ..errors import ZooError
from ..inputs import Frame, ImageInput
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
        return _filled(np.asarray(image.crop(box)), result)

    def composed(
        self, results: Sequence[ImageResult], tensor: np.ndarray, frames: Sequence[Frame], spec: ImageInput
    ) -> list[ImageResult]:
        """As :meth:`compose` gives them: where nothing is resized the tensor holds every pixel of the image."""
        if not self.holes or spec.resize != "crop":
            return list(results)
        mean, std = (np.asarray(values)[:, None, None] for values in (spec.mean, spec.std))
        found = []
        for result, values, frame in zip(results, tensor, frames, strict=True):
            left, top, right, bottom = frame.place
            shares = values[:, top:bottom, left:right] * std + mean
            found.append(_filled(np.rint(shares * 255).astype(np.uint8).transpose(1, 2, 0), result))
        return found


def _filled(pixels: np.ndarray, result: ImageResult) -> ImageResult:
    """The known ones of (H, W, 4) uint8 pixels, the result's in the holes."""
    return replace(result, pixels=np.where(pixels[:, :, 3:] > 127, pixels[:, :, :3], result.pixels))
