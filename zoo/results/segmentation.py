"""A class for every pixel of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UnknownName
from . import drawing

__all__ = ["UNSEEN", "Segmentation", "background_index"]

UNSEEN = 255
"""The class of pixels that the network's input did not cover (:data:`zoo.data.targets.VOID` in an answer)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """One image's class map."""

    classes: np.ndarray
    """(H, W) uint8 in the pixels of the upright original: indices into ``labels``; 255 where the network did not see."""
    labels: tuple[str, ...]
    """At most 255 names."""

    @property
    def width(self) -> int:
        """Width of the image in pixels."""
        return int(self.classes.shape[1])

    @property
    def height(self) -> int:
        """Height of the image in pixels."""
        return int(self.classes.shape[0])

    def mask(self, label: str) -> np.ndarray:
        """(H, W) bool: the pixels of ``label``. Raises UnknownName."""
        return np.asarray(self.classes == self._index(label))

    @cached_property
    def _counts(self) -> np.ndarray:
        return _class_counts(self.classes)

    def areas(self) -> dict[str, int]:
        """Pixels of each label, in the order of the labels; 0 for those that are not there."""
        return {label: int(self._counts[i]) for i, label in enumerate(self.labels)}

    def polygons(self, label: str) -> list[np.ndarray]:
        """Outlines of the connected regions of ``label``: (M, 2) float32 each, x and y of the corners, clockwise.

        Pixels are connected where they share an edge, and outlines run along the edges: pixel (0, 0) alone is
        (0, 0), (1, 0), (1, 1), (0, 1). Holes are left out, so an outline with holes holds more than its region.
        Raises UnknownName.
        """
        return _outlines(self.mask(label))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO annotations, one for each label that occurs, the background left out: ``category_id`` is the class
        index, ``segmentation`` a compressed run-length code as ``pycocotools.mask.decode`` reads it, ``bbox`` x, y,
        width, height."""
        found = []
        for index in self._present():
            if index == background_index(self.labels):
                continue
            mask = self.classes == index
            left, top, right, bottom = _box(mask)
            found.append(
                {
                    "image_id": image_id,
                    "category_id": index,
                    "segmentation": {"size": [self.height, self.width], "counts": _run_lengths(mask)},
                    "area": int(self._counts[index]),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                }
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Size of the image, pixels that were not seen, and for each label that occurs its pixels, its share of the
        image and its box: left, top, right, bottom."""
        return {
            "width": self.width,
            "height": self.height,
            "unseen": int(self._counts[UNSEEN]),
            "classes": [
                {
                    "label": self.labels[index],
                    "pixels": int(self._counts[index]),
                    "share": round(int(self._counts[index]) / self.classes.size, 6),
                    "box": list(_box(self.classes == index)),
                }
                for index in self._present()
            ],
        }

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of ``image`` (enlarged where it is tiny) under translucent colours with solid edges, and a legend
        below. The background keeps the picture's own colours; what the network did not see is darkened.

        ``image`` may be of another size: the map is stretched over it.
        """
        picture = drawing.canvas(image)
        classes = np.asarray(Image.fromarray(self.classes).resize(picture.size, Image.Resampling.NEAREST))
        paint = np.zeros((256, 3), np.uint8)
        strength = np.zeros(256, np.uint8)
        strength[UNSEEN] = 160
        present = self._present()
        for index in present:
            paint[index] = drawing.colour(index)
            strength[index] = 0 if index == background_index(self.labels) else 110
        alpha = strength[classes]
        edges = np.zeros(classes.shape, bool)
        for near, far in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
            differs = classes[near] != classes[far]
            edges[near] |= differs
            edges[far] |= differs
        alpha[edges & (alpha > 0)] = 255
        picture.paste(Image.fromarray(paint[classes]), mask=Image.fromarray(alpha))
        rows = [
            (drawing.colour(i), f"{self.labels[i]}  {100 * int(self._counts[i]) / self.classes.size:.1f} %")
            for i in present
            if i != background_index(self.labels)
        ]
        if self._counts[UNSEEN]:
            rows.append(((0, 0, 0), "not seen"))
        return _with_legend(picture, rows)

    def _index(self, label: str) -> int:
        if label not in self.labels:
            raise UnknownName("label", label, self.labels)
        return self.labels.index(label)

    def _present(self) -> list[int]:
        return [int(i) for i in np.flatnonzero(self._counts[: len(self.labels)])]

    def __repr__(self) -> str:
        shares = ", ".join(f"{c['label']} {100 * c['share']:.1f} %" for c in self.to_dict()["classes"][:4])
        return f"Segmentation({self.width}x{self.height}: {shares})"


def background_index(labels: Sequence[str]) -> int | None:
    """0 where the first label is ``background`` (in any case), None where every label is something."""
    return 0 if labels and labels[0].lower() == "background" else None


def _class_counts(classes: np.ndarray) -> np.ndarray:
    """(256,) int64: how often each value occurs among uint8 values of any shape."""
    flat = classes.reshape(-1)
    # a piece at a time: bincount makes eight bytes of each
    pieces = np.array_split(flat, flat.size // (1 << 20) + 1)
    return np.asarray(np.sum([np.bincount(piece, minlength=256) for piece in pieces], axis=0))


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """See :meth:`Segmentation.polygons`; ``mask`` is (H, W) bool.

    Along a row of the lattice between the pixels, corners come in pairs that an edge joins; along a column likewise.
    An outline is what one meets going along a row, then a column, and so on. Where two pixels touch at a corner only,
    that corner is two: one of each pixel.
    """
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    odd = nw ^ ne ^ sw ^ se
    falling, rising = nw & se & ~ne & ~sw, ne & sw & ~nw & ~se
    y, x = np.nonzero(odd | falling | rising)
    if not len(y):
        return []
    twice = ~odd[y, x]
    y, x = np.repeat(y, 1 + twice), np.repeat(x, 1 + twice)
    second = np.zeros(len(y), np.int64)
    second[1:] = (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    count = len(y)
    # corners lie in reading order, so those joined along a row are neighbours: 0-1, 2-3, …
    along_row = np.arange(count) ^ 1
    # the first of two at one place ends the edge from the left: it goes on upwards for a falling pair, else downwards
    order = np.lexsort((second ^ rising[y, x], y, x))
    along_column = np.empty(count, np.int64)
    along_column[order[0::2]], along_column[order[1::2]] = order[1::2], order[0::2]
    hops, drops = along_row.tolist(), along_column.tolist()
    inside = se[y, x].tolist()
    visited = bytearray(count)
    points = np.stack((x, y), axis=1).astype(np.float32)
    found = []
    for start in range(count):
        if visited[start]:
            continue
        loop: list[int] = []
        at = start
        while not visited[at]:
            after = hops[at]
            visited[at] = visited[after] = 1
            loop += (at, after)
            at = drops[after]
        # the first corner of a loop in reading order has the region below and right of it, or a hole
        if inside[start]:
            found.append(points[loop])
    return found


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _run_lengths(mask: np.ndarray) -> str:
    """COCO's compressed run-length code: down the columns, zeros first; from the third on a length is the difference
    to the last but one; five bits a character, least first, the sixth bit says that more follow."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(ends, prepend=0, append=flat.size)
    if flat[0]:
        lengths = np.concatenate(([0], lengths))
    lengths[3:] -= lengths[1:-2]
    code = bytearray()
    for value in lengths.tolist():
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            code.append(48 + bits + 32 * more)
            if not more:
                break
    return code.decode("ascii")


def _with_legend(picture: Image.Image, rows: Sequence[tuple[drawing.Colour, str]]) -> Image.Image:
    if not rows:
        return picture
    letters = drawing.font(picture)
    line = int(letters.getbbox("Ag")[3] * 1.5)
    cell = min(picture.width, int(max(letters.getlength(text) for _, text in rows)) + 2 * line)
    columns = max(1, picture.width // cell)
    canvas = Image.new("RGB", (picture.width, picture.height + line * -(-len(rows) // columns)), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for at, (colour, text) in enumerate(rows):
        x, y = at % columns * cell, picture.height + at // columns * line
        draw.rectangle((x + line // 5, y + line // 5, x + line - line // 5, y + line - line // 5), fill=colour)
        shown = drawing.fitted(text, letters, cell - 1.2 * line)
        draw.text((x + line * 1.2, y + line * 0.15), shown, fill="black", font=letters)
    return canvas
