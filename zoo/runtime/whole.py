"""Images of any size through networks that take images as they are: whole, or by overlapping tiles without seams.

numpy only, and a function that runs one tensor: PyTorch, ONNX Runtime and engines go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BundleError, ZooError
from ..inputs import ImageInput, Source, normalise, read_image
from ..reading import Picture
from ..results import ImageResult
from ..tasks.pictures import PictureTask
from .tiles import Progress, _starts, _weights

__all__ = ["WHOLE_PIXELS", "Sizes", "blocks", "made_of"]

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]
Read = Callable[[int, int, int, int], np.ndarray]
"""Left, top, right, bottom of a box inside the image to its (C, H, W) float32."""
Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Least, usual and largest (height, width) that a graph takes; all the same where it takes one."""

WHOLE_PIXELS = 1 << 20
"""Larger images are cut into tiles: activations of a megapixel in 64 channels are 256 MB a layer."""
TILE = 512
"""Side of the tiles where the graph leaves it open."""
STRIP = 256
"""So many rows become 8 bits at a time."""


def blocks(
    run: Run,
    read: Read,
    height: int,
    width: int,
    *,
    scale: int = 1,
    multiple: int = 1,
    sizes: Sizes | None = None,
    overlap: int | None = None,
    limit: int = WHOLE_PIXELS,
    progress: Progress | None = None,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """What a network makes of an image of ``height x width`` pixels, part by part as it is done: each part's top and
    left, and its (C', H, W) float32. Together they are the image times ``scale``, and none covers another.

    An image of at most ``limit`` pixels is run at once, reflected at the right and below until ``multiple`` divides its
    sides, if the graph takes that: ``sizes`` says what it takes, and is None where that is any. Otherwise the image is
    cut into tiles of the usual size, or of ``TILE``, that share ``overlap`` pixels (64, or a quarter of a smaller tile)
    and are blended there: exact where the network sees no further than 3/8 of the overlap, and without a step anywhere.
    Tiles begin at multiples of ``multiple``, for which the overlap grows where it must. Held are a tile, and the rows of
    the result that two rows of tiles share: 4 bytes x channels x width x overlap, times the square of ``scale`` (x tile
    height at most, where the last row is shifted far inward).

    Raises ZooError where ``overlap`` is beyond 3/4 of a tile, or ``multiple`` does not divide one; BundleError where the
    network makes something else, or fails.
    """
    high, wide = (_up(side, multiple) for side in (height, width))
    at_once = height * width <= limit and (sizes is None or _within((high, wide), sizes))
    tall, broad = (high, wide) if at_once else _tile(sizes, multiple)
    overlap = 0 if at_once else _overlap(tall, broad, overlap, multiple)
    # a network that halves its input sees the same grid in every tile only where tiles begin at a multiple
    rows = [(y * scale, (y + tall) * scale) for y in _starts(max(high, tall), tall, overlap)]
    columns = [(x * scale, (x + broad) * scale) for x in _starts(max(wide, broad), broad, overlap)]
    down, across = _shares(rows), _shares(columns)
    carry = strip = np.empty((0, 0, 0), np.float32)
    for r, (top, bottom) in enumerate(rows):
        above = rows[r - 1][1] - top if r else 0
        ready = (rows[r + 1][0] if r + 1 < len(rows) else bottom) - top
        for c, (left, right) in enumerate(columns):
            before = columns[c - 1][1] - left if c else 0
            done = (columns[c + 1][0] if c + 1 < len(columns) else right) - left
            part = _once(run, _filled(read, height, width, left // scale, top // scale, tall, broad), scale)
            if len(rows) * len(columns) > 1:
                part = part * (down[r][:, None] * across[c])
            if not carry.size:
                shared = max((end - start for (_, end), (start, _) in pairwise(rows)), default=0)
                carry = np.empty((len(part), shared, columns[-1][1]), np.float32)
            # what earlier tiles gave: of this row (and with them of those above), then of the rows above alone
            if before:
                part[:, :, :before] += strip
            if above:
                part[:, :above, before:] += carry[:, :above, left + before : right]
            strip = part[:, :, done:].copy()
            carry[:, : bottom - top - ready, left : left + done] = part[:, ready:, :done]
            yield top, left, part[:, :ready, :done][:, : height * scale - top, : width * scale - left]
            if progress is not None:
                progress(r * len(columns) + c + 1, len(rows) * len(columns))


def made_of(
    run: Run,
    source: Source | Picture,
    spec: ImageInput,
    half: PictureTask,
    *,
    name: str = "",
    **how: Any,
) -> ImageResult:
    """What a network makes of a whole image, at its own size times the scale; ``how`` as :func:`blocks` takes it.

    Held are the decoded image, the result in 8 bits, and what :func:`blocks` holds. A :class:`Picture`, which may be
    larger than Pillow's limit, is not given to the task's ``compose``. Raises ImageError, and as :func:`blocks` does.
    """
    image = source if isinstance(source, Picture) else read_image(source, spec, name)
    picture = image if isinstance(image, Picture) else Picture(image, spec, name)
    pixels = np.empty(0, np.uint8)

    def read(left: int, top: int, right: int, bottom: int) -> np.ndarray:
        out = np.empty((spec.channels, bottom - top, right - left), np.float32)
        return normalise(picture.region(left, top, right, bottom), spec, out)

    for top, left, part in blocks(
        run, read, picture.height, picture.width, scale=half.scale, multiple=half.multiple, **how
    ):
        if not pixels.size:
            pixels = np.empty((picture.height * half.scale, picture.width * half.scale, len(part)), np.uint8)
        for y in range(0, part.shape[1], STRIP):
            done = half.pixels(part[:, y : y + STRIP])
            pixels[top + y : top + y + len(done), left : left + done.shape[1]] = done
    result = ImageResult(pixels=pixels, box=(0, 0, picture.width, picture.height))
    return half.compose(image, result) if isinstance(image, Image.Image) else result


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _within(size: tuple[int, int], sizes: Sizes) -> bool:
    least, _, largest = sizes
    return all(a <= side <= b for a, side, b in zip(least, size, largest, strict=True))


def _tile(sizes: Sizes | None, multiple: int) -> tuple[int, int]:
    """(height, width) of the tiles."""
    if sizes is None:
        return _up(TILE, multiple), _up(TILE, multiple)
    (low, narrow), (high, wide), _ = sizes
    return max(high // multiple * multiple, low), max(wide // multiple * multiple, narrow)


def _overlap(tall: int, broad: int, overlap: int | None, multiple: int) -> int:
    """In pixels, such that tiles begin at multiples of ``multiple``. Raises ZooError."""
    if tall % multiple or broad % multiple:
        raise ZooError(f"tiles of {broad}x{tall} pixels: this network takes multiples of {multiple}")
    side = min(tall, broad)
    overlap = min(64, side // 4) if overlap is None else overlap
    if not 0 <= overlap <= 3 * side // 4:
        raise ZooError(f"overlap {overlap}: tiles of {broad}x{tall} pixels overlap by 0..{3 * side // 4}")
    return side - max(multiple, (side - overlap) // multiple * multiple)


def _shares(spans: list[tuple[int, int]]) -> list[np.ndarray]:
    """The spans' weights, divided by what they sum to at each pixel."""
    weights, sums = _weights(spans), np.zeros(spans[-1][1], np.float32)
    for (start, end), weight in zip(spans, weights, strict=True):
        sums[start:end] += weight
    return [weight / sums[start:end] for (start, end), weight in zip(spans, weights, strict=True)]


def _once(run: Run, image: np.ndarray, scale: int) -> np.ndarray:
    """(C, H, W) to (C', H * scale, W * scale). Raises BundleError where the network makes something else, or fails."""
    try:
        made = np.asarray(run(image[None])["output"][0], np.float32)
    except ZooError:
        raise
    except Exception as error:  # each runtime has exceptions of its own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(
            f"the network does not run on {image.shape[2]}x{image.shape[1]} pixels: {line[:200]}"
        ) from error
    wanted = (image.shape[1] * scale, image.shape[2] * scale)
    if made.shape not in ((1, *wanted), (3, *wanted)):
        raise BundleError(
            f"the network makes {_sizes(made.shape)} of {_sizes(image.shape)}, and the bundle's scale {scale} says "
            f"1 or 3 channels of {_sizes(wanted)}: export it again, with the scale of its weights"
        )
    return made


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _filled(read: Read, height: int, width: int, left: int, top: int, tall: int, broad: int) -> np.ndarray:
    """(C, tall, broad) of an image, reflected at the right and below, as often as it takes."""
    rows, columns = _reflected(top, tall, height), _reflected(left, broad, width)
    y, x = int(rows.min()), int(columns.min())
    part = read(x, y, int(columns.max()) + 1, int(rows.max()) + 1)
    return part if part.shape[1:] == (tall, broad) else part.take(rows - y, axis=1).take(columns - x, axis=2)


def _reflected(start: int, count: int, length: int) -> np.ndarray:
    """(count,) places of an axis of ``length``: those from ``start`` on, and back where it ends."""
    at = np.arange(start, start + count) % (2 * length)
    return np.minimum(at, 2 * length - 1 - at)
