"""The device side: every kind of image gives the same answer, and what is not a bundle is refused in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo.runtime
from zoo.bundle import open_bundle, pack
from zoo.errors import BundleError, ImageError, MissingPart, UnknownName
from zoo.parity.evidence import natural_images


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return natural_images(1, 45, 60, seed=3)[0]


def test_paths_bytes_pillow_and_arrays_agree(tiny_bundle: Path, tmp_path: Path, pixels: np.ndarray):
    model = zoo.runtime.load(tiny_bundle)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "photo.png")
    expected = model(pixels)
    sources = (
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        (tmp_path / "photo.png").read_bytes(),
        io.BytesIO((tmp_path / "photo.png").read_bytes()),
        image,
    )
    for source in sources:
        assert np.array_equal(model(source).scores, expected.scores)
    assert expected.scores.sum() == pytest.approx(1, abs=1e-5)
    assert expected.label in ("ant", "bee", "cat")


def test_a_list_gives_a_list_in_its_order(tiny_bundle: Path):
    model = zoo.runtime.load(tiny_bundle)
    images = natural_images(7, 30, 30, seed=1)
    together = model(images, batch=3)
    assert len(together) == 7
    for image, result in zip(images, together, strict=True):
        np.testing.assert_allclose(result.scores, model(image).scores, atol=1e-6)
    assert model([]) == []


def test_packed_and_folder_give_the_same(tiny_bundle: Path, tmp_path: Path, pixels: np.ndarray):
    packed = pack(open_bundle(tiny_bundle), tmp_path / "tiny.zoo")
    assert np.array_equal(zoo.runtime.load(packed)(pixels).scores, zoo.runtime.load(tiny_bundle)(pixels).scores)


def test_run_takes_tensors_and_refuses_other_shapes(tiny_bundle: Path):
    model = zoo.runtime.load(tiny_bundle)
    assert model.run(np.zeros((2, 3, 16, 16), np.float32))["logits"].shape == (2, 3)
    for wrong in (np.zeros((3, 16, 16), np.float32), np.zeros((1, 3, 16, 17), np.float32), np.zeros((1, 3, 16, 16))):
        with pytest.raises(ValueError, match="takes float32"):
            model.run(wrong)


def test_one_predictor_serves_several_threads(tiny_bundle: Path, pixels: np.ndarray):
    model = zoo.runtime.load(tiny_bundle, threads=1)
    expected = model(pixels).scores
    wrong = []

    def work() -> None:
        wrong.extend(1 for _ in range(50) if not np.array_equal(model(pixels).scores, expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_unreadable_images_are_named(tiny_bundle: Path, tmp_path: Path):
    model = zoo.runtime.load(tiny_bundle)
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"empty\.jpg: an empty file"):
        model(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="no such file"):
        model(tmp_path / "none.jpg")


def test_unknown_artefacts_and_runtimes_are_named(tiny_bundle: Path):
    with pytest.raises(BundleError, match="it has fp32"):
        zoo.runtime.load(tiny_bundle, artifact="int8")
    with pytest.raises(UnknownName, match="onnxruntime"):
        zoo.runtime.load(tiny_bundle, runtime="onnxruntim")


def test_a_file_that_is_no_network_is_refused(tiny_bundle: Path):
    from zoo.files import sha256_file

    model = tiny_bundle / "model.fp32.onnx"
    model.write_bytes(b"not a network")
    manifest = json.loads((tiny_bundle / "zoo.json").read_text())
    manifest["files"]["model.fp32.onnx"] = {"bytes": model.stat().st_size, "sha256": sha256_file(model)}
    (tiny_bundle / "zoo.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not a network"):
        zoo.runtime.load(tiny_bundle)


def test_a_missing_runtime_says_the_install_line(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    from zoo import builtin, lookup
    from zoo.specs import Runtime

    absent = Runtime(
        name="far", summary="-", load="far:open", reads=("onnx",), requires=("far_away",), install="pip install far"
    )
    monkeypatch.setattr(lookup, "SPECS", (absent, *[s for s in builtin.SPECS if not isinstance(s, Runtime)]))
    with pytest.raises(MissingPart, match="pip install far"):
        zoo.runtime.load(tiny_bundle)


@pytest.mark.parametrize("module", ["zoo", "zoo.runtime", "zoo.specs", "zoo.errors", "zoo.builtin"])
def test_importing_loads_nothing_heavy(module: str):
    code = f"import sys, {module}; print(*sorted({{'torch','onnx','numpy','PIL','onnxruntime','click'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_prediction_loads_neither_torch_nor_onnx_nor_pluggy(tiny_bundle: Path, tmp_path: Path, pixels: np.ndarray):
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    code = (
        "import sys, zoo.runtime; zoo.runtime.load(sys.argv[1])(sys.argv[2]);"
        "print(*sorted({'torch','onnx','click','pluggy','timm','lightning'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tiny_bundle), str(tmp_path / "photo.png")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []
