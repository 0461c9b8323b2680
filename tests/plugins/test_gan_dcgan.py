"""DCGAN: its shapes, its two players and their turns, and the generator as it is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.specs import ImageInput
from zoo.train.adversarial import LOSSES
from zoo.train.match import Match, Validation
from zoo.train.players import Batch, Rules, Turn

dcgan = pytest.importorskip("zoo_gan.dcgan")

Z = 12


def _net(classes: int = 0, **options: Any) -> Any:
    torch.manual_seed(0)
    return dcgan.build(num_classes=classes, in_channels=Z, **{"size": 16, "image_channels": 1, "width": 8, **options})


def _latents(labels: Tensor, classes: int) -> Tensor:
    noise = torch.randn(len(labels), Z, 1, 1)
    return torch.cat([noise, nn.functional.one_hot(labels, classes).float()[:, :, None, None]], 1) if classes else noise


def _batch(net: Any, count: int = 8) -> Batch:
    labels = torch.arange(count) % max(net.num_classes, 1)
    bright = (0.2 + 0.6 * (labels % 2))[:, None, None, None]
    target = bright.expand(count, *net.image_shape).clone()
    target[..., : net.image_shape[2] // 2] *= 0.5
    return Batch(input=_latents(labels, net.num_classes), target=target, labels=labels if net.num_classes else None)


def _total(turn: Turn) -> Tensor:
    return torch.stack(list(turn.losses.values())).sum()


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8)), (32, (32, 32)), ((16, 32), (16, 32))])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(classes: int, size: Any, shape: tuple[int, int], channels: int) -> None:
    net = _net(classes, size=size, image_channels=channels)
    batch = _batch(net, 3)
    made = net(batch.input)
    assert net.image_shape == (channels, *shape)
    assert made.shape == (3, channels, *shape)
    assert 0 <= float(made.detach().min()) <= float(made.detach().max()) <= 1
    assert net.discriminator(made, batch.labels).shape == (3,)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_reach_the_moving_player_and_no_other(loss: str, spectral: bool, classes: int) -> None:
    net = _net(classes, spectral=spectral, batch_norm=False if loss == "wgan-gp" else None)
    batch, shared = _batch(net), {}  # type: ignore[var-annotated]
    for player in net.players:
        net.zero_grad()
        turn = net.play(player, batch, Rules(loss=loss, augment="color,translation,cutout"), shared)
        _total(turn).backward()
        reached = {name for name, p in net.named_parameters() if p.grad is not None}
        wanted = {name for name, _ in net.named_parameters() if name.startswith(player)}
        if loss == "wgan-gp":  # neither the penalty nor a difference of scores knows what is added to both alike
            assert wanted - reached <= {"discriminator.score.bias"}
            wanted &= reached
        assert reached == wanted
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("player", ["discriminator", "generator"])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_player_gets_better_while_the_other_stands_still(loss: str, player: str) -> None:
    net = _net(spectral=loss != "lsgan")
    batch = _batch(net)
    optimiser = torch.optim.Adam(net.get_submodule(player).parameters(), lr=2e-3, betas=(0.5, 0.999))
    seen = []
    for _ in range(25):
        turn = net.play(player, batch, Rules(loss=loss), {})
        total = _total(turn)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        seen.append(float(total.detach()))
    assert np.mean(seen[-3:]) < np.mean(seen[:3]) - 0.02, seen
    if player == "discriminator":
        assert set(turn.figures) == {"accuracy", "real", "fake"}
        assert float(turn.figures["accuracy"]) == 1.0
        assert float(turn.figures["real"]) > float(turn.figures["fake"])


def test_the_generator_draws_once_a_step() -> None:
    net = _net()
    calls = []
    net.generator.register_forward_hook(lambda *_: calls.append(1))
    shared: dict[str, Any] = {}
    for player in net.players:
        net.play(player, _batch(net), Rules(loss="hinge"), shared)
    assert len(calls) == 1
    assert not shared["fake"].requires_grad


def test_turns() -> None:
    net = _net()
    for loss, wanted in (("hinge", list(range(10))), ("wgan-gp", [4, 9])):
        rules = Rules(loss=loss)
        assert [s for s in range(10) if net.takes_turn("generator", s, rules)] == wanted
        assert all(net.takes_turn("discriminator", s, rules) for s in range(10))


@pytest.mark.parametrize(("loss", "lr", "betas"), [("hinge", 2e-4, (0.5, 0.999)), ("wgan-gp", 1e-4, (0.0, 0.9))])
def test_a_loss_has_its_own_optimiser(loss: str, lr: float, betas: tuple[float, float]) -> None:
    match = Match(
        _net(), rules=Rules(loss=loss), lr=None, steps=1, ema=0.0, seed=0, channels_last=False,
        validate=lambda generator: Validation(metric=0.0),
    )  # fmt: skip
    groups = [optimizer.param_groups[0] for optimizer in match.configure_optimizers()]
    assert [(group["lr"], group["betas"]) for group in groups] == [(lr, betas)] * 2


def test_classes_reach_both_players() -> None:
    net = _net(4).eval()
    noise = _latents(torch.tensor([0]), 0)
    one, two = (torch.cat([noise, torch.eye(4)[k].reshape(1, 4, 1, 1)], 1) for k in (0, 1))
    assert float((net(one) - net(two)).detach().abs().max()) > 1e-3
    image = torch.rand(1, 1, 16, 16)
    assert not torch.equal(net.discriminator(image, torch.tensor([0])), net.discriminator(image, torch.tensor([1])))
    few, many = _net(3).state_dict(), _net(7).state_dict()
    assert few.keys() == many.keys()
    differing = {k for k in few if few[k].shape != many[k].shape}
    assert differing
    assert all(k.startswith(("generator.classes.", "discriminator.classes.")) for k in differing)


def test_frozen_layers_stay_as_they_are() -> None:
    net = _net()
    _total(net.play("discriminator", _batch(net), Rules(loss="hinge", freeze=1), {})).backward()
    assert all(p.grad is None for p in net.discriminator.layers[0].parameters())
    assert all(p.grad is not None for p in net.discriminator.layers[1].parameters())


def test_spectral_normalisation_is_saved_and_bounds_the_layers(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    net = _net(3)
    for _ in range(20):  # each pass is one step of the power iteration
        net.discriminator(torch.rand(2, 1, 16, 16), torch.tensor([0, 1]))
    net.eval()
    for layer in (net.discriminator.layers[1][0], net.discriminator.score, net.discriminator.classes):
        norm = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2))
        assert norm == pytest.approx(1, abs=0.05)
    safetensors.save_model(net, tmp_path / "w.safetensors")
    other = _net(3, width=8)
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(safetensors.load_file(tmp_path / "w.safetensors"))
    image, label = torch.rand(2, 1, 16, 16), torch.tensor([0, 2])
    assert torch.equal(net.discriminator(image, label), other.eval().discriminator(image, label))


@pytest.mark.parametrize(("size", "cure"), [(28, 32), (48, 64), (4, 8), (100, 128), (0, 8), (-3, 8)])
def test_a_size_that_doubling_does_not_reach(size: int, cure: int) -> None:
    with pytest.raises(ZooError, match=f"size is {size}: .*: take {cure}$"):
        _net(size=size)


def test_refusals() -> None:
    with pytest.raises(ZooError, match="width is 0"):
        _net(width=0)
    with pytest.raises(ZooError, match="told 3 classes, but the images have none"):
        net = _net(3)
        net.play("generator", Batch(input=_latents(torch.tensor([0, 1]), 3)), Rules(loss="hinge"), {})
    with pytest.raises(ZooError, match="batch norm mixes the images: build the network with"):
        _net(spectral=False).play("discriminator", _batch(_net()), Rules(loss="wgan-gp"), {})
    with pytest.raises(ZooError, match="unknown adversarial loss"):
        _net().play("discriminator", _batch(_net()), Rules(loss="l1"), {})


@pytest.mark.parametrize("classes", [0, 3])
def test_the_generator_in_onnx_runtime(classes: int, tmp_path: Path) -> None:
    onnx_export, ort = pytest.importorskip("zoo_export.onnx_export"), pytest.importorskip("onnxruntime")
    net = _net(classes)
    for _ in range(3):  # running statistics that are not those of a fresh network
        net(_batch(net).input)
    net.eval()
    model, _ = onnx_export.to_model(net.generator, ImageInput.latent(Z + classes), ("made",))
    kinds = {node.op_type for node in model.graph.node}
    assert kinds <= {"ConvTranspose", "BatchNormalization", "Relu", "Tanh", "Mul", "Add", "Slice", "Conv", "Concat"}
    session = ort.InferenceSession(model.SerializeToString())
    for count in (1, 5):
        latents = _batch(net, count).input
        (made,) = session.run(["made"], {"image": latents.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(made, net(latents).numpy(), atol=2e-6)
