"""Makes the damaged image that a restoring network learns from out of the good one: shrunk, blurred, noisy, with holes.

numpy and Pillow. A damage is a recipe that fits in one line and a seed, so that a device repeats what a workstation saw.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..errors import DataError, ImageError, UnknownName
from ..reading import Derived, read_image
from ..specs import ImageInput
from .reading import upright_size
from .targets import Picture

if TYPE_CHECKING:
    from . import Sample

__all__ = ["HOLES", "Degradation", "Degraded", "Part", "Step", "degraded"]

HOLES = (0.1, 0.4)
"""The least and the most of an image that holes take."""

_SHRINKS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
}
"""Pillow's filters: their support grows with the factor, as MATLAB's imresize antialiases."""

_VALUES = {
    "blur": (0.01, 100.0, "the standard deviation in pixels"),
    "noise": (0.0, 255.0, "the standard deviation in 8-bit units"),
    "jpeg": (1.0, 100.0, "the quality"),
}
_LARGEST_SHRINK = 16
_TRIES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One damage. ``low`` and ``high`` are the same where its strength is not drawn; both None where it has none."""

    name: str
    low: float | None = None
    high: float | None = None

    @property
    def shrinks(self) -> bool:
        return self.name in _SHRINKS

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return self.name
        return f"{self.name}:{self.low:g}" + (f"-{self.high:g}" if self.high != self.low else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """What is done to a good image, in order. Made by :meth:`parse`; ``str()`` gives a recipe back that means the same.

    ==================================  ==========================================================================
    ``bicubic:S bilinear:S area:S``     smaller by the whole number S; without ``:S`` by the network's own scale
    ``blur:SIGMA``                      Gaussian (Pillow's: three box blurs), standard deviation in pixels
    ``noise:SIGMA``                     Gaussian, independent in each value, standard deviation in 8-bit units
    ``jpeg:QUALITY``                    written as a JPEG (4:2:0) and read again
    ``holes``                           alpha 0 and black in boxes and free-form strokes over 10 to 40 % (after Yu et
                                        al. 2019, "Free-Form Image Inpainting with Gated Convolution", algorithm 1)
    ==================================  ==========================================================================

    Steps are joined by ``+``; ``blur:0.2-2`` draws the strength evenly from a range for each image. ``holes`` is last.
    """

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, recipe: str) -> Degradation:
        """Raises UnknownName for a step that there is not, DataError for a strength that cannot be."""
        steps = tuple(_step(part, recipe) for part in recipe.split("+"))
        if any(step.name == "holes" for step in steps[:-1]):
            raise DataError(f"degradation '{recipe}': nothing can follow holes, which make transparency: put them last")
        if sum(step.shrinks for step in steps) > 1:
            raise DataError(f"degradation '{recipe}' shrinks twice: keep one of {', '.join(_SHRINKS)}")
        return cls(steps=steps)

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))

    @property
    def scale(self) -> int | None:
        """How many times smaller its images become: 1 where it shrinks nothing, None where the network says it."""
        shrink = next((step for step in self.steps if step.shrinks), None)
        if shrink is None:
            return 1
        return None if shrink.low is None else int(shrink.low)

    @property
    def holes(self) -> bool:
        """Whether its images have holes, and therefore an alpha channel."""
        return any(step.name == "holes" for step in self.steps)

    def fits(self, scale: int) -> Degradation:
        """The same for a network that enlarges ``scale`` times. Raises DataError where it shrinks by another factor."""
        if self.scale not in (None, scale):
            cure = "bicubic" if self.scale == 1 else f"{next(s.name for s in self.steps if s.shrinks)}:{scale}"
            act = "add" if self.scale == 1 else "write"
            raise DataError(
                f"degradation '{self}' shrinks by {self.scale}, the network enlarges by {scale}: {act} {cure}"
            )
        steps = (replace(s, low=float(scale), high=float(scale)) if s.shrinks else s for s in self.steps)
        return Degradation(steps=tuple(steps))

    def __call__(self, image: Image.Image, rng: np.random.Generator, *, scale: int | None = None) -> Image.Image:
        """``image`` (mode L or RGB; others become RGB) damaged: the same mode, but RGBA with holes.

        ``scale`` is the network's. A shrunk image is ``size // scale`` pixels large: sides that are no multiple are cut
        at the right and at the bottom first. Raises DataError where the recipe does not say by how much to shrink, or
        shrinks by something else than ``scale``.
        """
        chain = self if scale is None else self.fits(scale)
        if image.mode != "L" or chain.holes:
            image = image.convert("RGB")
        for step in chain.steps:
            image = _applied(step, image, rng)
        return image


