"""zoo-timm: the kit on one member of several families, the data file against timm, and preprocessing against timm's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

timm = pytest.importorskip("timm")
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config

from zoo.errors import CheckpointError
from zoo.inputs import preprocess
from zoo.parity.evidence import natural_images
from zoo.registry import get_registry
from zoo.specs import Architecture
from zoo.testing import ArchitectureTests
from zoo_timm import generate, plugin, weights

DATA = json.loads(Path(plugin.FILE).read_text("utf-8"))


class TestMobileNetV2(ArchitectureTests):
    name = "mobilenetv2_050"
    size = 64


class TestResNet18(ArchitectureTests):
    name = "resnet18"
    size = 64


class TestViTTiny(ArchitectureTests):
    name = "vit_tiny_patch16_224"
    size = 64
    options = {"img_size": 64}


class TestConvNeXt(ArchitectureTests):
    name = "convnext_atto"
    size = 64


class TestDistilled(ArchitectureTests):
    """Two heads, averaged."""

    name = "deit_tiny_distilled_patch16_224"
    size = 64
    options = {"img_size": 64}


@pytest.mark.slow
def test_the_data_file_is_what_timm_gives() -> None:
    """Names, heads, weights, inputs and licences of every architecture; parameters and MACs are sampled below."""
    if DATA["timm"] != timm.__version__:
        pytest.skip(f"the data file was made with timm {DATA['timm']}, timm {timm.__version__} is installed")
    again = generate.collect(timm.list_models(), known=DATA)
    assert again["architectures"].keys() == DATA["architectures"].keys()
    assert again == DATA


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenetv2_100", "vit_small_patch16_224", "efficientnet_b0", "swin_tiny_patch4_window7_224"]
)
def test_parameters_and_macs_are_recomputed(name: str) -> None:
    again = generate.collect([name])["architectures"][name]
    assert again[3:5] == DATA["architectures"][name][3:5]


def test_published_figures() -> None:
    """From the papers, to the digits that they print."""
    published = {
        "resnet50": (25.6, 4.1),
        "mobilenetv2_100": (3.5, 0.30),
        "vgg16": (138.4, 15.5),
        "efficientnet_b0": (5.3, 0.39),
    }
    for name, (parameters, macs) in published.items():
        row = DATA["architectures"][name]
        assert row[3] / 1e6 == pytest.approx(parameters, abs=0.06)
        assert row[4] / 1e9 == pytest.approx(macs, rel=0.02)


def test_every_timm_name_is_there_or_said_to_be_left_out() -> None:
    if DATA["timm"] != timm.__version__:
        pytest.skip("another timm is installed")
    assert {*DATA["architectures"], *DATA["left_out"]} == set(timm.list_models())
    assert len(DATA["left_out"]) < 40


@pytest.mark.parametrize("alias", plugin.ALIASES)
def test_short_names(alias: str) -> None:
    spec = get_registry().get(Architecture, alias)
    assert spec.name == plugin.ALIASES[alias]
    assert spec.weights, f"{spec.name} has no pretrained weights"
    assert spec.weights[0].num_classes == 1000
    assert spec.paper.startswith("https://arxiv.org/abs/")


def test_labels_match_the_classes_and_are_unique() -> None:
    from zoo_timm import labels

    for name, count in [("imagenet_1k", 1000), ("imagenet_12k", 11821), ("imagenet_22k", 21841)]:
        found = getattr(labels, name)()
        assert len(found) == count == len(set(found))
    assert labels.imagenet_1k()[207] == "golden retriever"


def test_labels_of_every_weight_resolve() -> None:
    from zoo_timm import labels

    for spec in get_registry().specs(Architecture):
        for weight in spec.weights:
            if weight.labels.startswith("zoo_timm"):
                assert weight.labels.partition(":")[2] in labels.__all__


def photos() -> list[Image.Image]:
    """Images that really shrink and really grow: two photos, and natural noise of odd sizes."""
    found = [Image.fromarray(i) for i in load_sample_images().images]
    sizes = [(333, 517), (1080, 607), (97, 143), (41, 29), (224, 224)]
    found += [i.transpose(Image.Transpose.ROTATE_90) for i in found]  # upright, as phones make them
    return found + [Image.fromarray(natural_images(1, h, w, seed=h)[0]) for h, w in sizes]


@pytest.mark.parametrize(
    "full",
    [
        "resnet50.a1_in1k",  # bicubic, 0.95
        "vgg16_bn.tv_in1k",  # bilinear, 0.875
        "inception_v3.tv_in1k",  # 299 pixels, other mean
        "mobilenetv2_100.ra_in1k",
        "vit_small_patch16_224.augreg_in21k_ft_in1k",
        "convnext_tiny.in12k_ft_in1k_384",  # squash, keeps everything
        "efficientnet_b0.ra_in1k",
    ],
)
def test_preprocessing_is_timms_own(full: str) -> None:
    """Within 1/255, and far less on average.

    Pillow takes the crop's place as float32, which in a few of a million values turns two roundings the other way.
    """
    name, _, tag = full.partition(".")
    weight = next(w for w in get_registry().get(Architecture, name).weights if w.name == tag)
    assert weight.input is not None
    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(full).to_dict())
    transform = create_transform(**config, is_training=False)
    std = np.asarray(weight.input.std)[:, None, None]
    for image in photos():
        ours, theirs = preprocess(image, weight.input), transform(image).numpy()
        assert ours.shape == theirs.shape
        steps = np.abs(ours - theirs) * std * 255  # back in units of one 8-bit step
        assert (steps > 1.01).mean() < 1e-4, f"{image.size}: {steps.max():.2f} steps of 255"
        assert steps.max() <= 2.01
        assert steps.mean() < 0.05


def test_an_unreachable_hub_is_one_line_and_quick(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom zoo_timm.weights import open_weights\nfrom zoo.errors import CheckpointError\n"
        "import time\nstart = time.time()\n"
        "try: open_weights('resnet18.a1_in1k', pathlib.Path(sys.argv[1]))\n"
        "except CheckpointError as error: print(error); print(time.time() - start)\n"
    )
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=env, check=True
    )
    message, seconds = done.stdout.splitlines()
    assert "resnet18.a1_in1k" in message
    assert "--weights FILE" in message
    assert float(seconds) < 20
    assert "Retrying" not in done.stderr


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="publishes no weights"):
        weights.open_weights("resnet18.no_such_tag", tmp_path)


def test_published_files_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_model

    file = tmp_path / "model.safetensors"
    save_model(timm.create_model("test_resnet"), str(file))
    monkeypatch.setattr(weights, "_from_hub", lambda repo, name, cache: file)
    assert weights.open_weights("test_resnet.r160_in1k", tmp_path) == file


def test_other_files_go_through_timms_loader_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nested .bin with DataParallel's prefixes, which does not fit as it is."""
    import torch
    from safetensors.torch import load_file

    state = timm.create_model("test_resnet").state_dict()
    file = tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, file)
    monkeypatch.setattr(weights, "_from_hub", lambda repo, name, cache: file)
    made = weights.open_weights("test_resnet.r160_in1k", tmp_path / "cache")
    assert made.suffix == ".safetensors"
    found = load_file(made)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], state[k]) for k in state)
    file.unlink()
    assert weights.open_weights("test_resnet.r160_in1k", tmp_path / "cache") == made


def test_files_that_do_not_fit_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_model

    file = tmp_path / "model.safetensors"
    save_model(timm.create_model("test_vit"), str(file))
    monkeypatch.setattr(weights, "_from_hub", lambda repo, name, cache: file)
    with pytest.raises(CheckpointError, match=r"is not what timm .* expects of 'test_resnet\.r160_in1k'"):
        weights.open_weights("test_resnet.r160_in1k", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*"))
