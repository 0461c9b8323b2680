"""Segmentation, the numpy half: a class for each pixel (N, H, W) to maps in original pixels, IoU and Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data import Dataset
from ..data.targets import VOID, Mask
from ..errors import DataError
from ..geometry import map_to_original
from ..inputs import Frame, ImageInput
from ..results import Segmentation
from ..results.segmentation import background_index
from . import Outputs

__all__ = ["Segment"]

CHANGED_PIXELS = 0.001
"""Share of an image's pixels on which two networks may differ and still have said the same. Not none: along the border
of a region two classes are level, and a change in the last digit moves single pixels of it, a few in ten thousand."""


class Segment:
    """See :class:`zoo.tasks.TaskHalf`. Outputs: ``logits`` (N, K, H, W) float32 and ``classes`` = their argmax over K,
    (N, H, W) uint8, in input pixels.

    Pixels whose target is void are not counted. Where the network's input did not cover a pixel, the answer is wrong.
    """

    metric_name = "mIoU"
    score_name = "IoU of an image"
    unit = "%"
    deciding = "logits"
    draws_on_image = True

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def samples(self, data: Dataset, spec: ImageInput, labels: Sequence[str], count: int = 0) -> Dataset:
        return data

    def decodes(self, available: Sequence[str]) -> list[str]:
        return ["classes"]

    def decode(
        self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame], judging: bool = False
    ) -> list[Segmentation]:
        names = tuple(labels)
        return [
            Segmentation(classes=map_to_original(classes, frame, VOID), labels=names)
            for classes, frame in zip(outputs["classes"], frames, strict=True)
        ]

    def aligned(self, outputs: Outputs, reference: Outputs) -> None:
        return None

    def shown(self, result: Segmentation) -> Segmentation:
        return result

    def describe(self, result: Segmentation) -> str:
        """The classes that cover most of the image, but for the background, each with its share."""
        background = background_index(result.labels)
        found = [(n, label) for i, (label, n) in enumerate(result.areas().items()) if n and i != background]
        found.sort(key=lambda pair: -pair[0])
        said = ", ".join(f"{label} {100 * n / result.classes.size:.1f} %" for n, label in found[:6])
        return f"{said}, …" if len(found) > 6 else said or "nothing"

    def sample_scores(self, results: Sequence[Segmentation], targets: Sequence[Mask]) -> np.ndarray:
        """The mean IoU over the classes that occur in the image's target or answer; 1 where every pixel is void."""
        scores = np.ones(len(results))
        for at, (result, target) in enumerate(zip(results, targets, strict=True)):
            hits, actual, told, _ = _overlap(_pairs(result, target), len(result.labels))
            union = actual + told - hits
            if union.any():
                scores[at] = (hits[union > 0] / union[union > 0]).mean()
        return scores

    def same_answer(self, results: Sequence[Segmentation], reference: Sequence[Segmentation]) -> np.ndarray:
        """At least 99.9 % of an image's pixels have the same class."""
        return np.asarray(_changed(results, reference) <= CHANGED_PIXELS)

    def differences(self, results: Sequence[Segmentation], reference: Sequence[Segmentation]) -> dict[str, float]:
        """Share of an image's pixels that have another class: the mean over the images, and the most in one."""
        changed = _changed(results, reference)
        return {"mean_changed": float(changed.mean()), "most_changed": float(changed.max())} if len(changed) else {}

    def meter(self, labels: Sequence[str]) -> SegmentMeter:
        return SegmentMeter(labels)

    def tune(self, results: Sequence[Segmentation], targets: Sequence[Mask]) -> dict[str, Any]:
        return {}

    def pack(self, results: Sequence[Segmentation]) -> dict[str, np.ndarray]:
        """Runs of equal pixels in reading order, all images' one after the other: ``values`` (S,) uint8, ``lengths``
        (S,) int32, ``runs`` (N,) int32 how many each image has, ``sizes`` (N, 2) int32 widths and heights."""
        values, lengths = [np.empty(0, np.uint8)], [np.empty(0, np.int32)]
        for result in results:
            flat = result.classes.reshape(-1)
            starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
            values.append(flat[starts])
            lengths.append(np.diff(starts, append=flat.size).astype(np.int32))
        return {
            "values": np.concatenate(values),
            "lengths": np.concatenate(lengths),
            "runs": np.asarray([len(v) for v in values[1:]], np.int32),
            "sizes": np.asarray([(r.width, r.height) for r in results], np.int32).reshape(-1, 2),
        }

    def unpack(self, arrays: Mapping[str, np.ndarray], labels: Sequence[str]) -> list[Segmentation]:
        cuts = np.cumsum(arrays["runs"])
        parts = zip(*(np.split(arrays[name], cuts)[:-1] for name in ("values", "lengths")), strict=True)
        return [
            Segmentation(classes=np.repeat(values, lengths).reshape(height, width), labels=tuple(labels))
            for (values, lengths), (width, height) in zip(parts, arrays["sizes"].tolist(), strict=True)
        ]

    def draw(self, image: Image.Image, result: Segmentation) -> Image.Image:
        return result.draw(image)


