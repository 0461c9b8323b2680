"""Adversarial losses against their formulas, and the parts around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.train.adversarial import (
    LOSSES,
    DiffAugment,
    ImagePool,
    accuracy,
    discriminator_loss,
    freeze_layers,
    generator_loss,
    gradient_penalty,
    still,
)

REAL = np.array([[1.5, -0.3], [0.2, 2.5]])
FAKE = np.array([[-2.0, 0.7], [0.4, -0.1]])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


MINIMAX = -np.log(_sigmoid(REAL)).mean() - np.log(1 - _sigmoid(FAKE)).mean()
WANTED = {
    "original": (MINIMAX, np.log(1 - _sigmoid(FAKE)).mean()),
    "non-saturating": (MINIMAX, -np.log(_sigmoid(FAKE)).mean()),
    "lsgan": (((REAL - 1) ** 2).mean() / 2 + (FAKE**2).mean() / 2, ((FAKE - 1) ** 2).mean() / 2),
    "hinge": (np.maximum(0, 1 - REAL).mean() + np.maximum(0, 1 + FAKE).mean(), -FAKE.mean()),
    "wgan-gp": (FAKE.mean() - REAL.mean(), -FAKE.mean()),
}


def test_every_loss_has_a_formula_here() -> None:
    assert set(WANTED) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_formulas(name: str) -> None:
    discriminator, generator = WANTED[name]
    assert float(discriminator_loss(name, torch.tensor(REAL), torch.tensor(FAKE))) == pytest.approx(discriminator)
    assert float(generator_loss(name, torch.tensor(FAKE))) == pytest.approx(generator)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_slopes_stay_finite_at_extreme_logits(name: str) -> None:
    real = torch.tensor([-500.0, 500.0], requires_grad=True)
    fake = torch.tensor([500.0, -500.0], requires_grad=True)
    total = discriminator_loss(name, real, fake) + generator_loss(name, fake)
    total.backward()
    assert torch.isfinite(total)
    assert real.grad is not None
    assert fake.grad is not None
    assert torch.isfinite(torch.cat([real.grad, fake.grad])).all()


def test_an_unknown_loss_is_one_line() -> None:
    for call in (
        lambda: discriminator_loss("wgan", torch.zeros(1), torch.zeros(1)),
        lambda: generator_loss("wgan", torch.zeros(1)),
        lambda: accuracy(torch.zeros(1), torch.zeros(1), "wgan"),
    ):
        with pytest.raises(ZooError, match=r"unknown adversarial loss 'wgan': there are .*wgan-gp"):
            call()


def test_accuracy_counts_by_the_border_of_the_loss() -> None:
    real, fake = torch.tensor([0.7, 0.2, 2.0, -1.0]), torch.tensor([0.4, 0.6, -1.0, -2.0])
    assert float(accuracy(real, fake)) == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert float(accuracy(real, fake, "lsgan")) == pytest.approx((2 / 4 + 3 / 4) / 2)
    moved = accuracy(real + 100, fake + 100, "wgan-gp")  # a critic's zero means nothing
    assert float(moved) == float(accuracy(real, fake, "wgan-gp")) == pytest.approx((3 / 4 + 2 / 4) / 2)


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (5, 7)])
def test_gradient_penalty_of_a_linear_critic(shape: tuple[int, ...]) -> None:
    """Its slope is its weight everywhere: (|w| - 1)^2, with the gradient 2 (|w| - 1) w / |w|."""
    torch.manual_seed(0)
    weight = torch.randn(shape[1:], requires_grad=True)
    penalty = gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), torch.randn(shape), torch.randn(shape))
    norm = weight.detach().norm()
    assert float(penalty) == pytest.approx(float((norm - 1) ** 2), rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * (norm - 1) * weight.detach() / norm)


def test_gradient_penalty_looks_between_the_images() -> None:
    """Of x^2 / 2 the slope is x itself: between 2 and 4 it is 1..3 too steep, each image at a place of its own."""
    torch.manual_seed(0)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square() / 2

    real, fake = torch.full((64, 1), 4.0), torch.full((64, 1), 2.0)
    penalty = gradient_penalty(critic, real, fake)
    (places,) = seen
    assert float(places.min()) >= 2
    assert float(places.max()) <= 4
    assert float(places.std()) > 0.3
    assert float(penalty) == pytest.approx(float((places - 1).square().mean()))


def _images(count: int = 6, channels: int = 3, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "color,translation,cutout"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_changes_each_image_and_lets_gradients_through(policy: str, channels: int) -> None:
    images = _images(channels=channels).requires_grad_()
    torch.manual_seed(0)
    out = DiffAugment(policy)(images)
    torch.manual_seed(0)
    assert torch.equal(out, DiffAugment(policy)(images)), "the same draws give the same images"
    assert not torch.equal(out, DiffAugment(policy)(images)), "other draws give others"
    assert out.shape == images.shape
    assert int((out - images).detach().flatten(1).abs().amax(1).gt(1e-3).sum()) >= 5, (
        "an image of six may stay by chance"
    )
    out.sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().amax(1) > 0).all()


def test_no_policy_is_no_augmentation() -> None:
    images = _images()
    assert not DiffAugment("")
    assert DiffAugment("")(images) is images


def test_translation_moves_by_an_eighth_at_most_and_uncovers_grey() -> None:
    torch.manual_seed(0)
    images = torch.zeros(400, 1, 16, 24)
    images[:, :, 8, 12] = 1
    moved = DiffAugment("translation")(images)
    places = (moved == 1).nonzero()
    assert len(places) == 400, "the point is kept in every image"
    assert set((places[:, 2] - 8).tolist()) == {-2, -1, 0, 1, 2}
    assert set((places[:, 3] - 12).tolist()) == {-3, -2, -1, 0, 1, 2, 3}
    assert set(moved.unique().tolist()) == {0.0, 0.5, 1.0}


def test_cutout_greys_a_square_of_half_the_side() -> None:
    torch.manual_seed(0)
    out = DiffAugment("cutout")(torch.ones(300, 3, 16, 24))
    hole = (out == 0.5).all(dim=1)
    assert set(out.unique().tolist()) == {0.5, 1.0}
    assert int(hole.any(2).sum(1).max()) == 8
    assert int(hole.any(1).sum(1).max()) == 12
    assert torch.equal(hole, hole.any(2)[:, :, None] & hole.any(1)[:, None, :]), "a rectangle"
    assert int(hole.flatten(1).sum(1).min()) >= 4 * 6, "its centre lies in the image"


def test_color_is_brightness_saturation_and_contrast() -> None:
    torch.manual_seed(0)
    images = _images(count=500)
    out = DiffAugment("color")(images)
    grey, made = images.mean(1, keepdim=True), out.mean(1, keepdim=True)
    shift = (out - images).mean(dim=(1, 2, 3))  # saturation and contrast keep the mean
    assert -0.25 <= float(shift.min()) < -0.23
    assert 0.23 < float(shift.max()) <= 0.25
    contrast = made.flatten(1).std(1) / grey.flatten(1).std(1)  # saturation keeps each pixel's mean
    assert 0.5 - 1e-4 <= float(contrast.min()) < 0.52
    assert 1.48 < float(contrast.max()) <= 1.5 + 1e-4
    colour = (out - made).flatten(1).norm(dim=1) / (images - grey).flatten(1).norm(dim=1) / contrast
    assert float(colour.min()) < 0.05
    assert 1.95 < float(colour.max()) <= 2 + 1e-4


def test_an_unknown_policy_is_one_line() -> None:
    with pytest.raises(ZooError, match="unknown differentiable augmentation 'colour': there are color, translation"):
        DiffAugment("translation,colour")


def test_pool_gives_back_new_and_kept_images() -> None:
    torch.manual_seed(0)
    pool = ImagePool(4)
    first = torch.arange(4.0).reshape(4, 1, 1, 1)
    assert torch.equal(pool(first), first), "while it fills, images come back as they are"
    given, put = [], []
    for step in range(200):
        batch = torch.tensor([100.0 + 2 * step, 101.0 + 2 * step]).reshape(2, 1, 1, 1).requires_grad_()
        out = pool(batch)
        assert out.shape == batch.shape
        assert not out.requires_grad
        given += out.flatten().tolist()
        put += batch.flatten().tolist()
    assert 0.4 < np.mean([g == p for g, p in zip(given, put, strict=True)]) < 0.6
    assert set(given) | set(pool.images.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, *put}, "none is lost"
    assert len(given) == len(set(given)), "none is given twice"


def test_pool_is_no_part_of_the_weights() -> None:
    pool = ImagePool(3)
    pool(torch.rand(2, 1, 2, 2))
    assert not pool.state_dict(), "a checkpoint would grow by 39 MB of pictures"


def test_pool_of_none_and_of_another_size() -> None:
    batch = torch.rand(3, 1, 2, 2)
    assert torch.equal(ImagePool(0)(batch), batch)
    pool = ImagePool(2)
    pool(batch)
    larger = torch.rand(1, 1, 4, 4)
    assert torch.equal(pool(larger), larger), "images of another size start it anew"
    with pytest.raises(ZooError, match="image pool of -1"):
        ImagePool(-1)


def test_frozen_layers_keep_their_weights() -> None:
    layers = [nn.Linear(2, 2) for _ in range(3)]
    freeze_layers(layers, 2)
    nn.Sequential(*layers)(torch.ones(1, 2)).sum().backward()
    assert [layer.weight.grad is None for layer in layers] == [True, True, False]
    for count in (3, -1):
        with pytest.raises(ZooError, match=f"{count} frozen layers of a discriminator that has 3.*0 to 2"):
            freeze_layers(layers, count)


def test_still_lets_gradients_through_and_keeps_none() -> None:
    judge = nn.Linear(2, 1)
    judge.bias.requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)
    with still(judge):
        score = judge(x)
    score.sum().backward()
    assert torch.equal(x.grad, judge.weight)
    assert judge.weight.grad is None
    assert judge.weight.requires_grad, "as before"
    assert not judge.bias.requires_grad, "as before"
