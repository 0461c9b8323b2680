"""Detection's numpy half: decoding, average precision against pycocotools and faster-coco-eval, and what it judges."""

from __future__ import annotations

import contextlib
import io
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.data.targets import Boxes
from zoo.errors import ZooError
from zoo.geometry import boxes_to_input
from zoo.inputs import Frame, frame
from zoo.results import Detections
from zoo.specs import ImageInput
from zoo.tasks.average_precision import match_image
from zoo.tasks.detect import Detect, match
from zoo.tasks.pairing import align_rows, pair_rows

LABELS = ("red", "white", "platelet", "dust")
WIDTH, HEIGHT = 400, 300


def found(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    classes: Sequence[int] | np.ndarray,
) -> Detections:
    return Detections(
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.asarray(scores, np.float32),
        classes=np.asarray(classes, np.int64),
        labels=LABELS,
        width=WIDTH,
        height=HEIGHT,
    )


def scenes(seed: int, images: int = 40) -> tuple[list[Detections], list[Boxes]]:
    """Random images: crowds, equal scores, equal boxes, duplicates, empty ones; class 3 is detected but never there.

    Coordinates are whole numbers in half of the seeds, so that overlaps and areas fall on their thresholds exactly.
    """
    rng = np.random.default_rng(seed)
    results, targets = [], []
    for index in range(images):
        count = 0 if index % 9 == 0 else int(rng.integers(1, 14))
        start = rng.random((count, 2)) * (WIDTH - 130, HEIGHT - 130)
        boxes = np.concatenate((start, start + 2 ** rng.uniform(2, 7, (count, 2))), axis=1)
        classes = rng.integers(0, 3, count)
        ignore = rng.random(count) < 0.15
        of = rng.integers(0, max(1, count), 3 * count)
        guesses = boxes[of] + rng.normal(size=(len(of), 4)) * rng.choice((0, 2, 6), (len(of), 1))
        stray = rng.random((4, 2)) * 200
        guesses = np.concatenate((guesses, np.concatenate((stray, stray + rng.uniform(4, 150, (4, 2))), axis=1)))
        called = rng.choice(4, len(guesses), p=(0.4, 0.3, 0.2, 0.1))
        called[: len(of)] = np.where(rng.random(len(of)) < 0.8, classes[of], called[: len(of)])
        if index % 5 == 0:
            guesses = guesses[:0]
        if seed % 2:
            boxes, guesses = boxes.round(), guesses.round()
        called = called[: len(guesses)]
        wide = (guesses[:, 2:] > guesses[:, :2]).all(axis=1)
        order = rng.permutation(np.flatnonzero(wide))
        guesses, called = guesses[order], called[order]
        scores = np.sort(rng.random(len(guesses)).round(1 if seed % 3 else 4))[::-1]
        results.append(found(guesses, scores, called))
        targets.append(Boxes.of(boxes, classes, ignore))
    return results, targets


def coco_json(results: Sequence[Detections], targets: Sequence[Boxes]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    annotations = []
    for image_id, target in enumerate(targets):
        for box, index, ignore in zip(target.boxes.tolist(), target.classes.tolist(), target.ignore, strict=True):
            w, h = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": index,
                    "bbox": [box[0], box[1], w, h],
                    "area": w * h,
                    "iscrowd": int(ignore),
                }
            )
    truth = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(len(targets))],
        "categories": [{"id": i, "name": name} for i, name in enumerate(LABELS)],
        "annotations": annotations,
    }
    return truth, [line for i, result in enumerate(results) for line in result.to_coco(i)]


