"""CycleGAN: from one kind of image to another and back, learnt from two heaps of images without pairs.

Reference: J.-Y. Zhu, T. Park, P. Isola, A. A. Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent
Adversarial Networks", ICCV 2017, https://arxiv.org/abs/1703.10593 (section 4, appendix 7). The decoder's transposed
convolutions are as published; instance norms have no gain or shift of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.train.adversarial import (
    DiffAugment,
    ImagePool,
    accuracy,
    discriminator_loss,
    freeze_layers,
    generator_loss,
    still,
)
from zoo.train.players import Batch, Players, Rules, Turn

from .norms import InstanceNorm2d
from .pix2pix import PatchDiscriminator, check_multiple, initialise

__all__ = ["CycleGAN", "ResNetGenerator", "build"]


class Residual(nn.Module):
    """(N, W, H, W') to the same: two 3x3 convolutions with reflected borders beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            InstanceNorm2d(width),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.steps(x)
        return x + y


class ResNetGenerator(nn.Module):
    """(N, in_channels, H, W) in -1..1, H and W divisible by 4 and at least 8, to (N, in_channels, H, W) in 0..1."""

    def __init__(self, in_channels: int = 3, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        steps: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(in_channels, width, 7)]
        steps += [InstanceNorm2d(width), nn.ReLU()]
        for before in (width, 2 * width):
            steps += [nn.Conv2d(before, 2 * before, 3, 2, 1), InstanceNorm2d(2 * before), nn.ReLU()]
        steps += [Residual(4 * width) for _ in range(blocks)]
        for after in (2 * width, width):
            steps.append(nn.ConvTranspose2d(2 * after, after, 3, 2, 1, output_padding=1))
            steps += [InstanceNorm2d(after), nn.ReLU()]
        steps += [nn.ReflectionPad2d(3), nn.Conv2d(width, in_channels, 7)]
        self.steps = nn.Sequential(*steps)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, 4, "CycleGAN")
        return torch.tanh(self.steps(x)) * 0.5 + 0.5


class CycleGAN(Players):
    """Two generators, ``generator`` from A to B and ``backward_generator`` from B to A, and a judge of each kind.

    The batch's target is images of B in 0..1 that have nothing to do with the input's.
    """

    players = ("generators", "discriminators")
    losses = ("lsgan", "original", "hinge")
    optimizers = {
        "generators": {"lr": 2e-4, "betas": (0.5, 0.999)},
        "discriminators": {"lr": 2e-4, "betas": (0.5, 0.999)},
    }
    schedule = "linear"
    unpaired = True

    def __init__(self, in_channels: int, width: int, blocks: int, judge_width: int, layers: int, pool: int) -> None:
        super().__init__()
        self.generator = ResNetGenerator(in_channels, width, blocks)
        self.backward_generator = ResNetGenerator(in_channels, width, blocks)
        self.discriminator_a = PatchDiscriminator(in_channels, judge_width, layers, "instance")
        self.discriminator_b = PatchDiscriminator(in_channels, judge_width, layers, "instance")
        self.pool_a, self.pool_b = ImagePool(pool), ImagePool(pool)
        self.decode = {"multiple": 4}

    def parts(self, player: str) -> list[nn.Module]:
        if player == "generators":
            return [self.generator, self.backward_generator]
        return [self.discriminator_a, self.discriminator_b]

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        if batch.target is None:
            raise ZooError("CycleGAN learns from two kinds of images: give it a folder of the other kind too")
        a, b = batch.input, batch.target * 2 - 1  # both as the generators take them, in -1..1
        if player == "generators":
            return self._translate(a, b, rules, shared)
        return self._judge(a, b, rules, shared)

    def _translate(self, a: Tensor, b: Tensor, rules: Rules, shared: dict[str, Any]) -> Turn:
        made_b = self.generator(a) * 2 - 1
        made_a = self.backward_generator(b) * 2 - 1
        shared["made_a"], shared["made_b"] = made_a.detach(), made_b.detach()
        shared["fake"] = made_b.detach() * 0.5 + 0.5
        back_a = self.backward_generator(made_b) * 2 - 1
        back_b = self.generator(made_a) * 2 - 1
        persuade = "non-saturating" if rules.loss == "original" else rules.loss
        augment = DiffAugment(rules.augment)
        with still(self.discriminator_a, self.discriminator_b):
            told_a = self.discriminator_a(_seen(made_a, augment))
            told_b = self.discriminator_b(_seen(made_b, augment))
        told = generator_loss(persuade, told_a) + generator_loss(persuade, told_b)
        losses = {
            "adversarial": rules.weight("adversarial", 1.0) * told,
            "cycle": rules.weight("cycle", 10.0) * (F.l1_loss(back_a, a) + F.l1_loss(back_b, b)),
        }
        identity = rules.weight("identity", 5.0)
        if identity:
            same_b = F.l1_loss(self.generator(b) * 2 - 1, b)
            same_a = F.l1_loss(self.backward_generator(a) * 2 - 1, a)
            losses["identity"] = identity * (same_a + same_b)
        return Turn(losses=losses)

    def _judge(self, a: Tensor, b: Tensor, rules: Rules, shared: dict[str, Any]) -> Turn:
        if "made_a" not in shared:
            with torch.no_grad():
                shared["made_a"] = self.backward_generator(b) * 2 - 1
                shared["made_b"] = self.generator(a) * 2 - 1
        augment = DiffAugment(rules.augment)
        losses, right = {}, []
        for kind, judge, pool, real, made in (
            ("a", self.discriminator_a, self.pool_a, a, shared["made_a"]),
            ("b", self.discriminator_b, self.pool_b, b, shared["made_b"]),
        ):
            freeze_layers(list(judge.steps), rules.freeze)
            of_real, of_made = judge(_seen(real, augment)), judge(_seen(pool(made), augment))
            losses[f"adversarial_{kind}"] = 0.5 * discriminator_loss(rules.loss, of_real, of_made)
            right.append(accuracy(of_real, of_made, rules.loss))
        return Turn(losses=losses, figures={"accuracy": torch.stack(right).mean()})


def _seen(images: Tensor, augment: DiffAugment) -> Tensor:
    """Images in -1..1, augmented as shares of white are, in -1..1."""
    return augment(images * 0.5 + 0.5) * 2 - 1 if augment else images


def build(
    *,
    num_classes: int = 0,
    in_channels: int = 3,
    width: int = 64,
    blocks: int = 9,
    judge_width: int = 0,
    layers: int = 3,
    pool: int = 50,
) -> CycleGAN:
    """CycleGAN with random weights. Raises ZooError for counts that it cannot have."""
    if min(width, blocks, layers) < 1:
        raise ZooError(f"width={width}, blocks={blocks}, layers={layers}: each is at least 1")
    return CycleGAN(in_channels, width, blocks, judge_width or width, layers, pool)
