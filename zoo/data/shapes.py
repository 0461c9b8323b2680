"""Class maps that lie in no file: outlines and run lengths, painted when they are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .targets import VOID, Mask

__all__ = ["PaintedMask", "Shape", "box_of", "decode_runs", "fill"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shape:
    """One object: its outlines, or its pixels as run lengths."""

    value: int
    """Class index, or ``VOID``."""
    outlines: tuple[np.ndarray, ...] = ()
    """Each (M, 2) float64 x and y of the corners in pixels; the object is all of them together."""
    runs: np.ndarray | None = None
    """(R,) int64 run lengths down the columns, of other pixels and of the object's in turn; they fill the image."""

    def paint(self, canvas: np.ndarray) -> None:
        """Write ``value`` where the object lies on ``canvas``, (H, W) uint8."""
        if self.runs is not None:
            canvas[_from_runs(self.runs, *canvas.shape)] = self.value
        for outline in self.outlines:
            fill(canvas, outline, self.value)

    def area(self) -> float:
        """Pixels, by the outlines' own area; larger objects are painted before smaller ones."""
        if self.runs is not None:
            return float(self.runs[1::2].sum())
        return float(sum(abs(_signed_area(outline)) for outline in self.outlines))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PaintedMask(Mask):
    """The class of each pixel by the shapes of an annotation file: 0 where there is none; VOID lies lowest, then the
    larger shapes below the smaller. ``source`` is the file that the shapes come from."""

    width: int
    height: int
    shapes: tuple[Shape, ...]

    def stored(self) -> np.ndarray:
        """(H, W) uint8."""
        canvas = np.zeros((self.height, self.width), np.uint8)
        for shape in sorted(self.shapes, key=lambda s: (s.value != VOID, -s.area())):
            shape.paint(canvas)
        return canvas

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    def key(self) -> bytes:
        """What a data set's fingerprint holds of it."""
        digest = hashlib.sha256(f"{self.width} {self.height} {sorted(self.values.items())}".encode())
        for shape in self.shapes:
            digest.update(f"\n{shape.value}".encode())
            for array in (*shape.outlines, *(() if shape.runs is None else (shape.runs,))):
                digest.update(np.ascontiguousarray(array).tobytes() + b"\0")
        return digest.digest()


def box_of(outlines: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom around outlines of (M, 2) corners each. Raises ValueError where there are none."""
    if not outlines:
        raise ValueError("no outlines")
    points = np.concatenate(list(outlines))
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def fill(canvas: np.ndarray, outline: np.ndarray, value: int) -> None:
    """Write ``value`` on the pixels of (H, W) ``canvas`` whose centres lie inside ``outline``, (M, 2) x and y.

    Even-odd rule: every edge turns over the pixels to the right of it, row by row; what was turned over an odd number
    of times is inside.
    """
    height, width = canvas.shape
    x0, y0 = outline.T
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # rows whose centre y + 0.5 lies between the ends of the edge
    first = np.ceil(np.minimum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    count = last - first
    if not count.any():
        return
    top, bottom = int(first[count > 0].min()), int(last.max())
    edge = np.repeat(np.arange(len(outline)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (x1 - x0) / (y1 - y0)
    column = np.ceil(x0[edge] + (row + 0.5 - y0[edge]) * slope[edge] - 0.5).clip(0, width).astype(np.int64)
    left, right = int(column.min()), int(column.max())
    turns = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(turns, (row - top, column - left), 1)
    inside = np.cumsum(turns, axis=1)[:, :-1] & 1
    canvas[top:bottom, left:right][inside.astype(bool)] = value


def _signed_area(outline: np.ndarray) -> float:
    x, y = outline.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _from_runs(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) bool."""
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.asarray(flat.reshape(width, height).T)


def decode_runs(code: str) -> np.ndarray:
    """The run lengths in COCO's compressed form: five bits a character, least first, the sixth bit says that more
    follow; from the fourth on a length is told as the difference to the last but one. Raises ValueError.
    """
    lengths: list[int] = []
    value = shift = 0
    for byte in code.encode("ascii"):
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("no run-length code")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("a run-length code that is cut off")
    return np.asarray(lengths, np.int64)
