"""Features: what a classifier gives its head, from which weights, and under which name they are reported."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("zoo_timm")

from zoo.data import open_data
from zoo.errors import CheckpointError, PluginError, UnknownName
from zoo.inputs import preprocess_batch, read_image
from zoo.parity.evidence import natural_images
from zoo.registry import get_registry
from zoo.specs import Architecture, ImageInput
from zoo.tasks.distances import fid, kid
from zoo.train.extractor import open_extractor
from zoo.train.models import load_checkpoint, open_model, save_checkpoint

IMAGES = natural_images(3, 40, 50, 3, seed=1)


def weights_of(name: str, tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(1)
    network = timm.create_model(name, num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    return network, tmp_path / f"{name}.pth"


def seen(name: str) -> torch.Tensor:
    """The images as the architecture's recipe has them, nothing cut off."""
    spec = replace(get_registry().get(Architecture, name).input, resize="squash", crop=1.0)
    return torch.from_numpy(preprocess_batch(IMAGES, spec))


def test_the_name_tells_whose_weights_they_are(tmp_path: Path) -> None:
    _, file = weights_of("test_resnet", tmp_path)
    name = open_extractor(f"test_resnet:{file}").name
    assert name == f"test_resnet (file weights, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:8]})"


@pytest.fixture
def checkpoint(colournet: str, tmp_path: Path) -> Path:
    """Of a network that is not timm's."""
    model = open_model(colournet, weights="none", labels=["a", "b", "c"])
    save_checkpoint(tmp_path / "colournet", model, metrics={}, data={}, seed=0)
    return tmp_path / "colournet"


def test_a_checkpoint_is_told_by_its_own_weights(checkpoint: Path) -> None:
    extractor = open_extractor(str(checkpoint))
    digest = hashlib.sha256((checkpoint / "weights.safetensors").read_bytes()).hexdigest()
    assert extractor.name == f"test-colournet (checkpoint weights, sha256 {digest[:8]})"
    model = load_checkpoint(checkpoint)
    batch = torch.from_numpy(preprocess_batch(IMAGES, replace(model.input, resize="squash", crop=1.0)))
    with torch.no_grad():
        expected = model.network.features(batch).flatten(1)
    np.testing.assert_allclose(extractor(IMAGES), expected.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError, match=r"brings its own weights: leave out :more\.pth"):
        open_extractor(f"{checkpoint}:more.pth")


@pytest.mark.parametrize("name", ["test_resnet", "deit_tiny_distilled_patch16_224", "crossvit_9_240"])
def test_the_features_are_those_that_every_head_is_given(name: str, tmp_path: Path) -> None:
    network, file = weights_of(name, tmp_path)
    given = []
    heads = ("head", "head_dist") if "distilled" in name else ("head.0", "head.1") if "cross" in name else ("fc",)
    for head in heads:
        network.get_submodule(head).register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with torch.no_grad():
        network(seen(name))
    expected = torch.cat(given, dim=1) if "cross" in name else sum(given) / len(given)
    found = open_extractor(f"{name}:{file}")(IMAGES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_features_of_any_shape_are_one_row_an_image(tmp_path: Path) -> None:
    """The heads of some networks are convolutions."""
    _, file = weights_of("resnetv2_18", tmp_path)
    assert open_extractor(f"resnetv2_18:{file}")(IMAGES).shape == (3, 512)


def test_a_name_may_carry_the_tag_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = weights_of("test_vit", tmp_path)
    plain, tagged = (open_extractor(f"{name}:{file}") for name in ("test_vit", "test_vit.r160_in1k"))
    np.testing.assert_array_equal(plain(IMAGES), tagged(IMAGES))
    assert plain.name == tagged.name
    with pytest.raises(UnknownName, match=r"weights of test_vit 'nope'.*r160_in1k"):
        open_extractor(f"test_vit.nope:{file}")
    asked = []

    def away(registry: object, uri: str, cache: Path) -> Path:
        asked.append(uri)
        raise CheckpointError(
            "the hub cannot be reached (no route): download it and give it with --weights FILE, or so"
        )

    monkeypatch.setattr("zoo.registry.Registry.open_weights", away)
    with pytest.raises(CheckpointError, match=r"^the hub cannot .*no route\): .*--features resnet18\.a2_in1k:FILE$"):
        open_extractor("resnet18.a2_in1k")
    assert asked == ["timm:resnet18.a2_in1k"]


def test_the_recipe_is_that_of_the_tag(tmp_path: Path) -> None:
    """Two weights of one network, trained on differently prepared images."""
    architecture = get_registry().get(Architecture, "mobilenetv4_conv_small")
    other = next(w for w in architecture.weights if w.name == "e3600_r256_in1k")
    assert other.input is not None
    assert other.input.mean != architecture.input.mean
    network, file = weights_of(architecture.name, tmp_path)
    found = open_extractor(f"{architecture.name}.{other.name}:{file}")(IMAGES)
    batch = preprocess_batch(IMAGES, replace(other.input, resize="squash", crop=1.0))
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(torch.from_numpy(batch)), pre_logits=True)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_untrained_weights_would_be_others_each_time() -> None:
    with pytest.raises(CheckpointError, match="`random`"):
        open_extractor("test_resnet:none")
    with pytest.raises(PluginError, match="unet-classic is for task segment"):
        open_extractor("unet-classic")


