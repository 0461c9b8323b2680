"""Carries boxes and maps between an image's own pixels and the network's input, by the frame that preprocessing made.

Pixels are areas: the left edge of the first is 0, the right edge of the last is the width. Boxes follow that rule on
both sides, so a box carried there and back is the same box.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .inputs import Frame

__all__ = ["boxes_to_input", "boxes_to_original", "map_to_input", "map_to_original"]


def _scale(frame: Frame) -> tuple[float, float, float, float]:
    """Factors and shifts from original to input pixels: (x factor, x shift, y factor, y shift)."""
    left, top, right, bottom = frame.box
    x0, y0, x1, y1 = frame.place
    fx, fy = (x1 - x0) / (right - left), (y1 - y0) / (bottom - top)
    return fx, x0 - left * fx, fy, y0 - top * fy


def boxes_to_input(boxes: np.ndarray, frame: Frame) -> np.ndarray:
    """(M, 4) xyxy in original pixels to (M, 4) float32 xyxy in input pixels; not cut at the borders."""
    fx, dx, fy, dy = _scale(frame)
    return np.asarray(boxes * np.asarray((fx, fy, fx, fy)) + np.asarray((dx, dy, dx, dy)), dtype=np.float32)


def boxes_to_original(boxes: np.ndarray, frame: Frame) -> np.ndarray:
    """(M, 4) xyxy in input pixels to (M, 4) float32 xyxy in original pixels, cut at the image's borders."""
    fx, dx, fy, dy = _scale(frame)
    found = (boxes - np.asarray((dx, dy, dx, dy))) / np.asarray((fx, fy, fx, fy))
    found[:, 0::2] = found[:, 0::2].clip(0, frame.width)
    found[:, 1::2] = found[:, 1::2].clip(0, frame.height)
    return np.asarray(found, dtype=np.float32)


def map_to_input(classes: np.ndarray, frame: Frame, height: int, width: int, fill: int) -> np.ndarray:
    """(H, W) uint8 in original pixels to (height, width) uint8 in input pixels, nearest; ``fill`` beside the image."""
    left, top, right, bottom = frame.place
    image = Image.fromarray(classes)
    small = image
    if frame.box != (0, 0, *image.size) or (right - left, bottom - top) != image.size:
        small = image.resize((right - left, bottom - top), Image.Resampling.NEAREST, box=frame.box)
    if small.size == (width, height):
        return np.array(small)
    canvas = np.full((height, width), fill, np.uint8)
    canvas[top:bottom, left:right] = np.asarray(small)
    return canvas


def map_to_original(classes: np.ndarray, frame: Frame, fill: int) -> np.ndarray:
    """(h, w) uint8 in input pixels to (frame.height, frame.width) uint8; ``fill`` where the input did not see."""
    left, top, right, bottom = frame.place
    seen = classes[top:bottom, left:right]
    x0, y0, x1, y1 = (round(v) for v in frame.box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)  # of an image one pixel wide no part is wider than half of it
    if seen.shape != (y1 - y0, x1 - x0):
        seen = np.asarray(Image.fromarray(seen).resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST))
    if (x0, y0, x1, y1) == (0, 0, frame.width, frame.height):
        return np.ascontiguousarray(seen)
    whole = np.full((frame.height, frame.width), fill, np.uint8)
    whole[y0:y1, x0:x1] = seen
    return whole
