"""`zoo data`: what it says of good data and bad, its exit codes, its picture, and a conversion from the command line."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.cli import execute


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = execute(["data", *map(str, args)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """YOLO with 24 images for training and 6 to judge by."""
    folder = tmp_path / "things"
    for split, count in (("train", 24), ("val", 6)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (60, 40), (i, len(split), 0)).save(folder / "images" / split / f"{i}.png")
            text = "0 .5 .5 .5 .5\n1 .2 .2 .1 .2\n" if i % 4 else ""
            (folder / "labels" / split / f"{i}.txt").write_text(text)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [ant, bee]\n")
    return folder


def label(root: Path, name: str, text: str) -> None:
    (root / "labels" / f"{name}.txt").write_text(text)


def test_good_data(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", root)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert f"{root}: yolo, data for detect" in out
    assert ["train", "24", "36", "0", "6", "0"] in lines
    assert ["val", "6", "8", "0", "2", "0"] in lines
    assert ["ant", "22", "22", "50.0", "%", "50.0", "%", "50.0", "%"] in lines
    assert "boxes: 44 small (below 32x32 px), 0 medium, 0 large" in out
    assert "60x40 (30)" in out
    assert out.rstrip().endswith("no faults")


def test_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", root, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["format"], found["task"], found["usable"], found["labels"]) == (
        "yolo",
        "detect",
        True,
        ["ant", "bee"],
    )
    assert found["splits"]["train"]["classes"] == [
        {"label": "ant", "images": 18, "objects": 18},
        {"label": "bee", "images": 18, "objects": 18},
    ]
    assert found["splits"]["train"]["background"] == 6
    assert found["boxes"]["width"] == [6, 18, 30]
    assert found["boxes"]["aspect"] == [0.75, 1.125, 1.5]
    assert found["image_sizes"] == [{"width": 60, "height": 40, "images": 30}]
    assert found["faults"] == []


def test_every_fault_at_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes and images that are left out, images in two splits: listed, and training would go on."""
    label(root, "train/1", "0 .5 .5 .5 .5\n1 .2 .2 0 .2\n0 1.5 .5 .1 .1\n1 .99 .5 .1 .2\n")
    (root / "images/train/2.png").write_bytes(b"")
    whole = (root / "images/train/3.png").read_bytes()
    (root / "images/val/5.png").write_bytes(whole)
    code, out, _ = run(capsys, "inspect", root)
    assert code == 0
    for line in (
        "4 faults:",
        "  train: images/train/2.png: an empty file",
        "  train: images/train/1.png: box 2 (bee 12, 4, 12, 12) has no area",
        "  train: images/train/1.png: box 3 (ant 87, 18, 93, 22) lies outside the 60x40 image",
        "  val: images/val/5.png: is the same image as images/train/3.png of train",
        "note: 1 box reached beyond the image and was cut at its border (first: images/train/1.png)",
    ):
        assert line in out.splitlines(), out


