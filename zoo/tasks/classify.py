"""Classification, the numpy half: logits (N, C) and scores (N, C) to labels, accuracies and confusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..inputs import Frame
from ..results import Classification
from . import Outputs

__all__ = ["Classify", "confusion_matrix"]


class Classify:
    """See :class:`zoo.tasks.TaskHalf`. Outputs: ``logits`` (N, C) and ``scores`` = softmax(logits), float32."""

    metric_name = "top-1 accuracy"
    decodes = ("scores",)
    deciding = "logits"

    def decode(self, outputs: Outputs, *, labels: Sequence[str], frames: Sequence[Frame] = ()) -> list[Classification]:
        names = tuple(labels)
        return [Classification(scores=scores, labels=names) for scores in outputs["scores"]]

    def sample_scores(self, outputs: Outputs, targets: Sequence[int]) -> np.ndarray:
        answers = np.asarray(outputs["scores"]).argmax(axis=1)
        return np.asarray(answers == np.asarray(targets), dtype=np.float64)

    def same_answer(self, outputs: Outputs, reference: Outputs) -> np.ndarray:
        ours, theirs = (np.asarray(o["scores"]).argmax(axis=1) for o in (outputs, reference))
        return np.asarray(ours == theirs)

    def metrics(self, outputs: Outputs, targets: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
        """Top-1, top-5 (where there are more than five classes), macro F1 and per-class precision and recall.

        Macro F1 and per-class figures are over the classes that occur among targets or predictions; 0/0 is 0
        (scikit-learn's and torchmetrics' convention).
        """
        scores = np.asarray(outputs["scores"])
        wanted = np.asarray(targets, dtype=np.int64)
        matrix = confusion_matrix(scores.argmax(axis=1), wanted, len(labels))
        hits = np.diag(matrix).astype(np.float64)
        actual, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        recall = np.divide(hits, actual, out=np.zeros_like(hits), where=actual > 0)
        precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
        both = precision + recall
        f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)
        seen = (actual + predicted) > 0
        figures: dict[str, Any] = {
            self.metric_name: float(hits.sum() / max(1, len(wanted))),
            "macro F1": float(f1[seen].mean()) if seen.any() else 0.0,
            "images": len(wanted),
        }
        if len(labels) > 5:
            order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
            figures["top-5 accuracy"] = float((order == wanted[:, None]).any(axis=1).mean()) if len(wanted) else 0.0
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

    def draw(self, image: Image.Image, result: Classification) -> Image.Image:
        return result.draw(image)


def confusion_matrix(predicted: np.ndarray, actual: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64: row = actual class, column = predicted class."""
    return np.bincount(actual * classes + predicted, minlength=classes * classes).reshape(classes, classes)
