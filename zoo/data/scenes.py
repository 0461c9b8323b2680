"""Made pictures whose truth is known to the pixel: discs, squares and triangles before natural backgrounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..parity.evidence import natural_images
from .targets import Boxes

__all__ = ["SHAPES", "scenes", "write_scenes"]

SHAPES = ("disc", "square", "triangle")
COLOURS = ((205, 90, 70), (85, 175, 90), (80, 100, 215))
"""Of each shape, about: colour is learnt in a minute, where form alone would take an hour."""


def scenes(
    count: int, side: int = 160, seed: int = 0, noise: float = 6.0
) -> Iterator[tuple[np.ndarray, np.ndarray, Boxes]]:
    """``count`` times an image (side, side, 3) uint8, its class map (side, side) uint8 (0 = background, then the shapes
    in their order) and its boxes, whose classes count the shapes from 0. ``noise``: its deviation in steps of 255. Shapes cover one another; what is seen of
    less than a third of its pixels is not told of."""
    rng = np.random.default_rng(seed)
    for background in natural_images(count, side, side, 3, seed):
        classes = np.zeros((side, side), np.uint8)
        image = Image.fromarray((background * 0.6 + 50).astype(np.uint8))
        owner = np.zeros((side, side), np.int32)
        drawn: list[tuple[int, int]] = []
        for number in range(1, int(rng.integers(1, 6)) + 1):
            kind = int(rng.integers(len(SHAPES)))
            radius = float(rng.uniform(0.07, 0.18)) * side
            x, y = rng.uniform(radius, side - radius, 2)
            stencil = _stencil(kind, float(x), float(y), radius, float(rng.uniform(0, 360)), side)
            colour = np.clip(rng.normal(COLOURS[kind], 40), 0, 255).astype(int)
            image.paste(Image.new("RGB", image.size, tuple(map(int, colour))), mask=Image.fromarray(stencil))
            inside = stencil > 127
            owner[inside], classes[inside] = number, kind + 1
            drawn.append((kind, int(inside.sum())))
        boxes, kinds = [], []
        for number, (kind, size) in enumerate(drawn, start=1):
            rows, columns = np.nonzero(owner == number)
            if len(rows) * 3 >= size and len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                kinds.append(kind)
        grain = rng.normal(0, noise, (side, side, 3))
        pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
        yield pixels, classes, Boxes.of(np.asarray(boxes, np.float32).reshape(-1, 4), kinds)


def _stencil(kind: int, x: float, y: float, radius: float, angle: float, side: int) -> np.ndarray:
    """(side, side) uint8: 255 inside the shape, with soft edges."""
    scale = 4
    canvas = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(canvas)
    where = (x * scale, y * scale, radius * scale)
    if kind == 0:
        draw.ellipse([where[0] - where[2], where[1] - where[2], where[0] + where[2], where[1] + where[2]], fill=255)
    else:
        draw.regular_polygon(where, 4 if kind == 1 else 3, rotation=angle, fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def write_scenes(folder: Path, task: str, count: int, side: int = 160, seed: int = 0) -> None:
    """A data set on disk: for ``segment`` images/ and masks/, for ``detect`` images/ and a COCO json, for ``restore`` images/
    without noise."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (pixels, classes, boxes) in enumerate(scenes(count, side, seed, *((0.0,) if task == "restore" else ()))):
        name = f"{index:04d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": index, "file_name": name, "width": side, "height": side})
        if task == "segment":
            (folder / "masks").mkdir(exist_ok=True)
            Image.fromarray(classes).save(folder / "masks" / name)
        for kind, (left, top, right, bottom) in zip(boxes.classes.tolist(), boxes.boxes.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            found = {"id": len(annotations), "image_id": index, "category_id": kind, "bbox": box}
            annotations.append({**found, "area": box[2] * box[3], "iscrowd": 0})
    if task == "restore":
        return
    if task == "segment":
        (folder / "classes.txt").write_text("\n".join(("background", *SHAPES)) + "\n", encoding="utf-8")
    else:
        categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES)]
        record = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations.json").write_text(json.dumps(record), encoding="utf-8")
