"""Varies a training image together with its boxes or its class map, all randomness from the generator it is given.

An image goes from its decoded pixels to the input in one resize: a variation is a :class:`zoo.inputs.Frame` like that
of preprocessing, with another part of the image at another place, and quarter turns and mirrorings of what lies there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ..data.targets import VOID, Boxes
from ..errors import DataError
from ..geometry import boxes_to_input, map_to_input
from ..inputs import Frame, ImageInput, crop_resize, fill_of, frame, resize, size_of

__all__ = ["MIN_SIDE", "MIN_VISIBLE", "JointAugment", "default_joint_augment"]

MIN_VISIBLE = 0.1
"""A box is dropped where less than this share of its area is left in the input."""
MIN_SIDE = 2.0
"""A box is dropped where what is left of it is narrower or lower than this, in input pixels."""

Area = tuple[int, int, int, int]
"""left, top, right, bottom in input pixels."""


@dataclass(frozen=True, kw_only=True)
class JointAugment:
    """How a training image and its target are varied. All off is no variation: the image as a device sees it."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest factor on the size that preprocessing gives the image: large-scale jitter (Ghiasi et al.
    2021, arXiv:2012.07177), drawn so that halving is as likely as doubling. What does not fit is cut off at a random
    place; what stays empty is fill, and void in a class map."""
    flip: bool = False
    """Mirror left and right, half of the time."""
    flip_vertical: bool = False
    """Mirror top and bottom, half of the time."""
    rotate90: bool = False
    """Turn by 0, 90, 180 or 270 degrees: for images in which up has no meaning."""
    brightness: float = 0.0
    """The pixels are multiplied by 1 - brightness .. 1 + brightness."""
    contrast: float = 0.0
    """Their differences from the mean are multiplied by 1 - contrast .. 1 + contrast."""
    saturation: float = 0.0
    """Their differences from grey are multiplied by 1 - saturation .. 1 + saturation; colours only."""
    hue: float = 0.0
    """The hue is turned by -hue .. hue, in turns (0.5 at most); colours of 8 and 16 bits only."""
    mosaic: float = 0.0
    """Probability that four images share the input, meeting at a random point (Bochkovskiy et al. 2020,
    arXiv:2004.10934)."""
    mixup: float = 0.0
    """Probability that another image is laid over this one, about half and half, and the boxes of both are kept
    (H. Zhang et al. 2018, arXiv:1710.09412; for detection Z. Zhang et al. 2019, arXiv:1902.04103)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))  # JSON has lists
        low, high = self.scale
        shares = {k: getattr(self, k) for k in ("brightness", "contrast", "saturation", "mosaic", "mixup")}
        wrong = [f"{name} lies in 0..1, not {value}" for name, value in shares.items() if not 0 <= value <= 1]
        if not 0.01 <= low <= high <= 100:
            wrong.append(f"scale is two factors in 0.01..100, the smaller first, not {low}, {high}")
        if not 0 <= self.hue <= 0.5:
            wrong.append(f"hue lies in 0..0.5, not {self.hue}")
        if wrong:
            raise ValueError(f"JointAugment: {wrong[0]}")

    def __bool__(self) -> bool:
        return self != JointAugment()

    def without_mosaic(self) -> JointAugment:
        """The same without mosaic and mixup, for the last epochs: no device will see such pictures (Ge et al. 2021,
        arXiv:2107.08430)."""
        return replace(self, mosaic=0.0, mixup=0.0)

    def __call__(
        self,
        index: int,
        read: Callable[[int], tuple[Image.Image | np.ndarray, Any]],
        spec: ImageInput,
        rng: np.random.Generator,
        count: int,
    ) -> tuple[Image.Image | np.ndarray, Any]:
        """Image ``index`` of ``count`` at ``spec.width x spec.height`` in the pixel type of ``spec``, and its target
        in input pixels: a Boxes cut at the input's borders, or an (H, W) uint8 class map.

        ``read(i)`` gives an image of :func:`zoo.inputs.read_image` and its target in original pixels. Boxes of which
        less than ``MIN_VISIBLE`` or ``MIN_SIDE`` is left are dropped. Where all is off the image is that of
        :func:`zoo.inputs.resize`, and the target that of :mod:`zoo.geometry`, nothing cut and nothing dropped.
        """
        if not self:
            image, target = read(index)
            where = frame(*size_of(image), spec)
            if isinstance(target, Boxes):
                return resize(image, spec), replace(target, boxes=boxes_to_input(target.boxes, where))
            return resize(image, spec), map_to_input(target, where, spec.height, spec.width, VOID)
        mosaic = self.mosaic > 0 and rng.random() < self.mosaic
        pixels, target = self._compose(_partners(index, count, rng) if mosaic else [index], read, spec, rng)
        if self.mixup and rng.random() < self.mixup:
            if not isinstance(target, Boxes):
                raise DataError("mixup blends two images, and a class map cannot say so: leave out --mixup")
            other, boxes = self._compose([int(rng.integers(count))], read, spec, rng)
            pixels = _blend(pixels, other, float(rng.beta(8, 8)))
            target = _joined([target, boxes])
        return pixels, target

    def _compose(
        self,
        indices: list[int],
        read: Callable[[int], tuple[Image.Image | np.ndarray, Any]],
        spec: ImageInput,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, Any]:
        """One image over the whole input, or four around a point: (H, W, C) and the target."""
        width, height = spec.width, spec.height
        areas: list[Area] = [(0, 0, width, height)]
        if len(indices) == 4:
            x, y = round(width * rng.uniform(0.25, 0.75)), round(height * rng.uniform(0.25, 0.75))
            areas = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        pixels = np.empty((height, width, spec.channels), spec.pixel)
        pixels[...] = fill_of(spec)
        classes = np.full((height, width), VOID, np.uint8)
        boxes: list[Boxes] = []
        for index, area in zip(indices, areas, strict=True):
            image, target = read(index)
            view = self._view(*size_of(image), spec, area, rng)
            left, top, right, bottom = view.frame.place
            part = self._recolour(_part(image, view, spec), spec, rng)
            pixels[top:bottom, left:right] = view.turned(part if part.ndim == 3 else part[:, :, None])
            if isinstance(target, Boxes):
                boxes.append(_visible(target, view.boxes(target.boxes), view.frame.place))
            else:
                classes[top:bottom, left:right] = view.turned(_part_of_map(target, view))
        return pixels, _joined(boxes) if boxes else classes

    def _view(self, width: int, height: int, spec: ImageInput, area: Area, rng: np.random.Generator) -> _View:
        """Which part of a ``width x height`` image comes where into ``area``, and which way round."""
        quarters = int(rng.integers(4)) if self.rotate90 else 0
        if quarters % 2:
            width, height = height, width
        where = frame(width, height, spec)
        whole = area == (0, 0, spec.width, spec.height)
        if not whole or self.scale != (1.0, 1.0):
            factor = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
            left, top, right, bottom = where.box
            wide = factor * (where.place[2] - where.place[0]) * width / (right - left)
            high = factor * (where.place[3] - where.place[1]) * height / (bottom - top)
            x0, x1, from_x, to_x = _slide(width, wide, area[0], area[2], rng)
            y0, y1, from_y, to_y = _slide(height, high, area[1], area[3], rng)
            where = Frame(width=width, height=height, box=(from_x, from_y, to_x, to_y), place=(x0, y0, x1, y1))
        return _View(
            frame=where,
            quarters=quarters,
            mirror=self.flip and bool(rng.random() < 0.5),
            upside=self.flip_vertical and bool(rng.random() < 0.5),
        )

    def _recolour(self, image: Image.Image | np.ndarray, spec: ImageInput, rng: np.random.Generator) -> np.ndarray:
        strengths = (self.brightness, self.contrast, self.saturation)
        if not any(strengths) and not self.hue:
            return np.asarray(image)
        light, contrast, colour = (rng.uniform(1 - s, 1 + s) for s in strengths)
        hue = rng.uniform(-self.hue, self.hue)
        if isinstance(image, np.ndarray):
            return _recoloured(image, light, contrast, colour, hue, spec)
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        changed: Any = image if alpha is None else image.convert("RGB")
        if self.brightness:
            changed = F.adjust_brightness(changed, light)
        if self.contrast:
            changed = F.adjust_contrast(changed, contrast)
        if self.saturation and changed.mode == "RGB":
            changed = F.adjust_saturation(changed, colour)
        if self.hue and changed.mode == "RGB":
            changed = F.adjust_hue(changed, hue)
        if alpha is not None:
            changed.putalpha(alpha)
        return np.asarray(changed)


