"""Puts the rows of two detectors side by side that chose them from thousands by score, and so may differ in some.

A two-stage detector's proposals and a transformer's queries are the best of many places by a score. Where two places
score alike, rounding decides which is taken, and every row behind it stands elsewhere.
"""

from __future__ import annotations

import numpy as np

from . import Aligned, Outputs
from .nms import box_ious

__all__ = ["align_rows", "pair_rows"]

PAIR_IOU = 0.5
"""Overlap from which two rows may be of the same object."""
MATTERS = 0.5
"""A row matters from so large a share of the confidence in force on: a quantised network may lift it over that."""


def align_rows(outputs: Outputs, reference: Outputs, confidence: float) -> Aligned:
    """``boxes`` (N, A, 4) and ``scores`` (N, A, C) of a candidate, put beside a reference's by :func:`pair_rows`.

    Rows matter whose best score exceeds half of ``confidence`` in the network that has them; all do where none does.
    Other outputs are left out.
    """
    boxes, scores, theirs, their_scores = (o[name] for o in (outputs, reference) for name in ("boxes", "scores"))
    found = [pair_rows(*rows) for rows in zip(boxes, scores, theirs, their_scores, strict=True)]
    at = np.array(found, np.int64).reshape(theirs.shape[:2])  # (N, A)
    paired = at >= 0
    taken = np.zeros(paired.shape, bool)  # of the candidate's rows
    images, rows = np.nonzero(paired)
    taken[images, at[images, rows]] = True
    both = np.stack([scores.max(axis=2), their_scores.max(axis=2)])
    matter = both > MATTERS * confidence
    if not matter.any():
        matter[:] = True
    lost = matter & ~np.stack([taken, paired])
    beside = {}
    for name, ours, own in (("boxes", boxes, theirs), ("scores", scores, their_scores)):
        put = own.astype(np.result_type(ours, own))
        put[paired] = ours[images, at[images, rows]]
        beside[name] = put
    return Aligned(
        outputs=beside, paired=paired, lost=float(lost.sum() / max(1, matter.sum())), matter=int(matter.sum())
    )


def pair_rows(boxes: np.ndarray, scores: np.ndarray, their_boxes: np.ndarray, their_scores: np.ndarray) -> np.ndarray:
    """(A,) int64: for each row of one image's reference the candidate's row that is its partner, -1 where it has none.

    One to one; of the pairs whose boxes overlap by an IoU of 0.5 or more those first that overlap most and whose scores
    are nearest. ``boxes`` (A, 4) xyxy pixels, ``scores`` (A, C).
    """
    # boxes that were cut to a line at the input's border have no area: half a pixel on each side gives them one
    frame = np.array([-0.5, -0.5, 0.5, 0.5])
    overlap = box_ious(boxes.astype(np.float64) + frame, their_boxes.astype(np.float64) + frame)
    near = np.nonzero(overlap >= PAIR_IOU)
    # boxes may be the same to the last bit, cut to the whole input say: then the scores tell whose is whose
    apart = np.abs(scores[near[0]].astype(np.float64) - their_scores[near[1]]).max(axis=1)
    nearness = np.full(overlap.shape, -np.inf)
    nearness[near] = overlap[near] - apart
    found = np.full(len(their_boxes), -1, np.int64)
    # those who are each other's nearest belong together; with them gone, others are each other's nearest
    while True:
        best = nearness.argmax(axis=1)
        mutual = nearness.argmax(axis=0)[best] == np.arange(len(best))
        rows = np.flatnonzero(mutual & (nearness.max(axis=1) > -np.inf))
        if not len(rows):
            return found
        found[best[rows]] = rows
        nearness[rows] = -np.inf
        nearness[:, best[rows]] = -np.inf
