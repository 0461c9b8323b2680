"""The records: impossible values are refused, what is written is read back, and nothing heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import zoo
from zoo.specs import ImageInput, install_line


def test_round_trip_through_json() -> None:
    spec = ImageInput(height=96, width=128, resize="letterbox", fill=(1, 2, 3), mean=(0.1, 0.2, 0.3), crop=0.875)
    assert ImageInput.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 0}, "1..16384"),
        ({"height": 2.5}, "whole numbers"),
        ({"channels": 1}, "RGB has 3 channels"),
        ({"color": "YUV"}, "color is one of"),
        ({"resize": "stretch"}, "resize is one of"),
        ({"interpolation": "area"}, "interpolation is one of"),
        ({"crop": 0.0}, "crop lies in"),
        ({"mean": (0.5,)}, "mean has 1 values for 3"),
        ({"std": (1.0, 0.0, 1.0)}, "std is positive"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean is finite"),
        ({"fill": (1,)}, "fill has one value a channel"),
    ],
)
def test_impossible_inputs_are_refused(change: dict, words: str) -> None:
    good = ImageInput(height=8, width=8).to_dict()
    with pytest.raises(ValueError, match=words):
        ImageInput.from_dict({**good, **change})


def test_unknown_and_missing_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="hieght"):
        ImageInput.from_dict({"hieght": 8, "width": 8})
    with pytest.raises(ValueError, match="height"):
        ImageInput.from_dict({"width": 8})


def test_other_channels_keep_the_average() -> None:
    grey = ImageInput(height=8, width=8).with_channels(1)
    assert (grey.color, grey.shape) == ("L", (1, 8, 8))
    assert grey.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert grey.with_channels(3).color == "RGB"
    assert ImageInput(height=8, width=8).with_channels(6).color == "bands"
    assert ImageInput(height=8, width=8).with_size(4).shape == (3, 4, 4)


def test_install_lines() -> None:
    assert install_line("lightning") == "pip install 'edgezoo[train]'"
    assert install_line("onnxslim") == "pip install 'edgezoo[export]'"
    assert install_line("onnxruntime") == "pip install 'edgezoo[edge]'"
    assert install_line("some_thing") == "pip install some-thing"


def test_public_names_exist() -> None:
    assert all(getattr(zoo, name) is not None for name in zoo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'hookimp'"):
        _ = zoo.hookimp


@pytest.mark.parametrize(
    "name",
    [
        "zoo",
        "zoo.specs",
        "zoo.registry",
        "zoo.cli",
        "zoo_classic.plugin",
        "zoo_timm.plugin",
        "zoo_export.plugin",
        "zoo_segment.plugin",
        "zoo_detect.plugin",
    ],
)
def test_what_must_not_import_anything_heavy(name: str) -> None:
    code = (
        f"import sys, {name}\n"
        "heavy = {'torch', 'torchvision', 'timm', 'lightning', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'importlib.metadata'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == ""


@pytest.mark.parametrize(
    "name", ["zoo.runtime.predictor", "zoo.bundle", "zoo.data.splitting", "zoo.parity.gates", "zoo.tasks.classify"]
)
def test_the_device_side_needs_no_torch(name: str) -> None:
    code = (
        "import sys\nsys.modules.update({n: None for n in ('torch', 'onnx', 'click', 'pluggy', 'lightning', 'timm')})\n"
        f"import {name}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
