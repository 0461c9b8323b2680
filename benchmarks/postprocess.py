"""Measures what comes after the network: scores to objects, and maps to original size, beside the plain way and supervision's.

``python -m benchmarks.postprocess`` prints the table. One thread; the two ways of a row take turns.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable

import numpy as np

from benchmarks.__main__ import interleaved
from zoo.inputs import frame
from zoo.results import Detections, Segmentation
from zoo.specs import ImageInput
from zoo.tasks.detect import Detect
from zoo.tasks.nms import nms, suppress
from zoo.tasks.segment import Segment

ANCHORS, CLASSES, SIZE = 8400, 80, 640
CONFIDENCE, IOU, MOST = 0.25, 0.6, 100
LABELS = tuple(f"class {i}" for i in range(CLASSES))

warnings.filterwarnings("ignore", message="OpenCV")  # supervision says at import that it does without


def crowded(objects: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw outputs as a detector gives them: (A, 4) boxes and (A, C) scores, nearly all low, some fourteen anchors that
    agree on each object."""
    rng = np.random.default_rng(seed)
    start = rng.random((ANCHORS, 2)) * (SIZE - 40)
    boxes = np.concatenate((start, start + rng.uniform(8, 120, (ANCHORS, 2))), axis=1)
    scores = 0.2 * rng.random((ANCHORS, CLASSES)) ** 4
    corners = rng.random((objects, 2)) * (SIZE - 140)
    truth = np.concatenate((corners, corners + rng.uniform(20, 140, (objects, 2))), axis=1)
    of = np.repeat(np.arange(objects), 14)
    anchors = rng.choice(ANCHORS, len(of), replace=False)
    boxes[anchors] = truth[of] + rng.normal(scale=4, size=(len(of), 4))
    scores[anchors, rng.integers(0, CLASSES, objects)[of]] = rng.uniform(0.3, 0.95, len(of))
    return boxes.astype(np.float32), scores.astype(np.float32)


def candidates(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    anchors, classes = np.nonzero(scores > CONFIDENCE)
    return boxes[anchors], scores[anchors, classes], classes


def naive_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[int]:
    """What most scripts do: class by class, the best box against those that are left, until none is."""
    kept: list[int] = []
    for index in np.unique(classes):
        left = np.flatnonzero(classes == index)
        left = left[np.argsort(-scores[left], kind="stable")]
        while len(left):
            best, left = left[0], left[1:]
            kept.append(int(best))
            x0, y0 = np.maximum(boxes[best, 0], boxes[left, 0]), np.maximum(boxes[best, 1], boxes[left, 1])
            x1, y1 = np.minimum(boxes[best, 2], boxes[left, 2]), np.minimum(boxes[best, 3], boxes[left, 3])
            shared = np.maximum(0, x1 - x0) * np.maximum(0, y1 - y0)
            areas = (boxes[left, 2] - boxes[left, 0]) * (boxes[left, 3] - boxes[left, 1])
            own = (boxes[best, 2] - boxes[best, 0]) * (boxes[best, 3] - boxes[best, 1])
            left = left[shared / (areas + own - shared) <= IOU]
    kept.sort(key=lambda i: -scores[i])
    return kept[:MOST]


def looped_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[int]:
    """Without numpy: each candidate against those kept before it."""
    rows, of = boxes.tolist(), classes.tolist()
    kept: list[int] = []
    for at in sorted(range(len(rows)), key=scores.tolist().__getitem__, reverse=True):
        left, top, right, bottom = rows[at]
        for other in kept:
            if of[other] != of[at]:
                continue
            x0, y0, x1, y1 = rows[other]
            shared = max(0.0, min(right, x1) - max(left, x0)) * max(0.0, min(bottom, y1) - max(top, y0))
            if shared / ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared) > IOU:
                break
        else:
            kept.append(at)
    return kept[:MOST]