def pycocotools_figures(results: Sequence[Detections], targets: Sequence[Boxes]) -> tuple[list[float], np.ndarray]:
    """COCO's first six figures, and the precision table (T, R, K, A, M)."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth, answers = coco_json(results, targets)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        reference.dataset = truth
        reference.createIndex()
        judge = cocoeval.COCOeval(reference, reference.loadRes(answers), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(v) for v in judge.stats[:6]], judge.eval["precision"]


def figures(results: Sequence[Detections], targets: Sequence[Boxes], confidence: float = 0.25) -> dict[str, Any]:
    meter = Detect(confidence=confidence).meter(LABELS)
    for start in range(0, len(results), 7):
        meter.update(results[start : start + 7], targets[start : start + 7])
    return meter.compute()


NAMES = ("mAP@50:95", "mAP@50", "mAP@75", "mAP small", "mAP medium", "mAP large")


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_pycocotools(seed: int) -> None:
    results, targets = scenes(seed)
    ours = figures(results, targets)
    theirs, table = pycocotools_figures(results, targets)
    assert [ours[name] for name in NAMES] == pytest.approx(theirs, abs=1e-9)
    assert 0.05 < ours["mAP@50:95"] < 0.95
    rows = {row["label"]: row for row in ours["classes"]}
    for index, label in enumerate(LABELS[:3]):
        assert rows[label]["AP@50:95"] == pytest.approx(table[:, :, index, 0, -1].mean(), abs=1e-9)
        assert rows[label]["AP@50"] == pytest.approx(table[0, :, index, 0, -1].mean(), abs=1e-9)
    # a class without objects is no part of the means (COCO's -1), but every detection of it is wrong
    assert (table[:, :, 3, 0, -1] == -1).all()
    assert rows["dust"] == {
        "label": "dust",
        "objects": 0,
        "AP@50": 0.0,
        "AP@50:95": 0.0,
        "precision": 0.0,
        "recall": 0.0,
    }


@pytest.mark.parametrize("seed", range(8, 12))
def test_average_precision_is_faster_coco_evals(seed: int) -> None:
    faster = pytest.importorskip("faster_coco_eval")
    results, targets = scenes(seed)
    truth, answers = coco_json(results, targets)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = faster.COCO(truth)
        judge = faster.COCOeval_faster(reference, reference.loadRes(answers), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ours = figures(results, targets)
    assert [ours[name] for name in NAMES] == pytest.approx([float(v) for v in judge.stats[:6]], abs=1e-6)


def test_more_than_a_hundred_detections_of_a_class_are_cut_as_by_coco() -> None:
    rng = np.random.default_rng(0)
    start = rng.random((250, 2)) * 200
    boxes = np.concatenate((start, start + rng.uniform(10, 90, (250, 2))), axis=1)
    results = [found(boxes + rng.normal(size=boxes.shape), np.sort(rng.random(250))[::-1], np.zeros(250))]
    targets = [Boxes.of(boxes, np.zeros(250))]
    theirs, _ = pycocotools_figures(results, targets)
    ours = figures(results, targets)
    assert [ours[name] for name in NAMES if name in ours] == pytest.approx([v for v in theirs if v >= 0], abs=1e-9)
    assert ours["mAP@50:95"] < 0.5


@pytest.mark.parametrize(("order", "expected"), [([0, 1], 1.0), ([1, 0], 0.5)])
def test_among_objects_that_are_overlapped_equally_the_later_one_is_taken(order: list[int], expected: float) -> None:
    """The first detection overlaps both objects by 0.8; the second is right only where the upper one is left to it."""
    objects = np.array([(0, 0, 10, 8), (0, 2, 10, 10)])[order]
    results = [found([(0, 0, 10, 10), (0, 0, 10, 5.5)], [0.9, 0.8], [0, 0])]
    targets = [Boxes.of(objects, [0, 0])]
    ours = figures(results, targets)
    assert ours["mAP@50"] == pytest.approx(expected, abs=0.01)
    assert ours["mAP@50"] == pytest.approx(pycocotools_figures(results, targets)[0][1], abs=1e-9)


def test_sizes_without_objects_are_left_out_and_counts_are_of_what_counts() -> None:
    targets = [Boxes.of([(0, 0, 10, 10), (0, 0, 200, 200)], [0, 1], [False, True]), Boxes.of([], [])]
    results = [found([(0, 0, 10, 10)], [0.9], [0]), found([], [], [])]
    ours = figures(results, targets)
    assert ours["mAP@50:95"] == ours["mAP small"] == pytest.approx(1.0)
    assert "mAP medium" not in ours and "mAP large" not in ours
    assert (ours["images"], ours["objects"]) == (2, 1)
    assert [row["label"] for row in ours["classes"]] == ["red"]


def test_no_objects_and_no_images() -> None:
    nothing = [Boxes.of([], [])]
    assert figures([], [])["mAP@50:95"] == 0.0
    assert figures([], [])["classes"] == []
    assert figures([found([], [], [])], nothing) == {
        "mAP@50:95": 0.0,
        "mAP@50": 0.0,
        "mAP@75": 0.0,
        "images": 1,
        "objects": 0,
        "classes": [],
    }
    told = figures([found([(0, 0, 9, 9)] * 2, [0.9, 0.1], [2, 1])], nothing)
    assert [(row["label"], row["objects"]) for row in told["classes"]] == [("platelet", 0)]


def test_precision_and_recall_are_those_of_what_is_told() -> None:
    targets = [Boxes.of([(0, 0, 50, 50), (100, 100, 150, 150), (200, 0, 250, 50)], [0, 0, 0])]
    boxes = [(0, 0, 50, 50), (300, 200, 350, 250), (100, 100, 150, 150), (200, 0, 250, 50)]
    ours = figures([found(boxes, [0.9, 0.8, 0.6, 0.3], [0] * 4)], targets, confidence=0.5)
    assert ours["classes"][0]["precision"] == pytest.approx(2 / 3)
    assert ours["classes"][0]["recall"] == pytest.approx(2 / 3)


# -- one image ----------------------------------------------------------------------------------------------------


def test_score_of_an_image() -> None:
    box, other = (10, 10, 60, 60), (100, 100, 180, 180)
    nothing = Boxes.of([], [])
    task = Detect(confidence=0.25)
    cases: list[tuple[Detections, Boxes, float]] = [
        (found([], [], []), nothing, 1.0),
        (found([box], [0.2], [0]), nothing, 1.0),  # below the confidence: nobody is told
        (found([box], [0.3], [0]), nothing, 0.0),
        (found([], [], []), Boxes.of([box], [0]), 0.0),
        (found([box], [0.9], [0]), Boxes.of([box], [0]), 1.0),
        (found([box], [0.2], [0]), Boxes.of([box], [0]), 1.0),  # ranked first, however low
        (found([box], [0.9], [1]), Boxes.of([box], [0]), 0.0),
        (found([box, box], [0.9, 0.8], [0, 1]), Boxes.of([box], [0]), 0.5),  # right in one of two classes
        (found([box, box], [0.9, 0.1], [0, 1]), Boxes.of([box], [0]), 1.0),
        (found([box, other], [0.9, 0.8], [0, 1]), Boxes.of([box, other], [0, 1]), 1.0),
        (found([box], [0.9], [0]), Boxes.of([box], [0], [True]), 1.0),  # an ignored object may be told or not
        (found([], [], []), Boxes.of([box], [0], [True]), 1.0),
        (found([other], [0.9], [0]), Boxes.of([box], [0], [True]), 0.0),
    ]
    scores = task.sample_scores([c[0] for c in cases], [c[1] for c in cases])
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [c[2] for c in cases], atol=1e-12)


def test_score_of_an_image_is_pycocotools_on_that_image_alone() -> None:
    results, targets = scenes(3, images=25)
    scores = Detect(confidence=1.0).sample_scores(results, targets)  # nothing is told: only the objects' classes count
    assert ((scores >= 0) & (scores <= 1)).all()
    checked = 0
    for result, target, score in zip(results, targets, scores, strict=True):
        if target.ignore.all() or not len(result):
            continue
        assert score == pytest.approx(pycocotools_figures([result], [target])[0][0], abs=1e-9)
        checked += 1
    assert checked > 12


def test_same_answer() -> None:
    task = Detect(confidence=0.25)
    base = found([(10, 10, 60, 60), (100, 100, 180, 180), (0, 0, 9, 9)], [0.9, 0.8, 0.2], [0, 1, 2])
    nudged = found([(101, 100, 181, 180), (10, 11, 60, 60)], [0.95, 0.6], [1, 0])
    moved = found([(10, 10, 60, 60), (110, 100, 190, 180)], [0.9, 0.8], [0, 1])
    renamed = found([(10, 10, 60, 60), (100, 100, 180, 180)], [0.9, 0.8], [0, 0])
    fewer = found([(10, 10, 60, 60)], [0.9], [0])
    more = found([(10, 10, 60, 60), (100, 100, 180, 180), (0, 0, 9, 9)], [0.9, 0.8, 0.3], [0, 1, 2])
    doubled = found([(10, 10, 60, 60), (10, 10, 60, 60)], [0.9, 0.8], [0, 0])
    others = [base, nudged, moved, renamed, fewer, more, doubled]
    same = task.same_answer(others, [base] * len(others))
    assert same.dtype == bool
    assert same.tolist() == [True, True, False, False, False, False, False]
    assert task.same_answer([base] * len(others), others).tolist() == same.tolist()
    empty = found([], [], [])
    assert task.same_answer([empty, empty, base], [empty, base, empty]).tolist() == [True, False, False]


def test_match_is_one_to_one_and_within_a_class() -> None:
    reference = found([(0, 0, 100, 100), (0, 0, 100, 90), (200, 200, 240, 240)], [0.9, 0.8, 0.7], [0, 0, 1])
    candidate = found([(0, 0, 100, 90), (0, 0, 100, 100), (200, 200, 240, 240)], [0.85, 0.6, 0.5], [0, 0, 2])
    matched = match([candidate], [reference])
    np.testing.assert_allclose(matched.ious, [1.0, 1.0])
    np.testing.assert_allclose(matched.score_differences, [0.05, -0.3], atol=1e-6)
    assert (matched.extra, matched.missing) == (1, 1)
    none = match([found([], [], [])], [reference])
    assert (len(none.ious), none.extra, none.missing) == (0, 0, 3)


def test_match_finds_as_many_pairs_as_an_optimal_assignment_where_boxes_do_not_crowd() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    cells = np.array(list(itertools.product(range(0, 400, 50), range(0, 300, 50))))
    for _ in range(20):
        boxes = np.concatenate((cells, cells + 40), axis=1)[rng.permutation(len(cells))[:20]]
        moved = boxes[rng.permutation(20)[:15]] + rng.uniform(-4, 4, (15, 4))
        ours, theirs = found(moved, np.linspace(1, 0.5, 15), [0] * 15), found(boxes, np.linspace(1, 0.5, 20), [0] * 20)
        inter = np.minimum(moved[:, None, 2:], boxes[:, 2:]) - np.maximum(moved[:, None, :2], boxes[:, :2])
        inter = inter.clip(0).prod(axis=2)
        areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (moved, boxes)]
        iou = inter / (areas[0][:, None] + areas[1] - inter)
        best = iou[optimize.linear_sum_assignment(-iou)]
        matched = match([ours], [theirs])
        np.testing.assert_allclose(np.sort(matched.ious), np.sort(best[best >= 0.5]), atol=1e-5)


def test_differences_and_descriptions() -> None:
    task = Detect(confidence=0.25)
    reference = found([(0, 0, 100, 100), (200, 200, 240, 240), (0, 0, 9, 9)], [0.9, 0.7, 0.1], [0, 1, 2])
    candidate = found([(0, 0, 100, 90), (50, 50, 60, 60)], [0.8, 0.3], [0, 0])
    figures = task.differences([candidate], [reference])
    assert figures == {
        "matched": 1,
        "extra": 1,
        "missing": 1,
        "mean_iou": pytest.approx(0.9),
        "lowest_iou": pytest.approx(0.9),
        "mean_score_difference": pytest.approx(0.1),
        "largest_score_difference": pytest.approx(0.1),
    }
    assert task.differences([found([], [], [])], [reference]) == {"matched": 0, "extra": 0, "missing": 2}
    assert [d.label for d in task.shown(reference)] == ["red", "white"]
    boxes = [(0, 0, 9, 9)] * 4
    assert task.describe(found(boxes, [0.9, 0.8, 0.7, 0.6], [1, 2, 0, 2])) == "2 platelet, 1 red, 1 white"
    assert task.describe(found([], [], [])) == "nothing"


def test_meters_of_two_devices_are_merged() -> None:
    results, targets = scenes(6)
    one, two, whole = (pickle.loads(pickle.dumps(Detect().meter(LABELS))) for _ in range(3))
    one.update(results[:15], targets[:15])
    two.update(results[15:], targets[15:])
    whole.update(results, targets)
    one.merge(pickle.loads(pickle.dumps(two)))
    assert one.compute() == whole.compute()


# -- settings -------------------------------------------------------------------------------------------------------


def test_settings_travel_and_are_checked() -> None:
    assert Detect().settings == {"confidence": 0.25, "iou": 0.6, "max_detections": 100}
    assert Detect(**Detect(confidence=0.4, iou=0.5, max_detections=7).settings).settings["max_detections"] == 7
    with pytest.raises(ZooError, match=r"confidence 1\.5: it is a share"):
        Detect(confidence=1.5)
    with pytest.raises(ZooError, match="iou nan"):
        Detect(iou=float("nan"))
    with pytest.raises(ZooError, match="max_detections 0"):
        Detect(max_detections=0)
    assert Detect().decodes(["boxes", "scores"]) == ["boxes", "scores"]
    assert Detect().decodes(["boxes", "scores", "detections"]) == ["detections"]


def f1(results: Sequence[Detections], targets: Sequence[Boxes], confidence: float) -> float:
    """At an IoU of 0.5, of what is left above a confidence."""
    hits = told = objects = 0
    for result, target in zip(results, targets, strict=True):
        result = result.above(confidence)
        for index in range(len(LABELS)):
            ours, theirs = result.classes == index, target.classes == index
            matched = match_image(result.boxes[ours], result.scores[ours], target.boxes[theirs], target.ignore[theirs])
            hits += int(matched.right[0, 0].sum())
            told += int((matched.right | matched.wrong)[0, 0].sum())
            objects += int(matched.objects[0])
    return 2 * hits / (told + objects)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_tune_finds_the_best_confidence(seed: int) -> None:
    results, targets = scenes(seed, images=12)
    chosen = Detect().tune(results, targets)["confidence"]
    assert chosen == round(chosen, 3) and 0 < chosen < 1
    every = [f1(results, targets, t) for t in np.arange(0.001, 1.0, 0.007)]
    assert f1(results, targets, chosen) >= max(every) > min(every)


def test_tune_takes_the_middle_of_a_plateau() -> None:
    box, stray = (10, 10, 60, 60), (200, 200, 250, 250)
    results = [found([box, stray], [0.8, 0.4], [0, 0])] * 3
    assert Detect().tune(results, [Boxes.of([box], [0])] * 3) == {"confidence": 0.599}
    assert Detect().tune([found([], [], [])], [Boxes.of([box], [0])]) == {}
    assert Detect().tune([], []) == {}


# -- decoding -------------------------------------------------------------------------------------------------------


def placed(boxes: np.ndarray, where: Frame) -> np.ndarray:
    return boxes_to_input(boxes, where)[None]


def test_decode_brings_boxes_back_to_the_image() -> None:
    spec = ImageInput(height=320, width=320, resize="letterbox")
    where = frame(WIDTH, HEIGHT, spec)
    boxes = np.array([(20, 30, 120, 90), (21, 30, 121, 90), (200, 100, 300, 200), (0, 0, 5, 5)], np.float32)
    scores = np.zeros((1, 4, 4), np.float32)
    scores[0, 0, 1], scores[0, 1, 1], scores[0, 2, 3], scores[0, 2, 0], scores[0, 3, 2] = 0.8, 0.9, 0.7, 0.3, 0.2
    outputs = {"boxes": placed(boxes, where), "scores": scores}
    [result] = Detect().decode(outputs, labels=LABELS, frames=[where])
    assert [(d.label, round(d.score, 2)) for d in result] == [("white", 0.9), ("dust", 0.7), ("red", 0.3)]
    np.testing.assert_allclose(result.boxes, boxes[[1, 2, 2]], atol=1e-3)
    assert (result.width, result.height) == (WIDTH, HEIGHT)
    assert result.boxes.dtype == result.scores.dtype == np.float32 and result.classes.dtype == np.int64
    [judged] = Detect().decode(outputs, labels=LABELS, frames=[where], judging=True)
    assert [d.label for d in judged] == ["white", "dust", "red", "platelet"]
    [few] = Detect(max_detections=1).decode(outputs, labels=LABELS, frames=[where])
    assert [d.label for d in few] == ["white"]
    [both] = Detect(iou=0.99).decode(outputs, labels=LABELS, frames=[where])
    assert [d.label for d in both] == ["white", "white", "dust", "red"]


def test_decode_cuts_boxes_at_the_image_and_drops_what_has_no_area_there() -> None:
    spec = ImageInput(height=320, width=320, resize="letterbox")
    where = frame(WIDTH, HEIGHT, spec)  # the image lies between rows 40 and 280
    boxes = np.array(
        [[(-30, 50, 60, 90), (0, 0, 50, 39), (5, 5, 5, 90), (9, 90, 3, 60), (np.nan, 0, 9, 9), (300, 250, 330, 330)]],
        np.float32,
    )
    scores = np.full((1, 6, 1), 0.9, np.float32)
    [result] = Detect().decode({"boxes": boxes, "scores": scores}, labels=LABELS, frames=[where])
    np.testing.assert_allclose(result.boxes, [(0, 12.5, 75, 62.5), (375, 262.5, 400, 300)], atol=1e-4)


def test_decode_reads_suppressed_detections_where_the_graph_gives_them() -> None:
    spec = ImageInput(height=300, width=400, resize="letterbox")
    where = frame(WIDTH, HEIGHT, spec)
    rows = np.zeros((2, 100, 6), np.float32)
    rows[0, :3] = [(10, 10, 50, 50, 0.9, 2), (11, 10, 50, 50, 0.5, 2), (60, 60, 90, 90, 0.2, 0)]
    first, second = Detect().decode({"detections": rows}, labels=LABELS, frames=[where, where])
    assert [(d.label, round(d.score, 2)) for d in first] == [("platelet", 0.9), ("platelet", 0.5)]
    assert len(second) == 0
    judged = Detect().decode({"detections": rows}, labels=LABELS, frames=[where, where], judging=True)
    assert [len(r) for r in judged] == [3, 0]  # the rows of zeros are no detections, however low the bar


def test_both_ways_of_suppressing_decode_to_the_same() -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(0)
    start = rng.integers(0, 250, (300, 2))
    boxes = np.concatenate((start, start + rng.integers(5, 120, (300, 2))), axis=1).astype(np.float32)
    scores = rng.random((300, 4), np.float32) ** 3
    where = frame(WIDTH, HEIGHT, ImageInput(height=320, width=320, resize="letterbox"))
    anchors, classes = np.nonzero(scores > 0.25)
    keep = ops.batched_nms(
        torch.from_numpy(boxes[anchors]), torch.from_numpy(scores[anchors, classes]), torch.from_numpy(classes), 0.6
    ).numpy()[:100]
    rows = np.zeros((1, 100, 6), np.float32)
    rows[0, : len(keep)] = np.concatenate(
        (boxes[anchors[keep]], scores[anchors, classes][keep, None], classes[keep, None]), axis=1
    )
    [inside] = Detect().decode({"detections": rows}, labels=LABELS, frames=[where])
    [host] = Detect().decode({"boxes": boxes[None], "scores": scores[None]}, labels=LABELS, frames=[where])
    assert host.to_dict() == inside.to_dict()
    assert len(host) > 50


def test_pack_is_undone_by_unpack() -> None:
    results, _ = scenes(0, images=9)
    task = Detect()
    for some in (results, results[:1], [found([], [], [])], [found([], [], []), results[1], found([], [], [])], []):
        back = task.unpack(task.pack(some), LABELS)
        assert [r.to_dict() for r in back] == [r.to_dict() for r in some]
        for ours, theirs in zip(back, some, strict=True):
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            assert ours.classes.dtype == np.int64 and ours.labels == theirs.labels


def test_draw_shows_what_is_told() -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90))
    low = found([(50, 50, 150, 150)], [0.1], [0])
    assert np.array_equal(np.asarray(Detect().draw(image, low)), np.asarray(image))
    assert not np.array_equal(np.asarray(Detect(confidence=0.05).draw(image, low)), np.asarray(image))


# -- networks that choose their rows -----------------------------------------------------------------------------


def test_without_suppression_every_row_is_told() -> None:
    boxes = np.tile(np.array([10, 10, 60, 60], np.float32), (1, 3, 1)) + np.array([[[0], [1], [100]]], np.float32)
    scores = np.zeros((1, 3, 4), np.float32)
    scores[0, :, 1] = 0.5, 0.9, 0.7
    scores[0, 0, 2] = 0.6
    where = [frame(WIDTH, HEIGHT, ImageInput(height=HEIGHT, width=WIDTH, resize="squash"))]
    suppressed = Detect(confidence=0.3).decode({"boxes": boxes, "scores": scores}, labels=LABELS, frames=where)[0]
    assert suppressed.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    (all_of_them,) = Detect(confidence=0.3, nms=False).decode(
        {"boxes": boxes, "scores": scores}, labels=LABELS, frames=where
    )
    assert all_of_them.scores.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.5])
    assert all_of_them.classes.tolist() == [1, 1, 2, 1]
    assert np.array_equal(all_of_them.boxes[3], boxes[0, 0])
    half = Detect(confidence=0.3, nms=False, max_detections=2)
    assert len(half.decode({"boxes": boxes, "scores": scores}, labels=LABELS, frames=where)[0]) == 2


def test_what_most_detectors_have_does_not_weigh_on_their_manifest() -> None:
    assert set(Detect().settings) == {"confidence", "iou", "max_detections"}
    half = Detect(nms=False, rows="chosen", confidence=0.4)
    again = Detect(**half.settings)
    assert again.settings == half.settings == {**Detect(confidence=0.4).settings, "nms": False, "rows": "chosen"}
    assert (again.nms, again.rows) == (False, "chosen")


@pytest.mark.parametrize("setting", [{"nms": "no"}, {"nms": 0}, {"rows": "free"}, {"rows": None}])
def test_settings_of_the_architecture_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(ZooError, match=next(iter(setting))):
        Detect(**setting)


def rows_of(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(A, 4) boxes of some size, crowded, the first two equal and two of them cut to a line; (A, 3) scores."""
    low = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 60, (count, 2))], axis=1).astype(np.float32)
    boxes[1] = boxes[0]
    boxes[2, [0, 2]], boxes[3, [1, 3]] = 0, 160
    return boxes, rng.random((count, 3)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_rows_in_another_order_find_their_partners(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = rows_of(rng, 60)
    order = rng.permutation(60)
    noise = rng.normal(size=(60, 4)).astype(np.float32) * 1e-4
    assert np.array_equal(order[pair_rows(boxes[order] + noise, scores[order], boxes, scores)], np.arange(60))


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_paired_the_nearest_first(seed: int) -> None:
    """Against the plain loop: of all pairs that overlap by half or more, always the nearest of those left."""
    rng = np.random.default_rng(seed)
    (boxes, scores), (theirs, their_scores) = rows_of(rng, 40), rows_of(rng, 40)
    theirs[10:] = boxes[10:] + rng.normal(size=(30, 4)) * 12
    pairs = []
    for i, j in itertools.product(range(40), repeat=2):
        a, b = (
            boxes[i].astype(np.float64) + (-0.5, -0.5, 0.5, 0.5),
            theirs[j].astype(np.float64) + (-0.5, -0.5, 0.5, 0.5),
        )
        sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        shared = float(np.prod(sides.clip(0)))
        iou = shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)
        if iou >= 0.5:
            pairs.append((iou - float(np.abs(scores[i].astype(np.float64) - their_scores[j]).max()), i, j))
    expected = np.full(40, -1)
    for _, i, j in sorted(pairs, reverse=True):
        if i not in expected and expected[j] < 0:
            expected[j] = i
    assert 10 < (expected >= 0).sum() < 40
    assert np.array_equal(pair_rows(boxes, scores, theirs, their_scores), expected)


def test_rows_without_a_partner_are_counted_where_they_matter() -> None:
    rng = np.random.default_rng(0)
    boxes = np.stack([rows_of(rng, 20)[0], rows_of(rng, 20)[0]])
    scores = np.zeros((2, 20, 3), np.float32)
    scores[:, :8, 1] = 0.9
    scores[:, 8:, 0] = 0.1
    moved, moved_scores = boxes[:, ::-1].copy(), scores[:, ::-1].copy()
    # one that matters and two that do not are elsewhere in the candidate's second image; one of these is sure of it
    moved[1, [14, 3, 4]] = np.array([[300, 300, 340, 340], [400, 300, 440, 340], [500, 300, 540, 340]])
    moved_scores[1, 3, 2] = 0.9
    found = align_rows({"boxes": moved, "scores": moved_scores}, {"boxes": boxes, "scores": scores}, confidence=0.5)
    assert found.paired.sum() == 37 and found.paired[0].all()
    assert np.flatnonzero(~found.paired[1]).tolist() == [5, 15, 16]
    assert (found.matter, found.lost) == (33, pytest.approx(3 / 33))
    for name, own in (("boxes", boxes), ("scores", scores)):
        assert np.array_equal(found.outputs[name], own)
    # half of the confidence is what matters, in either
    assert align_rows({"boxes": boxes, "scores": scores}, {"boxes": boxes, "scores": scores}, 0.25).matter == 32
    assert align_rows({"boxes": boxes, "scores": scores}, {"boxes": boxes, "scores": scores}, 0.19).matter == 80
    unsure = align_rows(
        {"boxes": moved, "scores": moved_scores * 0.01}, {"boxes": boxes, "scores": scores * 0.01}, confidence=0.5
    )
    assert (unsure.matter, unsure.lost) == (80, pytest.approx(6 / 80)), "where nothing is sure all rows count"


def test_only_chosen_rows_are_aligned() -> None:
    rng = np.random.default_rng(0)
    outputs = {name: value[None] for name, value in zip(("boxes", "scores"), rows_of(rng, 9), strict=True)}
    assert Detect().aligned(outputs, outputs) is None
    found = Detect(rows="chosen").aligned(outputs, outputs)
    assert found is not None and found.paired.all()