def test_no_batch_is_kept(checkpoint: Path) -> None:
    extractor = open_extractor(str(checkpoint))
    extractor(IMAGES)
    held = [value for module in extractor._network.modules() for value in vars(module).values()]
    held += [item for value in held if isinstance(value, list) for item in value]
    assert not any(isinstance(value, torch.Tensor) for value in held)


class Given(torch.nn.Module):
    """A network of torchmetrics that is given the features for images."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def by_torchmetrics(made: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """KID over all images, and FID."""
    # torchmetrics.image itself leaves both out where torch-fidelity is absent, whose network is not used here
    kernel, frechet = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("kid", "fid"))
    count, size = real.shape
    metrics = (
        kernel.KernelInceptionDistance(Given(size), subsets=1, subset_size=count),
        frechet.FrechetInceptionDistance(Given(size)),
    )
    for metric in metrics:
        metric.update(torch.from_numpy(made.astype(np.float64)), real=False)
        metric.update(torch.from_numpy(real.astype(np.float64)), real=True)
    return float(metrics[0].compute()[0]), float(metrics[1].compute())


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_distances_are_those_of_torchmetrics(shift: float) -> None:
    rng = np.random.default_rng(0)
    made, real = rng.standard_normal((80, 16)).astype(np.float32) + np.float32(shift), rng.standard_normal((80, 16))
    expected_kid, expected_fid = by_torchmetrics(made, real)
    assert kid(made, real)[0] == pytest.approx(expected_kid, rel=1e-6)
    assert fid(made, real) == pytest.approx(expected_fid, rel=1e-6)


@pytest.mark.assets
def test_real_features_tell_digits_from_clothes(assets: Path) -> None:
    extractor = open_extractor(f"mobilenetv2_100:{assets / 'weights' / 'mobilenetv2_100.imagenet1k.safetensors'}")
    clothes, digits = (
        [np.asarray(read_image(s.image, ImageInput(height=28, width=28))) for s in open_data(assets / name).val[:count]]
        for name, count in (("fashion-mnist", 48), ("mnist", 24))
    )
    features = extractor([*clothes, *digits])
    some, others, far = features[:24], features[24:48], features[48:]
    assert features.shape == (72, 1280)
    expected_kid, expected_fid = by_torchmetrics(far, some)
    assert kid(far, some)[0] == pytest.approx(expected_kid, rel=1e-6)
    assert fid(far, some) == pytest.approx(expected_fid, rel=1e-6)
    near, apart = kid(others, some), kid(far, some)
    assert apart[1] > near[2], "digits are further from clothes than clothes are, intervals and all"
    assert fid(far, some) > 1.5 * fid(others, some), "biased upwards for so few, both"
