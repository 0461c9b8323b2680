"""Conversion: from each format to each and back nothing moves, and what cannot be held is said with its count."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import Dataset, open_data
from zoo.data.converting import convert
from zoo.data.inspecting import inspect
from zoo.data.splitting import find_format
from zoo.data.targets import VOID
from zoo.errors import DataError, OutputError, UnknownName

LABELS = ("wasp", "ant", "bee of the wood")


def make(root: Path, *, ignore: bool = False, seed: int = 0) -> Path:
    """A COCO data set with two splits, odd sizes, fractions, an image without objects, and one box beyond its image."""
    draw = np.random.default_rng(seed)
    for split, count in (("train", 5), ("val", 3)):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            width, height = int(draw.integers(50, 700)), int(draw.integers(50, 700))
            Image.new("RGB", (width, height), (i, len(split), 0)).save(root / split / f"{i} x.jpg")
            images.append({"id": i, "file_name": f"{i} x.jpg", "width": width, "height": height})
            for n in range(0 if i == 1 else 4):
                x, y, w, h = (round(float(v), 3) for v in draw.uniform(1, 40, 4))
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": i,
                        "category_id": n % 3,
                        "bbox": [x, y, w, h],
                        "iscrowd": int(ignore and n == 3),
                    }
                )
        annotations.append({"id": 99, "image_id": 0, "category_id": 1, "bbox": [-3, 5, 10, 10]})
        annotations.append({"id": 98, "image_id": 0, "category_id": 1, "bbox": [5, 5, 0, 0]})
        categories = [{"id": i, "name": n} for i, n in enumerate(LABELS)]
        (root / f"{split}.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def read(root: Path, task: str = "detect", format: str = "") -> dict[str, Dataset]:
    reader = find_format(root, task, format)
    return {split: reader.open(root, split or None) for split in reader.splits(root) or ("",)}


def same(one: dict[str, Dataset], other: dict[str, Dataset], atol: float = 2e-4) -> None:
    """The same boxes of the same labels in the same images, in pixels."""
    assert one.keys() == other.keys()
    for split, data in one.items():
        there = {s.digest(): s for s in other[split]}
        assert {s.digest() for s in data} == there.keys()
        for sample in data:
            mine, theirs = sample.target, there[sample.digest()].target
            np.testing.assert_allclose(mine.boxes, theirs.boxes, atol=atol)
            names, their_names = data.labels, other[split].labels
            assert [names[i] for i in mine.classes] == [their_names[i] for i in theirs.classes]
            assert mine.ignore.tolist() == theirs.ignore.tolist()


@pytest.mark.parametrize("to", ["coco", "yolo", "voc", "csv"])
def test_there_and_back(tmp_path: Path, to: str) -> None:
    root = make(tmp_path / "data", ignore=to != "yolo")
    done = convert(root, to, tmp_path / "there", task="detect")
    assert (done.source, done.task, dict(done.images)) == ("coco", "detect", {"train": 5, "val": 3})
    back = convert(tmp_path / "there", "coco", tmp_path / "back")
    assert back.source == {"csv": "csv-boxes"}.get(to, to)
    original = read(root)
    same(original, read(tmp_path / "there"))
    same(original, read(tmp_path / "back"))
    if to in ("coco", "yolo"):
        assert done.losses == ()
        assert read(tmp_path / "back")["train"].labels == LABELS
    else:
        assert "no order of labels" in " ".join(done.losses)


def test_every_pair_of_formats(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    original, before = read(root), root
    for step, to in enumerate(
        ("yolo", "voc", "csv", "yolo", "coco", "csv", "voc", "coco", "voc", "yolo", "csv", "coco")
    ):
        convert(before, to, tmp_path / str(step))
        before = tmp_path / str(step)
        same(original, read(before), atol=2e-3)  # a rounding a step


def test_images_are_linked_not_copied(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    (root / "train" / "4 x.jpg").rename(tmp_path / "elsewhere.jpg")
    (root / "train" / "4 x.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    convert(root, "yolo", tmp_path / "there")
    there = tmp_path / "there" / "images" / "train"
    assert os.path.samefile(root / "train" / "0 x.jpg", there / "0 x.jpg")
    assert not (there / "4 x.jpg").is_symlink() and os.path.samefile(tmp_path / "elsewhere.jpg", there / "4 x.jpg")


def test_links_that_cannot_be_made_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    root = make(tmp_path / "data")
    convert(root, "csv", tmp_path / "there")
    same(read(root), read(tmp_path / "there"))
    assert not os.path.samefile(root / "train" / "0 x.jpg", tmp_path / "there" / "images" / "train" / "0 x.jpg")


def test_names_that_clash(tmp_path: Path) -> None:
    """Pascal VOC has one folder for all images, and one xml for a stem."""
    root = make(tmp_path / "data")
    done = convert(root, "voc", tmp_path / "there")
    names = {p.name for p in (done.out / "JPEGImages").iterdir()}
    assert len(names) == 8 and {"0 x.jpg", "val_0 x.jpg"} <= names
    assert {p.stem for p in (done.out / "Annotations").iterdir()} == {n.removesuffix(".jpg") for n in names}


def test_what_yolo_cannot_hold_is_counted(tmp_path: Path) -> None:
    done = convert(make(tmp_path / "data", ignore=True), "yolo", tmp_path / "there")
    assert done.losses == ("YOLO has no mark for crowds and difficult objects: 6 boxes left out",)


def test_labels_that_only_a_list_knows(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    for file in root.glob("*.json"):
        content = json.loads(file.read_text())
        content["categories"].append({"id": 9, "name": "hornet"})
        file.write_text(json.dumps(content))
    done = convert(root, "voc", tmp_path / "there")
    assert "Pascal VOC has no list of labels: 1 label without objects lost (hornet)" in done.losses
    convert(root, "yolo", tmp_path / "yolo")
    assert read(tmp_path / "yolo")["train"].labels == (*LABELS, "hornet")


def test_images_that_cannot_be_read_are_left_out_and_told(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    (root / "train" / "2 x.jpg").write_bytes(b"no")
    done = convert(root, "voc", tmp_path / "there")
    assert dict(done.images) == {"train": 4, "val": 3}
    assert done.losses[0].startswith("1 image cannot be used and left out (first: train/2 x.jpg: not an image")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    for to, error, words in (
        ("tfrecord", UnknownName, "unknown format to write 'tfrecord'"),
        ("masks", DataError, "which is data for detect, not for segment"),
    ):
        with pytest.raises(error, match=words):
            convert(root, to, tmp_path / "there")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(OutputError, match="already holds something"):
        convert(root, "yolo", tmp_path / "full")
    (root / "train.json").write_text((root / "train.json").read_text()[:-40])
    with pytest.raises(DataError, match="is cut off"):
        convert(root, "yolo", tmp_path / "there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "full"]
    convert(make(tmp_path / "good"), "yolo", tmp_path / "full", overwrite=True)
    assert not (tmp_path / "full" / "mine").exists()


def test_class_folders_are_not_converted(tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / label / "0.png")
    with pytest.raises(
        DataError, match="is data for classify, which coco does not hold: what is converted is data for"
    ):
        convert(tmp_path / "data", "coco", tmp_path / "there")


# -- class maps --------------------------------------------------------------------------------------------------------


def maps(root: Path) -> Path:
    draw = np.random.default_rng(1)
    for split, count in (("train", 3), ("val", 2)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            coarse = draw.integers(0, 4, (5, 7)).astype(np.uint8)
            classes = np.kron(np.where(coarse == 3, VOID, coarse), np.ones((9, 11), np.uint8))
            Image.new("RGB", classes.shape[::-1], (i, len(split), 0)).save(root / "images" / split / f"{i}.jpg")
            Image.fromarray(classes).save(root / "masks" / split / f"{i}.png")
    (root / "classes.csv").write_text("background,0\nsky,1\nroad,2\n")
    return root


def test_class_maps_there_and_back(tmp_path: Path) -> None:
    """Void and all, pixel for pixel."""
    root = maps(tmp_path / "data")
    assert convert(root, "coco", tmp_path / "there").losses == ()
    done = convert(tmp_path / "there", "masks", tmp_path / "back")
    assert (done.source, done.losses) == ("coco-segment", ())
    original = read(root, "segment")
    for folder in ("there", "back"):
        again = read(tmp_path / folder, "segment")
        for split, data in original.items():
            assert again[split].labels == data.labels
            for one, other in zip(data, again[split], strict=True):
                assert (one.target.read() == other.target.read()).all()
                assert (one.target.read() == VOID).any()
    assert Image.open(tmp_path / "back" / "masks" / "train" / "0.png").mode == "P"
    assert not inspect(tmp_path / "back").faults


def test_other_tools_read_our_maps(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    convert(maps(tmp_path / "data"), "coco", tmp_path / "there")
    read_back = coco.COCO(str(tmp_path / "there" / "annotations" / "instances_train.json"))
    truth = read(tmp_path / "data", "segment")["train"][0].target.read()
    for one in read_back.loadAnns(read_back.getAnnIds(imgIds=[1])):
        value = VOID if one["iscrowd"] else one["category_id"]
        assert (read_back.annToMask(one).astype(bool) == (truth == value)).all()


def test_outlines_become_boxes_with_a_word(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    file = root / "train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 20, 2, 20, 30]]
    file.write_text(json.dumps(content))
    assert "outlines become the boxes around them" in convert(root, "voc", tmp_path / "there").losses[0]


@pytest.mark.assets
def test_bccd_through_every_format(assets: Path, tmp_path: Path) -> None:
    original = read(assets / "bccd")
    before = assets / "bccd"
    for to in ("yolo", "voc", "csv", "coco"):
        convert(before, to, tmp_path / to)
        before = tmp_path / to
        same(original, read(before), atol=1e-3)
    assert [f.reason.partition(": ")[2] for _, f in inspect(before).faults] == [
        "box 4 (RBC 181, 329, 181, 329) has no area",
        "box 13 (RBC 504, 337, 504, 337) has no area",
    ]
    assert len(open_data(before, task="detect").train) == 205
