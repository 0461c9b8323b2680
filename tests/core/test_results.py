"""The result records of segmentation and detection: what they tell, what others read of it, and what they draw."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.errors import DataError, MissingPart, UnknownName
from zoo.results import Detections, Segmentation
from zoo.results.drawing import colour, fitted, font, ink

LABELS = ("background", "cell", "gap")
UNSEEN = 255


def blobs(seed: int, height: int, width: int, share: float = 0.5) -> np.ndarray:
    """(H, W) bool: random pixels, from dust to lace."""
    return np.random.default_rng(seed).random((height, width)) < share


def segmentation(classes: np.ndarray, labels: tuple[str, ...] = LABELS) -> Segmentation:
    return Segmentation(classes=classes.astype(np.uint8), labels=labels)


@pytest.fixture
def scene() -> Segmentation:
    classes = np.zeros((40, 60), np.uint8)
    classes[5:15, 10:30] = 1
    classes[20:22, 50:60] = 2
    classes[:, :4] = UNSEEN
    return segmentation(classes)


# -- segmentation ---------------------------------------------------------------------------------------------------


def test_what_a_segmentation_tells(scene: Segmentation) -> None:
    assert (scene.width, scene.height) == (60, 40)
    assert scene.areas() == {"background": 40 * 56 - 220, "cell": 200, "gap": 20}
    assert scene.mask("cell").sum() == 200 and scene.mask("cell").dtype == bool
    with pytest.raises(UnknownName, match="unknown label 'cel': did you mean cell"):
        scene.mask("cel")
    told = scene.to_dict()
    assert told == {
        "width": 60,
        "height": 40,
        "unseen": 160,
        "classes": [
            {"label": "background", "pixels": 2020, "share": 0.841667, "box": [4, 0, 60, 40]},
            {"label": "cell", "pixels": 200, "share": 0.083333, "box": [10, 5, 30, 15]},
            {"label": "gap", "pixels": 20, "share": 0.008333, "box": [50, 20, 60, 22]},
        ],
    }
    assert json.loads(json.dumps(told)) == told
    assert repr(scene) == "Segmentation(60x40: background 84.2 %, cell 8.3 %, gap 0.8 %)"


def test_an_image_that_was_not_seen() -> None:
    nothing = segmentation(np.full((3, 5), UNSEEN))
    assert nothing.to_dict() == {"width": 5, "height": 3, "unseen": 15, "classes": []}
    assert nothing.to_coco(1) == [] and nothing.polygons("cell") == []
    nothing.draw(Image.new("RGB", (5, 3)))


def test_areas_of_a_large_map_are_counted_in_pieces() -> None:
    classes = np.random.default_rng(0).integers(0, 3, (1500, 1201)).astype(np.uint8)
    assert list(segmentation(classes).areas().values()) == [int((classes == i).sum()) for i in range(3)]


def area(outline: np.ndarray) -> float:
    """Positive where the outline goes clockwise on the screen."""
    x, y = outline.astype(np.float64).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def test_one_pixel_and_two_that_touch_at_a_corner() -> None:
    one = np.zeros((2, 3))
    one[0, 0] = 1
    [outline] = segmentation(one).polygons("cell")
    assert outline.dtype == np.float32
    assert outline.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    for pair in (np.eye(2), np.eye(2)[::-1]):
        assert [area(p) for p in segmentation(pair).polygons("cell")] == [1.0, 1.0]


@pytest.mark.parametrize("seed", range(60))
def test_outlines_are_those_of_the_connected_regions(seed: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(seed)
    mask = blobs(seed, int(rng.integers(1, 20)), int(rng.integers(1, 20)), float(rng.uniform(0.1, 0.9)))
    regions, count = ndimage.label(mask)
    outlines = segmentation(mask).polygons("cell")
    assert len(outlines) == count
    # each region with its holes filled: background that reaches it only past its own pixels, corners included
    filled = [ndimage.binary_fill_holes(regions == k, np.ones((3, 3))) for k in range(1, count + 1)]
    assert [area(p) for p in outlines] == [float(f.sum()) for f in filled]
    for outline, region in zip(outlines, filled, strict=True):
        np.testing.assert_array_equal(rasterised(outline, *mask.shape), region)
        steps = np.roll(outline, -1, axis=0) - outline
        assert ((steps == 0).sum(axis=1) == 1).all()  # along the pixels' edges, one way and then the other
        assert ((steps[:, 0] == 0) != (np.roll(steps[:, 0], 1) == 0)).all()


def rasterised(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) bool: the pixels whose centre has an odd number of vertical edges to its left."""
    crossings = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(outline.astype(int), np.roll(outline, -1, axis=0).astype(int), strict=True):
        if x0 == x1:
            crossings[min(y0, y1) : max(y0, y1), x0] += 1
    return crossings.cumsum(axis=1)[:, :-1] % 2 == 1


