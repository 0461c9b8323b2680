"""YOLO text files: layouts, data.yaml and its small YAML, background, outlines, and what is wrong told by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import audit, open_data
from zoo.data.datayaml import read_data_yaml
from zoo.data.reading import FaultyData
from zoo.data.yolo import YoloFormat, YoloMaskFormat
from zoo.errors import DataError


def picture(path: Path, size: tuple[int, int] = (40, 20), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, 90, 200)).save(path)
    return path


def label(root: Path, name: str, text: str) -> None:
    file = root / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """images/{train,val} and labels/{train,val}, as Ultralytics and CVAT have it."""
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            picture(tmp_path / "images" / split / f"{i}.png", value=i + (9 if split == "val" else 0))
        label(tmp_path / "labels" / split, "0", "1 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.2 0.4\n")
        label(tmp_path / "labels" / split, "1", "")  # empty: background; the others have none: background as well
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: ant\n  1: bee\n")
    return tmp_path


def test_boxes_and_background(root: Path) -> None:
    splits = open_data(root, task="detect")
    assert (len(splits.train), len(splits.val), splits.labels) == (4, 2, ("ant", "bee"))
    first, *rest = (s.target for s in splits.train)
    assert first.boxes.tolist() == pytest.approx(np.asarray([[15, 5, 25, 15], [0, 0, 8, 8]]))
    assert first.classes.tolist() == [1, 0]
    assert [len(t) for t in rest] == [0, 0, 0]
    assert splits.train[0].id == "images/train/0.png"
    assert not audit(splits.train).faults
    assert open_data(root / "data.yaml", task="detect").train[0].id == "images/train/0.png"


def test_roboflow_counts_its_paths_from_elsewhere(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / "images" / "a.jpg")
        label(tmp_path / split / "labels", "a", "0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\nnames: ['cell']\n\nroboflow:\n  a: b\n"
    )
    splits = open_data(tmp_path, task="detect")
    assert (len(splits.train), len(splits.val), splits.test, splits.labels) == (1, 1, None, ("cell",))
    assert "names ../test/images as its test split, but it is not there" in splits.train.notes[0]


def test_label_studio_has_no_yaml(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "images" / f"{i}.jpg", value=i)
        label(tmp_path / "labels", str(i), "1 .5 .5 .5 .5")
    with pytest.raises(DataError, match=r"nothing names its classes: add a data.yaml with names, or a classes.txt"):
        open_data(tmp_path, task="detect")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    splits = open_data(tmp_path, task="detect", val_share=0.3)
    assert (len(splits.train), len(splits.val), splits.labels) == (2, 1, ("ant", "bee"))


def test_folders_of_splits_without_yaml(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "images" / "a.jpg")
        label(tmp_path / split / "labels", "a", "0 .5 .5 .5 .5")
    (tmp_path / "classes.txt").write_text("ant\n")
    assert YoloFormat().splits(tmp_path) == ("train", "val")


def test_lists_of_images(root: Path) -> None:
    (root / "train.txt").write_text("./images/train/0.png\n/home/someone/data/images/train/2.png\n")
    (root / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [ant, bee]\n")
    assert [s.id for s in open_data(root, task="detect").train] == ["images/train/0.png", "images/train/2.png"]


def test_boxes_are_in_the_upright_image(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(root / "images" / "train" / "0.jpg", exif=exif)
    (root / "images" / "train" / "0.png").unlink()
    target = open_data(root, task="detect").train[0].target
    assert target.boxes[0].tolist() == pytest.approx([7.5, 10, 12.5, 30])


def test_outlines(root: Path) -> None:
    label(root / "labels" / "train", "0", "1 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6\n")
    label(root / "labels" / "val", "0", "0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6\n")
    boxes = open_data(root, task="detect").train[0].target
    assert boxes.boxes.tolist() == pytest.approx(np.asarray([[4, 2, 20, 12]]))
    assert YoloMaskFormat().sniff(root)
    splits = open_data(root, task="segment")
    assert splits.labels == ("background", "ant", "bee")
    classes = splits.train[0].target.read()
    assert classes.shape == (20, 40)
    assert (classes[2:12, 4:20] == 2).all() and (classes > 0).sum() == 160
    assert not audit(splits.train).faults
    label(root / "labels" / "train", "2", "1 0.5 0.5 0.2 0.2\n")
    with pytest.raises(FaultyData, match=r"train/2.txt, line 1: is a box, not an outline"):
        open_data(root, task="segment")


def test_text_files_without_an_image_are_noted(root: Path) -> None:
    label(root / "labels" / "train", "77", "0 .5 .5 .1 .1")
    assert open_data(root, task="detect").train.notes == ("1 text file has no image (first: labels/train/77.txt)",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 .5 .5 .1 .1", "class 2, but the classes are 0 to 1 (ant, bee)"),
        ("-1 .5 .5 .1 .1", "class -1, but"),
        ("0.5 .5 .5 .1 .1", "class 0.5, but"),
        ("0 .5 .5 .1", "4 values; a box has 5"),
        ("0 .5 .5 .1 .1 .9", "6 values; a box has 5"),
        ("0 .5 .5 .1 .1 .9 .8 .7", "8 values; a box has 5"),
        ("0 320 240 64 48", "320 is no share of the image: are these pixels?"),
        ("0 nan .5 .1 .1", "nan is no share"),
        ("ant .5 .5 .1 .1", "'ant .5 .5 .1 .1' is not numbers"),
    ],
)
def test_lines_that_are_wrong_are_named(root: Path, line: str, words: str) -> None:
    label(root / "labels" / "train", "2", f"0 .5 .5 .1 .1\n\n{line}\n")
    with pytest.raises(FaultyData) as caught:
        open_data(root, task="detect")
    assert str(caught.value).startswith(f"{root / 'labels' / 'train' / '2.txt'}, line 3: ")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_text_file_cut_in_half(root: Path) -> None:
    label(root / "labels" / "train", "0", "1 0.5 0.5 0.25 0.5\n0 0.1 0.2")
    with pytest.raises(FaultyData, match=r"0.txt, line 2: 3 values"):
        open_data(root, task="detect")
    (root / "labels" / "train" / "0.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(FaultyData, match=r"0.txt: is no text"):
        open_data(root, task="detect")


def test_boxes_that_cannot_be_used(root: Path) -> None:
    """Outside, without area, half outside: the first two are left out, the third is cut."""
    good = "".join(f"0 .5 .{i} .2 .2\n" for i in range(2, 9)) * 3
    label(root / "labels" / "train", "0", good + "0 1.5 .5 .1 .1\n1 .5 .5 0 .1\n1 0 .5 .5 .5\n")
    train = audit(open_data(root, task="detect").train)
    assert [f.reason for f in train.faults] == [
        "images/train/0.png: box 22 (ant 58, 9, 62, 11) lies outside the 40x20 image",
        "images/train/0.png: box 23 (bee 20, 9, 20, 11) has no area",
    ]
    assert train[0].target.boxes[-1].tolist() == [0, 5, 10, 15]
    assert train.notes == ("1 box reached beyond the image and was cut at its border (first: images/train/0.png)",)
    label(root / "labels" / "train", "0", "0 1.5 .5 .1 .1\n1 .5 .5 .2 .2\n")
    with pytest.raises(DataError, match="1 of 2 boxes of the train split have no area or lie outside"):
        audit(open_data(root, task="detect").train)


def test_no_text_files_at_all(root: Path) -> None:
    """All would be background: it must not train."""
    (root / "labels").rename(root / "label")
    with pytest.raises(DataError, match=r"no image of train has a text file: the first would be labels/train/0.txt"):
        open_data(root, task="detect")


def test_no_objects_at_all(root: Path) -> None:
    label(root / "labels" / "train", "0", "")
    with pytest.raises(DataError, match="no image of the train split has an object"):
        open_data(root, task="detect")


def test_a_damaged_image(root: Path) -> None:
    (root / "images" / "train" / "0.png").write_bytes(b"\x89PNG broken")
    label(root / "labels" / "train", "3", "0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n")
    train = audit(open_data(root, task="detect").train, max_bad_share=0.3)
    assert [f.id for f in train.faults] == ["images/train/0.png"]


# -- data.yaml -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("names: [a, 'b c', \"d, e\", f,]", {"names": ["a", "b c", "d, e", "f"]}),
        ("names:\n- a\n- b # comment\ntrain:\n  - x\n  - 'y #1'", {"names": ["a", "b"], "train": ["x", "y #1"]}),
        (
            "# top\nnames:\n  0: person\n  1: dog's bed\n  2: 'it''s'",
            {"names": {"0": "person", "1": "dog's bed", "2": "it's"}},
        ),
        ("names: {0: a, 1: 'b: c', \"2\": d}", {"names": {"0": "a", "1": "b: c", "2": "d"}}),
        ("names: [\n 'a',\n b\n]\nnc: 2", {"names": ["a", "b"], "nc": "2"}),
        ("path: ../data # root\ntrain: images/train\ntest: # none\n", {"path": "../data", "train": "images/train"}),
        ("download: |\n  import os\n  x = {'a': [1\nnc: 1", {"nc": "1"}),
        ('---\ntrain: "a\\tb"\nextra: &x [*y, {z: [1]}]\n', {"train": "a\tb"}),
    ],
)
def test_yaml_that_is_understood(tmp_path: Path, text: str, want: object) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    assert read_data_yaml(file) == want
    if "*y" not in text:  # what YAML itself says, numbers apart
        yaml = pytest.importorskip("yaml")
        whole = yaml.safe_load(text)
        told = {
            k: v for k, v in whole.items() if k in ("path", "train", "val", "test", "nc", "names") and v is not None
        }
        assert _texts(told) == want


def _texts(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _texts(v) for k, v in value.items()}
    return [_texts(v) for v in value] if isinstance(value, list) else str(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("names: [a, [b]]", 1),
        ("nc: 1\nnames: &x [a]", 2),
        ("names: *x", 1),
        ("\tnames: a", 1),
        ("names: [a, b", 1),
        ("names:\n  0: a\n 1: b", 2),
        ("names: |\n  a", 2),
        ("train: a\n  b", 2),
        ("x", 1),
        ("names: {a}", 1),
        ("names:\n  0: a\n  0: b", 3),
        ("names: [a] b", 1),
        ("names: !!set [a]", 1),
        ("names: 'abc", 1),
        ("train: x\ntrain: y", 2),
    ],
)
def test_yaml_that_is_not(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_data_yaml(file)
    assert str(caught.value).startswith(f"{file}, line {line}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/nowhere\nnames: [ant, bee]", "train: images/nowhere is not there"),
        ("train: images/train\nval: images/validation\nnames: [ant, bee]", "val: images/validation is not there"),
        ("train: images/train\nnc: 3\nnames: [ant, bee]", "nc is 3, but there are 2 names"),
        ("train: images/train\nnames:\n  0: ant\n  2: bee", "not 0 to 1 without a gap"),
        ("train: images/train\nnames: [ant, ant]", "two classes are called 'ant'"),
        ("nc: 2\nnames: [ant, bee]", "names no train folder"),
        ("train: images/train\nnames: ant", "is no list of the classes' names"),
        ("train: labels/train\nnames: [ant, bee]", "train: labels/train holds no images"),
        ("train: data.yaml\nnames: [ant, bee]", "is neither a folder nor a .txt list of images"),
    ],
)
def test_yaml_that_does_not_fit(root: Path, text: str, words: str) -> None:
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        open_data(root, task="detect")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_hostile_yaml_takes_no_time(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    for text in (
        "[a" + " " * 900_000 + "{]",
        "{a" + " :" * 300_000 + "[}",
        "['" + "''" * 300_000 + "]",
        "x" * 2_000_000,
    ):
        file.write_text(f"names: {text}")
        with pytest.raises(DataError) as caught:
            read_data_yaml(file)
        assert len(str(caught.value)) < 500
