"""COCO json: layouts, categories of any ids, crowds, outlines painted as maps, and what is wrong told by record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.data import audit, open_data
from zoo.data.coco import CocoFormat, CocoMaskFormat
from zoo.data.reading import FaultyData
from zoo.data.shapes import Shape, decode_runs, fill
from zoo.data.targets import VOID
from zoo.errors import DataError

CATEGORIES = [{"id": 7, "name": "bee"}, {"id": 3, "name": "ant"}]


def picture(path: Path, size: tuple[int, int] = (40, 30), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, 90, 200)).save(path)
    return path


def thing(id: int, image: int, category: int = 3, box: Any = (1, 2, 10, 12), **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image, "category_id": category, "bbox": list(box), **more}


def content(names: list[str], annotations: list[dict[str, Any]], size: tuple[int, int] = (40, 30)) -> dict[str, Any]:
    images = [{"id": i, "file_name": n, "width": size[0], "height": size[1]} for i, n in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def standard(tmp_path: Path) -> Path:
    """annotations/instances_train2017.json beside train2017/, as COCO itself comes."""
    for split, count in (("train", 4), ("val", 4)):
        for i in range(count):
            picture(tmp_path / f"{split}2017" / f"{i}.jpg", value=i + (50 if split == "val" else 0))
        names = [f"{i}.jpg" for i in range(count)]
        write(
            tmp_path / "annotations" / f"instances_{split}2017.json",
            content(names, [thing(1, 0), thing(2, 0, 7, (5, 5, 20.5, 10), iscrowd=1), thing(3, 1, 7), thing(4, 2, 7)]),
        )
        write(tmp_path / "annotations" / f"captions_{split}2017.json", {"images": [], "annotations": []})
    return tmp_path


def test_as_coco_itself_comes(standard: Path) -> None:
    splits = open_data(standard, task="detect")
    assert (len(splits.train), len(splits.val), splits.test) == (4, 4, None)
    assert splits.labels == ("ant", "bee")  # by id, not in the order of the file
    first, second, third, fourth = (s.target for s in splits.train)
    assert first.boxes.tolist() == [[1, 2, 11, 14], [5, 5, 25.5, 15]]
    assert first.boxes.dtype == np.float32
    assert (first.classes.tolist(), first.ignore.tolist()) == ([0, 1], [False, True])
    assert second.classes.tolist() == [1]
    assert third.classes.tolist() == [1]
    assert len(fourth) == 0  # background
    assert [s.id for s in splits.val] == [f"val2017/{i}.jpg" for i in range(4)]
    assert not audit(splits.train).faults
    assert len(splits.train.fingerprint()) == 64


def test_as_roboflow_exports_it(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "red", "supercategory": "cells"},
        {"id": 2, "name": "white", "supercategory": "cells"},
    ]
    for split in ("train", "valid", "test"):
        picture(tmp_path / split / f"{split}.jpg")
        data = content([f"{split}.jpg"], [thing(1, 0, 2)]) | {"categories": categories}
        write(tmp_path / split / "_annotations.coco.json", data)
    splits = open_data(tmp_path, task="detect")
    assert splits.labels == ("red", "white")
    assert splits.train[0].target.classes.tolist() == [1]
    assert splits.test is not None and splits.test[0].id == "test/test.jpg"
    assert "category 'cells' only groups the others" in splits.train.notes[0]


def test_one_file_is_one_undivided_set(standard: Path) -> None:
    file = standard / "annotations" / "instances_train2017.json"
    splits = open_data(file, task="detect", val_share=0.3)
    assert (len(splits.train), len(splits.val)) == (3, 1)
    assert {s.id for s in (*splits.train, *splits.val)} == {f"../train2017/{i}.jpg" for i in range(4)}


def test_one_undivided_folder_as_label_studio_exports_it(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.png", value=i)
    write(tmp_path / "result.json", content([f"images\\{i}.png" for i in range(4)], [thing(i, i) for i in range(4)]))
    splits = open_data(tmp_path, task="detect")
    assert (len(splits.train), len(splits.val)) == (3, 1)
    assert CocoFormat().splits(tmp_path) == ()


def test_an_object_without_a_box_gets_the_one_around_its_outlines(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    outline = [[4, 5, 20, 5, 12, 25.5], [2, 9, 3, 9, 3, 8]]
    write(tmp_path / "x.json", content(["a.png"], [thing(1, 0, box=(), segmentation=outline)]))
    assert CocoFormat().open(tmp_path, None)[0].target.boxes.tolist() == [[2, 5, 20, 25.5]]


def test_two_files_for_one_split(tmp_path: Path) -> None:
    for name in ("train_a.json", "train_b.json"):
        write(tmp_path / name, content([], []))
    with pytest.raises(DataError, match=r"train_a.json and train_b.json are both the train split"):
        open_data(tmp_path, task="detect")


def test_other_json_is_not_coco(tmp_path: Path) -> None:
    write(tmp_path / "tasks.json", [{"annotations": [1]}])  # Label Studio's own
    write(tmp_path / "shapes.json", {"shapes": [], "imagePath": "a.jpg"})  # labelme
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe\x00")
    assert not CocoFormat().sniff(tmp_path)
    assert not CocoFormat().sniff(tmp_path / "tasks.json")


# -- what is wrong -------------------------------------------------------------------------------------------------


def test_a_file_cut_in_half_is_recognised_and_refused(standard: Path) -> None:
    file = standard / "annotations" / "instances_train2017.json"
    text = file.read_text()
    for share in (0.5, 0.9, 0.99):
        file.write_text(text[: int(len(text) * share)])
        with pytest.raises(DataError, match=r"instances_train2017.json: is cut off after \d+ characters") as caught:
            open_data(standard, task="detect")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"annotations": [thing(17, 0, 99)]},
            "annotation 17: category_id 99 is not among the categories (7 bee, 3 ant)",
        ),
        ({"annotations": [thing(17, 44)]}, "annotation 17: image_id 44 is not among the images"),
        ({"annotations": [thing(17, 0, box=(1, 2, "wide", 4))]}, 'annotation 17: bbox [1, 2, "wide", 4] is not x, y'),
        (
            {"annotations": [thing(17, 0, box=(1, 2, float("nan"), 4))]},
            "annotation 17: bbox [1, 2, NaN, 4] is not x, y",
        ),
        ({"annotations": [thing(17, 0, box=(1, 2, 10**400, 4))]}, "is not x, y, width, height"),
        ({"annotations": [thing(17, 0, box=())]}, "annotation 17: no bbox, and no segmentation"),
        ({"annotations": ["x"]}, "annotations[0]: is no record"),
        ({"images": [{"id": 0}]}, "image 0: has no file_name"),
        ({"images": [{"id": 0, "file_name": "0.jpg"}, {"id": 0, "file_name": "1.jpg"}]}, "image 0: is there twice"),
    ],
)
def test_records_that_are_wrong_are_named(standard: Path, change: dict[str, Any], words: str) -> None:
    file = standard / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(FaultyData) as caught:
        open_data(standard, task="detect")
    assert words in str(caught.value)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_all_faults_are_known_at_once(standard: Path) -> None:
    file = standard / "annotations" / "instances_train2017.json"
    data = json.loads(file.read_text())
    data["annotations"] += [thing(10 + i, 0, 50) for i in range(5)]
    file.write_text(json.dumps(data))
    with pytest.raises(FaultyData, match="4 more such faults") as caught:
        CocoFormat().open(standard, "train")
    assert len(caught.value.faults) == 5
    assert len(caught.value.data) == 4 and len(caught.value.data[0].target) == 2  # what is left without them


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"annotations": {}}, "it has no list 'annotations'"),
        ({"categories": [{"id": 1}]}, "categories[0] has no id"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "two categories are called 'a'"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category 1 is there twice"),
        ({"categories": []}, "has no categories"),
    ],
)
def test_files_that_are_wrong(standard: Path, change: dict[str, Any], words: str) -> None:
    file = standard / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError) as caught:
        open_data(standard, task="detect")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_category_that_train_does_not_have(standard: Path) -> None:
    file = standard / "annotations" / "instances_val2017.json"
    data = json.loads(file.read_text())
    data["categories"].append({"id": 9, "name": "wasp"})
    file.write_text(json.dumps(data))
    assert open_data(standard, task="detect").val.labels == ("ant", "bee")  # no object is of it
    data["annotations"].append(thing(30, 0, 9))
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"annotation 30: category_id 9 .*|annotation 30: category 'wasp' is not among"):
        open_data(standard, task="detect")


def test_missing_images(standard: Path) -> None:
    (standard / "train2017" / "1.jpg").unlink()
    train = open_data(standard, task="detect").train
    (fault,) = audit(train, max_bad_share=0.5).faults
    assert "1.jpg: no such file" in fault.reason
    with pytest.raises(DataError, match="1 of 4 images of the train split cannot be used"):
        audit(train)
    for file in (standard / "train2017").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"none of its 4 images is there \(first: 0.jpg\)"):
        open_data(standard, task="detect")


def test_images_of_another_size_than_was_annotated(standard: Path) -> None:
    picture(standard / "train2017" / "1.jpg", (20, 15))
    train = open_data(standard, task="detect").train
    assert [s.id for s in train] == [f"train2017/{i}.jpg" for i in (0, 2, 3)]
    assert train.faults[0].reason.startswith("train2017/1.jpg: is 20x15, but its annotations were made for 40x30")
    with pytest.raises(DataError, match=r"1 of 4 images of the train split cannot be used.*is 20x15"):
        audit(train)


def test_boxes_are_in_the_upright_image(standard: Path) -> None:
    """Annotated as it lies in the file, it is shown turned: told, not trained on."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(standard / "train2017" / "1.jpg", exif=exif)
    (fault,) = open_data(standard, task="detect").train.faults
    assert (
        "is 30x40, but its annotations were made for 40x30: it is turned upright by its EXIF orientation"
        in fault.reason
    )


