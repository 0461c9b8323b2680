"""pix2pix: a U-Net that turns one kind of image into another, learnt from pairs against a judge of patches.

Reference: P. Isola, J.-Y. Zhu, T. Zhou, A. A. Efros, "Image-to-Image Translation with Conditional Adversarial Networks",
CVPR 2017, https://arxiv.org/abs/1611.07004 (section 3, appendix 6.1). The paper keeps dropout when images are made, as
its only noise; here dropout is for training alone, so that one image always gives one picture and the exported graph
can be compared with the network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from zoo.errors import ZooError
from zoo.train.adversarial import DiffAugment, accuracy, discriminator_loss, freeze_layers, generator_loss, still
from zoo.train.players import Batch, Players, Rules, Turn

from .norms import InstanceNorm2d

__all__ = ["PatchDiscriminator", "Pix2Pix", "UNetGenerator", "build", "check_multiple", "initialise"]

NORMS = {"batch": nn.BatchNorm2d, "instance": InstanceNorm2d}


class UNetGenerator(nn.Module):
    """(N, in_channels, H, W) in -1..1, H and W divisible by 2^depth, to (N, in_channels, H, W) in 0..1."""

    def __init__(self, in_channels: int = 3, depth: int = 8, width: int = 64, norm: str = "batch") -> None:
        super().__init__()
        self.depth = depth
        widths = [min(width * 2**i, width * 8) for i in range(depth)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, after in enumerate(widths):
            before = widths[level - 1] if level else in_channels
            # neither the image nor the innermost map, which may be one pixel, is normalised
            inner = 0 < level < depth - 1
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=not (inner and norm == "batch")))
            if inner:
                layers.append(NORMS[norm](after))
            self.down.append(nn.Sequential(*layers))
        for level in reversed(range(depth)):
            before = widths[level] * (1 if level == depth - 1 else 2)
            after = widths[level - 1] if level else in_channels
            layers = [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=level == 0 or norm != "batch")]
            if level:
                layers.append(NORMS[norm](after))
            if level and level > depth - 4:
                layers.append(nn.Dropout(0.5))
            self.up.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, 2**self.depth, "the U-Net")
        maps = []
        for down in self.down:
            x = down(x)  # (N, C, H / 2, W / 2)
            maps.append(x)
        x = self.up[0](maps.pop())
        for up in list(self.up)[1:]:
            x = up(torch.cat([x, maps.pop()], dim=1))  # (N, C, H * 2, W * 2)
        return torch.tanh(x) * 0.5 + 0.5


class PatchDiscriminator(nn.Module):
    """(N, in_channels, H, W) in -1..1 to logits (N, 1, H', W'), one a patch: of 70 x 70 pixels with three layers.

    ``layers`` counts the halvings; spectral normalisation takes the place of the norm where ``spectral`` asks for it.
    """

    def __init__(
        self, in_channels: int, width: int = 64, layers: int = 3, norm: str = "batch", spectral: bool = False
    ) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        before = in_channels
        for level in range(layers + 1):
            after = width * min(2**level, 8)
            normed = level > 0 and not spectral
            conv: nn.Module = nn.Conv2d(
                before, after, 4, 2 if level < layers else 1, 1, bias=not (normed and norm == "batch")
            )
            parts: list[nn.Module] = [conv, NORMS[norm](after)] if normed else [conv]
            steps.append(nn.Sequential(*parts, nn.LeakyReLU(0.2)))
            before = after
        steps.append(nn.Conv2d(before, 1, 4, 1, 1))
        self.steps = nn.Sequential(*steps)
        self.apply(initialise)
        if spectral:
            for module in [m for m in self.modules() if isinstance(m, nn.Conv2d)]:
                spectral_norm(module)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.steps(x)
        return logits


class Pix2Pix(Players):
    """The generator and its judge, which sees the input beside the picture."""

    players = ("discriminator", "generator")
    losses = ("lsgan+l1", "original+l1", "hinge+l1", "l1")
    optimizers = {
        "discriminator": {"lr": 2e-4, "betas": (0.5, 0.999)},
        "generator": {"lr": 2e-4, "betas": (0.5, 0.999)},
    }
    schedule = "linear"

    def __init__(self, generator: UNetGenerator, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.decode = {"multiple": 2**generator.depth}

    def takes_turn(self, player: str, step: int, rules: Rules) -> bool:
        return player == "generator" or rules.loss != "l1"

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        target = batch.target
        if target is None:
            raise ZooError("pix2pix learns from pairs: give each image the picture that it should become")
        if "fake" not in shared:
            shared["fake"] = self.generator(batch.input)
        made: Tensor = shared["fake"]
        kind = rules.loss.partition("+")[0]
        augment = DiffAugment(rules.augment)

        def judged(picture: Tensor) -> Tensor:
            # the pair is augmented as one image, so that both halves move together
            seen = augment(torch.cat([batch.input * 0.5 + 0.5, picture], dim=1))
            logits: Tensor = self.discriminator(seen * 2 - 1)
            return logits

        if player == "discriminator":
            freeze_layers(list(self.discriminator.steps), rules.freeze)
            real, fake = judged(target), judged(made.detach())
            # halved, as published, so that the judge learns more slowly than the generator
            loss = 0.5 * discriminator_loss(kind, real, fake)
            return Turn(losses={"adversarial": loss}, figures={"accuracy": accuracy(real, fake, kind)})
        # the paper's pixels lie in -1..1, where a difference is twice as large
        losses = {"l1": rules.weight("l1", 100.0) * 2 * F.l1_loss(made, target)}
        if kind != "l1":
            # section 3.3: the generator of the original loss makes -log D small
            with still(self.discriminator):
                logits = judged(made)
            persuade = generator_loss("non-saturating" if kind == "original" else kind, logits)
            losses["adversarial"] = rules.weight("adversarial", 1.0) * persuade
        return Turn(losses=losses)


def check_multiple(x: Tensor, multiple: int, network: str) -> None:
    """Raises ZooError where H or W of (N, C, H, W) does not divide by ``multiple``; sizes free in an export pass."""
    channels, height, width = x.shape[1:]
    if type(height) is int and type(width) is int and (height % multiple or width % multiple):
        pad = "x".join(str(-(-side // multiple) * multiple) for side in (height, width))
        raise ZooError(
            f"input is {channels}x{height}x{width}; H and W of {network} must divide by {multiple}: pad to {pad}"
        )


def initialise(module: nn.Module) -> None:
    """Gaussian weights of standard deviation 0.02, and gains about 1 (appendix 6.2)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def build(
    *,
    num_classes: int = 0,
    in_channels: int = 3,
    depth: int = 8,
    width: int = 64,
    norm: str = "batch",
    layers: int = 3,
    judge_width: int = 0,
    spectral: bool = False,
) -> Pix2Pix:
    """pix2pix with random weights. Raises ZooError for a norm, a depth or a width that it does not have."""
    if norm not in NORMS:
        raise ZooError(f"norm={norm}: pix2pix has {' or '.join(NORMS)}")
    if depth < 2 or width < 1 or layers < 1:
        raise ZooError(f"depth={depth}, width={width}, layers={layers}: depth is at least 2, the others at least 1")
    generator = UNetGenerator(in_channels, depth, width, norm)
    generator.apply(initialise)
    return Pix2Pix(generator, PatchDiscriminator(2 * in_channels, judge_width or width, layers, norm, spectral))
