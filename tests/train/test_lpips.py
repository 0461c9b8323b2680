"""LPIPS: torchmetrics' own figure where its network is in torch's cache, and not a word, nor a download, where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models")

from zoo.data import open_data
from zoo.errors import CheckpointError
from zoo.parity import Finding
from zoo.parity.evidence import natural_images
from zoo.results import ImageResult
from zoo.train.evaluate import evaluate
from zoo.train.lpips import beside_pixels, lpips
from zoo.train.models import open_model

ONES, OTHERS = natural_images(3, 40, 50, 3, seed=1), natural_images(3, 40, 50, 3, seed=2)
FILES = {"alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache, empty, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def put(cache: Path, name: str) -> None:
    """A network with drawn weights, and of the classifier, which is the larger part and not used, nothing but its shape."""
    torch.manual_seed(0)
    network = models.alexnet() if name == "alex" else models.squeezenet1_1()
    state = {
        k: v if k.startswith("features") else torch.zeros(1).expand(v.shape) for k, v in network.state_dict().items()
    }
    torch.save(state, cache / FILES[name])


def by_torchmetrics(ours: list[np.ndarray], theirs: list[np.ndarray], name: str) -> float:
    functional = pytest.importorskip("torchmetrics.functional.image.lpips")
    batches = [torch.from_numpy(np.stack(v)).permute(0, 3, 1, 2) / 255 for v in (ours, theirs)]
    return float(functional.learned_perceptual_image_patch_similarity(*batches, net_type=name, normalize=True))


@pytest.mark.parametrize("name", ["alex", "squeeze"])
def test_the_figure_is_that_of_torchmetrics(name: str, cache: Path) -> None:
    put(cache, name)
    found = lpips(zip(ONES, OTHERS, strict=True))
    assert found["LPIPS_network"] == name
    assert found["LPIPS"] > 0.01
    assert found["LPIPS"] == pytest.approx(by_torchmetrics(ONES, OTHERS, name), rel=1e-5)
    assert lpips(zip(ONES, ONES, strict=True))["LPIPS"] == 0


def test_sizes_may_differ_and_grey_is_grey(cache: Path) -> None:
    put(cache, "squeeze")
    pairs = [(ONES[0], OTHERS[0]), (ONES[1][:33, :37], OTHERS[1][:33, :37])]
    each = [lpips([pair])["LPIPS"] for pair in pairs]
    assert lpips(pairs)["LPIPS"] == pytest.approx(np.mean(each))
    grey = [image[:, :, :1] for image in (ONES[0], OTHERS[0])]
    colour = [np.repeat(image, 3, axis=2) for image in grey]
    assert lpips([(grey[0], grey[1])]) == lpips([(colour[0], colour[1])])


def test_the_network_that_the_paper_judges_by_goes_first(cache: Path) -> None:
    put(cache, "squeeze")
    put(cache, "alex")
    assert lpips(zip(ONES, OTHERS, strict=True))["LPIPS_network"] == "alex"


def test_without_a_network_without_images_or_for_small_ones_there_is_no_figure(cache: Path) -> None:
    pairs = list(zip(ONES, OTHERS, strict=True))
    assert lpips(pairs) == {}
    put(cache, "squeeze")
    assert lpips([]) == {}
    assert lpips([pairs[0], (ONES[0][:31], OTHERS[0][:31])]) == {}
    assert lpips([pairs[0]])


def test_a_damaged_file_is_named(cache: Path) -> None:
    (cache / FILES["squeeze"]).write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match=r"squeezenet1_1-b8a52dc0\.pth is not a whole file of weights"):
        lpips(zip(ONES, OTHERS, strict=True))


@pytest.mark.parametrize("there", [True, False])
def test_restored_images_are_told_by_it_beside_the_other_figures(there: bool, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("zoo_gan")
    if there:
        put(cache, "squeeze")
    for at, image in enumerate(ONES):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / f"{at}.png")
    model = open_model("srresnet", weights="none", options={"scale": 2, "blocks": 1, "width": 8})
    found = evaluate(model, open_data(tmp_path / "photos", task="restore", val_share=0.7).val)
    assert list(found.figures)[:3] == ["PSNR-Y", "SSIM", "L1"]
    if not there:
        assert "LPIPS" not in found.figures
        return
    assert list(found.figures)[3:5] == ["LPIPS", "LPIPS_network"]
    targets = [target.read() for target in found.targets]
    expected = by_torchmetrics([r.pixels for r in found.results], targets, "squeeze")
    assert found.figures["LPIPS"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("there", [True, False])
def test_an_artefacts_images_are_told_by_it_beside_their_pixels(there: bool, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("zoo_gan")
    pipeline = pytest.importorskip("zoo_export.pipeline")
    if there:
        put(cache, "squeeze")
    small = {"size": 32, "width": 8, "image_channels": 3}
    request = pipeline.Request(source="dcgan", weights="none", build=small, out=tmp_path / "bundle", threads=1)
    (report,) = pipeline.export_bundle(request).report.artifacts
    finding = next(f for f in report.findings if f.gate == "pixels")
    assert ("LPIPS" in finding.figures) == ("LPIPS" in finding.message) == there
    if there:
        assert 0 <= finding.figures["LPIPS"] < 1e-3, "float32 against float32"
        assert finding.message.endswith("(squeeze)")
    assert not any("LPIPS" in f.message for f in report.findings if f.gate != "pixels")


def test_the_figure_of_two_artefacts_is_that_of_their_images(cache: Path) -> None:
    put(cache, "squeeze")
    ours, theirs = ([ImageResult(pixels=image) for image in images] for images in (ONES, OTHERS))
    plain = Finding(gate="pixels", verdict="pass", message="PSNR 30 dB", figures={"psnr_db": 30.0})
    found = beside_pixels(plain, ours, theirs)
    expected = by_torchmetrics(ONES, OTHERS, "squeeze")
    assert found.verdict == "pass"
    assert found.figures == {"psnr_db": 30.0, "LPIPS": pytest.approx(expected, rel=1e-5), "LPIPS_network": "squeeze"}
    assert found.message == f"PSNR 30 dB; LPIPS {expected:.4f} (squeeze)"
    assert beside_pixels(plain, ours, [ImageResult(pixels=image[:32]) for image in OTHERS]) is plain
