"""Inference on images larger than memory likes: overlapping tiles at native pixels, put together again without seams.

Held at a time are the decoded pixels (of an ``.npy`` file only those of one tile), one tile's tensors, and, for class
maps, the answer and the probabilities of the rows that two rows of tiles share: 4 bytes x classes x image width x
overlap (x tile height at most, where the last row is shifted far inward).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BundleError, ZooError
from ..inputs import Frame, ImageInput, Source, normalise, pad, size_of
from ..reading import Picture
from ..results import Detections, Segmentation
from ..tasks.nms import box_ious, intersections, nms

if TYPE_CHECKING:
    from .predictor import Predictor

__all__ = ["Box", "Progress", "predict_tiled", "tiles"]

Box = tuple[int, int, int, int]
"""left, top, right, bottom in the pixels of the image."""
Progress = Callable[[int, int], None]
"""Is told how many tiles are done, and of how many."""

MAX_OVERLAP = 0.75
"""Of a tile's side: beyond it tiles hardly move on, and three or more blend at one place."""
BLEND = 0.25
"""Share of an overlap, in its middle, over which one tile gives way to the next."""
SAME_IOU = 0.5
"""Two tiles' boxes are of one object where they overlap so much within the pixels that both tiles saw."""
NEAR = 0.01
"""A box ends at a tile's border where it comes as near as this share of the tile's side, or two pixels."""


def tiles(width: int, height: int, tile: int | tuple[int, int], overlap: int) -> list[Box]:
    """Boxes that cover ``width x height`` pixels in rows from the top left, none reaching outside.

    ``tile`` is a side or (width, height); neighbours share ``overlap`` pixels, the last of a row and the last row
    more, since they are shifted inward. Where the image is smaller than a tile, so is the box. Raises ZooError where
    ``overlap`` is not within 0..3/4 of a tile.
    """
    wide, high = (tile, tile) if isinstance(tile, int) else tile
    most = int(MAX_OVERLAP * min(wide, high))
    if not 0 <= overlap <= most:
        raise ZooError(f"overlap {overlap}: tiles of {wide}x{high} pixels overlap by 0..{most}")
    return [
        (x, y, min(x + wide, width), min(y + high, height))
        for y in _starts(height, high, overlap)
        for x in _starts(width, wide, overlap)
    ]