# -- outlines and run lengths ----------------------------------------------------------------------------------------


def test_outlines_become_class_maps(standard: Path) -> None:
    file = standard / "annotations" / "instances_train2017.json"
    data = json.loads(file.read_text())
    data["annotations"] = [
        thing(1, 0, 7, segmentation=[[2, 3, 12, 3, 12, 9, 2, 9]]),
        thing(2, 0, 3, segmentation=[[0, 0, 40, 0, 40, 20, 0, 20]]),  # larger: lies below
        thing(3, 0, 3, iscrowd=1, segmentation={"size": [30, 40], "counts": [30 * 39, 30]}),  # the last column
        thing(4, 1, 7, segmentation={"size": [30, 40], "counts": [0, 1, 30 * 40 - 1]}),
    ]
    file.write_text(json.dumps(data))
    other = standard / "annotations" / "instances_val2017.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"annotations": data["annotations"][:1]}))
    splits = open_data(standard, task="segment")
    assert splits.labels == ("background", "ant", "bee")
    assert splits.train.format == "coco-segment"
    first, second, third, _ = (s.target for s in splits.train)
    want = np.zeros((30, 40), np.uint8)
    want[:, 39] = VOID
    want[:20] = 1
    want[3:9, 2:12] = 2
    assert (first.read() == want).all()
    assert first.size() == (40, 30)
    assert second.read().nonzero() == (0, 0)
    assert not third.read().any()
    assert not audit(splits.train).faults
    turned = splits.train.relabelled(("background", "bee", "ant"))
    assert set(np.unique(turned[0].target.read())) == {0, 1, 2, VOID}
    assert (turned[0].target.read() == 1).sum() == 60
    assert turned.fingerprint() != splits.train.fingerprint()


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[1, 2, 3, 4]], "each is x, y of three corners or more"),
        ([[1, 2, 3, 4, 5, "x"]], "each is x, y of three corners or more"),
        ([], "annotation 17: no segmentation"),
        ({"size": [30, 40], "counts": [5, 5]}, "its run lengths make 10 pixels, not 30x40"),
        ({"size": [40, 30], "counts": [1200]}, "segmentation is for size [40, 30], the image is [30, 40]"),
        ({"size": [30, 40], "counts": "\x7f"}, "no run-length code"),
        ({"size": [30, 40], "counts": "o"}, "cut off"),
        ({"size": [30, 40]}, "has no counts"),
    ],
)
def test_outlines_that_are_none(tmp_path: Path, segmentation: Any, words: str) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "x.json", content(["a.png"], [thing(17, 0, segmentation=segmentation)]))
    with pytest.raises(FaultyData) as caught:
        CocoMaskFormat().open(tmp_path, None)
    assert "annotation 17: " in str(caught.value) and words in str(caught.value)