class SegmentMeter:
    """Counts pixels over all images at once: figures are of the whole data set, but for one that medicine usually
    gives, ``Dice of an image``, the mean over the images of each image's own Dice.

    ``mIoU`` is over the classes that occur in a target or an answer (torchmetrics' convention); ``Dice`` over the same
    without a class 0 named background, and 1 where nothing else occurs; ``pixel accuracy``; ``images``. ``classes``
    holds a row for each class that occurs: pixels of the targets, IoU, Dice, precision, recall (0/0 is 0).
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._pairs = np.zeros((256, 256), np.int64)
        self._images = 0
        self._dice_of_images = 0.0

    def update(self, results: Sequence[Segmentation], targets: Sequence[Mask]) -> None:
        for result, target in zip(results, targets, strict=True):
            found = _pairs(result, target)
            self._images += 1
            self._pairs += found
            self._dice_of_images += self._dice(found)

    def merge(self, other: SegmentMeter) -> None:
        self._images += other._images
        self._pairs += other._pairs
        self._dice_of_images += other._dice_of_images

    def _dice(self, pairs: np.ndarray) -> float:
        """The mean over the classes that occur but for the background; 1 where nothing else occurs."""
        hits, actual, told, pixels = _overlap(pairs, len(self._labels))
        objects = np.flatnonzero(actual + told)
        objects = objects[objects != background_index(self._labels)]
        dice = _share(2 * hits, actual + told)
        return float(dice[objects].mean()) if len(objects) else float(pixels > 0)

    def compute(self) -> dict[str, Any]:
        hits, actual, told, pixels = _overlap(self._pairs, len(self._labels))
        iou = _share(hits, actual + told - hits)
        dice = _share(2 * hits, actual + told)
        precision, recall = _share(hits, told), _share(hits, actual)
        occurs = np.flatnonzero(actual + told)
        return {
            "mIoU": float(iou[occurs].mean()) if len(occurs) else 0.0,
            "Dice": self._dice(self._pairs),
            "Dice of an image": self._dice_of_images / max(1, self._images),
            "pixel accuracy": float(hits.sum() / max(1, pixels)),
            "images": self._images,
            "classes": [
                {
                    "label": self._labels[i],
                    "pixels": int(actual[i]),
                    "IoU": float(iou[i]),
                    "Dice": float(dice[i]),
                    "precision": float(precision[i]),
                    "recall": float(recall[i]),
                }
                for i in occurs.tolist()
            ],
        }


def _changed(results: Sequence[Segmentation], reference: Sequence[Segmentation]) -> np.ndarray:
    """(N,) float64: share of the pixels that have another class."""
    pairs = zip(results, reference, strict=True)
    return np.asarray([np.count_nonzero(a.classes != b.classes) / a.classes.size for a, b in pairs], np.float64)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0))


def _pairs(result: Segmentation, target: Mask) -> np.ndarray:
    """(256, 256) int64: how many pixels of an image have the target's class of the row, the answer's of the column."""
    wanted = target.read()
    if wanted.shape != result.classes.shape:
        raise DataError(
            f"a mask of {wanted.shape[1]}x{wanted.shape[0]} pixels for an image of {result.width}x{result.height}: "
            "they must be the same size"
        )
    flat = wanted.reshape(-1).astype(np.uint16) << 8
    flat |= result.classes.reshape(-1)
    # a piece at a time: bincount makes eight bytes of each
    pieces = np.array_split(flat, flat.size // (1 << 20) + 1)
    found = np.sum([np.bincount(piece, minlength=1 << 16) for piece in pieces], axis=0).reshape(256, 256)
    unknown = np.flatnonzero(found[len(result.labels) : VOID].any(axis=1))
    if len(unknown):
        raise DataError(f"a mask holds class {unknown[0] + len(result.labels)}, the labels are {len(result.labels)}")
    return np.asarray(found)


def _overlap(pairs: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Pixels of each class that were answered rightly, that are of it, that were answered so; and how many count."""
    counted = pairs[:classes]
    return counted.diagonal(), counted.sum(axis=1), counted.sum(axis=0)[:classes], int(counted.sum())