def default_joint_augment(task: str, spec: ImageInput) -> JointAugment:
    """What suits most data sets of a task (``detect``, ``segment``).

    Bands are taken for satellite or microscope images, in which up has no meaning, and change little in colour;
    float32 pixels are measurements, whose values are left alone.
    """
    if spec.color == "bands":
        usual = JointAugment(flip=True, flip_vertical=True, rotate90=True, brightness=0.1, contrast=0.1)
    elif spec.color == "L":
        usual = JointAugment(flip=True, brightness=0.3, contrast=0.3)
    else:
        usual = JointAugment(flip=True, brightness=0.3, contrast=0.3, saturation=0.4, hue=0.02)
    if spec.pixel == "float32":
        usual = replace(usual, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    if task == "detect":
        return replace(usual, scale=(0.5, 1.5), mosaic=0.5)
    # milder than for boxes: how bright a pixel is often is what a mask was drawn by
    return replace(usual, scale=(0.67, 1.5), brightness=usual.brightness / 2, contrast=usual.contrast / 2)


@dataclass(frozen=True, kw_only=True)
class _View:
    """A part of an image at a place of the input: the image turned, cut and resized by ``frame``, then mirrored."""

    frame: Frame
    """Of the image after its quarter turns."""
    quarters: int
    """Quarter turns against the clock."""
    mirror: bool
    upside: bool

    def source(self) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
        """Size (width, height) and box of the part in the image before its quarter turns."""
        x0, y0, x1, y1 = self.frame.box
        left, top, right, bottom = self.frame.place
        wide, high, width, height = right - left, bottom - top, self.frame.width, self.frame.height
        if self.quarters == 1:
            return (high, wide), (height - y1, x0, height - y0, x1)
        if self.quarters == 2:
            return (wide, high), (width - x1, height - y1, width - x0, height - y0)
        if self.quarters == 3:
            return (high, wide), (y0, width - x1, y1, width - x0)
        return (wide, high), (x0, y0, x1, y1)

    def turned(self, part: np.ndarray) -> np.ndarray:
        """(h, w[, C]) pixels of :meth:`source` the way round that they come into the input."""
        part = np.rot90(part, self.quarters)
        return part[:: -1 if self.upside else 1, :: -1 if self.mirror else 1]

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(M, 4) xyxy in the image's own pixels to (M, 4) float32 xyxy in input pixels, not cut."""
        x0, y0, x1, y1 = boxes.astype(np.float64).T
        width, height = self.frame.width, self.frame.height
        if self.quarters == 1:
            x0, y0, x1, y1 = y0, height - x1, y1, height - x0
        elif self.quarters == 2:
            x0, y0, x1, y1 = width - x1, height - y1, width - x0, height - y0
        elif self.quarters == 3:
            x0, y0, x1, y1 = width - y1, x0, width - y0, x1
        out = boxes_to_input(np.stack((x0, y0, x1, y1), axis=1), self.frame)
        left, top, right, bottom = self.frame.place
        if self.mirror:
            out[:, [0, 2]] = left + right - out[:, [2, 0]]
        if self.upside:
            out[:, [1, 3]] = top + bottom - out[:, [3, 1]]
        return out


def _partners(index: int, count: int, rng: np.random.Generator) -> list[int]:
    """``index`` and three others, in any order."""
    others = [index, *rng.integers(count, size=3).tolist()]
    return [int(others[k]) for k in rng.permutation(4)]


def _slide(length: int, scaled: float, low: int, high: int, rng: np.random.Generator) -> tuple[int, int, float, float]:
    """``length`` original pixels, ``scaled`` input pixels long, somewhere in ``low..high``: from and to in the input,
    from and to in the original."""
    size = max(1, round(scaled))
    space = high - low
    spare = int(rng.integers(abs(space - size) + 1))
    if size <= space:
        return low + spare, low + spare + size, 0.0, float(length)
    return low, high, spare * length / size, (spare + space) * length / size


def _part(image: Image.Image | np.ndarray, view: _View, spec: ImageInput) -> Image.Image | np.ndarray:
    """The view's part of an image, before its turns."""
    size, box = view.source()
    return image if size == size_of(image) and box == (0, 0, *size) else crop_resize(image, size, box, spec)


def _part_of_map(classes: np.ndarray, view: _View) -> np.ndarray:
    """The view's part of an (H, W) uint8 class map, before its turns."""
    size, box = view.source()
    return np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST, box=box))


