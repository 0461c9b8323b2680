"""The numbered examples run as they stand, on small data."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: object, check: int = 0) -> str:
    script = next(FOLDER.glob(f"{name}_*.py"))
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == check, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(level, 30, (30, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def test_run_a_bundle(tiny_bundle: Path, photos: Path) -> None:
    out = run("01", tiny_bundle, photos / "dark" / "0.png")
    assert len(out.splitlines()) == 3
    assert out.count("%") == 3


def test_classify_a_folder(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "dark" / "broken.png").write_bytes(b"")
    run("02", tiny_bundle, photos, tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 40
    assert {r["label"] for r in rows} <= {"ant", "bee", "cat"}


def test_trust_but_verify(tiny_bundle: Path) -> None:
    assert "ready:" in run("03", tiny_bundle)
    model = tiny_bundle / "model.fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert "ready:" not in run("03", tiny_bundle, check=1)


def test_outline_and_measure(tiny_bundles: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    out = run("06", tiny_bundles["segment"], photos / "dark" / "0.png", tmp_path / "drawn.png")
    assert [line.split(":")[0] for line in out.splitlines()] == ["ant", "bee", "cat"]
    assert sum(float(line.split(": ")[1].split(" %")[0]) for line in out.splitlines()) == pytest.approx(100, abs=0.2)
    assert Image.open(tmp_path / "drawn.png").width >= 32


def test_count_objects(tiny_bundles: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    some = sorted((photos / "dark").iterdir())[:3]
    out = run("07", tiny_bundles["detect"], tmp_path / "found.json", *some)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(out.splitlines()) == 3
    assert {f["image_id"] for f in found} <= {0, 1, 2}
    assert found
    assert set(found[0]) == {"image_id", "category_id", "bbox", "score"}


@pytest.mark.slow
def test_finetune_and_export_from_python(photos: Path, tmp_path: Path) -> None:
    assert "top-1 accuracy: " in run("04", photos, tmp_path / "run")
    out = run("05", tmp_path / "run", photos, tmp_path / "bundle")
    assert "fp32 built" in out or "fp32 verified" in out
    manifest = json.loads((tmp_path / "bundle" / "zoo.json").read_text())
    assert manifest["labels"] == ["dark", "light"]


def test_every_example_is_listed_and_numbered_in_turn() -> None:
    scripts = sorted(p.name for p in FOLDER.glob("*.py"))
    assert [s[:2] for s in scripts] == [f"{i + 1:02d}" for i in range(len(scripts))]
    readme = (FOLDER / "README.md").read_text()
    assert all(s in readme for s in scripts)


def test_enlarge_photos(tmp_path: Path) -> None:
    from zoo.parity.evidence import natural_images

    (tmp_path / "photos").mkdir()
    for at, pixels in enumerate(natural_images(10, 72, 80, 3, seed=3)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{at}.png")
    assert "0.png: 160 x 144 pixels" in run("08", tmp_path / "photos", tmp_path / "out")
    with Image.open(tmp_path / "out" / "big.png") as big:
        assert big.size == (160, 144)
