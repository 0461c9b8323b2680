"""One label for a whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Classification"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification:
    """One image's class probabilities."""

    scores: np.ndarray
    """(C,) float32, sums to 1."""
    labels: tuple[str, ...]
    """C names, in the order of ``scores``."""

    @property
    def index(self) -> int:
        """Index of the most probable class."""
        return int(self.scores.argmax())

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.labels[self.index]

    @property
    def score(self) -> float:
        """Probability of the most probable class, 0..1."""
        return float(self.scores[self.index])

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` most probable (label, probability) pairs, best first; ties keep the order of the labels."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.labels[i], float(self.scores[i])) for i in order]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        return {
            "label": self.label,
            "index": self.index,
            "score": round(self.score, 6),
            "top": [{"label": label, "score": round(score, 6)} for label, score in self.top(k)],
        }

    def draw(self, image: Image.Image, k: int = 3) -> Image.Image:
        """A copy of ``image`` (enlarged where it is tiny) with the top ``k`` labels as bars below it."""
        picture = image.convert("RGB")
        if min(picture.size) < 256:
            factor = -(-256 // min(picture.size))
            picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        font = ImageFont.load_default(size=max(14, picture.width // 28))
        line = int(font.getbbox("Ag")[3] * 1.5)
        pairs = self.top(k)
        canvas = Image.new("RGB", (picture.width, picture.height + line * len(pairs)), "white")
        canvas.paste(picture, (0, 0))
        draw = ImageDraw.Draw(canvas)
        for row, (label, score) in enumerate(pairs):
            y = picture.height + row * line
            draw.rectangle((0, y, max(1, int(picture.width * score)) - 1, y + line - 1), fill=(198, 219, 239))
            draw.text((6, y + line * 0.15), f"{label}  {100 * score:.1f} %", fill="black", font=font)
        return canvas

    def __repr__(self) -> str:
        return f"Classification({self.label!r}, {self.score:.4f})"
