"""What the tasks share whose networks make images: pixels out of raw outputs, and how far two images are apart.

Figures in dB are kept in hundredths, as scores are kept in 0..1: 0.3768 is 37.68 dB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data import Dataset
from ..data.reading import upright_size
from ..data.targets import Picture
from ..errors import DataError, ZooError
from ..inputs import Frame, ImageInput
from ..results import ImageResult
from . import Outputs

__all__ = ["MOST_DB", "PictureMeter", "PictureTask", "luma", "psnr", "ssim"]

MOST_DB = 100.0
"""Equal images have an infinite PSNR; they are given this one."""
NOTICED = 2
"""Steps of 255: two images no value of which is further apart are the same to a user."""


def luma(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 to (H, W) float64: Y of ITU-R BT.601 in studio swing, 16..235, unrounded, as the literature of
    super-resolution measures it (MATLAB's ``rgb2ycbcr``); grey images as they are."""
    if pixels.shape[2] == 1:
        return pixels[:, :, 0].astype(np.float64)
    return np.asarray(16.0 + pixels.astype(np.float64) @ np.array((65.481, 128.553, 24.966)) / 255.0)


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape, values in 0..255; at most ``MOST_DB``."""
    error = float(((ours.astype(np.float64) - theirs.astype(np.float64)) ** 2).mean())
    return MOST_DB if error == 0 else min(MOST_DB, 10 * float(np.log10(255.0**2 / error)))


def ssim(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Structural similarity (Z. Wang et al. 2004, "Image quality assessment") of two (H, W) arrays, values in 0..255:
    a Gaussian window of 11 pixels and sigma 1.5, mean over where it fits; of smaller images the largest odd window that fits."""
    a, b = (np.asarray(v, np.float64) for v in (ours, theirs))
    reach = min(5, (min(a.shape) - 1) // 2)
    window = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    mean_a, mean_b = _blurred(a, window), _blurred(b, window)
    var_a, var_b = _blurred(a * a, window) - mean_a**2, _blurred(b * b, window) - mean_b**2
    both = _blurred(a * b, window) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(found.mean())


def _blurred(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Where the window fits, along both axes."""
    size = len(window)
    high, wide = (side - size + 1 for side in values.shape)
    rows = sum(weight * values[i : i + high] for i, weight in enumerate(window))
    return np.asarray(sum(weight * rows[:, i : i + wide] for i, weight in enumerate(window)))


class PictureTask:
    """See :class:`zoo.tasks.TaskHalf`. Output: ``output`` (N, C, H, W) float32, shares of white: 0 is black, 1 white."""

    metric_name = "PSNR"
    score_name = "PSNR"
    unit = "dB"
    deciding = "output"
    draws_on_image = True
    on_luma = False
    """Whether colours are compared by their luma alone."""

    def __init__(self, *, scale: int = 1, multiple: int = 1) -> None:
        """``scale``: how many times larger images are made; ``multiple``: what the input's sides divide by. Raises
        ZooError where a setting is out of range."""
        for name, value in (("scale", scale), ("multiple", multiple)):
            if not isinstance(value, int) or value < 1:
                raise ZooError(f"{name} {value!r}: it is a whole number from 1 on")
        self.scale, self.multiple = scale, multiple
        self.settings: dict[str, Any] = {"scale": scale, "multiple": multiple}

    def decodes(self, available: Sequence[str]) -> list[str]:
        return ["output"]

    def pixels(self, output: np.ndarray) -> np.ndarray:
        """(C, H, W) shares of white to (H, W, C) uint8, cut to 0..255 and rounded; what is no number is black."""
        values = np.nan_to_num(np.asarray(output, np.float32).clip(0, 1), copy=False) * np.float32(255)
        return np.ascontiguousarray(np.rint(values).astype(np.uint8).transpose(1, 2, 0))

    def decode(
        self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame], judging: bool = False
    ) -> list[ImageResult]:
        return [self._placed(output, frame) for output, frame in zip(outputs["output"], frames, strict=True)]

    def _placed(self, output: np.ndarray, frame: Frame) -> ImageResult:
        left, top, right, bottom = (side * self.scale for side in frame.place)
        pixels = self.pixels(output[:, top:bottom, left:right])
        x0, y0, x1, y1 = (round(side) for side in frame.box)
        size = ((x1 - x0) * self.scale, (y1 - y0) * self.scale)
        if size != (right - left, bottom - top):  # the input was resized: the result goes back to the image's own size
            image = ImageResult(pixels=pixels).image().resize(size, Image.Resampling.BICUBIC)
            pixels = np.asarray(image).reshape(size[1], size[0], -1)
        return ImageResult(pixels=pixels, box=(x0, y0, x1, y1))

    def aligned(self, outputs: Outputs, reference: Outputs) -> None:
        return None

    def compose(self, image: Image.Image, result: ImageResult) -> ImageResult:
        """The result as it is given out, the original beside it."""
        return result

    def composed(
        self, results: Sequence[ImageResult], tensor: np.ndarray, frames: Sequence[Frame], spec: ImageInput
    ) -> list[ImageResult]:
        """N results as they are given out, beside the (N, C, H, W) float32 that the network saw."""
        return list(results)

    def samples(self, data: Dataset, spec: ImageInput, labels: Sequence[str], count: int = 0) -> Dataset:
        """As they are. Raises DataError for a pair of another ratio than the network's, ImageError."""
        for sample in data:
            if isinstance(sample.target, Picture):
                self._check_pair(sample.id, upright_size(sample.image, sample.id), sample.target.size())
        return data

    def _check_pair(self, name: str, given: tuple[int, int], made: tuple[int, int]) -> None:
        if made == (given[0] * self.scale, given[1] * self.scale):
            return
        ratio = made[0] // given[0]
        fits = ratio > 0 and made == (given[0] * ratio, given[1] * ratio)
        cure = f"take a network that enlarges {ratio} times" if fits else "cut the second to fit, or leave the pair out"
        raise DataError(
            f"{name}: a pair of {given[0]}x{given[1]} and {made[0]}x{made[1]} pixels for a network that "
            f"{f'enlarges {self.scale} times' if self.scale > 1 else 'keeps the size'}: {cure}"
        )

    def shown(self, result: ImageResult) -> ImageResult:
        return result

    def describe(self, result: ImageResult) -> str:
        return f"{result.width} x {result.height} pixels"

    def sample_scores(self, results: Sequence[ImageResult], targets: Sequence[Picture]) -> np.ndarray:
        """(N,) PSNR in hundredths of dB, of the part of the target that the result shows."""
        pairs = zip(results, targets, strict=True)
        return np.asarray([psnr(*self._compared(result, target)) / 100 for result, target in pairs], np.float64)

    def same_answer(self, results: Sequence[ImageResult], reference: Sequence[ImageResult]) -> np.ndarray:
        """No value is further apart than ``NOTICED`` of 255."""
        return np.asarray(
            [
                a.pixels.shape == b.pixels.shape and apart(a, b).max(initial=0) <= NOTICED
                for a, b in zip(results, reference, strict=True)
            ],
            bool,
        )

    def likeness(self, results: Sequence[ImageResult], reference: Sequence[ImageResult]) -> np.ndarray:
        """(N,) SSIM of each image with the reference's, of luma: 1 where they are equal."""
        pairs = zip(results, reference, strict=True)
        return np.asarray([ssim(luma(a.pixels), luma(b.pixels)) for a, b in pairs], np.float64)

    def differences(self, results: Sequence[ImageResult], reference: Sequence[ImageResult]) -> dict[str, float]:
        """In steps of 255: the mean and the largest difference; the share of values further apart than one step; PSNR in
        dB and SSIM, the mean and the worst over the images."""
        if not len(results):
            return {}
        off = [apart(a, b) for a, b in zip(results, reference, strict=True)]
        decibels = [psnr(a.pixels, b.pixels) for a, b in zip(results, reference, strict=True)]
        alike = self.likeness(results, reference)
        return {
            "mean": float(np.mean([o.mean() for o in off])),
            "max": float(max(o.max(initial=0) for o in off)),
            "share_beyond_1": float(np.mean([(o > 1).mean() for o in off])),
            "psnr_db": float(np.mean(decibels)),
            "worst_psnr_db": float(min(decibels)),
            "ssim": float(alike.mean()),
            "worst_ssim": float(alike.min()),
        }

    def meter(self, labels: Sequence[str]) -> PictureMeter:
        return PictureMeter(self)

    def tune(self, results: Sequence[ImageResult], targets: Sequence[Any]) -> dict[str, Any]:
        return {}

    def pack(self, results: Sequence[ImageResult]) -> dict[str, np.ndarray]:
        """``pixels`` (S,) uint8 of all images one after the other, ``sizes`` (N, 3) int32 height, width, channels, and
        ``boxes`` (N, 4) int32, -1 where there is none."""
        flat = [np.empty(0, np.uint8), *(r.pixels.reshape(-1) for r in results)]
        return {
            "pixels": np.concatenate(flat),
            "sizes": np.asarray([r.pixels.shape for r in results], np.int32).reshape(-1, 3),
            "boxes": np.asarray([r.box or (-1,) * 4 for r in results], np.int32).reshape(-1, 4),
        }

    def unpack(self, arrays: Mapping[str, np.ndarray], labels: Sequence[str]) -> list[ImageResult]:
        ends = np.cumsum(arrays["sizes"].astype(np.int64).prod(axis=1))
        parts = np.split(arrays["pixels"], ends)[:-1]
        return [
            ImageResult(pixels=part.reshape(size), box=None if box[0] < 0 else tuple(box))
            for part, size, box in zip(parts, arrays["sizes"].tolist(), arrays["boxes"].tolist(), strict=True)
        ]

    def draw(self, image: Image.Image, result: ImageResult) -> Image.Image:
        return result.draw(image)

    def _compared(self, result: ImageResult, target: Picture) -> tuple[np.ndarray, np.ndarray]:
        """What of a result is compared, and the same part of its target. Raises DataError where they do not fit."""
        wanted = target.read(result.pixels.shape[2])
        box = result.box or (0, 0, result.width, result.height)
        left, top, right, bottom = (side * self.scale for side in box)
        if wanted.shape[0] < bottom or wanted.shape[1] < right:
            raise DataError(
                f"{getattr(target.source, 'name', 'a target')}: the target has {wanted.shape[1]}x{wanted.shape[0]} pixels "
                f"where the network, which enlarges {self.scale} times, makes {right}x{bottom}: give pairs of that ratio, "
                "or a network of another scale"
            )
        ours, theirs = result.pixels, wanted[top:bottom, left:right]
        if self.on_luma:
            ours, theirs = luma(ours), luma(theirs)
        rim = self.scale if self.scale > 1 else 0  # as the literature does: borders are guesswork
        if rim and min(ours.shape[:2]) > 2 * rim:
            ours, theirs = (v[rim:-rim, rim:-rim] for v in (ours, theirs))
        return ours, theirs


def apart(ours: ImageResult, theirs: ImageResult) -> np.ndarray:
    """(H, W, C) uint8: how far the values are apart, in steps of 255. Raises DataError where the sizes differ."""
    if ours.pixels.shape != theirs.pixels.shape:
        raise DataError(f"images of {ours.pixels.shape} and {theirs.pixels.shape} values cannot be compared")
    return np.abs(ours.pixels.astype(np.int16) - theirs.pixels.astype(np.int16)).astype(np.uint8)


class PictureMeter:
    """Means over the images whose targets are known: PSNR in hundredths of dB, SSIM (of luma), and L1, the mean difference
    as a share of white. Without any such image none of the three."""

    def __init__(self, task: PictureTask) -> None:
        self._task = task
        self._sums = np.zeros(3)
        self._images = self._judged = 0

    def update(self, results: Sequence[ImageResult], targets: Sequence[Any]) -> None:
        for result, target in zip(results, targets, strict=True):
            self._images += 1
            if not isinstance(target, Picture):
                continue
            self._judged += 1
            ours, theirs = self._task._compared(result, target)
            grey = [v if v.ndim == 2 else luma(v.astype(np.uint8)) for v in (ours, theirs)]
            error = np.abs(ours.astype(np.float64) - theirs).mean() / 255
            self._sums += (psnr(ours, theirs) / 100, ssim(*grey), error)

    def merge(self, other: PictureMeter) -> None:
        self._sums = self._sums + other._sums
        self._images, self._judged = self._images + other._images, self._judged + other._judged

    def compute(self) -> dict[str, Any]:
        known = {}
        if self._judged:
            known = dict(zip((self._task.metric_name, "SSIM", "L1"), (self._sums / self._judged).tolist(), strict=True))
        return {**known, "images": self._images, "classes": []}