def predict_tiled(
    predictor: Predictor,
    image: Source,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """The result of an image of up to 2,000,000,000 pixels, from tiles of its own pixels: nothing is resized.

    ``tile`` is their side in pixels, by default the network's input size; another needs a graph whose height and
    width are open. ``overlap`` is by default 64 pixels, or a quarter of a smaller tile. An image smaller than a tile
    is padded with the input's fill.

    Class maps: the tiles' class probabilities are blended. Only the middle quarter of an overlap is; the outer
    three eighths on either side are the other tile's alone. So the answer is that of the whole image at once, to
    float rounding, at every pixel, if the network's receptive field is at most 3/4 of the overlap: it reaches at most
    3/8 of the overlap to each side. If it is larger, that holds outside the overlaps' blended quarters for reaches up
    to half the overlap; beyond, a tile's probabilities differ from the whole image's within the reach from its border,
    and the answer by at most as much. A network that halves its input n times sees the same pixels in a tile only
    where the tile begins at a multiple of 2^n: choose ``tile - overlap`` so (512 and 64 are, up to n = 6).

    Objects: boxes that end at a border inside the image are cut. Two tiles' boxes of a class, of which at least one
    is cut, are of one object where they overlap by an IoU of 0.5 or more within the pixels that both tiles saw; then
    the cut one goes if the other is whole, else both become their union with the better score. What is left goes
    through the bundle's non-maximum suppression; its ``max_detections`` is a tile's.

    ``progress(done, total)`` counts tiles.

    Raises ImageError; ZooError for an impossible overlap or a task that knows no tiles; BundleError where the graph
    does not take tiles of this size.
    """
    if predictor.bundle.task not in ("segment", "detect"):
        raise ZooError(
            f"{predictor.bundle.name} is for the task {predictor.bundle.task}: tiles are for segment and detect"
        )
    spec = _tile_input(predictor, tile)
    size = (spec.width, spec.height)
    if overlap is None:
        overlap = min(64, min(size) // 4)
    tiles(1, 1, size, overlap)  # refuses an impossible overlap before a large file is read
    picture = Picture(image, spec)
    answer = _segment if predictor.bundle.task == "segment" else _detect
    return answer(predictor, picture, spec, overlap, progress or (lambda done, total: None))


def _tile_input(predictor: Predictor, tile: int | None) -> ImageInput:
    """The input record of a tile. Raises BundleError where the graph has another size for good."""
    try:
        spec = predictor.input if tile is None else replace(predictor.input, height=tile, width=tile)
    except ValueError as error:
        raise ZooError(f"tiles of {tile} pixels: {error}") from None
    *_, high, wide = predictor.session.input_shape
    if high not in (None, spec.height) or wide not in (None, spec.width):
        raise BundleError(
            f"{predictor.bundle.name} takes {predictor.input.width}x{predictor.input.height} pixels and no others, not tiles of {spec.width}x{spec.height}: "
            "leave out the tile size, or export it again with `zoo export --dynamic-size`"
        )
    return spec


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    return [0] if length <= tile else [*range(0, length - tile, tile - overlap), length - tile]


def _run(
    predictor: Predictor, picture: Picture, box: Box, spec: ImageInput, outputs: list[str]
) -> tuple[dict[str, np.ndarray], Frame]:
    """One tile's raw outputs, and where it lies in the image and in the network's input."""
    region = picture.region(*box)
    wide, high = size_of(region)
    left, top = (spec.width - wide) // 2, (spec.height - high) // 2
    if (wide, high) != (spec.width, spec.height):
        region = pad(region, left, top, spec)
    tensor = normalise(region, spec)[None]
    try:
        found = predictor.session.run(tensor, outputs)
    except Exception as error:  # each runtime has exceptions of its own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(
            f"{predictor.bundle.name} does not run on a tile of {spec.width}x{spec.height}: a network that halves its input n times takes multiples of 2^n ({line[:200]})"
        ) from error
    place = (left, top, left + wide, top + high)
    return found, Frame(width=picture.width, height=picture.height, box=box, place=place)


def _segment(
    predictor: Predictor, picture: Picture, spec: ImageInput, overlap: int, progress: Progress
) -> Segmentation:
    """Row by row of tiles. ``carry`` holds what earlier rows of tiles gave to rows of pixels that are not done,
    ``strip`` what earlier tiles of the row gave to columns that are not done."""
    columns = [(x, min(x + spec.width, picture.width)) for x in _starts(picture.width, spec.width, overlap)]
    rows = [(y, min(y + spec.height, picture.height)) for y in _starts(picture.height, spec.height, overlap)]
    across, down = _weights(columns), _weights(rows)
    kinds = len(predictor.labels)
    shared = max((end - start for (_, end), (start, _) in pairwise(rows)), default=0)
    carry = np.zeros((kinds, shared, picture.width), np.float32)
    classes = np.empty((picture.height, picture.width), np.uint8)
    for r, (top, bottom) in enumerate(rows):
        above = rows[r - 1][1] - top if r else 0
        done = (rows[r + 1][0] if r + 1 < len(rows) else bottom) - top
        strip = np.zeros((kinds, bottom - top, 0), np.float32)
        for c, (left, right) in enumerate(columns):
            outputs, where = _run(predictor, picture, (left, top, right, bottom), spec, ["logits"])
            x0, y0, x1, y1 = where.place
            shares = _softmax(outputs["logits"][0, :, y0:y1, x0:x1])
            shares *= down[r][:, None] * across[c]
            shares[:, :, : strip.shape[2]] += strip
            ready = (columns[c + 1][0] if c + 1 < len(columns) else right) - left
            strip = shares[:, :, ready:].copy()
            shares = shares[:, :, :ready]
            shares[:, :above] += carry[:, :above, left : left + ready]
            classes[top : top + done, left : left + ready] = shares[:, :done].argmax(axis=0)
            carry[:, : bottom - top - done, left : left + ready] = shares[:, done:]
            progress(r * len(columns) + c + 1, len(rows) * len(columns))
    return Segmentation(classes=classes, labels=tuple(predictor.labels))


def _weights(spans: list[tuple[int, int]]) -> list[np.ndarray]:
    """For each span (start, end) along an axis its pixels' weights, float32: 1, and towards a neighbour a raised
    cosine from 1 to 0 over the middle of the overlap. At a pixel they sum to 1, or a little more where the last tile is
    shifted so far inward that three blend: it is their proportions that count."""
    found = [np.ones(end - start, np.float32) for start, end in spans]
    for k, ((_, end), (start, _)) in enumerate(pairwise(spans)):
        shared = end - start
        if shared:
            at = (np.arange(shared) + 0.5) / shared
            rising = np.sin(np.pi / 2 * ((at - 0.5) / BLEND + 0.5).clip(0, 1)) ** 2
            found[k][-shared:] *= (1 - rising).astype(np.float32)
            found[k + 1][:shared] *= rising.astype(np.float32)
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    """(K, H, W) to class probabilities, float32, in memory of its own."""
    shares = np.asarray(logits - logits.max(axis=0), np.float32)
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=0)
    return shares


