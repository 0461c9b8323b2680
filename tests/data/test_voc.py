"""Pascal VOC xml: splits, coordinates of two customs, difficult objects, and xml that means harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import audit, open_data
from zoo.data.reading import FaultyData
from zoo.data.voc import VocFormat
from zoo.errors import DataError


def thing(label: str = "ant", box: tuple[object, ...] = (1, 2, 11, 12), more: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{label}</name>{more}<bndbox>{corners}</bndbox></object>"


def xml(objects: str, name: str = "", size: tuple[int, int] = (40, 30), more: str = "") -> str:
    return (
        f"<annotation><filename>{name}</filename>{more}<size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(tmp_path / "JPEGImages" / f"{i}.jpg")
        objects = thing() + thing("bee", (3, 4, 30.5, 20), "<difficult>1</difficult>")
        (tmp_path / "Annotations" / f"{i}.xml").write_text(xml(objects, f"{i}.jpg"))
    (tmp_path / "Annotations" / "2.xml").write_text(xml(""))
    lists = {"train": "0\n1\n2\n", "val": "3\n", "trainval": "0\n1\n2\n3\n", "test": "4\n", "ant_train": "0 1\n"}
    for name, text in lists.items():
        (tmp_path / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return tmp_path


def test_the_challenges_layout(root: Path) -> None:
    splits = open_data(root, task="detect")
    assert splits.train.format == "voc"
    assert (len(splits.train), len(splits.val), len(splits.test or ())) == (3, 1, 1)
    assert splits.labels == ("ant", "bee")
    target = splits.train[0].target
    assert target.boxes.tolist() == [[1, 2, 11, 12], [3, 4, 30.5, 20]]
    assert target.ignore.tolist() == [False, True]
    assert len(splits.train[2].target) == 0
    assert splits.train[0].id == "JPEGImages/0.jpg"
    assert not audit(splits.train).faults


def test_the_challenges_own_files_count_from_1(root: Path) -> None:
    own = "<source><database>The VOC2007 Database</database><annotation>PASCAL VOC2007</annotation></source>"
    (root / "Annotations" / "0.xml").write_text(
        xml(thing("ant", (1, 1, 1, 1)) + thing("bee", (5, 6, 40, 30)), more=own)
    )
    target = open_data(root, task="detect").train[0].target
    assert target.boxes.tolist() == [[0, 0, 1, 1], [4, 5, 40, 30]]


def test_trainval_stands_in_for_train(root: Path) -> None:
    for name in ("train", "val", "test"):
        (root / "ImageSets" / "Main" / f"{name}.txt").unlink()
    splits = open_data(root, task="detect", val_share=0.25)
    assert len(splits.train) + len(splits.val) == 4


def test_as_roboflow_exports_it(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / split / "a.jpg")
        (tmp_path / split / "a.xml").write_text(xml(thing(), "a.jpg"))
    splits = open_data(tmp_path, task="detect")
    assert [splits.train[0].id, splits.val[0].id] == ["train/a.jpg", "valid/a.jpg"]


def test_one_undivided_set_whose_files_were_renamed(root: Path) -> None:
    import shutil

    shutil.rmtree(root / "ImageSets")
    (root / "Annotations" / "0.xml").write_text(xml(thing() + thing("bee"), "IMG_4711.JPG"))
    whole = VocFormat().open(root, None)
    assert [s.id for s in whole] == [f"JPEGImages/{i}.jpg" for i in range(5)]
    assert VocFormat().splits(root) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (xml(thing())[:150], "is cut off or no xml"),
        ("", "is empty"),
        ("<html></html>", "it starts with <html>"),
        ('<!DOCTYPE a [<!ENTITY b "bb">]>' + xml(thing("&b;")), "has a document type (DOCTYPE)"),
        (xml("<object><bndbox/></object>"), "object 1 has no name"),
        (xml(thing() + "<object><name>ant</name></object>"), "object 2 (ant) has no bndbox"),
        (xml(thing("ant", (1, 2, "x", 4))), "object 1 (ant): xmax is 'x', not a number"),
        (xml(thing("ant", (1, 2, "inf", 4))), "object 1 (ant): xmax is 'inf', not a number"),
        (xml("<object><name>ant</name><bndbox><xmin>1</xmin></bndbox></object>"), "ymin is ''"),
    ],
)
def test_files_that_are_wrong_are_named(root: Path, text: str, words: str) -> None:
    (root / "Annotations" / "1.xml").write_text(text)
    with pytest.raises(FaultyData) as caught:
        open_data(root, task="detect")
    assert str(caught.value).startswith(f"{root / 'Annotations' / '1.xml'}: ")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [s.id for s in caught.value.data] == ["JPEGImages/0.jpg", "JPEGImages/2.jpg"]


def test_entities_in_another_encoding_are_refused_too(root: Path) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "' + "b" * 1000 + '">]>' + xml(thing("&b;"))
    (root / "Annotations" / "1.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(FaultyData, match="DOCTYPE"):
        open_data(root, task="detect")


def test_a_class_that_train_does_not_have(root: Path) -> None:
    (root / "Annotations" / "3.xml").write_text(xml(thing("wasp") + thing(), "3.jpg"))
    with pytest.raises(FaultyData, match=r"3.xml: 'wasp' occurs in val but not in train"):
        open_data(root, task="detect")


def test_missing_annotations_and_images(root: Path) -> None:
    (root / "JPEGImages" / "1.jpg").unlink()
    train = open_data(root, task="detect").train
    assert len(train) == 2
    assert train.faults[0].reason == "Annotations/1.xml: its image, 1.jpg, is missing"
    (root / "Annotations" / "4.xml").unlink()
    splits = open_data(root, task="detect")
    assert splits.test is None
    assert "there is no test split" in splits.train.notes[0]
    (root / "Annotations" / "0.xml").unlink()
    with pytest.raises(DataError, match=r"1 image of ImageSets/Main have no annotation \(first: 0 of train\)"):
        open_data(root, task="detect")


def test_another_size(root: Path) -> None:
    (root / "Annotations" / "1.xml").write_text(xml(thing(), "1.jpg", (80, 60)))
    (fault,) = open_data(root, task="detect").train.faults
    assert "is 40x30, but its annotations were made for 80x60" in fault.reason
    (root / "Annotations" / "1.xml").write_text(xml(thing(), "1.jpg", (0, 0)))  # tools that do not know write zeros
    assert not open_data(root, task="detect").train.faults


@pytest.mark.assets
def test_bccd_says_the_same_as_its_coco_files(assets: Path) -> None:
    """So the convention is the right one for it: edges from 0, not pixels from 1."""
    for split in ("train", "val", "test"):
        ours = VocFormat().open(assets / "bccd", split)
        theirs = open_data(assets / "bccd", task="detect").get(split).relabelled(ours.labels)
        assert [s.id for s in ours] == [s.id for s in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.target.key() == other.target.key()
        faults = [f.id for f in audit(ours).faults]
        assert faults == {"train": ["JPEGImages/BloodImage_00343.jpg"], "val": ["JPEGImages/BloodImage_00338.jpg"]}.get(
            split, []
        )
    assert np.concatenate([s.target.boxes for s in ours]).max() <= 640
