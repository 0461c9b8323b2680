"""CSV of boxes: columns of many names, shares, background, and what is wrong told by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import audit, open_data
from zoo.data.boxcsv import BoxCsvFormat
from zoo.data.csvfile import CsvFormat
from zoo.data.reading import FaultyData
from zoo.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.new("RGB", (40, 20), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


HEAD = "path,xmin,ymin,xmax,ymax,label"


def test_divided_with_background_and_marks(root: Path) -> None:
    write(
        root / "boxes.csv",
        f"{HEAD},split,ignore",
        "images/0.png,1,2,11.5,12,bee,train,",
        "images/0.png,3,4,9,9,ant,train,1",
        "images/1.png,,,,,,train,",
        "images/2.png,0,0,5,5,ant,val,",
    )
    splits = open_data(root, task="detect")
    assert (len(splits.train), len(splits.val), splits.labels) == (2, 1, ("ant", "bee"))
    first, second = (s.target for s in splits.train)
    assert first.boxes.tolist() == [[1, 2, 11.5, 12], [3, 4, 9, 9]]
    assert (first.classes.tolist(), first.ignore.tolist()) == ([1, 0], [False, True])
    assert len(second) == 0
    assert splits.train.format == "csv-boxes"
    assert not audit(splits.train).faults


def test_boxes_and_labels_are_not_confused(root: Path) -> None:
    boxes = write(root / "boxes.csv", HEAD, "images/0.png,1,2,11,12,bee", "images/1.png,1,2,11,12,ant")
    assert BoxCsvFormat().sniff(boxes) and not CsvFormat().sniff(boxes)
    with pytest.raises(DataError, match=r"looks like csv-boxes .*, which is data for detect, not for classify"):
        open_data(root)
    boxes.unlink()
    labels = write(root / "labels.csv", "path,label", "images/0.png,ant", "images/1.png,bee")
    assert CsvFormat().sniff(labels) and not BoxCsvFormat().sniff(labels)
    with pytest.raises(DataError, match=r"looks like csv \(.*\), which is data for classify"):
        open_data(root, task="detect")


def test_open_images_tells_ids_and_shares(root: Path) -> None:
    write(
        root / "boxes.csv",
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf",
        "0,xclick,/m/01,1,0.25,0.5,0.1,1,0,0,0",
        "1,xclick,/m/02,1,0,0.5,0,0.5,0,0,1",
        "1,xclick,/m/01,1,0,0.5,0,0.5,0,0,0",
    )
    whole = BoxCsvFormat().open(root, None)
    assert [s.id for s in whole] == ["images/0.png", "images/1.png"]
    assert whole[0].target.boxes.tolist() == [[10, 2, 20, 20]]
    assert whole[1].target.ignore.tolist() == [True, False]


def test_retinanet_has_no_first_line(root: Path) -> None:
    write(root / "boxes.csv", "images/0.png,1,2,11,12,bee", "images/1.png,,,,,", "images/2.png,1,2,11,12,ant")
    splits = open_data(root, task="detect", val_share=0.3)
    assert len(splits.train) + len(splits.val) == 3
    assert splits.labels == ("ant", "bee")


def test_roboflow_has_one_file_a_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write(
            tmp_path / split / "_annotations.csv",
            "filename,width,height,class,xmin,ymin,xmax,ymax",
            "a.png,40,20,ant,1,2,3,4",
        )
        Image.new("RGB", (40, 20)).save(tmp_path / split / "a.png")
    splits = open_data(tmp_path, task="detect")
    assert [splits.train[0].id, splits.val[0].id] == ["train/a.png", "valid/a.png"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("images/1.png,1,2,x,4,ant", "line 3: xmax is 'x', not a number"),
        ("images/1.png,1,2,3,,ant", "line 3: ymax is '', not a number"),
        ("images/1.png,1,2,nan,4,ant", "line 3: xmax is 'nan', not a number"),
        ("images/1.png,1,2,3,4,", "line 3: no label"),
        ("images/1.png,1,2,3", "line 3: ymax is '', not a number"),
        (",1,2,3,4,ant", "line 3: no path"),
    ],
)
def test_lines_that_are_wrong_are_named(root: Path, line: str, words: str) -> None:
    write(root / "boxes.csv", HEAD, "images/0.png,1,2,11,12,ant", line)
    with pytest.raises(DataError) as caught:
        open_data(root, task="detect")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_splits_that_are_wrong(root: Path) -> None:
    write(root / "boxes.csv", f"{HEAD},split", "images/0.png,1,2,3,4,ant,train", "images/0.png,1,2,3,4,ant,val")
    with pytest.raises(FaultyData, match=r"line 3: images/0.png is val, but was train before"):
        BoxCsvFormat().open(root, "train")
    write(root / "boxes.csv", f"{HEAD},split", "images/0.png,1,2,3,4,ant,train", "images/1.png,1,2,3,4,ant,holdout")
    with pytest.raises(DataError, match=r"line 3: split 'holdout' is unknown"):
        open_data(root, task="detect")
    write(root / "boxes.csv", f"{HEAD},split", "images/0.png,1,2,3,4,ant,train", "images/1.png,1,2,3,4,ant,")
    with pytest.raises(DataError, match=r"images/1.png has no split, others have"):
        open_data(root, task="detect")
    write(root / "boxes.csv", f"{HEAD},split", "images/0.png,1,2,3,4,ant,train", "images/1.png,1,2,3,4,wasp,val")
    with pytest.raises(FaultyData, match=r"line 3: 'wasp' occurs in val but not in train"):
        open_data(root, task="detect")


def test_missing_images(root: Path) -> None:
    write(root / "boxes.csv", HEAD, *(f"images/{i}.png,1,2,3,4,ant" for i in range(20)))
    whole = BoxCsvFormat().open(root, None)
    assert len(audit(whole, max_bad_share=0.9)) == 6
    assert "images/6.png: no such file" in audit(whole, max_bad_share=0.9).faults[0].reason
    write(root / "boxes.csv", HEAD, "elsewhere/a.png,1,2,3,4,ant")
    with pytest.raises(DataError, match=r"none of its 1 image is there \(first: elsewhere/a.png\)"):
        open_data(root, task="detect")


def test_corners_of_whole_numbers_below_2_are_pixels(root: Path) -> None:
    write(root / "boxes.csv", HEAD, "images/0.png,0,0,1,1,ant")
    assert BoxCsvFormat().open(root, None)[0].target.boxes.tolist() == np.asarray([[0, 0, 1, 1]]).tolist()
