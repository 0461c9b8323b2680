"""The numpy halves of the tasks: what raw outputs mean. One module a task; the torch halves are in zoo.train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..data import Dataset
    from ..inputs import Frame, ImageInput

__all__ = ["Aligned", "Meter", "Outputs", "TaskHalf", "gained", "measure", "rows_in", "said", "told"]

Outputs = Mapping[str, "np.ndarray"]
"""Raw outputs of a network by name; the first axis of each is the batch."""

FED_AT_ONCE = 16
"""Results that a meter is given in one go: class maps are unpacked when they are asked for, and are large."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Aligned:
    """Raw outputs whose rows a network chose from many, beside a reference that may have chosen others."""

    outputs: Outputs
    """The candidate's, each row where the reference has its partner; where that has none, the reference's own row."""
    paired: np.ndarray
    """(N, A) bool: whether the reference's row has a partner, and means a comparison."""
    lost: float
    """Of the rows of either that matter, the share without a partner, 0..1."""
    matter: int
    """How many those rows are, both networks' together."""


class TaskHalf(Protocol):
    """What a :class:`zoo.specs.Task` resolves to: a class built with the bundle's decode settings (or with none)."""

    metric_name: str
    """The headline among the meter's figures, as a person would say it: ``top-1 accuracy``, ``mIoU``, ``mAP@50:95``."""
    score_name: str
    """What ``sample_scores`` measures on one image: ``top-1 accuracy``, ``IoU of an image``."""
    unit: str
    """What hundredths of a score are: ``%``, or ``dB`` (0.3768 is 37.68 dB); as ``metric_name`` known of the class."""
    deciding: str
    """Name of the output that the numeric gate reads closest (logits rather than probabilities)."""
    draws_on_image: bool
    """Whether ``draw`` shows where things are, so that two results are best compared side by side."""
    settings: dict[str, Any]
    """The decode settings in force, JSON-ready; they travel in the manifest as ``decode``."""

    def samples(self, data: Dataset, spec: ImageInput, labels: Sequence[str], count: int = 0) -> Dataset:
        """The data as the network is judged by: good images damaged, latents in the place of images; usually as they
        are. ``count``: of latents, how many."""
        ...

    def decodes(self, available: Sequence[str]) -> list[str]:
        """Which of a graph's outputs ``decode`` needs; the runtime asks for no others."""
        ...

    def decode(
        self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame], judging: bool = False
    ) -> list[Any]:
        """Raw outputs of N images to N result records in the images' own pixels. ``judging`` keeps what a person
        would not be shown but a metric ranks: detections of low confidence."""
        ...

    def aligned(self, outputs: Outputs, reference: Outputs) -> Aligned | None:
        """A candidate's outputs of N images beside a reference's of the same shapes, all values finite. None where a
        row means the same in both as it stands, which is so wherever a network does not choose its rows by their
        scores: there another order is a fault, and must be seen as one."""
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


def said(half: TaskHalf, value: float) -> str:
    """A score or a headline metric of the task as a person reads it: ``93.10 %``, ``37.68 dB``."""
    return f"{100 * value:.2f} {half.unit}"


def gained(half: TaskHalf, difference: float) -> str:
    """A difference of such: ``-0.12 points``, ``-0.12 dB``."""
    return f"{100 * difference:+.2f} {'points' if half.unit == '%' else half.unit}"


def told(half: TaskHalf | type[TaskHalf], name: str, value: Any) -> Any:
    """A meter's figure as a person reads it: shares in %, the headline of pictures in dB and their other figures as plain
    numbers; whatever is no float as it is, lists of floats (an interval) in one line."""
    if isinstance(value, float):
        share = half.unit == "%" or name == half.metric_name
        return f"{100 * value:.2f} {half.unit}" if share else f"{value:.5g}"
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, float) for v in value):
        return " to ".join(f"{v:.5g}" for v in value)
    return value


def measure(half: TaskHalf, labels: Sequence[str], results: Sequence[Any], targets: Sequence[Any]) -> Meter:
    """A meter of the task that was fed N results, some at a time, with their N targets."""
    meter = half.meter(labels)
    for start in range(0, len(results), FED_AT_ONCE):
        meter.update(results[start : start + FED_AT_ONCE], targets[start : start + FED_AT_ONCE])
    return meter


def rows_in(outputs: Outputs) -> int:
    """Of how many images all outputs tell: the length of the shortest, 0 without any."""
    return min((len(value) for value in outputs.values()), default=0)