def _visible(target: Boxes, boxes: np.ndarray, place: Area) -> Boxes:
    """``target`` with ``boxes`` cut at the borders of ``place``, less those that are hardly left."""
    left, top, right, bottom = place
    cut = boxes.clip((left, top, left, top), (right, bottom, right, bottom)).astype(np.float32)
    sides = cut[:, 2:] - cut[:, :2]
    before = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    keep = (sides >= MIN_SIDE).all(axis=1) & (sides.prod(axis=1) >= MIN_VISIBLE * before)
    return replace(target, boxes=cut).take(keep)


def _joined(parts: list[Boxes]) -> Boxes:
    return Boxes(
        boxes=np.concatenate([p.boxes for p in parts]),
        classes=np.concatenate([p.classes for p in parts]),
        ignore=np.concatenate([p.ignore for p in parts]),
    )


def _blend(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    mixed = image * np.float32(share)
    mixed += other * np.float32(1 - share)
    return mixed if image.dtype == np.float32 else np.asarray(np.rint(mixed), image.dtype)


def _recoloured(
    image: np.ndarray, light: float, contrast: float, colour: float, hue: float, spec: ImageInput
) -> np.ndarray:
    """:meth:`JointAugment._recolour` for (H, W, C) arrays: bands, and colours of more than 8 bits.

    Contrast is that of each band by itself. Values of float32 are not cut to a range.
    """
    colours = spec.color in ("RGB", "BGR", "RGBA")
    out = image[:, :, :3].astype(np.float32) if colours else image.astype(np.float32)
    mean = out.mean(axis=(0, 1)) * np.float32(light)
    out *= np.float32(light * contrast)
    out += mean * np.float32(1 - contrast)
    if colours:
        grey = out @ np.array((0.299, 0.587, 0.114), np.float32)
        out *= np.float32(colour)
        out += (np.float32(1 - colour) * grey)[:, :, None]
    if spec.pixel != "float32":
        out = out.clip(0, spec.peak)
        if colours and hue:
            shares = torch.from_numpy(out.transpose(2, 0, 1) / np.float32(spec.peak))
            out = F.adjust_hue(shares, hue).numpy().transpose(1, 2, 0) * np.float32(spec.peak)
        out = np.rint(out)
    out = out.astype(image.dtype)
    return np.concatenate((out, image[:, :, 3:]), axis=2) if image.shape[2] > out.shape[2] else out
