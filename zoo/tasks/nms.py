"""From thousands of overlapping candidates to the objects of one image: non-maximum suppression in numpy."""

from __future__ import annotations

import numpy as np

__all__ = ["MAX_CANDIDATES", "box_areas", "box_ious", "intersections", "nms", "suppress"]

MAX_CANDIDATES = 3000
"""How many of an image's candidates are looked at, the best first: some thirty for each of a hundred objects."""

BLOCK = 32
"""Boxes that are settled together: few enough that boxes already suppressed are not compared, enough for numpy."""


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(M, 4) xyxy to (M,) areas, of the boxes' own dtype."""
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def box_ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, 4) and (N, 4) xyxy to (M, N) intersection over union; nan between boxes without area."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = intersections(a, b)
        return np.asarray(shared / (box_areas(a)[:, None] + box_areas(b) - shared))


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, 4) and (N, 4) xyxy to the (M, N) areas that they share."""
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    return np.asarray(width * height)


def nms(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, limit: int | None = None
) -> np.ndarray:
    """Indices of the boxes that are kept, best first, at most ``limit``.

    Going through the boxes by descending score (equal scores in the order given), a box is dropped where one of its
    class kept before overlaps it by an IoU greater than ``threshold``: torchvision's ``batched_nms``, in float32.
    ``boxes`` (M, 4) xyxy, ``scores`` (M,), ``classes`` (M,).
    """
    order = np.argsort(-scores, kind="stable")
    boxes = np.asarray(boxes, np.float32)[order]
    classes = np.asarray(classes)[order]
    left = np.arange(len(order))
    limit = len(order) if limit is None else limit
    bound = np.float32(threshold)
    if float(bound) > threshold:  # an IoU is compared as torchvision does: float32 with the threshold's own digits
        bound = np.nextafter(bound, np.float32(0))
    kept: list[int] = []
    while len(left) and len(kept) < limit:
        head = left[:BLOCK]
        over = box_ious(boxes[head], boxes[left]) > bound
        over &= classes[head, None] == classes[left]
        # one whole number for each of the block's boxes, bit j saying that it suppresses the block's box j
        packed = np.packbits(over[:, : len(head)], axis=1, bitorder="little")
        dropped, alive = 0, []
        for at, row in enumerate(packed):
            if not dropped >> at & 1:
                alive.append(at)
                dropped |= int.from_bytes(row.tobytes(), "little")
        kept += head[alive].tolist()
        left = left[len(head) :][~over[alive, len(head) :].any(axis=0)]
    return order[kept[:limit]]


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    confidence: float,
    iou: float | None,
    max_detections: int,
    max_candidates: int = MAX_CANDIDATES,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image's raw boxes to those of its objects: (M, 4) boxes, (M,) float32 scores descending, (M,) int64 classes.

    ``boxes`` (A, 4) xyxy, ``scores`` (A, C). Every (anchor, class) pair whose score is greater than ``confidence`` is
    a candidate; the best ``max_candidates`` go through :func:`nms`, or with ``iou`` None stay as they are; at most
    ``max_detections`` are left. Equal scores keep the order of anchors, then classes.
    """
    flat = np.ascontiguousarray(scores, np.float32).reshape(-1)
    found = np.flatnonzero(flat > np.float32(confidence))  # one pass over memory: all that is done to every score
    values = flat[found]
    if len(found) > max_candidates:
        last = np.partition(values, -max_candidates)[-max_candidates]
        found = found[values >= last]
        values = flat[found]
        best = np.argsort(-values, kind="stable")[:max_candidates]
        found, values = found[best], values[best]
    anchors, classes = np.divmod(found, scores.shape[1])
    candidates = np.asarray(boxes, np.float32)[anchors]
    if iou is None:
        keep = np.argsort(-values, kind="stable")[:max_detections]
    else:
        keep = nms(candidates, values, classes, iou, max_detections)
    return candidates[keep], values[keep], classes[keep]