def test_what_training_refuses_is_listed_in_full_and_exits_2(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(24):
        label(root, f"train/{i}", "0 .5 .5 .5 .5\n1 .2 .2 .1 .2\n7 .5 .5 .1 .1\n")
    label(root, "val/0", "0 .5 .5")
    code, out, err = run(capsys, "inspect", root)
    assert code == 2
    assert "25 faults:" in out
    assert f"  train: {root}/labels/train/0.txt, line 3: class 7, but the classes are 0 to 1 (ant, bee)" in out
    assert "  … and 5 more: --json has all" in out
    assert err.startswith("zoo: error: ") and "(23 more such faults: `zoo data inspect` lists all)" in err
    code, out, err = run(capsys, "inspect", root, "--json")
    found = json.loads(out)
    assert code == 2
    assert len(found["faults"]) == 25
    assert found["faults"][-1] == {
        "split": "val",
        "id": "images/val/0.png",
        "reason": f"{root}/labels/val/0.txt, line 1: 3 values; a box has 5 (class cx cy w h), an outline class and x y of each corner",
    }
    assert not found["usable"] and "class 7" in found["refusal"]


@pytest.mark.parametrize("case", ["outside", "unreadable", "empty"])
def test_what_would_silently_spoil_the_training_exits_2(
    root: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    for i in range(24):
        if case == "outside":
            label(root, f"train/{i}", "0 .5 .5 .5 .5\n1 1.7 .2 .1 .2\n1 .5 .5 .1 .1\n")
        elif case == "unreadable" and i % 3 == 0:
            (root / f"images/train/{i}.png").write_bytes(b"no image")
        elif case == "empty":
            label(root, f"train/{i}", "")
    words = {
        "outside": "24 of 72 boxes of the train split have no area or lie outside",
        "unreadable": "8 of 24 images of the train split cannot be used, more than 10 %",
        "empty": "no image of the train split has an object",
    }
    code, out, err = run(capsys, "inspect", root)
    assert code == 2
    assert words[case] in err and err.count("\n") == 1
    assert "split" in out


def test_no_validation_split(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "data.yaml").write_text("train: images/train\nnames: [ant, bee]\n")
    code, out, _ = run(capsys, "inspect", root)
    assert code == 0
    assert "note: there is no val split: training sets one image in five aside" in out


def test_nothing_that_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.txt").write_text("x")
    code, out, err = run(capsys, "inspect", tmp_path)
    assert (code, out) == (2, "")
    assert "holds no images: known are coco, " in err
    code, _, err = run(capsys, "inspect", tmp_path / "nowhere")
    assert code == 2 and "no such file or folder" in err
    code, _, err = run(capsys, "inspect", tmp_path, "--format", "yolov8")
    assert code == 2 and "unknown dataset format 'yolov8': did you mean yolo" in err


# -- pictures ------------------------------------------------------------------------------------------------------------


def test_a_picture_of_labelled_samples(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "inspect", root, "--grid", tmp_path / "grid.png")
    assert code == 0 and "grid.png: labelled samples" in err
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size[0] > 1000 and sheet.size[1] > 300
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    from zoo.results import drawing

    for index in (0, 1):  # the boxes are there, in the colours of their classes
        assert (np.abs(pixels.astype(int) - drawing.colour(index)).sum(axis=1) < 60).sum() > 200
    code, _, err = run(capsys, "inspect", root, "--grid", tmp_path / "grid.txt")
    assert code == 2 and "name a .png or .jpg file" in err


def test_a_box_is_drawn_where_it_is(tmp_path: Path) -> None:
    from zoo.data.inspecting import grid, inspect
    from zoo.results import drawing

    root = tmp_path / "one"
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    Image.new("RGB", (400, 300), "white").save(root / "images" / "0.png")
    (root / "labels" / "0.txt").write_text("0 .75 .5 .25 .4\n")
    (root / "classes.txt").write_text("ant\n")
    sheet = np.asarray(grid(inspect(root), side=360))[: 4 + 270]  # without the caption
    near = np.abs(sheet.astype(int) - drawing.colour(0)).sum(axis=2) < 200  # the picture was shrunk after drawing
    rows, columns = np.nonzero(near)
    assert columns.min() == pytest.approx(4 + 0.625 * 360, abs=2)
    assert columns.max() == pytest.approx(4 + 0.875 * 360, abs=2)
    assert rows.max() == pytest.approx(4 + 0.7 * 270, abs=2)


def test_pictures_of_maps_and_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zoo.results import drawing

    for part in ("images", "masks", "classes/ant", "classes/bee"):
        (tmp_path / part).mkdir(parents=True)
    classes = np.zeros((300, 400), np.uint8)
    classes[:, 200:] = 255
    for i in range(3):
        Image.new("RGB", (400, 300), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(classes).save(tmp_path / "masks" / f"{i}.png")
        for name in ("ant", "bee"):
            Image.new("RGB", (50, 40), (i, 9, len(name))).save(tmp_path / "classes" / name / f"{i}.png")
    code, out, _ = run(capsys, "inspect", tmp_path, "--grid", tmp_path / "maps.png")
    assert code == 0
    assert ["background", "3", "180000", "50.0", "%"] in [line.split() for line in out.splitlines()]
    sheet = np.asarray(Image.open(tmp_path / "maps.png"))
    assert (np.abs(sheet.astype(int) - drawing.colour(1)).sum(axis=2) < 60).sum() > 300
    code, out, _ = run(capsys, "inspect", tmp_path / "classes", "--grid", tmp_path / "classes.jpg")
    assert code == 0 and "folders, data for classify" in out
    assert ["ant", "3", "50.0", "%"] in [line.split() for line in out.splitlines()]
    assert Image.open(tmp_path / "classes.jpg").format == "JPEG"


# -- panoramas -----------------------------------------------------------------------------------------------------------


def header_of_png(path: Path, width: int, height: int) -> None:
    """A PNG that ends behind its header."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + struct.pack(">I", 99)
        + b"IDAT"
    )


@pytest.mark.parametrize("height", [3000, 20000])
def test_a_panorama_too_large_to_decode_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], height: int
) -> None:
    header_of_png(root / "images/train/1.png", 40_000, height)
    code, out, err = run(capsys, "inspect", root)
    assert code == 0 and not err
    assert "1 fault:\n  train: images/train/1.png: larger than 89478485 pixels: shrink or tile it first\n" in out


def test_a_panorama_is_not_decoded(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """40,000 x 1,000 is allowed: it is checked in small, and no picture is made of it."""
    Image.new("RGB", (40_000, 1_000)).save(root / "images/train/1.jpg", quality=30)
    (root / "images/train/1.png").unlink()
    loaded = []
    load = Image.Image.load

    def watch(self: Image.Image) -> object:
        loaded.append(self.size)
        return load(self)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", watch, raising=True)
    monkeypatch.setattr("zoo.data.auditing.read_image", None)
    code, out, _ = run(capsys, "inspect", root)
    assert code == 0
    assert "40000x1000 (1)" in out
    assert loaded and max(w * h for w, h in loaded) <= 40_000 * 1_000 / 64


# -- convert -------------------------------------------------------------------------------------------------------------


def test_convert(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "convert", root, "--to", "voc", "--out", tmp_path / "voc")
    assert code == 0 and not err
    assert out.splitlines() == [
        f"{tmp_path / 'voc'}: train 24, val 6 images, yolo to voc",
        f"next: zoo data inspect {tmp_path / 'voc'}",
    ]
    code, out, _ = run(capsys, "inspect", tmp_path / "voc", "--json")
    assert code == 0 and json.loads(out)["splits"]["train"]["classes"][1]["objects"] == 18
    code, _, err = run(capsys, "convert", root, "--to", "csv", "--out", tmp_path / "voc")
    assert code == 2 and "already holds something" in err
    code, out, _ = run(capsys, "convert", root, "--to", "csv", "--out", tmp_path / "voc", "--overwrite", "--json")
    assert code == 0
    assert json.loads(out)["images"] == {"train": 24, "val": 6}
    assert (tmp_path / "voc" / "boxes.csv").is_file()


def test_neither_needs_torch(root: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        "from zoo.cli import execute\n"
        "assert execute(['data', 'inspect', sys.argv[1], '--grid', sys.argv[2] + '/g.png']) == 0\n"
        "sys.exit(execute(['data', 'convert', sys.argv[1], '--to', 'coco', '--out', sys.argv[2] + '/coco']))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.assets
def test_bccd(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", assets / "bccd", "--grid", tmp_path / "grid.png")
    assert code == 0
    assert "it also looks like voc: --format voc" in out
    assert "  train: JPEGImages/BloodImage_00343.jpg: box 4 (RBC 181, 329, 181, 329) has no area" in out
    assert "  val: JPEGImages/BloodImage_00338.jpg: box 13 (RBC 504, 337, 504, 337) has no area" in out
