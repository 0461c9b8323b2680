"""MobileNetV2 with its real ImageNet weights on real photos: the same answers in PyTorch, in the bundle, on the device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from zoo.inputs import preprocess_batch
from zoo.train.models import deployable, open_model
from zoo_export.pipeline import Outcome, Request, export_bundle

pytestmark = [pytest.mark.assets, pytest.mark.slow]

# What a device does, in a process that cannot import any of the workstation's packages.
DEVICE = """
import json, sys
sys.modules.update({name: None for name in ("torch", "onnx", "timm", "lightning", "click", "pluggy")})
import zoo.runtime
found = {}
for artifact in ("fp32", "int8"):
    model = zoo.runtime.load(sys.argv[1], artifact=artifact, threads=1)
    found[artifact] = [result.index for result in model(sys.argv[2:])]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def photos(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[int]]:
    """The 200 photos as a CSV's val split. Their mirror images are its train split, for calibration."""
    pytest.importorskip("zoo_timm")
    from zoo_timm.labels import imagenet_1k

    labels = imagenet_1k()
    files = sorted((assets / "imagenet-sample-200").rglob("*.jpg"))
    assert len(files) == 200
    folder = tmp_path_factory.mktemp("imagenet")
    rows = ["path;label;split"]
    targets = []
    for file in files:
        target = int(file.name.partition("_")[0])
        targets.append(target)
        with Image.open(file) as image:
            ImageOps.mirror(image.convert("RGB")).save(folder / file.name, quality=90)
        rows += [f"{file.name};{labels[target]};train", f"{file};{labels[target]};val"]
    (folder / "photos.csv").write_text("\n".join(rows) + "\n")
    return folder / "photos.csv", files, targets


@pytest.fixture(scope="module")
def outcome(
    assets: Path, photos: tuple[Path, list[Path], list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    weights = assets / "weights" / "mobilenetv2_100.imagenet1k.safetensors"
    return export_bundle(
        Request(
            source="mobilenetv2_100",
            weights=str(weights),
            out=tmp_path_factory.mktemp("mobilenet") / "mobilenet",
            precisions=("fp32", "int8"),
            data=photos[0],
            threads=1,
        ),
        note=lambda text: None,
    )


def test_the_same_top_1_in_pytorch_bundle_and_device(
    assets: Path, photos: tuple[Path, list[Path], list[int]], outcome: Outcome
) -> None:
    _, files, targets = photos
    model = open_model("mobilenetv2_100", weights=str(assets / "weights" / "mobilenetv2_100.imagenet1k.safetensors"))
    network = deployable(model)
    answers: list[int] = []
    with torch.inference_mode():
        for start in range(0, 200, 25):
            batch = torch.from_numpy(preprocess_batch(files[start : start + 25], model.input))
            answers += network(batch)[1].argmax(1).tolist()
    assert outcome.bundle is not None
    done = subprocess.run(
        [sys.executable, "-c", DEVICE, str(outcome.bundle), *(str(f) for f in files)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    device = json.loads(done.stdout)
    assert device["fp32"] == answers
    right = {name: float((np.asarray(found) == targets).mean()) for name, found in {"torch": answers, **device}.items()}
    assert right["torch"] > 0.7, "these are not the weights of that network, or the preprocessing is not theirs"
    assert right["int8"] >= right["torch"] - 0.02, right


def test_the_gates_say_so(outcome: Outcome) -> None:
    by_name = {a.name: {f.gate: f for f in a.findings} for a in outcome.report.artifacts}
    assert by_name["fp32"]["numbers"], by_name["fp32"]["numbers"].message
    assert by_name["fp32"]["accuracy"].figures["changed_answers"] == 0
    assert by_name["int8"]["numbers"], by_name["int8"]["numbers"].message
    assert by_name["int8"]["accuracy"].figures["difference"] >= -0.02