def test_outlines_of_a_region_that_fills_the_image_and_of_a_ring() -> None:
    assert segmentation(np.ones((4, 6))).polygons("cell")[0].tolist() == [[0, 0], [6, 0], [6, 4], [0, 4]]
    ring = np.ones((5, 5))
    ring[1:4, 1:4] = 0
    ring[2, 2] = 1
    assert [area(p) for p in segmentation(ring).polygons("cell")] == [
        25.0,
        1.0,
    ]  # the hole is left out, what is in it not


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_what_pycocotools_reads_and_writes(seed: int) -> None:
    coco_mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 60, 2))
    classes = (
        rng.choice(3, (height, width), p=(0.6, 0.3, 0.1))
        if seed % 2
        else np.repeat(np.repeat(rng.integers(0, 3, (height, 1)), 7, axis=0), 90 * width, axis=1)
    )
    result = segmentation(classes)
    found = {a["category_id"]: a for a in result.to_coco(7)}
    assert set(found) == set(np.unique(classes).tolist()) - {0}  # the background is no object
    for index, annotation in found.items():
        mask = np.asfortranarray(classes == index, dtype=np.uint8)
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), mask)
        theirs = coco_mask.encode(mask)
        assert annotation["segmentation"]["counts"] == theirs["counts"].decode()
        assert annotation["area"] == coco_mask.area(theirs)
        assert annotation["bbox"] == coco_mask.toBbox(theirs).tolist()
        assert annotation["image_id"] == 7
        json.dumps(annotation)


def test_a_first_label_that_is_no_background_is_an_object() -> None:
    assert [a["category_id"] for a in segmentation(np.eye(3), ("road", "sky")).to_coco(0)] == [0, 1]


# -- detections -----------------------------------------------------------------------------------------------------


def detections(count: int = 3) -> Detections:
    boxes = np.array([(10, 20, 110.256, 80), (0, 0, 30, 30.5), (150, 100, 200, 200)], np.float32)[:count]
    return Detections(
        boxes=boxes,
        scores=np.array([0.91234567, 0.5, 0.25], np.float32)[:count],
        classes=np.array([1, 0, 2])[:count],
        labels=("cat", "dog", "a very long name of a thing"),
        width=200,
        height=200,
    )


def test_what_detections_tell() -> None:
    found = detections()
    assert len(found) == 3
    first = next(iter(found))
    assert (first.label, first.score, first.box[:2]) == ("dog", pytest.approx(0.91234567), (10.0, 20.0))
    assert [d.label for d in found.above(0.25)] == ["dog", "cat"]  # greater, not equal
    told = found.to_dict()
    assert told == {
        "width": 200,
        "height": 200,
        "objects": [
            {"label": "dog", "score": 0.912346, "box": [10.0, 20.0, 110.26, 80.0]},
            {"label": "cat", "score": 0.5, "box": [0.0, 0.0, 30.0, 30.5]},
            {"label": "a very long name of a thing", "score": 0.25, "box": [150.0, 100.0, 200.0, 200.0]},
        ],
    }
    assert json.loads(json.dumps(told)) == told
    assert repr(found) == "Detections(3: dog 0.91, cat 0.50, a very long name of a thing 0.25)"
    with pytest.raises(ValueError, match=r"scores \(3,\)"):
        Detections(
            boxes=found.boxes[:2], scores=found.scores, classes=found.classes, labels=found.labels, width=1, height=1
        )