def _step(part: str, recipe: str) -> Step:
    name, colon, value = part.strip().partition(":")
    known = (*_SHRINKS, *_VALUES, "holes")
    if name not in known:
        raise UnknownName("degradation", name, known)
    if name == "holes" or (name in _SHRINKS and not colon):
        if colon:
            raise DataError(f"degradation '{recipe}': holes take no value: write holes")
        return Step(name=name)
    low, dash, high = value.partition("-")
    example = {"blur": "blur:1.5", "noise": "noise:10", "jpeg": "jpeg:40-90"}.get(name, f"{name}:2")
    try:
        ends = float(low), float(high if dash else low)
    except ValueError:
        raise DataError(f"degradation '{part}': '{value}' is no number: write {example}") from None
    if name in _SHRINKS:
        if dash or ends[0] not in range(1, _LARGEST_SHRINK + 1):
            raise DataError(
                f"degradation '{part}': the factor is one whole number from 1 to {_LARGEST_SHRINK}: write {example}"
            )
    else:
        least, most, what = _VALUES[name]
        if not least <= ends[0] <= ends[1] <= most:
            raise DataError(f"degradation '{part}': {what} lies in {least:g}..{most:g}, low-high: write {example}")
        if name == "jpeg" and (ends[0] % 1 or ends[1] % 1):
            raise DataError(f"degradation '{part}': the quality is a whole number: write {example}")
    return Step(name=name, low=ends[0], high=ends[1])


def _applied(step: Step, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if step.name == "holes":
        return _with_holes(image, rng)
    if step.low is None or step.high is None:
        raise DataError(f"degradation '{step}' does not say by how much to shrink: write {step}:2")
    if step.shrinks:
        return _shrunk(image, int(step.low), _SHRINKS[step.name])
    strength = step.low if step.low == step.high else float(rng.uniform(step.low, step.high))
    if step.name == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength))
    if step.name == "noise":
        values = np.asarray(image) + strength * rng.standard_normal(np.asarray(image).shape)
        return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
    written = io.BytesIO()
    image.save(written, "JPEG", quality=round(strength), subsampling="4:2:0")
    read = Image.open(written)
    read.load()
    return Image.frombytes(read.mode, read.size, read.tobytes())  # without the file behind it


def _shrunk(image: Image.Image, scale: int, filter: Image.Resampling) -> Image.Image:
    if scale == 1:
        return image
    width, height = image.width // scale, image.height // scale
    if not width or not height:
        raise ImageError(f"an image of {image.width}x{image.height} cannot shrink by {scale}: leave it out")
    return image.crop((0, 0, width * scale, height * scale)).resize((width, height), filter)


