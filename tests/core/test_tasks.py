"""Classification's numpy half against torchmetrics, and its result record."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from zoo.results import Classification
from zoo.tasks.classify import Classify, confusion_matrix

CLASSES = 7
LABELS = tuple("abcdefg")


@pytest.fixture
def outputs() -> dict[str, np.ndarray]:
    logits = np.random.default_rng(0).normal(size=(200, CLASSES)).astype(np.float32)
    logits[:, 5] -= 9  # a class that is never predicted
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return {"logits": logits, "scores": scores}


@pytest.fixture
def targets() -> list[int]:
    return [int(t) for t in np.random.default_rng(1).integers(0, CLASSES - 1, 200)]  # class 6 never occurs


def figures(outputs: dict[str, np.ndarray], targets: list[int]) -> dict:
    meter = Classify().meter(LABELS)
    meter.update(Classify().decode(outputs, labels=LABELS), targets)
    return meter.compute()


def test_metrics_are_torchmetrics(outputs: dict[str, np.ndarray], targets: list[int]) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    scores, wanted = torch.from_numpy(outputs["scores"]), torch.tensor(targets)
    ours = figures(outputs, targets)

    def theirs(name: str, **options: object) -> float:
        return float(getattr(functional, f"multiclass_{name}")(scores, wanted, num_classes=CLASSES, **options))

    assert ours["top-1 accuracy"] == pytest.approx(theirs("accuracy", average="micro"))
    assert ours["top-5 accuracy"] == pytest.approx(theirs("accuracy", average="micro", top_k=5))
    assert ours["macro F1"] == pytest.approx(theirs("f1_score", average="macro"))
    for name, key in (("precision", "precision"), ("recall", "recall"), ("f1_score", "F1")):
        per_class = getattr(functional, f"multiclass_{name}")(scores, wanted, num_classes=CLASSES, average=None)
        for row in ours["classes"]:
            assert row[key] == pytest.approx(float(per_class[LABELS.index(row["label"])]))
    matrix = functional.multiclass_confusion_matrix(scores, wanted, num_classes=CLASSES).numpy()
    np.testing.assert_array_equal(
        confusion_matrix(outputs["scores"].argmax(axis=1), np.array(targets), CLASSES), matrix
    )


def test_macro_f1_is_scikit_learns(outputs: dict[str, np.ndarray], targets: list[int]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    theirs = metrics.f1_score(targets, outputs["scores"].argmax(axis=1), average="macro", zero_division=0)
    assert figures(outputs, targets)["macro F1"] == pytest.approx(theirs)


def test_sample_scores_and_same_answer(outputs: dict[str, np.ndarray], targets: list[int]) -> None:
    task = Classify()
    results = task.decode(outputs, labels=LABELS)
    per_sample = task.sample_scores(results, targets)
    assert per_sample.shape == (200,)
    assert per_sample.mean() == pytest.approx(figures(outputs, targets)[task.metric_name])
    assert task.same_answer(results, results).all()
    other = task.decode({"scores": np.roll(outputs["scores"], 1, axis=1)}, labels=LABELS)
    assert not task.same_answer(results, other).any()


def test_meters_gather_in_parts_and_merge(outputs: dict[str, np.ndarray], targets: list[int]) -> None:
    results = Classify().decode(outputs, labels=LABELS)
    one, two = Classify().meter(LABELS), Classify().meter(LABELS)
    one.update(results[:70], targets[:70])
    two.update(results[70:], targets[70:])
    one.merge(two)
    assert one.compute() == figures(outputs, targets)


def test_packed_results_come_back(outputs: dict[str, np.ndarray]) -> None:
    results = Classify().decode(outputs, labels=LABELS)
    again = Classify().unpack(Classify().pack(results), LABELS)
    assert [r.to_dict() for r in again] == [r.to_dict() for r in results]


def test_decode() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    one, two = Classify().decode({"logits": np.log(scores), "scores": scores}, labels=("x", "y", "z"))
    assert (one.label, one.index, one.score) == ("y", 1, pytest.approx(0.7))
    assert [label for label, _ in two.top(3)] == ["x", "y", "z"]  # ties keep the order of the labels
    assert two.to_dict(1)["top"] == [{"label": "x", "score": 0.5}]
    assert repr(one) == "Classification('y', 0.7000)"


@pytest.mark.parametrize("size", [(28, 28), (640, 427), (10, 300)])
def test_draw_leaves_the_image_alone_and_adds_bars(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    before = image.tobytes()
    result = Classification(scores=np.array([0.9, 0.1], np.float32), labels=("dünn", "dick"))
    picture = Classify().draw(image, result)
    assert image.tobytes() == before
    factor = picture.width // size[0]
    assert min(picture.width, size[1] * factor) >= 256
    assert picture.height > size[1] * factor
    assert picture.getpixel((2, size[1] * factor + 2)) == (198, 219, 239)
