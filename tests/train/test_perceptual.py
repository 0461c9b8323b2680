"""Perceptual losses: against what the backbone itself says, and what is no backbone, no weights, or no image for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("zoo_timm")

from torch import Tensor

from zoo.errors import CheckpointError, UnknownName, ZooError
from zoo.train.perceptual import Perceptual

IMAGES = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
OTHERS = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))


def state(name: str) -> dict[str, Tensor]:
    """Of a whole classifier, as its file has it."""
    torch.manual_seed(3)
    found: dict[str, Tensor] = timm.create_model(name, num_classes=5).state_dict()
    return found


def saved(tmp_path: Path, content: Any) -> str:
    torch.save(content, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def test_the_distances_are_those_of_the_backbones_features(tmp_path: Path) -> None:
    """Written out for the classifier itself, by timm's own way to its features."""
    tensors = state("test_resnet")
    loss = Perceptual("test_resnet", saved(tmp_path, tensors))
    with torch.no_grad():
        plain = loss(IMAGES, OTHERS)
    loss.set_style(OTHERS[:1])
    network = timm.create_model("test_resnet", num_classes=5).eval()
    network.load_state_dict(tensors)

    def seen(images: Tensor) -> list[Tensor]:
        mean, std = (torch.tensor(network.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        found: list[Tensor] = network.forward_intermediates((images - mean) / std, intermediates_only=True)
        return found

    def gram(x: Tensor) -> Tensor:
        return torch.einsum("ncij,ndij->ncd", x, x) / (x.shape[2] * x.shape[3])

    with torch.no_grad():
        ours, theirs, style = seen(IMAGES), seen(OTHERS), seen(OTHERS[:1])
        found = loss(IMAGES, OTHERS)
    assert len(ours) == 5
    manner = [(gram(a) - gram(b)).square().mean() / gram(b).square().mean() for a, b in zip(ours, style, strict=True)][
        :4
    ]
    for content, at in ((float(plain["content"]), 2), (float(found["content"]), 1)):
        wanted = (ours[at] - theirs[at]).square().mean() / theirs[at].square().mean()
        assert content == pytest.approx(float(wanted), rel=1e-4)
    assert float(found["style"]) == pytest.approx(float(torch.stack(manner).mean()), rel=1e-4)


@pytest.mark.parametrize(("name", "side"), [("test_mambaout", 96), ("swin_tiny_patch4_window7_224", 224)])
def test_the_channels_of_a_backbone_that_keeps_them_last_stay_channels(name: str, side: int) -> None:
    loss = Perceptual(name, "random")
    made, wanted = (torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    loss.set_style(wanted)
    with torch.no_grad():
        last = [loss.backbone((x - loss.mean) / loss.std) for x in (made, wanted)]
        found = loss(made, wanted)
    assert last[0][0].shape[3] == loss.backbone.feature_info.channels()[0], "else the test is of no use"
    grams = [[torch.einsum("nijc,nijd->ncd", x, x) / (x.shape[1] * x.shape[2]) for x in xs] for xs in last]
    parts = [(a - b).square().mean() / b.square().mean() for a, b in zip(*grams, strict=True)][:4]
    assert float(found["style"]) == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("wrapped", ["plain", "module.", "state_dict"])
def test_weights_come_out_of_what_training_wraps_them_in(name: str, wrapped: str, tmp_path: Path) -> None:
    tensors = state(name)
    content: Any = {f"module.{k}": v for k, v in tensors.items()} if wrapped == "module." else tensors
    loss = Perceptual(
        name, saved(tmp_path, {"state_dict": content, "epoch": 3} if wrapped == "state_dict" else content)
    )
    kept = loss.backbone.state_dict()
    assert len(kept) > 10
    for key, value in kept.items():
        assert value.equal(tensors[key.removeprefix("model.")]), key
    assert not any(p.requires_grad for p in loss.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_refused_by_the_name_of_the_tensor(value: float, tmp_path: Path) -> None:
    tensors = state("test_resnet")
    tensors["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight holds NaN or infinity"):
        Perceptual("test_resnet", saved(tmp_path, tensors))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights.pth does not fit .*missing"):
        Perceptual("test_resnet", saved(tmp_path, state("test_vit")))
    tensors = state("test_resnet")
    tensors["layer1.0.conv1.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight is 3x3, not"):
        Perceptual("test_resnet", saved(tmp_path, tensors))


def test_images_that_a_backbone_does_not_take_get_one_line() -> None:
    loss = Perceptual("vgg11", "random")
    with pytest.raises(ZooError, match=r"vgg11 cannot see images of 16x16 pixels.*--patch"):
        loss(IMAGES[:, :, :16, :16], OTHERS[:, :, :16, :16])
    with pytest.raises(ZooError, match="images of 4 channels: a perceptual loss compares 1 or 3"):
        loss(torch.rand(1, 4, 32, 32), torch.rand(1, 4, 32, 32))
    with pytest.raises(ZooError, match="images of 4 channels"):
        loss.set_style(torch.rand(1, 4, 32, 32))
    fixed = Perceptual("vit_tiny_patch16_224", "random")
    with pytest.raises(ZooError, match=r"vit_tiny_patch16_224 cannot see images of 96x64 pixels .*it takes 224x224"):
        fixed(IMAGES[:, :, :64, :96], OTHERS[:, :, :64, :96])
    grey = IMAGES[:, :1]
    assert float(Perceptual("test_resnet", "random")(grey, grey)["content"]) == 0


def test_only_an_unknown_name_is_called_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="did you mean vgg16"):
        Perceptual("vgg166", "random")
    with pytest.raises(UnknownName, match=r"weights of test_resnet 'nope'.*r160_in1k"):
        Perceptual("test_resnet.nope", "random")

    def refuse(name: str, **options: object) -> None:
        raise RuntimeError("features_only not implemented for this network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ZooError, match=r"vgg16 .*not implemented.*--perceptual") as caught:
        Perceptual("vgg16", "random")
    assert not isinstance(caught.value, UnknownName)


def test_a_name_may_carry_the_tag_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagged = Perceptual("test_resnet.r160_in1k", saved(tmp_path, state("test_resnet")))
    plain = Perceptual("test_resnet", saved(tmp_path, state("test_resnet")))
    assert tagged(IMAGES, OTHERS)["content"] == plain(IMAGES, OTHERS)["content"]
    asked = []

    def answer(registry: object, uri: str, cache: Path) -> Path:
        asked.append(uri)
        return tmp_path / "weights.pth"

    monkeypatch.setattr("zoo.registry.Registry.open_weights", answer)
    Perceptual("resnet18.a1_in1k", "random")
    assert asked == []
    Perceptual("test_resnet.r160_in1k")
    assert asked == ["timm:test_resnet.r160_in1k"]


def test_offline_the_cure_is_this_options_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(registry: object, uri: str, cache: Path) -> Path:
        raise CheckpointError(
            "the hub cannot be reached (no route): download it and give it with --weights FILE, or so"
        )

    monkeypatch.setattr("zoo.registry.Registry.open_weights", away)
    with pytest.raises(
        CheckpointError, match=r"^the hub cannot be reached \(no route\): .*--perceptual vgg11:FILE"
    ) as caught:
        Perceptual("vgg11")
    assert "--weights" not in str(caught.value)


def test_everything_is_seen_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of features overflow half precision."""
    loss = Perceptual("test_resnet", "random")
    loss.set_style(OTHERS[:1])
    whole = loss(IMAGES, OTHERS)
    with torch.autocast("cpu", torch.bfloat16):
        loss.set_style(OTHERS[:1])
        found = loss(IMAGES, OTHERS)
    assert {key: float(value) for key, value in found.items()} == {key: float(value) for key, value in whole.items()}