def _with_holes(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """RGBA; alpha 0 and black where nothing is known, 255 elsewhere."""
    known = ~_holes(image.width, image.height, rng)
    pixels = np.concatenate((np.asarray(image) * known[:, :, None], known[:, :, None] * np.uint8(255)), axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def _holes(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W) bool. Of the image's pixels a share within ``HOLES`` is true."""
    least, most = (share * width * height for share in HOLES)
    wanted, covered = rng.uniform(least, most), 0
    mask = Image.new("1", (width, height))
    for _ in range(_TRIES):
        piece = mask.copy()
        (_box if rng.integers(3) == 0 else _stroke)(ImageDraw.Draw(piece), width, height, rng)
        count = int(np.count_nonzero(np.asarray(piece)))
        if count <= most:
            mask, covered = piece, count
        if covered >= wanted:
            break
    if covered < least:  # a tiny image, in which every stroke is too much
        sides = max(1, round(width / 2)), max(1, round(height / 2))
        ImageDraw.Draw(mask).rectangle((0, 0, sides[0] - 1, sides[1] - 1), fill=1)
    return np.asarray(mask)


def _box(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    w, h = (max(1, round(side * float(rng.uniform(0.1, 0.4)))) for side in (width, height))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    draw.rectangle((left, top, left + w - 1, top + h - 1), fill=1)


def _stroke(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    """A brush that goes back and forth: each second piece turns about, with round joints."""
    side = (width + height) / 2
    brush = max(1, round(side * float(rng.uniform(0.03, 0.1))))
    x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
    for number in range(int(rng.integers(2, 8))):
        angle = float(rng.uniform(0, 0.8 * np.pi)) + (np.pi if number % 2 else 0.0)
        length = side * float(rng.uniform(0.05, 0.25))
        then = (
            min(max(x + length * float(np.cos(angle)), 0.0), width - 1.0),
            min(max(y + length * float(np.sin(angle)), 0.0), height - 1.0),
        )
        draw.line((x, y, *then), fill=1, width=brush)
        x, y = then
        draw.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=1)


# images that are made when they are read


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Degraded(Derived):
    """A good image, damaged when it is read, and in the same way every time.

    Raises UnknownName and DataError, when it is made, for a recipe that is none or does not fit ``scale``.
    """

    source: Path | np.ndarray | Derived
    """The good image: a file, an (H, W[, C]) array, or another image that is made when it is read."""
    recipe: str
    """What is done to it: see :class:`Degradation`."""
    seed: int = 0
    scale: int = 1
    """How many times smaller it becomes. Sides that are no multiple are cut at the right and at the bottom before."""

    def __post_init__(self) -> None:
        Degradation.parse(self.recipe).fits(self.scale)

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The part of the upright original that it is made of (left, top, right, bottom); None: all. Raises ImageError."""
        width, height = upright_size(self.source)
        right, bottom = width - width % self.scale, height - height % self.scale
        return None if (right, bottom) == (width, height) else (0, 0, right, bottom)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of what is read. Raises ImageError."""
        width, height = upright_size(self.source)
        return width // self.scale, height // self.scale

    def original(self) -> Picture:
        """What a network should make of it: the good image, as far as it was used. Raises ImageError."""
        return Picture(source=self.source, box=self.box)

    def read(self, channels: Literal[1, 3] = 3) -> Image.Image:
        """The damaged image: L for one channel, RGB for three, RGBA with holes. Raises ImageError."""
        return self._read(channels, "")

    def _read(self, channels: int, name: str) -> Image.Image:
        image = read_image(self.source, _EIGHT_BIT[channels], name)
        assert isinstance(image, Image.Image)
        try:
            return Degradation.parse(self.recipe)(image, np.random.default_rng(self.seed), scale=self.scale)
        except ImageError as error:
            name = name or (str(self.source) if isinstance(self.source, Path) else "image")
            raise ImageError(f"{name}: {error}") from None

    def decode(self, spec: ImageInput, name: str = "") -> Image.Image | np.ndarray:
        return read_image(self._read(1 if spec.color == "L" else 3, name), spec, name)

    def digest(self) -> str:
        return _sha256(_digest(self.source), str(Degradation.parse(self.recipe)), self.seed, self.scale)

    def key(self) -> bytes:
        return f"{_held(self.source)} {Degradation.parse(self.recipe)} {self.seed} {self.scale}".encode()

    @property
    def nbytes(self) -> int:
        return _nbytes(self.source)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part(Derived):
    """A part of an image: of two that share a file, one."""

    source: Path | np.ndarray
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in the pixels of the upright image."""

    @property
    def size(self) -> tuple[int, int]:
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def decode(self, spec: ImageInput, name: str = "") -> Image.Image | np.ndarray:
        image = read_image(self.source, spec, name)
        left, top, right, bottom = self.box
        width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        if right > width or bottom > height:
            name = name or (str(self.source) if isinstance(self.source, Path) else "image")
            raise ImageError(f"{name}: is {width}x{height}, too small for its part {self.box}: it has changed")
        return image.crop(self.box) if isinstance(image, Image.Image) else image[top:bottom, left:right]

    def digest(self) -> str:
        return _sha256(_digest(self.source), self.box)

    def key(self) -> bytes:
        return f"{_held(self.source)} {self.box}".encode()

    @property
    def nbytes(self) -> int:
        return _nbytes(self.source)


def degraded(sample: Sample, recipe: str, *, scale: int = 1, seed: int = 0) -> Sample:
    """A sample of a good image as one of restoring it: its image damaged, its target the original.

    The damage depends on ``seed`` and the sample's id alone. Raises UnknownName and DataError for a recipe that is none,
    ImageError where the image cannot be read.
    """
    draw = int.from_bytes(hashlib.sha256(f"{seed}\0{sample.id}".encode()).digest()[:8], "little")
    image = Degraded(source=sample.image, recipe=recipe, seed=draw, scale=scale)
    return replace(sample, image=image, target=image.original())


_EIGHT_BIT = {channels: ImageInput(height=1, width=1, resize="crop").with_channels(channels) for channels in (1, 3)}


def _digest(source: Path | np.ndarray | Derived) -> str:
    from . import Sample

    return Sample(id="", image=source, target=None).digest()


def _held(source: Path | np.ndarray | Derived) -> str:
    """What a fingerprint holds of a source: a file's size, an array's bytes."""
    if isinstance(source, Path):
        return str(source.stat().st_size)
    return source.key().decode() if isinstance(source, Derived) else _digest(source)


def _nbytes(source: Path | np.ndarray | Derived) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.nbytes


def _sha256(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
