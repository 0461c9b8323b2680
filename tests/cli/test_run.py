"""`zoo run` and `zoo pack`: every kind of source, answers as a table and as JSON, and images that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.runtime import load


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "deep/a.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("x")
    return tmp_path / "photos"


def answers(text: str) -> dict[str, dict]:
    return {a.pop("image"): a for a in map(json.loads, text.splitlines())}


def test_files_folders_and_globs_agree_with_the_library(zoo, tiny_bundle: Path, photos: Path) -> None:
    found = answers(
        zoo("run", tiny_bundle, photos, photos / "a.jpg", str(photos / "*.png"), "--json", "--top", 2).stdout
    )
    assert list(found) == [str(photos / n) for n in ("a.jpg", "b.png", "deep/a.png")]
    model = load(tiny_bundle)
    for path, answer in found.items():
        result = model(path)
        assert answer["label"] == result.label
        assert answer["score"] == pytest.approx(result.score, abs=1e-5)
        assert len(answer["top"]) == 2


def test_table(zoo, tiny_bundle: Path, photos: Path) -> None:
    lines = zoo("run", tiny_bundle, photos / "a.jpg").stdout.splitlines()
    assert lines[0].split()[:3] == ["image", "answer", "share"]
    assert str(photos / "a.jpg") in lines[2]
    assert "%" in lines[2]


def test_pictures(zoo, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    assert "3 pictures" in zoo("run", tiny_bundle, photos, "--out", out).stderr
    assert sorted(p.name for p in out.iterdir()) == ["a-2.png", "a.png", "b.png"]
    picture = Image.open(out / "a.png")
    assert picture.width >= 256
    assert picture.height > picture.width * 30 // 40  # the answer stands below the photo
    assert "already holds something" in zoo("run", tiny_bundle, photos, "--out", out, check=2).stderr


def test_broken_images_are_told_and_the_others_answered(zoo, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.png").write_text("no image")
    done = zoo("run", tiny_bundle, photos, tmp_path / "gone.jpg", "--json", "--out", tmp_path / "out", check=2)
    found = answers(done.stdout)
    assert len(found) == 6
    assert "an empty file" in found[str(photos / "empty.jpg")]["error"]
    assert "no such file" in found[str(tmp_path / "gone.jpg")]["error"]
    assert sum("label" in a for a in found.values()) == 3
    assert done.stderr.count("zoo: error: ") == 3
    assert "3 of 6 images could not be read" in done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{bundle}", "{empty}"], "holds no images"),
        (["{bundle}", "{photos}/*.tiff"], "matches no file"),
        (["{photos}", "{photos}/a.jpg"], "is not a bundle"),
        (["{photos}/gone.zoo", "{photos}/a.jpg"], "no such file or folder"),
        (["{bundle}", "{photos}/a.jpg", "--artifact", "int4"], "has no artefact 'int4': it has fp32"),
    ],
)
def test_bad_input_is_one_line(
    zoo, tiny_bundle: Path, photos: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"bundle": tiny_bundle, "photos": photos, "empty": tmp_path / "empty"}
    done = zoo("run", *(a.format(**places) for a in arguments), check=2)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_pack(zoo, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    zoo("pack", tiny_bundle)
    packed = tiny_bundle.with_name("tiny.zoo")
    first = packed.read_bytes()
    assert "is there already" in zoo("pack", tiny_bundle, check=2).stderr
    zoo("pack", tiny_bundle, "--overwrite")
    assert packed.read_bytes() == first
    zoo("pack", tiny_bundle, "--out", tmp_path / "other.zoo")
    assert (tmp_path / "other.zoo").read_bytes() == first
    folder, file = (zoo("run", b, photos / "a.jpg", "--json").stdout for b in (tiny_bundle, packed))
    assert folder == file


def test_pack_refuses_an_altered_bundle(zoo, tiny_bundle: Path) -> None:
    (tiny_bundle / "model.fp32.onnx").write_bytes(b"\0" * (tiny_bundle / "model.fp32.onnx").stat().st_size)
    assert "was altered" in zoo("pack", tiny_bundle, check=2).stderr
    assert not tiny_bundle.with_name("tiny.zoo").exists()
    assert not list(tiny_bundle.parent.glob(".*part"))
