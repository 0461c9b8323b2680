"""Classification, the numpy half: logits (N, C) and scores (N, C) to labels, accuracies and confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data import Dataset
from ..inputs import Frame, ImageInput
from ..results import Classification
from . import Outputs

__all__ = ["Classify", "confusion_matrix"]


class Classify:
    """See :class:`zoo.tasks.TaskHalf`. Outputs: ``logits`` (N, C) and ``scores`` = softmax(logits), float32."""

    metric_name = "top-1 accuracy"
    score_name = "top-1 accuracy"
    unit = "%"
    deciding = "logits"
    draws_on_image = False

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def samples(self, data: Dataset, spec: ImageInput, labels: Sequence[str], count: int = 0) -> Dataset:
        return data

    def decodes(self, available: Sequence[str]) -> list[str]:
        return ["scores"]

    def decode(
        self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame] = (), judging: bool = False
    ) -> list[Classification]:
        names = tuple(labels)
        return [Classification(scores=scores, labels=names) for scores in outputs["scores"]]

    def aligned(self, outputs: Outputs, reference: Outputs) -> None:
        return None

    def shown(self, result: Classification) -> Classification:
        return result

    def describe(self, result: Classification) -> str:
        return f"{result.label} ({100 * result.score:.0f} %)"

    def sample_scores(self, results: Sequence[Classification], targets: Sequence[int]) -> np.ndarray:
        return np.asarray([r.index == t for r, t in zip(results, targets, strict=True)], dtype=np.float64)

    def same_answer(self, results: Sequence[Classification], reference: Sequence[Classification]) -> np.ndarray:
        return np.asarray([a.index == b.index for a, b in zip(results, reference, strict=True)], dtype=bool)

    def differences(self, results: Sequence[Classification], reference: Sequence[Classification]) -> dict[str, float]:
        return {}

    def meter(self, labels: Sequence[str]) -> ClassifyMeter:
        return ClassifyMeter(labels)

    def tune(self, results: Sequence[Classification], targets: Sequence[int]) -> dict[str, Any]:
        return {}

    def pack(self, results: Sequence[Classification]) -> dict[str, np.ndarray]:
        return {"scores": np.stack([r.scores for r in results])} if results else {}

    def unpack(self, arrays: Mapping[str, np.ndarray], labels: Sequence[str]) -> list[Classification]:
        return self.decode(arrays, labels=labels) if arrays else []

    def draw(self, image: Image.Image, result: Classification) -> Image.Image:
        return result.draw(image)


class ClassifyMeter:
    """See :class:`zoo.tasks.Meter`. ``matrix`` (C, C) int64: row = actual class, column = predicted class."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.matrix = np.zeros((len(labels), len(labels)), np.int64)
        self._in_top5 = 0

    def update(self, results: Sequence[Classification], targets: Sequence[int]) -> None:
        if not results:
            return
        scores = np.stack([r.scores for r in results])
        wanted = np.asarray(targets, dtype=np.int64)
        self.matrix += confusion_matrix(scores.argmax(axis=1), wanted, len(self.labels))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        self._in_top5 += int((order == wanted[:, None]).any(axis=1).sum())

    def merge(self, other: ClassifyMeter) -> None:
        self.matrix += other.matrix
        self._in_top5 += other._in_top5

    def compute(self) -> dict[str, Any]:
        """Top-1, top-5 (where there are more than five classes), macro F1 and per-class precision and recall.

        Macro F1 and per-class figures are over the classes that occur among targets or predictions; 0/0 is 0
        (scikit-learn's and torchmetrics' convention).
        """
        matrix, labels = self.matrix, self.labels
        hits = np.diag(matrix).astype(np.float64)
        actual, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        recall = np.divide(hits, actual, out=np.zeros_like(hits), where=actual > 0)
        precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
        both = precision + recall
        f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)
        seen = (actual + predicted) > 0
        count = int(matrix.sum())
        figures: dict[str, Any] = {
            Classify.metric_name: float(hits.sum() / max(1, count)),
            "macro F1": float(f1[seen].mean()) if seen.any() else 0.0,
            "images": count,
        }
        if len(labels) > 5:
            figures["top-5 accuracy"] = self._in_top5 / max(1, count)
        figures["classes"] = [
            {
                "label": labels[i],
                "images": int(actual[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "F1": float(f1[i]),
            }
            for i in range(len(labels))
            if seen[i]
        ]
        return figures


def confusion_matrix(predicted: np.ndarray, actual: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64: row = actual class, column = predicted class."""
    return np.bincount(actual * classes + predicted, minlength=classes * classes).reshape(classes, classes)
