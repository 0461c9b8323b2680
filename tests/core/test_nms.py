"""Non-maximum suppression against torchvision's, and the whole of one image's post-processing against the plain way."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.tasks.nms import MAX_CANDIDATES, nms, suppress


def crowd(rng: np.random.Generator, count: int, whole: bool = False) -> np.ndarray:
    """(M, 4) float32 boxes that overlap a lot; in whole numbers, so that IoUs meet thresholds exactly."""
    boxes = rng.random((count, 4)) * 50
    boxes[:, 2:] += boxes[:, :2] + 1
    return (boxes.round() if whole else boxes).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 0.7, 1.0])
@pytest.mark.parametrize("whole", [False, True])
def test_nms_is_torchvisions_for_each_class(threshold: float, whole: bool) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(int(10 * threshold) + 100 * whole)
    for count in (0, 1, 2, 31, 32, 33, 64, 150, 400, 1200):
        boxes = crowd(rng, count, whole)
        scores = rng.random(count).astype(np.float32).round(2 if whole else 7)  # in whole numbers: with ties
        classes = rng.integers(0, 5, count)
        keep = nms(boxes, scores, classes, threshold)
        assert (np.diff(scores[keep]) <= 0).all()
        for index in range(5):
            of = np.flatnonzero(classes == index)
            theirs = ops.nms(torch.from_numpy(boxes[of]), torch.from_numpy(scores[of]), threshold).numpy()
            np.testing.assert_array_equal(keep[classes[keep] == index], of[theirs])


@pytest.mark.parametrize("count", [20, 300, 1500])
def test_nms_is_torchvisions_batched_nms(count: int) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(count)
    for _ in range(10):
        boxes, scores = crowd(rng, count), rng.permutation(count).astype(np.float32)
        classes = rng.integers(0, 3, count)
        theirs = ops.batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), 0.5)
        np.testing.assert_array_equal(nms(boxes, scores, classes, 0.5), theirs.numpy())


def test_equal_scores_keep_the_order_given() -> None:
    boxes = np.array([(0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60), (0, 0, 10, 10)], np.float32)
    same = np.full(4, 0.5, np.float32)
    assert nms(boxes, same, np.zeros(4, np.int64), 0.5).tolist() == [0, 2]
    assert nms(boxes, same, np.array([0, 1, 0, 1]), 0.5).tolist() == [0, 1, 2]
    assert nms(boxes[::-1], same, np.zeros(4, np.int64), 0.5).tolist() == [0, 1]


def test_an_overlap_equal_to_the_threshold_is_kept() -> None:
    boxes = np.array([(0, 0, 10, 10), (0, 0, 10, 5)], np.float32)  # an IoU of exactly a half
    scores, classes = np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64)
    assert nms(boxes, scores, classes, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, classes, 0.49999).tolist() == [0]


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = np.array([(5, 5, 5, 5), (5, 5, 5, 5), (0, 0, 10, 10), (np.nan,) * 4], np.float32)
    with np.errstate(all="raise"):
        assert nms(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.zeros(4, np.int64), 0.5).tolist() == [
            0,
            1,
            2,
            3,
        ]


def test_a_limit_cuts_the_list_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    boxes, scores, classes = crowd(rng, 500), rng.random(500).astype(np.float32), rng.integers(0, 4, 500)
    every = nms(boxes, scores, classes, 0.6)
    for limit in (1, 31, 32, 33, 90, len(every), 1000):
        np.testing.assert_array_equal(nms(boxes, scores, classes, 0.6, limit), every[:limit])


def plain(
    boxes: np.ndarray, scores: np.ndarray, confidence: float, iou: float, most: int, candidates: int
) -> list[tuple[int, int, float]]:
    """(anchor, class, score) of what is left, one pair after the other."""
    every = [
        (a, c, scores[a, c])
        for a in range(len(boxes))
        for c in range(scores.shape[1])
        if scores[a, c] > np.float32(confidence)
    ]
    every.sort(key=lambda p: -p[2])
    kept: list[tuple[int, int, float]] = []
    for anchor, index, score in every[:candidates]:
        if all(c != index or overlap(boxes[a], boxes[anchor]) <= iou for a, c, _ in kept):
            kept.append((anchor, index, score))
    return kept[:most]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


@pytest.mark.parametrize(
    ("confidence", "most", "candidates"),
    [(0.25, 100, MAX_CANDIDATES), (0.5, 5, MAX_CANDIDATES), (0.0, 100, 40), (1.0, 9, 9)],
)
def test_suppress_is_the_plain_way(confidence: float, most: int, candidates: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(4):
        boxes = crowd(rng, 120)
        scores = (rng.random((120, 3)) ** 2).astype(np.float32).round(2)  # many are equal
        told = plain(boxes, scores, confidence, 0.5, most, candidates)
        ours = suppress(boxes, scores, confidence=confidence, iou=0.5, max_detections=most, max_candidates=candidates)
        np.testing.assert_array_equal(ours[0], boxes[[a for a, _, _ in told]].reshape(-1, 4))
        np.testing.assert_array_equal(ours[1], np.array([s for _, _, s in told], np.float32))
        np.testing.assert_array_equal(ours[2], np.array([c for _, c, _ in told], np.int64))
        assert (ours[0].dtype, ours[1].dtype, ours[2].dtype) == (np.float32, np.float32, np.int64)


def test_scores_that_are_not_numbers_are_no_candidates() -> None:
    boxes = np.array([(0, 0, 10, 10), (20, 20, 30, 30)], np.float32)
    scores = np.array([[np.nan, 0.1], [0.7, np.nan]], np.float32)
    assert suppress(boxes, scores, confidence=0.25, iou=0.5, max_detections=9)[1].tolist() == [pytest.approx(0.7)]