def test_no_detections() -> None:
    none = detections(0)
    assert len(none) == 0 and list(none) == [] and none.to_coco(1) == []
    assert none.to_dict() == {"width": 200, "height": 200, "objects": []}
    assert len(none.above(0.5)) == 0
    assert repr(none) == "Detections(0)"
    image = Image.new("RGB", (300, 300), (1, 2, 3))
    assert none.draw(image).tobytes() == image.tobytes()


def test_coco_results_are_what_pycocotools_reads() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    results = detections().to_coco(4)
    json.dumps(results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {"images": [{"id": 4}], "categories": [{"id": i} for i in range(3)], "annotations": []}
        truth.createIndex()
        read = truth.loadRes(results)
    assert [a["category_id"] for a in read.anns.values()] == [1, 0, 2]
    np.testing.assert_allclose(read.anns[1]["bbox"], [10, 20, 100.256, 60], rtol=1e-6)


def test_there_and_back_through_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    for found in (detections(), detections(1), detections(0)):
        theirs = found.to_supervision()
        assert isinstance(theirs, supervision.Detections)
        assert theirs.data["class_name"].tolist() == [d.label for d in found]
        shuffled = theirs[np.arange(len(found))[::-1]]
        for some in (theirs, shuffled):
            back = Detections.from_supervision(some, labels=found.labels, width=200, height=200)
            assert back.to_dict() == found.to_dict()
            assert (back.boxes.dtype, back.scores.dtype, back.classes.dtype) == (np.float32, np.float32, np.int64)
    assert len(Detections.from_supervision(supervision.Detections.empty(), labels=("x",), width=1, height=1)) == 0
    bare = supervision.Detections(xyxy=np.array([[0, 0, 5, 5]]), class_id=np.array([0]))
    assert Detections.from_supervision(bare, labels=("x",), width=9, height=9).scores.tolist() == [1.0]
    with pytest.raises(DataError, match="class_id 2 for 1 labels"):
        Detections.from_supervision(detections().to_supervision(), labels=("x",), width=9, height=9)
    with pytest.raises(DataError, match="no class_id"):
        Detections.from_supervision(
            supervision.Detections(xyxy=np.array([[0, 0, 5, 5]])), labels=("x",), width=9, height=9
        )


def test_supervision_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "supervision":
            raise ModuleNotFoundError("No module named 'supervision'", name="supervision")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPart, match="pip install supervision"):
        detections().to_supervision()


# -- drawing --------------------------------------------------------------------------------------------------------


def colours_in(picture: Image.Image) -> set[tuple[int, ...]]:
    red, green, blue = np.moveaxis(np.asarray(picture, np.int64), 2, 0)
    return {(v >> 16, v >> 8 & 255, v & 255) for v in np.unique(red << 16 | green << 8 | blue).tolist()}


def test_colours_differ_and_stay() -> None:
    colours = [colour(i) for i in range(80)]
    assert len(set(colours)) == 80
    first = np.array(colours[:10])
    apart = np.abs(first[:, None] - first[None]).sum(axis=2) + 999 * np.eye(10)
    assert apart.min() > 80
    assert colour(256) == colour(0) and colour(3) == colours[3]


