"""From any image to the tensor a network expects: the one implementation for training, calibration and device.

numpy and Pillow only. What happens is said by :class:`zoo.specs.ImageInput`; nothing here has an option of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .reading import Source, read_image, rounded
from .specs import ImageInput

__all__ = [
    "Frame",
    "ImageInput",
    "Source",
    "crop_resize",
    "fill_of",
    "frame",
    "normalise",
    "pad",
    "prepare",
    "prepare_batch",
    "preprocess",
    "preprocess_batch",
    "read_image",
    "resize",
    "size_of",
]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """How one image was placed in the network's input: what is needed to carry results back to its own pixels."""

    width: int
    height: int
    box: tuple[float, float, float, float]
    """The part of the upright original that was used: left, top, right, bottom in its pixels."""
    place: tuple[int, int, int, int]
    """Where that part lies in the input: left, top, right, bottom in input pixels (the rest is fill)."""


@lru_cache(maxsize=1024)
def frame(width: int, height: int, spec: ImageInput) -> Frame:
    """The geometry of ``spec`` for an original of ``width x height`` pixels.

    Follows torchvision's Resize + CenterCrop (and timm's use of them) in every rounding, so that going straight
    from the original to the crop gives the same picture to within one step of 255.
    """
    if spec.resize == "letterbox":
        scale = min(spec.width / width, spec.height / height)
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (spec.width - w) // 2, (spec.height - h) // 2
        return Frame(width=width, height=height, box=(0, 0, width, height), place=(left, top, left + w, top + h))
    if spec.resize == "crop":
        w, h = min(width, spec.width), min(height, spec.height)
        x, y, left, top = (width - w) // 2, (height - h) // 2, (spec.width - w) // 2, (spec.height - h) // 2
        return Frame(width=width, height=height, box=(x, y, x + w, y + h), place=(left, top, left + w, top + h))
    scaled_w, scaled_h = int(spec.width / spec.crop), int(spec.height / spec.crop)
    if spec.resize == "shortest":
        if spec.width == spec.height:
            short = scaled_w
            if width <= height:
                scaled_w, scaled_h = short, int(short * height / width)
            else:
                scaled_w, scaled_h = int(short * width / height), short
        else:
            ratio = max(scaled_w / width, scaled_h / height)
            scaled_w, scaled_h = max(spec.width, round(width * ratio)), max(spec.height, round(height * ratio))
    left, top = round((scaled_w - spec.width) / 2.0), round((scaled_h - spec.height) / 2.0)
    step, rise = width / scaled_w, height / scaled_h
    box = (left * step, top * rise, min((left + spec.width) * step, width), min((top + spec.height) * rise, height))
    return Frame(width=width, height=height, box=box, place=(0, 0, spec.width, spec.height))


_REACH = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""How far a filter reaches to each side, in pixels of the larger scale."""


def _scale(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float], spec: ImageInput
) -> Image.Image:
    """``box`` of ``image`` at ``size``, as if the whole image had been resized and then cropped.

    From version 13 Pillow goes along the columns first where that is cheaper: for the crop of an upright photo, but
    not for the whole of it. Between the two passes values are rounded and cut to 0..255, so with bicubic and lanczos,
    which overshoot, the order is worth up to twelve steps of 255. Here such crops go along the rows first, as the whole
    image does unless it is shrunk and more than twice as high as wide.
    """
    filter = _FILTERS[spec.interpolation]
    left, top, right, bottom = box
    shrinks = size[1] < bottom - top
    same_order = image.height <= image.width or (shrinks and image.height > 2 * image.width)
    if spec.resize != "shortest" or spec.interpolation == "nearest" or same_order:
        return image.resize(size, filter, box=box)
    # only the rows that the second pass will look at
    reach = _REACH[spec.interpolation] * max(1.0, (bottom - top) / size[1]) + 1
    first, last = max(0, int(top - reach)), min(image.height, int(bottom + reach) + 1)
    rows = image.crop((0, first, image.width, last)).resize(
        (size[0], last - first), filter, box=(left, 0, right, last - first)
    )
    return rows.resize(size, filter, box=(0, top - first, size[0], bottom - first))


def crop_resize(
    image: Image.Image | np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    spec: ImageInput,
) -> Image.Image | np.ndarray:
    """``box`` (left, top, right, bottom in pixels) of an image of :func:`read_image` at ``size`` (width, height), in
    the same pixel type. Bands are resized one by one, those of more than 8 bits in floating point."""
    if spec.resize == "crop" and size == (box[2] - box[0], box[3] - box[1]):
        left, top, right, bottom = (int(side) for side in box)
        # cut, not resampled: that would lose the colours under what is transparent
        return (
            image[top:bottom, left:right] if isinstance(image, np.ndarray) else image.crop((left, top, right, bottom))
        )
    if not isinstance(image, np.ndarray):
        return _scale(image, size, box, spec)
    out = np.empty((size[1], size[0], image.shape[2]), image.dtype)
    for channel in range(image.shape[2]):
        band = np.ascontiguousarray(image[:, :, channel], np.uint8 if image.dtype == np.uint8 else np.float32)
        out[:, :, channel] = rounded(np.asarray(_scale(Image.fromarray(band), size, box, spec)), image.dtype)
    return out


def pad(image: Image.Image | np.ndarray, left: int, top: int, spec: ImageInput) -> Image.Image | np.ndarray:
    """An image of :func:`read_image` with its corner at (left, top) of ``spec.width x spec.height`` pixels of fill."""
    fill = fill_of(spec)
    if isinstance(image, np.ndarray):
        out = np.empty((spec.height, spec.width, image.shape[2]), image.dtype)
        out[...] = fill
        out[top : top + image.shape[0], left : left + image.shape[1]] = image
        return out
    bands = len(image.getbands())
    fill = fill if len(fill) == bands else fill[:1] * bands
    canvas = Image.new(image.mode, (spec.width, spec.height), fill[0] if bands == 1 else fill)
    canvas.paste(image, (left, top))
    return canvas


@lru_cache(maxsize=64)
def fill_of(spec: ImageInput) -> tuple[float, ...]:
    """The pixel that is painted where an image does not reach, in the order of an image's channels (RGB for BGR)."""
    fill = spec.fill or tuple(spec.peak * m for m in spec.mean)
    if spec.pixel != "float32":
        fill = tuple(round(value) for value in fill)
    return fill[::-1] if spec.color == "BGR" else fill