def test_boxes_alone_are_no_data_for_segmentation(standard: Path) -> None:
    with pytest.raises(DataError, match=r"looks like coco \(.*\), which is data for detect, not for segment"):
        open_data(standard, task="segment")


def test_filling_counts_centres() -> None:
    canvas = np.zeros((6, 8), np.uint8)
    fill(canvas, np.asarray([(1, 1), (5, 1), (5, 4), (1, 4)], float), 3)
    assert (canvas == 3).sum() == 12 and (canvas[1:4, 1:5] == 3).all()
    fill(canvas, np.asarray([(-90, -90), (90, -90), (90, 90), (-90, 90)], float), 1)  # far beyond on all sides
    assert (canvas == 1).all()
    before = canvas.copy()
    fill(canvas, np.asarray([(2, 2), (6, 2), (4, 2)], float), 9)  # no area
    fill(canvas, np.asarray([(20, 2), (26, 2), (24, 5)], float), 9)  # outside
    assert (canvas == before).all()


def test_painting_agrees_with_pycocotools() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    draw = np.random.default_rng(0)
    for _ in range(20):
        count = int(draw.integers(3, 30))
        angle, radius = np.sort(draw.uniform(0, 2 * np.pi, count)), draw.uniform(10, 90, count)
        outline = np.stack([100 + radius * np.cos(angle), 110 + radius * np.sin(angle)], axis=1)
        canvas = np.zeros((200, 220), np.uint8)
        shape = Shape(value=1, outlines=(outline,))
        shape.paint(canvas)
        code = tools.merge(tools.frPyObjects([outline.reshape(-1).tolist()], 200, 220))
        theirs = tools.decode(code)
        edge = np.hypot(*(outline - np.roll(outline, 1, axis=0)).T).sum()
        assert (canvas != theirs).sum() < 0.15 * edge  # they draw the border a little differently
        assert shape.area() == pytest.approx(canvas.sum(), abs=0.1 * edge)
        counts = decode_runs(code["counts"].decode())
        assert (Shape(value=1, runs=counts).area(), counts.sum()) == (theirs.sum(), theirs.size)
        again = np.zeros((200, 220), np.uint8)
        Shape(value=1, runs=counts).paint(again)
        assert (again == theirs).all()


@pytest.mark.assets
def test_bccd(assets: Path) -> None:
    splits = open_data(assets / "bccd", task="detect")
    assert splits.train.format == "coco"
    assert (len(splits.train), len(splits.val), len(splits.test or ())) == (205, 87, 72)
    assert splits.labels == ("RBC", "WBC", "Platelets")
    count = np.sum([np.bincount(s.target.classes, minlength=3) for d in (splits.train, splits.val) for s in d], axis=0)
    assert (count + np.bincount(np.concatenate([s.target.classes for s in splits.test or ()]))).tolist() == [
        4155,
        372,
        361,
    ]
    (fault,) = audit(splits.train).faults
    assert (fault.id, fault.reason) == (
        "JPEGImages/BloodImage_00343.jpg",
        "JPEGImages/BloodImage_00343.jpg: box 4 (RBC 181, 329, 181, 329) has no area",
    )
    val = audit(splits.val)
    assert [f.id for f in val.faults] == ["JPEGImages/BloodImage_00338.jpg"]
    assert (len(val), sum(len(s.target) for s in val)) == (87, 1137)  # the images stay
