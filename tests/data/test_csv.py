"""CSV of path,label[,split]: read, divided, and refused by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import audit, open_data
from zoo.data.csvfile import CsvFormat
from zoo.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.fromarray(np.full((6, 6, 3), i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def write(root: Path, header: str, rows: list[str], name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    (root / name).write_text("\n".join([header, *rows]) + "\n", encoding)
    return root / name


def rows(split: bool = False) -> list[str]:
    return [
        f"images/{i}.png,{'bée' if i % 2 else 'ant'}" + (f",{'val' if i > 5 else 'train'}" if split else "")
        for i in range(8)
    ]


def test_divided(root: Path) -> None:
    file = write(root, "path,label,split", rows(True))
    for data in (open_data(file), open_data(root)):  # the folder beats its own class-like folders
        assert (len(data.train), len(data.val), data.labels) == (6, 2, ("ant", "bée"))
        assert data.val[1].id == "images/7.png"
        assert data.val[1].target == 1
        assert data.train.format == "csv"
    assert not audit(open_data(root).train).faults


def test_undivided(root: Path) -> None:
    data = open_data(write(root, "path,label", rows()), val_share=0.25)
    assert (len(data.train), len(data.val)) == (6, 2)


@pytest.mark.parametrize(
    ("header", "delimiter", "encoding"),
    [("Filename;Class", ";", "utf-8"), ("image\tlabel", "\t", "utf-8"), ('"path","label"', ",", "utf-8-sig")],
)
def test_dialects(root: Path, header: str, delimiter: str, encoding: str) -> None:
    file = write(root, header, [r.replace(",", delimiter) for r in rows()], encoding=encoding)
    data = open_data(file)
    assert len(data.train) + len(data.val) == 8
    assert data.labels == ("ant", "bée")


def refuse(source: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(source, format="csv", val_share=0.5)
    for word in words:
        assert word in str(caught.value), caught.value


def test_broken_lines_are_told_by_number(root: Path) -> None:
    refuse(write(root, "path,label", [*rows(), "images/9.png,"]), "line 10", "no label")
    refuse(write(root, "path,label", [*rows(), ",ant"]), "line 10", "no path")
    refuse(
        write(root, "path,label,split", [*rows(True), "images/9.png,ant,holdout"]),
        "line 10",
        "split 'holdout' is unknown",
    )
    refuse(write(root, "path,label,split", [*rows(True), "images/9.png,ant,"]), "line 10", "split ''")
    refuse(
        write(root, "path,label", [*rows(), "images/0.png,bée"]), "line 10", "images/0.png is bée", "line 2 says ant"
    )
    refuse(
        write(root, "path,label,split", [*rows(True), "images/9.png,wasp,val"]),
        "line 10",
        "'wasp' occurs in val but not in train",
    )
    refuse(write(root, "foo,bar", rows()), "no CSV whose first line names the columns path and label")


def test_not_text(root: Path) -> None:
    (root / "labels.csv").write_bytes(b"path,label\n\xff\xfe\x00,ant\n")
    refuse(root / "labels.csv", "is not a UTF-8 CSV")


def test_repeated_lines_are_counted(root: Path) -> None:
    data = open_data(write(root, "path,label", [*rows(), rows()[0]]))
    assert len(data.train) + len(data.val) == 8
    assert data.train.notes == ("1 repeated lines were ignored",)


def test_missing_images_are_faults(root: Path) -> None:
    more = [f"images/gone{i}.png,ant" for i in range(4)]
    data = CsvFormat().open(write(root, "path,label", rows() + more), None)
    with pytest.raises(DataError, match=r"4 of 12 images .* no such file"):
        audit(data)
    assert [f.id for f in audit(data, max_bad_share=0.5).faults] == [f"images/gone{i}.png" for i in range(4)]


def test_absolute_paths_stay_out_of_the_ids(root: Path) -> None:
    lines = [f"{root / 'images' / f'{i}.png'},{'bee' if i % 2 else 'ant'}" for i in range(8)]
    found = open_data(write(root, "path,label", lines))
    assert {s.id for s in (*found.train, *found.val)} == {f"{i}.png" for i in range(8)}
    assert all(s.image.is_file() for s in found.train)
