"""From any image to the tensor a network expects: the one implementation for training, calibration and device.

numpy and Pillow only. What happens is said by :class:`zoo.specs.ImageInput`; nothing here has an option of its own.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError
from .specs import ImageInput

__all__ = [
    "Frame",
    "ImageInput",
    "Source",
    "frame",
    "normalise",
    "prepare",
    "preprocess",
    "preprocess_batch",
    "read_image",
    "resize",
]

Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray"
"""What can be read as an image: a path, encoded bytes, an open file, a Pillow image, or an (H, W[, C]) array."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ORIENTATION = 0x0112
_MODES = {"RGB": "RGB", "BGR": "RGB", "L": "L", "RGBA": "RGBA"}


def read_image(source: Source, spec: ImageInput, name: str = "") -> Image.Image | np.ndarray:
    """Decode, turn upright (EXIF), and bring to the channels of ``spec``: 8-bit, upright, uncropped.

    Returns a Pillow image of mode L, RGB or RGBA; for ``bands`` inputs an (H, W, C) uint8 array.
    Alpha is dropped where the network has none, as torchvision and timm do; 16-bit values are divided by 257;
    arrays are taken as RGB. Raises ImageError, with ``name`` (or the path) in front.
    """
    if not name:
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "image"
    if isinstance(source, np.ndarray):
        source = _from_array(source, spec, name)
        if isinstance(source, np.ndarray):
            return source
    elif spec.color == "bands":
        if isinstance(source, (str, os.PathLike)) and os.fspath(source).endswith(".npy"):
            try:
                return read_image(np.load(source, allow_pickle=False), spec, name)
            except (OSError, ValueError) as error:
                raise ImageError(f"{name}: not a readable .npy array: {error}") from None
        raise ImageError(
            f"{name}: the network takes {spec.channels} bands: give an (H, W, {spec.channels}) uint8 array"
        )
    if isinstance(source, Image.Image):
        return _convert(source, spec, name)
    try:
        data: str | os.PathLike[str] | BinaryIO
        data = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(data) as image:
                return _convert(image, spec, name)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: is a folder, not an image") from None
    except PermissionError:
        raise ImageError(f"{name}: no permission to read it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name}: larger than {Image.MAX_IMAGE_PIXELS} pixels: shrink or tile it first") from None
    except UnidentifiedImageError:
        size = (
            Path(source).stat().st_size
            if isinstance(source, (str, os.PathLike))
            else len(data.getbuffer())
            if isinstance(data, io.BytesIO)
            else -1
        )
        raise ImageError(f"{name}: {'an empty file' if size == 0 else 'not an image that Pillow knows'}") from None
    except MemoryError:
        raise ImageError(f"{name}: too large for this machine's memory: shrink or tile it first") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError, zlib.error, …
        raise ImageError(f"{name}: damaged: {error}") from None


def _from_array(array: np.ndarray, spec: ImageInput, name: str) -> Image.Image | np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        raise ImageError(f"{name}: array of shape {array.shape}; an image is (H, W) or (H, W, C)")
    if array.dtype == np.uint16:
        array = _from_16_bit(array)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: array of {array.dtype}; give uint8 (0..255) or uint16 (0..65535)")
    channels = array.shape[2]
    if spec.color == "bands":
        if channels != spec.channels:
            raise ImageError(f"{name}: {channels} channels; the network takes {spec.channels}")
        return np.ascontiguousarray(array)
    if channels not in (1, 3, 4):
        hint = "; is it (C, H, W)? give (H, W, C): array.transpose(1, 2, 0)" if array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{name}: array of shape {array.shape} has {channels} channels, not 1, 3 or 4{hint}")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if channels == 1 else array))


def _from_16_bit(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _convert(image: Image.Image, spec: ImageInput, name: str) -> Image.Image:
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{name}: has no pixels")
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise ImageError(f"{name}: larger than {Image.MAX_IMAGE_PIXELS} pixels: shrink or tile it first")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own convert() clips these at 255: a 16-bit photo would come out white
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name}: pixels of mode {image.mode} beyond 16 bits: convert it to 8 or 16 bits first")
        exif = image.getexif()
        image = Image.fromarray(_from_16_bit(values))
        image.getexif().update(exif)
    if image.getexif().get(_ORIENTATION, 1) != 1:  # exif_transpose copies the pixels even where nothing is to be done
        image = ImageOps.exif_transpose(image)
    mode = _MODES[spec.color]
    if image.mode == mode:
        image.load()
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


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
    x, y = width / scaled_w, height / scaled_h
    box = (left * x, top * y, min((left + spec.width) * x, width), min((top + spec.height) * y, height))
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


def resize(image: Image.Image | np.ndarray, spec: ImageInput) -> Image.Image | np.ndarray:
    """Bring an image of :func:`read_image` to ``spec.width x spec.height`` pixels, still 8 bits."""
    if isinstance(image, np.ndarray):
        bands = [
            np.asarray(resize(Image.fromarray(np.ascontiguousarray(image[:, :, c])), spec))
            for c in range(image.shape[2])
        ]
        return np.stack(bands, axis=2)
    where = frame(image.width, image.height, spec)
    left, top, right, bottom = where.place
    small = image
    if where.box != (0, 0, *image.size) or (right - left, bottom - top) != image.size:
        small = _scale(image, (right - left, bottom - top), where.box, spec)
    if small.size == (spec.width, spec.height):
        return small
    fill = spec.fill or tuple(round(255 * m) for m in spec.mean)
    fill = fill if len(fill) == len(small.getbands()) else fill[:1] * len(small.getbands())
    canvas = Image.new(small.mode, (spec.width, spec.height), fill[0] if len(fill) == 1 else fill)
    canvas.paste(small, (left, top))
    return canvas


@lru_cache(maxsize=64)
def _affine(mean: tuple[float, ...], std: tuple[float, ...]) -> list[tuple[np.float32, np.float32]]:
    """Per channel scale and shift with ``pixel * scale + shift == (pixel / 255 - mean) / std``."""
    return [(np.float32(1.0 / (255.0 * s)), np.float32(-m / s)) for m, s in zip(mean, std, strict=True)]


def normalise(image: Image.Image | np.ndarray, spec: ImageInput, out: np.ndarray | None = None) -> np.ndarray:
    """(H, W[, C]) 8-bit image of the right size to (C, H, W) float32, written into ``out`` where it is given."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if out is None:
        out = np.empty(spec.shape, np.float32)
    for channel, (scale, shift) in enumerate(_affine(spec.mean, spec.std)):
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
    width, height = (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
    return normalise(resize(image, spec), spec, out), frame(width, height, spec)


def preprocess(source: Source, spec: ImageInput, name: str = "") -> np.ndarray:
    """From any image to (C, H, W) float32. Raises ImageError."""
    return prepare(source, spec, name)[0]


def preprocess_batch(sources: Sequence[Source], spec: ImageInput) -> np.ndarray:
    """From N images to (N, C, H, W) float32. Raises ImageError naming the first that cannot be read."""
    out = np.empty((len(sources), *spec.shape), np.float32)
    for index, source in enumerate(sources):
        prepare(source, spec, out=out[index])
    return out
