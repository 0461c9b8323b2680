"""COCO's average precision in numpy: what is matched with what, and the precision that follows.

The rules are those of COCO's evaluation for boxes (https://cocodataset.org/#detection-eval), to the last tie: tests
hold it against pycocotools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .nms import box_areas, intersections

__all__ = ["AREAS", "IOUS", "MAX_DETECTIONS", "Matched", "average_precision", "join", "match_image"]

IOUS = np.linspace(0.5, 0.95, 10)
"""The thresholds of AP@50:95."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Where precision is read off the curve."""
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Ranges of a box's area in square pixels, both ends inside."""
_LOW, _HIGH = np.array(list(AREAS.values())).T[:, :, None]  # (R, 1) each
MAX_DETECTIONS = 100
"""How many detections of one class and image are judged, the best first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matched:
    """Detections of one class against its objects, for R area ranges (in the order of ``AREAS``) and T thresholds."""

    scores: np.ndarray
    """(D,) float32, descending for one image, image after image."""
    matched: np.ndarray
    """(R, T, D) bool: found an object (of those that count or of those that are ignored)."""
    ignored: np.ndarray
    """(R, T, D) bool: neither right nor wrong."""
    objects: np.ndarray
    """(R,) int64: how many objects count."""

    @property
    def right(self) -> np.ndarray:
        """(R, T, D) bool: found an object that counts."""
        return np.asarray(self.matched & ~self.ignored)

    @property
    def wrong(self) -> np.ndarray:
        """(R, T, D) bool: found nothing, and should not be there."""
        return np.asarray(~self.matched & ~self.ignored)


def match_image(boxes: np.ndarray, scores: np.ndarray, objects: np.ndarray, ignore: np.ndarray) -> Matched:
    """Detections (D, 4) of one class in one image, with scores (D,), against its objects (G, 4), of which some are
    ignored (G,) bool: crowds, which take any number of detections and whose IoU is over the detection's area alone.

    Going through the detections by descending score, each takes the free object that it overlaps most, an object that
    counts before one that is ignored; among equals the later one.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
    boxes, scores = boxes[order].astype(np.float64), scores[order]
    objects = objects.astype(np.float64)
    sizes = box_areas(objects)
    passed_over = ignore | (sizes < _LOW) | (sizes > _HIGH)  # (R, G)
    matched = np.zeros((len(AREAS), len(IOUS), len(boxes)), bool)
    ignored = np.zeros_like(matched)
    if len(objects):
        ious = _ious(boxes, objects, ignore)
        free = np.ones((len(AREAS), len(IOUS), len(objects)), bool)
        bounds = np.minimum(IOUS, 1 - 1e-10)[:, None]  # (T, 1)
        ranges, levels = np.indices(matched.shape[:2])
        for at in np.flatnonzero(ious.max(axis=1) >= IOUS[0]):
            open_to = (free | ignore) & (ious[at] >= bounds)  # (R, T, G)
            counted = open_to & ~passed_over[:, None]
            choice = np.where(counted.any(axis=2, keepdims=True), counted, open_to)
            overlap = np.where(choice, ious[at], -1.0)[:, :, ::-1]
            taken = len(objects) - 1 - overlap.argmax(axis=2)  # (R, T)
            found = open_to.any(axis=2)
            matched[:, :, at] = found
            ignored[:, :, at] = found & passed_over[ranges, taken]
            free[ranges, levels, taken] &= ~found
    areas = box_areas(boxes)
    ignored |= ~matched & ((areas < _LOW) | (areas > _HIGH))[:, None]
    return Matched(scores=scores, matched=matched, ignored=ignored, objects=(~passed_over).sum(axis=1))


def _ious(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    shared = intersections(boxes, objects)
    areas = box_areas(boxes)[:, None]
    union = np.where(crowd, areas, areas + box_areas(objects) - shared)
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0))


def join(parts: Sequence[Matched]) -> Matched:
    """Several images as one, by descending score over all of them; equal scores keep the order of the images."""
    scores = np.concatenate([p.scores for p in parts])
    order = np.argsort(-scores, kind="stable")
    return Matched(
        scores=scores[order],
        matched=np.concatenate([p.matched for p in parts], axis=2)[:, :, order],
        ignored=np.concatenate([p.ignored for p in parts], axis=2)[:, :, order],
        objects=np.sum([p.objects for p in parts], axis=0),
    )


def average_precision(matched: Matched) -> np.ndarray:
    """(R, T) float64: the mean of the precision at 101 recalls, each the best at that recall or a higher one; nan for
    area ranges without objects. The detections must be in descending order of score."""
    right, wrong = np.cumsum(matched.right, axis=2), np.cumsum(matched.wrong, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = right / matched.objects[:, None, None]
        precision = right / (right + wrong + np.spacing(1))
    best = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
    found = np.full(recall.shape[:2], np.nan)
    for r, t in np.ndindex(*found.shape):
        if matched.objects[r]:
            at = np.searchsorted(recall[r, t], RECALLS)
            found[r, t] = best[r, t][at[at < len(matched.scores)]].sum() / len(RECALLS)
    return found
