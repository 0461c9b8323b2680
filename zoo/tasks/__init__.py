"""The numpy halves of the tasks: what raw outputs mean. One module a task; the torch halves are in zoo.train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..inputs import Frame

__all__ = ["Meter", "Outputs", "TaskHalf"]

Outputs = Mapping[str, "np.ndarray"]
"""Raw outputs of a network by name; the first axis of each is the batch."""


class Meter(Protocol):
    """Gathers a task's figures over a data set, some images at a time, without keeping the images' results."""

    def update(self, results: Sequence[Any], targets: Sequence[Any]) -> None:
        """Take in N images: their results, as decoded for judging, and their targets, in original pixels."""
        ...

    def merge(self, other: Any) -> None:
        """Take in what another meter of the same kind has gathered (on another device)."""
        ...

    def compute(self) -> dict[str, Any]:
        """The figures, JSON-ready: floats are shares of 1; ``images``; ``classes``: a list of per-class rows."""
        ...


class TaskHalf(Protocol):
    """What a :class:`zoo.specs.Task` resolves to: a class built with the bundle's decode settings (or with none)."""

    metric_name: str
    """The headline among the meter's figures, as a person would say it: ``top-1 accuracy``, ``mIoU``, ``mAP@50:95``."""
    score_name: str
    """What ``sample_scores`` measures on one image: ``top-1 accuracy``, ``IoU of an image``."""
    deciding: str
    """Name of the output that the numeric gate reads closest (logits rather than probabilities)."""
    draws_on_image: bool
    """Whether ``draw`` shows where things are, so that two results are best compared side by side."""
    settings: dict[str, Any]
    """The decode settings in force, JSON-ready; they travel in the manifest as ``decode``."""

    def decodes(self, available: Sequence[str]) -> list[str]:
        """Which of a graph's outputs ``decode`` needs; the runtime asks for no others."""
        ...

    def decode(
        self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame], judging: bool = False
    ) -> list[Any]:
        """Raw outputs of N images to N result records in the images' own pixels. ``judging`` keeps what a person
        would not be shown but a metric ranks: detections of low confidence."""
        ...

    def shown(self, result: Any) -> Any:
        """A result that was decoded for judging, as a user would be shown it."""
        ...

    def describe(self, result: Any) -> str:
        """A result in a few words: ``ants (93 %)``, ``12 RBC, 1 WBC``."""
        ...

    def sample_scores(self, results: Sequence[Any], targets: Sequence[Any]) -> np.ndarray:
        """(N,) float64 in 0..1: how well each image was answered. The accuracy gate pairs these."""
        ...

    def same_answer(self, results: Sequence[Any], reference: Sequence[Any]) -> np.ndarray:
        """(N,) bool: whether two networks would tell a user the same thing of each image."""
        ...

    def differences(self, results: Sequence[Any], reference: Sequence[Any]) -> dict[str, float]:
        """Figures for the report on how far apart two networks' results are; empty where there is nothing to add."""
        ...

    def meter(self, labels: Sequence[str]) -> Meter:
        """A fresh meter for a network of these labels."""
        ...

    def tune(self, results: Sequence[Any], targets: Sequence[Any]) -> dict[str, Any]:
        """Decode settings chosen on a validation set (a confidence threshold); empty where there is nothing to choose."""
        ...

    def pack(self, results: Sequence[Any]) -> dict[str, np.ndarray]:
        """Results as arrays that a bundle can carry; the inverse of :meth:`unpack`."""
        ...

    def unpack(self, arrays: Mapping[str, np.ndarray], labels: Sequence[str]) -> list[Any]:
        """The results that :meth:`pack` was given."""
        ...

    def draw(self, image: Image.Image, result: Any) -> Image.Image:
        """The result drawn on a copy of the image."""
        ...
