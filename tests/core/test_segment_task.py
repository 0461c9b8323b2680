"""Segmentation's numpy half against torchmetrics, void pixels and unseen ones by hand, and what travels in a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.targets import VOID, Mask
from zoo.errors import DataError
from zoo.inputs import frame
from zoo.results import Segmentation
from zoo.specs import ImageInput
from zoo.tasks.segment import Segment

LABELS = ("background", "road", "car", "tree", "never")


def answer(classes: np.ndarray, labels: tuple[str, ...] = LABELS) -> Segmentation:
    return Segmentation(classes=np.asarray(classes, np.uint8), labels=labels)


def truth(classes: np.ndarray) -> Mask:
    return Mask(source=np.asarray(classes, np.uint8), values={})


def maps(seed: int, images: int = 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Answers and targets of several sizes: targets hold void pixels, ``tree`` is only answered, ``never`` is neither."""
    rng = np.random.default_rng(seed)
    answers, targets = [], []
    for _ in range(images):
        height, width = rng.integers(5, 40, 2)
        wanted = rng.choice(3, (height, width), p=(0.6, 0.3, 0.1)).astype(np.uint8)
        told = np.where(rng.random((height, width)) < 0.7, wanted, rng.integers(0, 4, (height, width))).astype(np.uint8)
        wanted[rng.random((height, width)) < 0.1] = VOID
        answers.append(told)
        targets.append(wanted)
    return answers, targets


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_torchmetrics(seed: int) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    answers, targets = maps(seed)
    meter = Segment().meter(LABELS)
    for start in range(0, len(answers), 5):
        meter.update([answer(a) for a in answers[start : start + 5]], [truth(t) for t in targets[start : start + 5]])
    ours = meter.compute()
    told = torch.from_numpy(np.concatenate([a.ravel() for a in answers]).astype(np.int64))
    wanted = torch.from_numpy(np.concatenate([t.ravel() for t in targets]).astype(np.int64))

    def theirs(name: str, average: str | None) -> np.ndarray:
        metric = getattr(functional, f"multiclass_{name}")
        return np.asarray(metric(told, wanted, num_classes=len(LABELS), ignore_index=VOID, average=average).numpy())

    assert ours["mIoU"] == pytest.approx(float(theirs("jaccard_index", "macro")), abs=1e-6)
    assert ours["pixel accuracy"] == pytest.approx(float(theirs("accuracy", "micro")), abs=1e-6)
    rows = ours["classes"]
    assert [row["label"] for row in rows] == list(LABELS[:4])
    for name, key in (("jaccard_index", "IoU"), ("f1_score", "Dice"), ("precision", "precision"), ("recall", "recall")):
        assert [row[key] for row in rows] == pytest.approx(theirs(name, None)[:4].tolist(), abs=1e-6)
    assert ours["Dice"] == pytest.approx(theirs("f1_score", None)[1:4].mean(), abs=1e-6)
    assert [row["pixels"] for row in rows] == [int((wanted == i).sum()) for i in range(4)]
    assert rows[3]["pixels"] == 0 and rows[3]["IoU"] == 0.0  # answered, but never there
    assert ours["images"] == len(answers)


def test_dice_is_torchmetrics_segmentation_dice() -> None:
    torch = pytest.importorskip("torch")
    segmentation = pytest.importorskip("torchmetrics.segmentation")
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 3, (1, 60, 50)).astype(np.uint8)
    told = np.where(rng.random(wanted.shape) < 0.7, wanted, rng.integers(0, 3, wanted.shape)).astype(np.uint8)
    score = segmentation.DiceScore(num_classes=3, include_background=False, average="macro", input_format="index")
    score.update(torch.from_numpy(told.astype(np.int64)), torch.from_numpy(wanted.astype(np.int64)))
    meter = Segment().meter(LABELS[:3])
    meter.update([answer(told[0], LABELS[:3])], [truth(wanted[0])])
    assert meter.compute()["Dice"] == pytest.approx(float(score.compute()), abs=1e-6)


