"""Images out of latents, the numpy half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ..data import Dataset, Sample
from ..errors import UnknownName, ZooError
from ..inputs import Frame, ImageInput
from ..results import ImageResult
from . import Outputs
from .pictures import PictureTask

__all__ = ["Generate", "latents"]

DRAWN = 128
"""Latents that a generator is judged on where nobody says how many."""


def latents(spec: ImageInput, labels: Sequence[str], count: int, seed: int = 0, label: str = "") -> list[np.ndarray]:
    """``count`` inputs (1, 1, Z[+K]) float32 of a generator: Z values from N(0, 1) and, where it is told one of the K
    ``labels``, the class, one-hot. Image i depends on (seed, i) alone. Without ``label`` the classes take turns.

    Raises UnknownName for a label that is none, ZooError for a label where there are no classes.
    """
    if label and not labels:
        raise ZooError(f"this generator is told no classes: leave out the label '{label}'")
    if label and label not in labels:
        raise UnknownName("label", label, labels)
    found = []
    for at in range(count):
        values = np.random.default_rng((seed, at)).standard_normal(spec.channels, np.float32)
        if labels:
            kind = list(labels).index(label) if label else at % len(labels)
            values[-len(labels) :] = np.eye(len(labels), dtype=np.float32)[kind]
        found.append(values[None, None])
    return found


class Generate(PictureTask):
    """Nobody knows which image a latent should give: quality is that of many images against many real ones
    (:mod:`zoo.train.quality`), and a candidate is compared with the trained network on the same latents."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = {}

    def decode(
        self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame], judging: bool = False
    ) -> list[ImageResult]:
        return [ImageResult(pixels=self.pixels(output)) for output in outputs["output"]]

    def samples(self, data: Dataset, spec: ImageInput, labels: Sequence[str], count: int = 0) -> Dataset:
        """``count`` latents; the real images are its ``others``."""
        drawn = tuple(
            Sample(id=f"seed 0, image {i}", image=latent, target=None)
            for i, latent in enumerate(latents(spec, labels, count or DRAWN))
        )
        return replace(data, samples=drawn, labels=tuple(labels), others=data.samples, format="latents")

    def draw(self, image: Image.Image, result: Any) -> Image.Image:
        picture: Image.Image = result.image()
        return picture
