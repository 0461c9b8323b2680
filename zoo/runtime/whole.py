"""Images of any size through networks that take images as they are: whole, or by overlapping tiles without seams.

numpy only, and a function that runs one tensor: PyTorch, ONNX Runtime and engines go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import BundleError, ZooError
from ..inputs import ImageInput, Source, normalise, read_image, size_of
from ..results import ImageResult
from ..tasks.pictures import PictureTask
from .tiles import _starts, _weights

__all__ = ["WHOLE_PIXELS", "made_of", "whole"]

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]

WHOLE_PIXELS = 1 << 20
"""Larger images are cut into tiles: activations of a megapixel in 64 channels are 256 MB a layer."""
TILE = 512
"""Side of the tiles where the graph leaves it open."""


def whole(
    run: Run,
    image: np.ndarray,
    *,
    scale: int = 1,
    multiple: int = 1,
    fixed: tuple[int, int] | None = None,
    overlap: int | None = None,
    limit: int = WHOLE_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """(C, H, W) float32 to (C', H * scale, W * scale) float32.

    Where the graph's size is open (``fixed`` is None) and the image has at most ``limit`` pixels it is run at once,
    reflected at the right and below until ``multiple`` divides its sides. Otherwise it is cut into tiles of ``fixed``
    (height, width) pixels, or of ``TILE``, that share ``overlap`` pixels (64, or a quarter of a smaller tile) and are
    blended there: exact where the network sees no further than 3/8 of the overlap, and without a step anywhere. Held are the result and a strip of one
    row of tiles. Tiles begin at multiples of ``multiple``, for which the overlap grows where it must. ``progress(done,
    total)`` counts tiles. Raises ZooError where ``overlap`` is beyond 3/4 of a tile, or ``multiple`` does not divide one.
    """
    height, width = image.shape[1:]
    if fixed is None and height * width <= limit:
        grown = _grown(image, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
        return np.asarray(_once(run, grown, scale)[:, : height * scale, : width * scale])
    tall, wide = fixed or (-(-TILE // multiple) * multiple,) * 2
    if tall % multiple or wide % multiple:
        raise ZooError(f"tiles of {wide}x{tall} pixels: this network takes multiples of {multiple}")
    # a network that halves its input sees the same grid in every tile only where tiles begin at a multiple
    grown = _grown(image, max(-(-height // multiple) * multiple, tall), max(-(-width // multiple) * multiple, wide))
    overlap = min(64, min(tall, wide) // 4) if overlap is None else overlap
    if not 0 <= overlap <= 3 * min(tall, wide) // 4:
        raise ZooError(f"overlap {overlap}: tiles of {wide}x{tall} pixels overlap by 0..{3 * min(tall, wide) // 4}")
    overlap = min(tall, wide) - max(multiple, (min(tall, wide) - overlap) // multiple * multiple)
    rows = [(y * scale, (y + tall) * scale) for y in _starts(grown.shape[1], tall, overlap)]
    columns = [(x * scale, (x + wide) * scale) for x in _starts(grown.shape[2], wide, overlap)]
    down, across = _weights(rows), _weights(columns)
    total, done = len(rows) * len(columns), 0
    result: np.ndarray | None = None
    sums = np.zeros(grown.shape[1] * scale, np.float32), np.zeros(grown.shape[2] * scale, np.float32)
    for sum_, spans, weights in ((sums[0], rows, down), (sums[1], columns, across)):
        for (start, end), weight in zip(spans, weights, strict=True):
            sum_[start:end] += weight
    for (top, bottom), high in zip(rows, down, strict=True):
        for (left, right), broad in zip(columns, across, strict=True):
            y, x = top // scale, left // scale
            tile = _once(run, np.ascontiguousarray(grown[:, y : y + tall, x : x + wide]), scale)
            if result is None:
                result = np.zeros((tile.shape[0], height * scale, width * scale), np.float32)
            # what the weights sum to is divided off at once, so that nothing else is held
            share = (high / sums[0][top:bottom])[:, None] * (broad / sums[1][left:right])
            part = result[:, top:bottom, left:right]
            part += (tile * share)[:, : part.shape[1], : part.shape[2]]
            done += 1
            progress(done, total)
    assert result is not None
    return result


def made_of(
    run: Run,
    source: Source,
    spec: ImageInput,
    half: PictureTask,
    *,
    name: str = "",
    **how: Any,
) -> ImageResult:
    """What a network makes of a whole image, at its own size times the scale; ``how`` as :func:`whole` takes it.

    Raises ImageError; BundleError where an image with holes is needed and there are none.
    """
    image = read_image(source, spec, name)
    width, height = size_of(image)
    tensor = normalise(image, spec, np.empty((spec.channels, height, width), np.float32))
    output = whole(run, tensor, scale=half.scale, multiple=half.multiple, **how)
    result = ImageResult(pixels=half.pixels(output), box=(0, 0, width, height))
    return result if isinstance(image, np.ndarray) else half.compose(image, result)


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


def _grown(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Reflected at the right and below, as often as it takes."""
    down, right = height - image.shape[1], width - image.shape[2]
    return image if not (down or right) else np.pad(image, ((0, 0), (0, down), (0, right)), "symmetric")
