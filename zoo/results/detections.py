"""The objects of an image, each with a box, a label and a score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..errors import DataError, MissingPart
from . import drawing

__all__ = ["Detection", "Detections"]


class Detection(NamedTuple):
    """One object."""

    label: str
    score: float
    """0..1."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in the pixels of the upright original."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """One image's objects, best first; there may be none."""

    boxes: np.ndarray
    """(M, 4) float32: left, top, right, bottom in the pixels of the upright original."""
    scores: np.ndarray
    """(M,) float32 in 0..1, descending."""
    classes: np.ndarray
    """(M,) int64: indices into ``labels``."""
    labels: tuple[str, ...]
    width: int
    """Width of the image in pixels."""
    height: int
    """Height of the image in pixels."""

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.classes.shape != (count,):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape}, classes {self.classes.shape}: (M, 4), (M,), (M,)"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        for index, score, box in zip(self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True):
            yield Detection(self.labels[index], score, tuple(box))

    def take(self, keep: np.ndarray) -> Detections:
        """Those at the given indices (ascending), or where a (M,) bool array is true."""
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], classes=self.classes[keep])

    def above(self, confidence: float) -> Detections:
        """Those whose score is greater than ``confidence``."""
        return self.take(self.scores > confidence)

    def to_dict(self) -> dict[str, Any]:
        """Size of the image and the objects: label, score (6 decimals), box (2 decimals) left, top, right, bottom."""
        return {
            "width": self.width,
            "height": self.height,
            "objects": [
                {"label": label, "score": round(score, 6), "box": [round(v, 2) for v in box]}
                for label, score, box in self
            ],
        }

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results: ``category_id`` is the class index, ``bbox`` x, y, width, height."""
        return [
            {"image_id": image_id, "category_id": index, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            for index, score, (x0, y0, x1, y1) in zip(
                self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """A ``supervision.Detections`` with the labels under ``data["class_name"]``. Raises MissingPart."""
        return _supervision().Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.classes.copy(),
            data={"class_name": np.asarray([self.labels[i] for i in self.classes], dtype=str)},
        )

    @classmethod
    def from_supervision(cls, detections: Any, *, labels: Sequence[str], width: int, height: int) -> Detections:
        """From a ``supervision.Detections``: sorted by score, ties in the order they had; without scores each is 1.

        Raises DataError where objects have no class or one that ``labels`` does not name.
        """
        boxes = np.asarray(detections.xyxy, np.float32).reshape(-1, 4)
        count = len(boxes)
        if count and detections.class_id is None:
            raise DataError("the objects have no class_id: give each the index of its label")
        classes = np.asarray(detections.class_id if count else (), np.int64)
        if count and not (classes.min() >= 0 and classes.max() < len(labels)):
            wrong = int(classes.min() if classes.min() < 0 else classes.max())
            raise DataError(f"class_id {wrong} for {len(labels)} labels: give one label for each class")
        given = detections.confidence
        scores = np.ones(count, np.float32) if given is None or not count else np.asarray(given, np.float32)
        order = np.argsort(-scores, kind="stable")
        return cls(
            boxes=boxes[order],
            scores=scores[order],
            classes=classes[order],
            labels=tuple(labels),
            width=width,
            height=height,
        )

    def draw(self, image: Image.Image, *, scores: bool = True) -> Image.Image:
        """A copy of ``image`` (enlarged where it is tiny) with the boxes, each with its label and, but for what is known
        to be true, its score.

        ``image`` may be of another size: the boxes are scaled to it.
        """
        picture = drawing.canvas(image)
        letters = drawing.font(picture)
        draw = ImageDraw.Draw(picture)
        across, down = picture.width / self.width, picture.height / self.height
        thick = max(2, int(letters.getbbox("Ag")[3] / 8))
        line = int(letters.getbbox("Ag")[3] * 1.3)
        placed = []
        for (label, score, (x0, y0, x1, y1)), index in zip(self, self.classes.tolist(), strict=True):
            colour = drawing.colour(index)
            left, top, right, bottom = round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down)
            right, bottom = max(left, right - 1), max(top, bottom - 1)
            draw.rectangle((left, top, right, bottom), outline=colour, width=thick)
            told = f"{label} {100 * score:.0f} %" if scores else label
            text = drawing.fitted(told, letters, picture.width - 8)
            wide = int(letters.getlength(text)) + 8
            # above the box where there is room, and never outside the picture
            x = max(0, min(left, picture.width - wide))
            y = top - line if top >= line else min(top, picture.height - line)
            placed.append((x, y, wide, text, colour))
        for x, y, wide, text, colour in reversed(placed):  # labels over all boxes, the best on top
            draw.rectangle((x, y, x + wide - 1, y + line - 1), fill=colour)
            draw.text((x + 4, y + line * 0.08), text, fill=drawing.ink(colour), font=letters)
        return picture

    def __repr__(self) -> str:
        first = ", ".join(f"{label} {score:.2f}" for label, score, _ in list(self)[:4])
        return f"Detections({len(self)}{': ' + first if first else ''}{', …' if len(self) > 4 else ''})"


def _supervision() -> Any:
    try:
        import supervision  # a heavy package that most users do without
    except ModuleNotFoundError as error:
        if error.name != "supervision":
            raise
        raise MissingPart("supervision, which to_supervision() needs,", "pip install supervision") from None
    return supervision
