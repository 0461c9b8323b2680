"""Figures of a checkpoint and of a bundle; labels by name; a bundle without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.cli import execute


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in ("ant", "bee", "cat"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
                tmp_path / "pictures" / label / f"{i}.png"
            )
    return tmp_path / "pictures"


def test_a_bundle_needs_no_torch(tiny_bundle: Path, pictures: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from zoo.cli import execute; sys.exit(execute(['evaluate', sys.argv[1], '--data', sys.argv[2], '--split', 'all', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_bundle), str(pictures)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["images"] == 15
    assert "fp32" in figures["what"]
    # the same by hand
    import zoo.runtime

    model = zoo.runtime.load(tiny_bundle)
    files = sorted(pictures.rglob("*.png"))
    hits = [model(str(f)).label == f.parent.name for f in files]
    assert figures["top-1 accuracy"] == pytest.approx(np.mean(hits))


def test_labels_that_do_not_match_are_named(
    tiny_bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "bee").rename(pictures / "bear")
    assert execute(["evaluate", str(tiny_bundle), "--data", str(pictures)]) == 2
    assert "label 'bear' is not one of the network's 3 labels" in capsys.readouterr().err


def test_a_split_that_is_not_there(tiny_bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["evaluate", str(tiny_bundle), "--data", str(pictures), "--split", "test"]) == 2
    assert "no test split" in capsys.readouterr().err


def test_a_damaged_image_is_left_out(tiny_bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "cat" / "0.png").write_bytes(b"")
    assert execute(["evaluate", str(tiny_bundle), "--data", str(pictures), "--split", "all"]) == 0
    said = capsys.readouterr()
    assert "1 faulty images or boxes are left out" in said.err
    assert "14" in said.out


def test_a_checkpoint(lenet_checkpoint: Path, grey_digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert execute(["evaluate", str(lenet_checkpoint), "--data", str(grey_digits), "--json"]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert figures["top-1 accuracy"] > 0.9
    assert "warning" not in said.err  # divided as it was for training
    assert [c["label"] for c in figures["classes"]] == ["0", "1", "2", "3", "4"]
    assert execute(["evaluate", str(lenet_checkpoint), "--data", str(grey_digits), "--split-seed", "5"]) == 0
    said = capsys.readouterr()
    assert "not the division" in said.err
    assert "top-1 accuracy" in said.out
