"""Detection, the numpy half: boxes (N, A, 4) and scores (N, A, C) to objects, average precision and a threshold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data import Dataset
from ..data.targets import Boxes
from ..errors import ZooError
from ..geometry import boxes_to_original
from ..inputs import Frame, ImageInput
from ..results import Detections
from . import Aligned, Outputs
from .average_precision import AREAS, IOUS, Matched, average_precision, join, match_image
from .nms import box_ious, suppress
from .pairing import align_rows

__all__ = ["Detect", "Matches", "match"]

JUDGING_CONFIDENCE = 0.001
"""What a metric ranks: scores below it add nothing to a curve that is read at a hundred recalls."""
SAME_IOU = 0.9
"""Overlap from which two boxes tell a user the same place: on a box of 40 pixels, an edge moved by four."""
MATCH_IOU = 0.5
"""Overlap from which two boxes are of the same object."""
ROWS = ("fixed", "chosen")
"""What a row of a network's outputs belongs to: a place of the image, or whatever the network chose for it."""


class Detect:
    """See :class:`zoo.tasks.TaskHalf`. Outputs: ``boxes`` (N, A, 4) float32 xyxy in input pixels and ``scores``
    (N, A, C) float32 in 0..1; or ``detections`` (N, D, 6), already suppressed, from a graph that does that itself.

    ``confidence`` (0..1) is the score that an object must exceed to be told, ``iou`` (0..1) the overlap beyond which
    of two boxes of a class the weaker is dropped, ``max_detections`` how many objects an image has at most.

    Two settings are the architecture's to say. ``nms`` false: the network tells each object once (DETR and its kin), and
    nothing is dropped; where tiles meet, ``iou`` still says which boxes are the same. ``rows``: ``fixed`` where each row
    belongs to a place of the image, ``chosen`` where the network picks the places by their scores: then another network,
    or the same in other arithmetic, may have other rows in another order, and the numeric gate pairs them first.

    Raises ZooError where a setting is out of range.
    """

    metric_name = "mAP@50:95"
    score_name = "AP@50:95 of an image"
    unit = "%"
    deciding = "scores"
    draws_on_image = True

    def __init__(
        self,
        *,
        confidence: float = 0.25,
        iou: float = 0.6,
        max_detections: int = 100,
        nms: bool = True,
        rows: str = "fixed",
    ) -> None:
        for name, value in (("confidence", confidence), ("iou", iou)):
            if not 0.0 <= value <= 1.0:
                raise ZooError(f"{name} {value}: it is a share, 0..1")
        if max_detections < 1:
            raise ZooError(f"max_detections {max_detections}: an image may have 1 object or more")
        if not isinstance(nms, bool):
            raise ZooError(f"nms {nms!r}: it is true or false")
        if rows not in ROWS:
            raise ZooError(f"rows {rows!r}: it is one of {', '.join(ROWS)}")
        self.confidence, self.iou, self.max_detections = confidence, iou, max_detections
        self.nms, self.rows = nms, rows
        self.settings: dict[str, Any] = {"confidence": confidence, "iou": iou, "max_detections": max_detections}
        # what most detectors have is left out, so that older versions of the zoo still read their bundles
        self.settings |= {} if nms else {"nms": nms}
        self.settings |= {} if rows == "fixed" else {"rows": rows}

    def samples(self, data: Dataset, spec: ImageInput, labels: Sequence[str], count: int = 0) -> Dataset:
        return data

    def decodes(self, available: Sequence[str]) -> list[str]:
        return ["detections"] if "detections" in available else ["boxes", "scores"]

    def decode(
        self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame], judging: bool = False
    ) -> list[Detections]:
        """Where ``outputs`` hold ``detections`` only these are read. Boxes are cut at the image's borders; those that
        have no area there are dropped."""
        confidence = min(self.confidence, JUDGING_CONFIDENCE) if judging else self.confidence
        names = tuple(labels)
        found = []
        for index, frame in enumerate(frames):
            if "detections" in outputs:
                boxes, scores, classes = self._suppressed(outputs["detections"][index], confidence)
            else:
                boxes, scores, classes = suppress(
                    outputs["boxes"][index],
                    outputs["scores"][index],
                    confidence=confidence,
                    iou=self.iou if self.nms else None,
                    max_detections=self.max_detections,
                )
            boxes = boxes_to_original(boxes, frame)
            keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            found.append(
                Detections(
                    boxes=boxes[keep],
                    scores=scores[keep],
                    classes=classes[keep],
                    labels=names,
                    width=frame.width,
                    height=frame.height,
                )
            )
        return found

    def _suppressed(self, rows: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.asarray(rows, np.float32)
        rows = rows[rows[:, 4] > confidence]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")[: self.max_detections]]
        return rows[:, :4], rows[:, 4], np.rint(rows[:, 5]).astype(np.int64)

    def aligned(self, outputs: Outputs, reference: Outputs) -> Aligned | None:
        """Of a network that chooses its rows, the boxes and scores of each beside its partner's."""
        return align_rows(outputs, reference, self.confidence) if self.rows == "chosen" else None

    def shown(self, result: Detections) -> Detections:
        """Those above the confidence in force."""
        return result.above(self.confidence)

    def describe(self, result: Detections) -> str:
        """How many of each class, the most frequent first."""
        counts = np.bincount(result.classes, minlength=len(result.labels))
        present = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i]]
        said = ", ".join(f"{counts[i]} {result.labels[i]}" for i in present[:6])
        return f"{said}, …" if len(present) > 6 else said or "nothing"

    def sample_scores(self, results: Sequence[Detections], targets: Sequence[Boxes]) -> np.ndarray:
        """The mean, over the classes that count in an image, of the average precision on that image alone.

        A class counts where the image has objects of it, or where something of it is wrongly detected with more than
        the confidence in force, which makes its average precision 0. An image in which no class counts scores 1:
        there was nothing to find, and nothing was told.
        """
        scores = np.ones(len(results))
        for at, (result, target) in enumerate(zip(results, targets, strict=True)):
            of_classes = []
            for matched in _by_class(result, target).values():
                if matched.objects[0]:
                    of_classes.append(float(average_precision(matched)[0].mean()))
                elif (matched.wrong[0, 0] & (matched.scores > self.confidence)).any():
                    of_classes.append(0.0)
            if of_classes:
                scores[at] = np.mean(of_classes)
        return scores

    def same_answer(self, results: Sequence[Detections], reference: Sequence[Detections]) -> np.ndarray:
        """The same number of objects of each class above the confidence in force, each at the same place: an IoU of
        0.9 or more with one of the other's."""
        same = np.zeros(len(results), bool)
        for at, (ours, theirs) in enumerate(zip(results, reference, strict=True)):
            found = match([self.shown(ours)], [self.shown(theirs)], least=SAME_IOU)
            same[at] = not (found.extra or found.missing)
        return same

    def differences(self, results: Sequence[Detections], reference: Sequence[Detections]) -> dict[str, float]:
        """Of the boxes above the confidence in force, paired by :func:`match`: how many, how far they overlap, how far
        their scores differ (none of these where nothing is paired), and how many have no partner."""
        found = match([self.shown(r) for r in results], [self.shown(r) for r in reference])
        figures: dict[str, float] = {"matched": len(found.ious), "extra": found.extra, "missing": found.missing}
        if len(found.ious):
            off = np.abs(found.score_differences)
            figures["mean_iou"], figures["lowest_iou"] = float(found.ious.mean()), float(found.ious.min())
            figures["mean_score_difference"], figures["largest_score_difference"] = float(off.mean()), float(off.max())
        return figures

    def meter(self, labels: Sequence[str]) -> DetectMeter:
        return DetectMeter(labels, self.confidence)

    def tune(self, results: Sequence[Detections], targets: Sequence[Boxes]) -> dict[str, Any]:
        """``confidence``: where F1 at an IoU of 0.5, over all objects of all classes, is best; to three decimals, and
        where a range of values is equally good, its middle. Empty where nothing was found rightly."""
        every = [
            matched
            for result, target in zip(results, targets, strict=True)
            for matched in _by_class(result, target).values()
        ]
        objects = sum(int(m.objects[0]) for m in every)
        right = np.sort(np.concatenate([m.scores[m.right[0, 0]] for m in every] or [np.empty(0, np.float32)]))
        wrong = np.sort(np.concatenate([m.scores[m.wrong[0, 0]] for m in every] or [np.empty(0, np.float32)]))
        if not len(right):
            return {}
        grid = np.arange(1, 1000)
        thresholds = (grid / 1000).astype(np.float32)
        hits, misses = (len(s) - np.searchsorted(s, thresholds, side="right") for s in (right, wrong))
        f1 = 2 * hits / (hits + misses + objects)
        edges = np.diff(np.concatenate(([0], f1 == f1.max(), [0])))
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        longest = int((ends - starts).argmax())
        return {"confidence": int(grid[(starts[longest] + ends[longest] - 1) // 2]) / 1000}

    def pack(self, results: Sequence[Detections]) -> dict[str, np.ndarray]:
        """All images' objects one after the other: ``boxes`` (S, 4) float32, ``scores`` (S,) float32, ``classes``
        (S,) int32, ``counts`` (N,) int32, ``sizes`` (N, 2) int32 widths and heights."""
        return {
            "boxes": np.concatenate([np.empty((0, 4)), *(r.boxes for r in results)]).astype(np.float32),
            "scores": np.concatenate([np.empty(0), *(r.scores for r in results)]).astype(np.float32),
            "classes": np.concatenate([np.empty(0), *(r.classes for r in results)]).astype(np.int32),
            "counts": np.asarray([len(r) for r in results], np.int32),
            "sizes": np.asarray([(r.width, r.height) for r in results], np.int32).reshape(-1, 2),
        }

    def unpack(self, arrays: Mapping[str, np.ndarray], labels: Sequence[str]) -> list[Detections]:
        cuts = np.cumsum(arrays["counts"])
        parts = zip(*(np.split(arrays[name], cuts)[:-1] for name in ("boxes", "scores", "classes")), strict=True)
        return [
            Detections(
                boxes=boxes,
                scores=scores,
                classes=classes.astype(np.int64),
                labels=tuple(labels),
                width=width,
                height=height,
            )
            for (boxes, scores, classes), (width, height) in zip(parts, arrays["sizes"].tolist(), strict=True)
        ]

    def draw(self, image: Image.Image, result: Detections) -> Image.Image:
        """Those above the confidence in force."""
        return self.shown(result).draw(image)


class DetectMeter:
    """COCO's mean average precision over the classes that have objects, and what is right above a confidence.

    ``mAP@50:95``, ``mAP@50``, ``mAP@75``, and ``mAP small``, ``mAP medium``, ``mAP large`` (COCO's areas, in square
    pixels of the original: up to 32 x 32, up to 96 x 96, above) where there are objects of that size; ``images``,
    ``objects``. Ignored objects are treated as COCO's crowds. Without any object the means are 0.

    ``classes`` holds a row for each class that has objects or is wrongly detected above the confidence: ``AP@50`` and
    ``AP@50:95`` (0 without objects, and then not part of the means), ``precision`` and ``recall`` at that confidence
    and an IoU of 0.5 (0/0 is 0).
    """

    def __init__(self, labels: Sequence[str], confidence: float) -> None:
        self._labels = tuple(labels)
        self._confidence = confidence
        self._parts: dict[int, list[Matched]] = defaultdict(list)
        self._images = 0

    def update(self, results: Sequence[Detections], targets: Sequence[Boxes]) -> None:
        for result, target in zip(results, targets, strict=True):
            self._images += 1
            for index, matched in _by_class(result, target).items():
                self._parts[index].append(matched)

    def merge(self, other: DetectMeter) -> None:
        self._images += other._images
        for index, parts in other._parts.items():
            self._parts[index] += parts

    def compute(self) -> dict[str, Any]:
        rows = []
        averages = []
        objects = 0
        for index in sorted(self._parts):
            matched = join(self._parts[index])
            count = int(matched.objects[0])
            told = matched.scores > self._confidence
            right, wrong = (int((m[0, 0] & told).sum()) for m in (matched.right, matched.wrong))
            average = average_precision(matched)
            averages.append(average)
            objects += count
            if count or wrong:
                rows.append(
                    {
                        "label": self._labels[index],
                        "objects": count,
                        "AP@50": float(average[0, 0]) if count else 0.0,
                        "AP@50:95": float(average[0].mean()) if count else 0.0,
                        "precision": right / (right + wrong) if right + wrong else 0.0,
                        "recall": right / count if count else 0.0,
                    }
                )
        table = np.stack(averages) if averages else np.empty((0, len(AREAS), len(IOUS)))
        figures: dict[str, Any] = {
            "mAP@50:95": _mean(table[:, 0]),
            "mAP@50": _mean(table[:, 0, 0]),
            "mAP@75": _mean(table[:, 0, 5]),
        }
        for at, size in enumerate(AREAS):
            if at and not np.isnan(table[:, at]).all():
                figures[f"mAP {size}"] = _mean(table[:, at])
        return figures | {"images": self._images, "objects": objects, "classes": rows}


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else 0.0


def _by_class(result: Detections, target: Boxes) -> dict[int, Matched]:
    """One image's detections against its objects, by class; the classes of either."""
    found = {}
    for index in np.union1d(result.classes, target.classes).tolist():
        ours, theirs = result.classes == index, target.classes == index
        found[index] = match_image(result.boxes[ours], result.scores[ours], target.boxes[theirs], target.ignore[theirs])
    return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matches:
    """Two networks' objects on the same images, one to one."""

    ious: np.ndarray
    """(P,) float64: overlap of each pair."""
    score_differences: np.ndarray
    """(P,) float64: score of the candidate less that of the reference."""
    extra: int
    """Objects of the candidate without a partner."""
    missing: int
    """Objects of the reference without a partner."""


def match(results: Sequence[Detections], reference: Sequence[Detections], least: float = MATCH_IOU) -> Matches:
    """Pair the boxes of N images with those of a reference: of one class, an IoU of at least ``least`` (above 0), the
    most overlapping first."""
    ious: list[float] = []
    differences: list[float] = []
    for ours, theirs in zip(results, reference, strict=True):
        overlap = box_ious(ours.boxes.astype(np.float64), theirs.boxes.astype(np.float64))
        rows, columns = np.nonzero((overlap >= least) & (ours.classes[:, None] == theirs.classes))
        taken_rows, taken_columns = set(), set()
        for at in np.argsort(-overlap[rows, columns], kind="stable").tolist():
            i, j = int(rows[at]), int(columns[at])
            if i not in taken_rows and j not in taken_columns:
                taken_rows.add(i)
                taken_columns.add(j)
                ious.append(float(overlap[i, j]))
                differences.append(float(ours.scores[i]) - float(theirs.scores[j]))
    return Matches(
        ious=np.asarray(ious, np.float64),
        score_differences=np.asarray(differences, np.float64),
        extra=sum(map(len, results)) - len(ious),
        missing=sum(map(len, reference)) - len(ious),
    )
