"""The numpy halves of the tasks: what raw outputs mean. One module a task; the torch halves are in zoo.train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..inputs import Frame

__all__ = ["Outputs", "TaskHalf"]

Outputs = Mapping[str, "np.ndarray"]
"""Raw outputs of a network by name; the first axis of each is the batch."""


class TaskHalf(Protocol):
    """What a :class:`zoo.specs.Task` resolves to: a class without state, built with no arguments."""

    metric_name: str
    """What ``sample_scores`` measures, as a person would say it: ``top-1 accuracy``."""
    decodes: tuple[str, ...]
    """The outputs that ``decode`` needs; the runtime asks for no others."""
    deciding: str
    """Name of the output that the numeric gate reads closest (logits rather than probabilities)."""

    def decode(self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame]) -> list[Any]:
        """Raw outputs of N images to N result records in the images' own pixels."""
        ...

    def sample_scores(self, outputs: Outputs, targets: Sequence[Any]) -> np.ndarray:
        """(N,) float64 in 0..1: how well each image was answered. The accuracy gate pairs these."""
        ...

    def same_answer(self, outputs: Outputs, reference: Outputs) -> np.ndarray:
        """(N,) bool: whether two networks would tell a user the same thing of each image."""
        ...

    def metrics(self, outputs: Outputs, targets: Sequence[Any], labels: Sequence[str]) -> dict[str, Any]:
        """The task's figures over a data set, JSON-ready; ``sample_scores``'s mean under ``metric_name``."""
        ...

    def draw(self, image: Image.Image, result: Any) -> Image.Image:
        """The result drawn on a copy of the image."""
        ...