def test_dice_of_an_image_is_the_mean_of_torchmetrics_over_the_images() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    answers, targets = maps(7)
    meter = Segment().meter(LABELS)
    meter.update([answer(a) for a in answers], [truth(t) for t in targets])
    each = []
    for told, wanted in zip(answers, targets, strict=True):
        a, b = (torch.from_numpy(m.ravel().astype(np.int64)) for m in (told, wanted))
        f1 = functional.multiclass_f1_score(a, b, num_classes=len(LABELS), ignore_index=VOID, average=None).numpy()
        occurs = [i for i in range(1, 4) if ((b == i) | ((a == i) & (b != VOID))).any()]
        each.append(f1[occurs].mean())
    assert meter.compute()["Dice of an image"] == pytest.approx(np.mean(each), abs=1e-6)


def test_every_class_is_in_the_dice_where_none_is_the_background() -> None:
    wanted, told = np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, 1]])
    for labels, expected in ((("road", "sky"), (4 / 5 + 2 / 3) / 2), (("Background", "sky"), 2 / 3)):
        meter = Segment().meter(labels)
        meter.update([answer(told, labels)], [truth(wanted)])
        assert meter.compute()["Dice"] == pytest.approx(expected)


def test_void_is_not_counted_and_what_was_not_seen_is_wrong() -> None:
    wanted = np.array([[1, 1, 1, 1, 0, VOID, VOID]])
    told = np.array([[1, 1, VOID, 0, 0, 2, VOID]])
    meter = Segment().meter(LABELS)
    meter.update([answer(told)], [truth(wanted)])
    ours = meter.compute()
    rows = {row["label"]: row for row in ours["classes"]}
    assert set(rows) == {"background", "road"}  # the 2 lies on void
    assert rows["road"]["IoU"] == pytest.approx(2 / 4) and rows["road"]["recall"] == pytest.approx(2 / 4)
    assert rows["road"]["precision"] == 1.0
    assert rows["background"]["IoU"] == pytest.approx(1 / 2)
    assert ours["pixel accuracy"] == pytest.approx(3 / 5)
    assert Segment().sample_scores([answer(told)], [truth(wanted)]) == pytest.approx([0.5])


def test_nothing_to_find() -> None:
    empty = Segment().meter(LABELS).compute()
    assert empty == {
        "mIoU": 0.0,
        "Dice": 0.0,
        "Dice of an image": 0.0,
        "pixel accuracy": 0.0,
        "images": 0,
        "classes": [],
    }
    meter = Segment().meter(LABELS)
    meter.update([answer(np.zeros((4, 4)))], [truth(np.zeros((4, 4)))])
    ours = meter.compute()
    assert (ours["mIoU"], ours["Dice"], ours["pixel accuracy"]) == (1.0, 1.0, 1.0)
    void = truth(np.full((4, 4), VOID))
    assert Segment().sample_scores([answer(np.ones((4, 4)))], [void]).tolist() == [1.0]


@pytest.mark.parametrize("seed", range(3))
def test_score_of_an_image_is_the_meters_on_that_image_alone(seed: int) -> None:
    answers, targets = maps(seed)
    results, masks = [answer(a) for a in answers], [truth(t) for t in targets]
    scores = Segment().sample_scores(results, masks)
    assert scores.dtype == np.float64 and ((scores > 0) & (scores < 1)).all()
    for result, mask, score in zip(results, masks, scores, strict=True):
        meter = Segment().meter(LABELS)
        meter.update([result], [mask])
        assert score == pytest.approx(meter.compute()["mIoU"])


def test_targets_come_from_files(tmp_path: Path) -> None:
    wanted = np.arange(12).reshape(3, 4) % 3
    Image.fromarray((wanted * 100).astype(np.uint8)).save(tmp_path / "mask.png")
    mask = Mask(source=tmp_path / "mask.png", values={0: 0, 100: 1, 200: 2})
    assert Segment().sample_scores([answer(wanted)], [mask]).tolist() == [1.0]