def _detect(predictor: Predictor, picture: Picture, spec: ImageInput, overlap: int, progress: Progress) -> Detections:
    boxes_of_tiles = tiles(picture.width, picture.height, (spec.width, spec.height), overlap)
    asked = predictor.task.decodes(predictor.session.output_names)
    parts: list[Detections] = []
    for done, box in enumerate(boxes_of_tiles, start=1):
        outputs, where = _run(predictor, picture, box, spec, asked)
        parts += predictor.task.decode(outputs, labels=predictor.labels, frames=[where])
        progress(done, len(boxes_of_tiles))
    boxes, scores, classes = _joined(parts, boxes_of_tiles, picture.width, picture.height)
    keep = nms(boxes, scores, classes, predictor.task.settings["iou"])
    return Detections(
        boxes=boxes[keep],
        scores=scores[keep],
        classes=classes[keep],
        labels=tuple(predictor.labels),
        width=picture.width,
        height=picture.height,
    )


def _joined(
    parts: list[Detections], areas: list[Box], width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tiles' boxes, scores and classes, those that tile borders cut made whole: see :func:`predict_tiled`."""
    boxes = np.concatenate([part.boxes for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    classes = np.concatenate([part.classes for part in parts])
    cut = np.concatenate([_cut(part.boxes, area, width, height) for part, area in zip(parts, areas, strict=True)])
    ends = np.cumsum([len(part) for part in parts])
    group = np.arange(len(boxes))
    """Of a cut box the first box found to be of the same object."""
    dropped = np.zeros(len(boxes), bool)

    def root(at: int) -> int:
        while group[at] != at:
            at = int(group[at])
        return at

    for i, j in _neighbours(areas, [len(part) > 0 for part in parts]):
        left, top = np.maximum(areas[i][:2], areas[j][:2])
        right, bottom = np.minimum(areas[i][2:], areas[j][2:])
        ours, theirs = (np.arange(ends[k] - len(parts[k]), ends[k]) for k in (i, j))
        seen = [boxes[k].clip((left, top, left, top), (right, bottom, right, bottom)) for k in (ours, theirs)]
        same = (intersections(*seen) > 0) & (classes[ours][:, None] == classes[theirs])
        same &= cut[ours][:, None] | cut[theirs]
        same[same] = box_ious(*seen)[same] >= SAME_IOU
        for a, b in zip(ours[np.nonzero(same)[0]].tolist(), theirs[np.nonzero(same)[1]].tolist(), strict=True):
            if cut[a] and cut[b]:
                a, b = sorted((root(a), root(b)))
                group[b] = a
            else:
                dropped[a if cut[a] else b] = True
    roots = np.asarray([root(at) for at in range(len(boxes))], np.int64)
    gone = np.zeros(len(boxes), bool)
    gone[roots[dropped]] = True  # where one part of an object was seen whole elsewhere, its other parts go too
    united = boxes.copy()
    np.minimum.at(united[:, :2], roots, boxes[:, :2])
    np.maximum.at(united[:, 2:], roots, boxes[:, 2:])
    best = scores.copy()
    np.maximum.at(best, roots, scores)
    keep = (roots == np.arange(len(boxes))) & ~gone
    return united[keep], best[keep], classes[keep]


def _cut(boxes: np.ndarray, area: Box, width: int, height: int) -> np.ndarray:
    """(M,) bool: which of a tile's boxes end at one of its borders that is none of the image's."""
    left, top, right, bottom = area
    x, y = max(2.0, NEAR * (right - left)), max(2.0, NEAR * (bottom - top))
    found = np.zeros(len(boxes), bool)
    if left > 0:
        found |= boxes[:, 0] < left + x
    if top > 0:
        found |= boxes[:, 1] < top + y
    if right < width:
        found |= boxes[:, 2] > right - x
    if bottom < height:
        found |= boxes[:, 3] > bottom - y
    return found


def _neighbours(areas: list[Box], occupied: list[bool]) -> list[tuple[int, int]]:
    """Pairs of occupied tiles that share pixels; ``areas`` are in rows."""
    found = []
    for i, (left, _, right, bottom) in enumerate(areas):
        if not occupied[i]:
            continue
        for j in range(i + 1, len(areas)):
            if areas[j][1] >= bottom:
                break
            if occupied[j] and areas[j][0] < right and areas[j][2] > left:
                found.append((i, j))
    return found