def supervision_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(M,) bool, in the order given."""
    from supervision import box_non_max_suppression

    table = np.concatenate((boxes, scores[:, None], classes[:, None]), axis=1)
    return np.asarray(box_non_max_suppression(table, iou_threshold=IOU))


def row(what: str, against: str, ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, object]:
    mine, other = interleaved(ours, theirs, seconds=3, warmup=3)
    return {
        "what": what,
        "against": against,
        "ours_ms": 1e3 * statistics.median(mine),
        "theirs_ms": 1e3 * statistics.median(other),
        "faster": statistics.median(other) / statistics.median(mine),
        "calls": len(mine),
    }


def detection_rows(objects: int) -> list[dict[str, object]]:
    boxes, scores = crowded(objects)
    some = candidates(boxes, scores)
    count = len(some[0])
    kept = nms(*some, IOU, MOST)
    assert kept.tolist() == naive_nms(*some) == looped_nms(*some)
    assert set(kept.tolist()) <= set(np.flatnonzero(supervision_nms(*some)).tolist())
    name = f"{count} candidates, {len(kept)} objects"

    def ours() -> object:
        return suppress(boxes, scores, confidence=CONFIDENCE, iou=IOU, max_detections=MOST)

    def naive() -> object:
        found = candidates(boxes, scores)
        keep = naive_nms(*found)
        return tuple(values[keep] for values in found)

    def supervisions() -> object:
        found = candidates(boxes, scores)
        keep = np.flatnonzero(supervision_nms(*found))
        keep = keep[np.argsort(-found[1][keep], kind="stable")][:MOST]
        return tuple(values[keep] for values in found)

    whole = f"{ANCHORS} x {CLASSES} scores to objects ({name})"
    where = frame(1280, 720, ImageInput(height=SIZE, width=SIZE, resize="letterbox"))
    outputs = {"boxes": boxes[None], "scores": scores[None]}

    def decoded() -> Detections:
        return Detect(confidence=CONFIDENCE, iou=IOU).decode(outputs, labels=LABELS, frames=[where])[0]

    return [
        row(whole, "np.nonzero, numpy NMS class by class", ours, naive),
        row(whole, "np.nonzero, supervision's NMS", ours, supervisions),
        row(
            f"the same, to a record in original pixels ({name})", "np.nonzero, supervision's NMS", decoded, supervisions
        ),
        row(f"NMS alone ({name})", "loops in Python", lambda: nms(*some, IOU, MOST), lambda: looped_nms(*some)),
        row(f"NMS alone ({name})", "supervision's NMS", lambda: nms(*some, IOU, MOST), lambda: supervision_nms(*some)),
    ]


def segmentation_rows() -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(21, 16, 16)).astype(np.float32)
    logits = np.ascontiguousarray(coarse.repeat(32, axis=1).repeat(32, axis=2))
    classes = logits.argmax(axis=0).astype(np.uint8)
    height, width = 720, 1280
    where = frame(width, height, ImageInput(height=512, width=512, resize="squash"))
    task = Segment()

    def ours() -> Segmentation:
        return task.decode({"classes": classes[None]}, labels=LABELS[:21], frames=[where])[0]

    # the centre of each original pixel, in the input
    rows = ((np.arange(height) + 0.5) * 512 / height).astype(int)
    columns = ((np.arange(width) + 0.5) * 512 / width).astype(int)

    def indexed() -> np.ndarray:
        return classes[rows[:, None], columns]

    def from_logits() -> np.ndarray:
        return logits.argmax(axis=0)[rows[:, None], columns]

    assert np.array_equal(ours().classes, indexed())
    whole = f"512 x 512 classes to {width} x {height}"
    return [
        row(whole, "numpy indexing", ours, indexed),
        row(whole, "argmax of 21 logits on the host, numpy indexing", ours, from_logits),
    ]


def main() -> list[dict[str, object]]:
    rows = [*detection_rows(30), *detection_rows(100), *segmentation_rows()]
    print("| what | against | ours | theirs | faster |\n|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['what']} | {r['against']} | {r['ours_ms']:.2f} ms | {r['theirs_ms']:.2f} ms | {r['faster']:.1f}x |"
        )
    return rows


if __name__ == "__main__":
    main()