def test_masks_that_do_not_fit() -> None:
    task = Segment()
    with pytest.raises(DataError, match="a mask of 4x3 pixels for an image of 3x4"):
        task.sample_scores([answer(np.zeros((4, 3)))], [truth(np.zeros((3, 4)))])
    with pytest.raises(DataError, match="a mask holds class 7, the labels are 5"):
        task.meter(LABELS).update([answer(np.zeros((3, 3)))], [truth(np.full((3, 3), 7))])


def test_same_answer_is_nearly_every_pixel() -> None:
    base = np.zeros((100, 100), np.uint8)
    ten, eleven = base.copy(), base.copy()
    ten.flat[:10], eleven.flat[:11] = 1, 1
    same = Segment().same_answer([answer(m) for m in (base, ten, eleven)], [answer(base)] * 3)
    assert same.dtype == bool and same.tolist() == [True, True, False]
    assert Segment().same_answer([], []).shape == (0,)


def test_differences_and_descriptions() -> None:
    task = Segment()
    base, other = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    other[0, :4] = 2
    other[1, :9] = 1
    figures = task.differences([answer(base), answer(other)], [answer(base), answer(base)])
    assert figures == {"mean_changed": pytest.approx(0.065), "most_changed": pytest.approx(0.13)}
    assert task.differences([], []) == {}
    assert task.describe(answer(other)) == "road 9.0 %, car 4.0 %"
    assert task.describe(answer(base)) == "nothing"
    assert task.describe(answer(np.arange(8)[None], tuple("abcdefgh"))).endswith("f 12.5 %, …")
    assert task.shown(result := answer(base)) is result


def test_meters_of_two_devices_are_merged() -> None:
    answers, targets = maps(1)
    results, masks = [answer(a) for a in answers], [truth(t) for t in targets]
    one, two, whole = (Segment().meter(LABELS) for _ in range(3))
    one.update(results[:5], masks[:5])
    two.update(results[5:], masks[5:])
    whole.update(results, masks)
    one.merge(two)
    assert one.compute() == whole.compute()


@pytest.mark.parametrize("resize", ["letterbox", "squash", "shortest"])
def test_decode_brings_the_map_back_to_the_image(resize: str) -> None:
    spec = ImageInput(height=64, width=64, resize=resize)
    frames = [frame(*size, spec) for size in ((128, 64), (50, 90), (64, 64))]
    classes = np.zeros((3, 64, 64), np.uint8)
    classes[:, :, 32:] = 1
    results = Segment().decode({"classes": classes}, labels=LABELS, frames=frames)
    for result, (width, height) in zip(results, ((128, 64), (50, 90), (64, 64)), strict=True):
        assert (result.width, result.height) == (width, height)
        assert result.classes.dtype == np.uint8
        seen = result.classes != VOID
        assert seen.all() == (resize != "shortest" or width == height)
        right = np.broadcast_to(np.arange(width) >= width // 2, (height, width))
        np.testing.assert_array_equal(result.classes[seen], right[seen].astype(np.uint8))


def test_a_bundle_without_settings() -> None:
    task = Segment()
    assert task.settings == {} and task.tune([], []) == {}
    assert Segment(**task.settings).decodes(["logits", "classes"]) == ["classes"]


def test_pack_is_undone_by_unpack_and_is_small() -> None:
    answers, _ = maps(0)
    task = Segment()
    results = [answer(a) for a in answers] + [answer(np.full((1, 7), VOID)), answer([[3]])]
    for some in (results, results[:1], []):
        back = task.unpack(task.pack(some), LABELS)
        assert len(back) == len(some)
        for ours, theirs in zip(back, some, strict=True):
            np.testing.assert_array_equal(ours.classes, theirs.classes)
            assert ours.classes.dtype == np.uint8 and ours.labels == theirs.labels
    disc = np.hypot(*np.indices((600, 800)) - np.array([300, 400])[:, None, None]) < 200
    assert sum(a.nbytes for a in task.pack([answer(disc)]).values()) < 5000  # of 480,000 pixels


def test_draw() -> None:
    image = Image.new("RGB", (300, 300), (50, 50, 50))
    picture = Segment().draw(image, answer(np.eye(300)))
    assert picture.height > 300 and picture.width == 300