def test_ink_can_be_read_on_every_colour() -> None:
    for index in range(256):
        paper = np.array(colour(index)) / 255
        light = np.where(paper <= 0.04045, paper / 12.92, ((paper + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
        contrast = (light + 0.05) / 0.05 if ink(colour(index)) == "black" else 1.05 / (light + 0.05)
        assert contrast > 4.5, colour(index)  # WCAG's least for text


def test_text_is_cut_to_its_place() -> None:
    letters = font(Image.new("RGB", (300, 300)))
    assert fitted("short", letters, 500) == "short"
    cut = fitted("a name that is much too long for its place", letters, 100)
    assert cut.endswith("…") and letters.getlength(cut) <= 100
    assert fitted("x", letters, 0) == ""


SIZES = [(200, 200), (1, 1), (3, 900), (2000, 1500), (6000, 40)]


@pytest.mark.parametrize("size", SIZES)
def test_drawn_boxes_lie_in_the_picture_and_leave_the_image_alone(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    before = image.tobytes()
    picture = detections().draw(image)
    assert image.tobytes() == before
    factor = picture.width // size[0]
    assert picture.size == (size[0] * factor, size[1] * factor)
    assert {colour(0), colour(1), colour(2)} <= colours_in(picture)


def test_boxes_are_drawn_where_they_are() -> None:
    image = Image.new("RGB", (400, 400), (0, 0, 0))
    found = Detections(
        boxes=np.array([(100, 120, 300, 280)], np.float32),
        scores=np.array([0.9], np.float32),
        classes=np.array([0]),
        labels=("x",),
        width=400,
        height=400,
    )
    pixels = np.asarray(found.draw(image))
    for x, y in ((100, 200), (299, 200), (200, 120), (200, 279)):
        assert tuple(pixels[y, x]) == colour(0)
    for x, y in ((200, 200), (99, 200), (300, 200), (200, 280)):
        assert tuple(pixels[y, x]) == (0, 0, 0)
    label = pixels[:120]
    assert (label != 0).any() and (label[:, 300:] == 0).all()  # the label stands on the box
    half = np.asarray(found.draw(image.resize((200, 200)).resize((800, 800))))
    assert tuple(half[400, 200]) == colour(0) and tuple(half[400, 598]) == colour(0)  # scaled to the picture


def test_a_label_at_the_edge_stays_in_the_picture() -> None:
    image = Image.new("RGB", (300, 300), (0, 0, 0))
    corner = Detections(
        boxes=np.array([(280, 0, 300, 12)], np.float32),
        scores=np.array([0.9], np.float32),
        classes=np.array([0]),
        labels=("a thing",),
        width=300,
        height=300,
    )
    pixels = np.asarray(corner.draw(image))
    painted = (pixels == colour(0)).all(axis=2)
    assert painted[:, :260].any()  # moved to the left, or it would be cut


@pytest.mark.parametrize("size", SIZES)
def test_a_drawn_map_leaves_the_image_alone_and_adds_a_legend(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (100, 100, 100))
    before = image.tobytes()
    classes = np.zeros((size[1], size[0]))
    classes[: max(1, size[1] // 2)] = 1
    picture = segmentation(classes).draw(image)
    assert image.tobytes() == before
    factor = picture.width // size[0]
    assert picture.height > size[1] * factor
    assert colour(1) in colours_in(picture.crop((0, size[1] * factor, *picture.size)))


def test_a_map_is_drawn_translucent_with_edges_and_without_background(scene: Segmentation) -> None:
    grey = np.array((100, 100, 100))
    image = Image.new("RGB", (600, 400), tuple(grey))
    pixels = np.asarray(scene.draw(image)).astype(int)  # ten times as large as the map
    assert tuple(pixels[300, 300]) == tuple(grey)
    inside = pixels[100, 200]
    assert (np.abs(inside - grey) > 0).any() and (np.abs(inside - np.array(colour(1))) > 20).any()
    assert tuple(pixels[100, 299]) == colour(1)  # the last column of the region
    assert (pixels[200, 20] < grey).all()  # not seen: darker


def test_many_classes_fill_a_legend_of_several_columns() -> None:
    labels = tuple(f"class {i}" for i in range(150))
    classes = np.arange(640 * 480).reshape(480, 640) % 150
    picture = segmentation(classes, labels).draw(Image.new("RGB", (640, 480)))
    assert picture.width == 640
    assert 480 < picture.height < 480 + 150 * 20  # one column would be higher
    assert {colour(i) for i in range(150)} <= colours_in(picture.crop((0, 480, *picture.size)))