def resize(image: Image.Image | np.ndarray, spec: ImageInput) -> Image.Image | np.ndarray:
    """Bring an image of :func:`read_image` to ``spec.width x spec.height`` pixels, in the same pixel type."""
    width, height = size_of(image)
    where = frame(width, height, spec)
    left, top, right, bottom = where.place
    size = (right - left, bottom - top)
    small = image
    if where.box != (0, 0, width, height) or size != (width, height):
        small = crop_resize(image, size, where.box, spec)
    return small if size == (spec.width, spec.height) else pad(small, left, top, spec)


def size_of(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """(width, height) in pixels."""
    return (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size


@lru_cache(maxsize=64)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], peak: float) -> list[tuple[np.float32, np.float32]]:
    """Per channel scale and shift with ``pixel * scale + shift == (pixel / peak - mean) / std``."""
    return [(np.float32(1.0 / (peak * s)), np.float32(-m / s)) for m, s in zip(mean, std, strict=True)]


def normalise(image: Image.Image | np.ndarray, spec: ImageInput, out: np.ndarray | None = None) -> np.ndarray:
    """(H, W[, C]) image of the right size to (C, H, W) float32, written into ``out`` where it is given."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if out is None:
        out = np.empty(spec.shape, np.float32)
    for channel, (scale, shift) in enumerate(_affine(spec.mean, spec.std, spec.peak)):
        plane = out[channel]  # one channel at a time, in place: twice as fast as the broadcast expression
        plane[...] = pixels[:, :, spec.channels - 1 - channel if spec.color == "BGR" else channel]
        plane *= scale
        plane += shift
    return out


def prepare(
    source: Source, spec: ImageInput, name: str = "", out: np.ndarray | None = None
) -> tuple[np.ndarray, Frame]:
    """From any image to its (C, H, W) float32 tensor, and where the image lies in it. Raises ImageError."""
    image = read_image(source, spec, name)
    return normalise(resize(image, spec), spec, out), frame(*size_of(image), spec)


def preprocess(source: Source, spec: ImageInput, name: str = "") -> np.ndarray:
    """From any image to (C, H, W) float32. Raises ImageError."""
    return prepare(source, spec, name)[0]


def prepare_batch(sources: Sequence[Source], spec: ImageInput) -> tuple[np.ndarray, list[Frame]]:
    """From N images to (N, C, H, W) float32, and where each lies in it. Raises ImageError naming the first that
    cannot be read."""
    out = np.empty((len(sources), *spec.shape), np.float32)
    return out, [prepare(source, spec, out=out[index])[1] for index, source in enumerate(sources)]


def preprocess_batch(sources: Sequence[Source], spec: ImageInput) -> np.ndarray:
    """From N images to (N, C, H, W) float32. Raises ImageError naming the first that cannot be read."""
    return prepare_batch(sources, spec)[0]
