"""DCGAN, the network that draws images out of noise, with the discriminators and losses that came after it, written out.

References: A. Radford, L. Metz, S. Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", ICLR 2016, https://arxiv.org/abs/1511.06434; T. Miyato et al., "Spectral Normalization for
Generative Adversarial Networks", ICLR 2018, https://arxiv.org/abs/1802.05957; T. Miyato, M. Koyama, "cGANs with
Projection Discriminator", ICLR 2018, https://arxiv.org/abs/1802.05637.

The generator is the paper's. The discriminator is too with ``spectral=False``; as built it has spectral normalisation in
the place of batch normalisation, which is steadier. The paper's images are 64 x 64 (``size=64, width=64``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from zoo.errors import ZooError
from zoo.train.adversarial import (
    LOSSES,
    DiffAugment,
    accuracy,
    discriminator_loss,
    freeze_layers,
    generator_loss,
    gradient_penalty,
    still,
)
from zoo.train.players import Batch, Players, Rules, Turn

CRITIC_STEPS = 5
"""Of WGAN-GP, for one of the generator (Gulrajani et al. 2017, arXiv:1704.00028)."""
PENALTY = 10.0
MOST = 8
"""Layers are at most so many times ``width`` wide, however many there are."""


class Generator(nn.Module):
    """(N, latents + num_classes, 1, 1) to images (N, C, H, W) in 0..1. The last ``num_classes`` values are one-hot."""

    def __init__(self, latents: int, num_classes: int, image: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.latents = latents
        channels, height, width_px = image
        steps = _doublings(min(height, width_px))
        start = (height >> steps, width_px >> steps)  # 4 x 4 where the image is square
        wide = [width * min(MOST, 2**i) for i in reversed(range(steps))]
        if num_classes:
            # as many values as there are latents, and as large: the classes are heard from the first step on
            self.classes = nn.Conv2d(num_classes, latents, kernel_size=1, bias=False)
            nn.init.normal_(self.classes.weight)
        self.project = _block(nn.ConvTranspose2d(latents * (2 if num_classes else 1), wide[0], start, bias=False))
        self.grow = nn.Sequential(
            *(
                _block(nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1, bias=False))
                for before, after in itertools.pairwise(wide)
            )
        )
        self.paint = _drawn(nn.ConvTranspose2d(wide[-1], channels, kernel_size=4, stride=2, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        # (N, Z + K, 1, 1)
        if hasattr(self, "classes"):
            noise, label = x[:, : self.latents], x[:, self.latents :]
            x = torch.cat([noise, self.classes(label)], dim=1)  # (N, 2 Z, 1, 1)
        x = self.project(x)  # (N, width * 2^(steps-1), 4, 4)
        x = self.grow(x)  # (N, width, H/2, W/2)
        x = torch.tanh(self.paint(x))  # (N, C, H, W) in -1..1
        return x * 0.5 + 0.5


class Discriminator(nn.Module):
    """Images (N, C, H, W) in 0..1, and their classes (N,) where it is told any, to logits (N,): large is real."""

    def __init__(
        self, num_classes: int, image: tuple[int, int, int], width: int, *, spectral: bool, batch_norm: bool
    ) -> None:
        super().__init__()
        channels, height, width_px = image
        steps = _doublings(min(height, width_px))
        wide = [channels, *(width * min(MOST, 2**i) for i in range(steps))]
        layers = []
        for i, (before, after) in enumerate(itertools.pairwise(wide)):
            norm = batch_norm and i > 0  # the paper: not in the layer that sees the image
            conv = _drawn(nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1, bias=not norm))
            parts: list[nn.Module] = [spectral_norm(conv) if spectral else conv]
            if norm:
                parts.append(_norm(after))
            layers.append(nn.Sequential(*parts, nn.LeakyReLU(0.2)))
        self.layers = nn.ModuleList(layers)
        score = _drawn(nn.Conv2d(wide[-1], 1, kernel_size=(height >> steps, width_px >> steps)))
        self.score = spectral_norm(score) if spectral else score
        if num_classes:
            classes = _drawn(nn.Linear(wide[-1], num_classes, bias=False))
            self.classes = spectral_norm(classes) if spectral else classes

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = images * 2 - 1  # (N, C, H, W) in -1..1
        for layer in self.layers:
            x = layer(x)  # (N, width * 2^i, H / 2^(i+1), W / 2^(i+1))
        logits: Tensor = self.score(x).flatten()  # (N,)
        if labels is not None:
            # the projection: the class's row times the features, summed over the image
            fits = self.classes(x.sum(dim=(2, 3)))  # (N, K)
            logits = logits + fits.gather(1, labels[:, None]).flatten()
        return logits


class DCGAN(Players):
    """The generator and its discriminator. Conditional where ``num_classes`` is not 0."""

    players = ("discriminator", "generator")
    losses = LOSSES
    optimizers: Mapping[str, Mapping[str, Any]] = {
        "discriminator": {"lr": 2e-4, "betas": (0.5, 0.999)},
        "generator": {"lr": 2e-4, "betas": (0.5, 0.999)},
    }
    ema = 0.999

    def __init__(
        self,
        latents: int,
        num_classes: int,
        image: tuple[int, int, int],
        width: int,
        *,
        spectral: bool,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.image_shape = image
        self.num_classes = num_classes
        self.generator = Generator(latents, num_classes, image, width)
        self.discriminator = Discriminator(num_classes, image, width, spectral=spectral, batch_norm=batch_norm)
        self.batch_norm = batch_norm

    def adam(self, player: str, loss: str) -> Mapping[str, Any]:
        """WGAN-GP has its own (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1): its critic does without momentum."""
        return {"lr": 1e-4, "betas": (0.0, 0.9)} if loss == "wgan-gp" else self.optimizers[player]

    def takes_turn(self, player: str, step: int, rules: Rules) -> bool:
        """WGAN-GP's critic moves five times before its generator moves once; all others move in turn."""
        return player == "discriminator" or rules.loss != "wgan-gp" or step % CRITIC_STEPS == CRITIC_STEPS - 1

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        """One turn. Terms: ``adversarial``, and of WGAN-GP's critic ``penalty``. Figures of the discriminator:
        ``accuracy``, and ``real`` and ``fake``, its mean logits; of the generator ``fake``.

        Raises ZooError: a loss that is not among :attr:`losses`, more frozen layers than there are, no classes for a
        conditional network, the gradient penalty with batch normalisation.
        """
        if self.num_classes and batch.labels is None:
            raise ZooError(
                f"this network is told {self.num_classes} classes, but the images have none: take a data set with "
                "classes (a folder for each), or the network without"
            )
        # what it sees may be augmented; the made images are of the same classes as the real ones
        augment = DiffAugment(rules.augment)
        labels = batch.labels if self.num_classes else None
        if player == "generator":
            return self._draw(batch, rules, shared, augment, labels)
        return self._judge(batch, rules, shared, augment, labels)

    def _judge(
        self, batch: Batch, rules: Rules, shared: dict[str, Any], augment: DiffAugment, labels: Tensor | None
    ) -> Turn:
        assert batch.target is not None, "a discriminator learns from real images"
        freeze_layers([*self.discriminator.layers, self.discriminator.score], rules.freeze)
        if "fake" not in shared:
            # with its graph: the generator, whose turn is next and whose weights are still the same, need not draw again
            shared["fake"] = self.generator(batch.input)
        seen, made = augment(batch.target), augment(shared["fake"].detach())
        # apart, as DCGAN has it: batch norm would tell the discriminator about the mixture
        real, fake = self.discriminator(seen, labels), self.discriminator(made, labels)
        losses = {
            "adversarial": discriminator_loss(rules.loss, real, fake) * rules.weight("adversarial", 1.0),
        }
        if rules.loss == "wgan-gp":
            if self.batch_norm:
                raise ZooError(
                    "the loss wgan-gp asks how a score changes with one image, and batch norm mixes the images: "
                    "build the network with spectral=true or batch_norm=false"
                )
            penalty = gradient_penalty(lambda x: self.discriminator(x, labels), seen, made)
            losses["penalty"] = penalty * rules.weight("penalty", PENALTY)
        figures = {
            "accuracy": accuracy(real, fake, rules.loss),
            "real": real.detach().mean(),
            "fake": fake.detach().mean(),
        }
        return Turn(losses=losses, figures=figures)

    def _draw(
        self, batch: Batch, rules: Rules, shared: dict[str, Any], augment: DiffAugment, labels: Tensor | None
    ) -> Turn:
        images = shared.pop("fake", None)
        if images is None or not images.requires_grad:
            images = self.generator(batch.input)
        with still(self.discriminator):
            fake = self.discriminator(augment(images), labels)
        shared["fake"] = images.detach()
        loss = generator_loss(rules.loss, fake) * rules.weight("adversarial", 1.0)
        return Turn(losses={"adversarial": loss}, figures={"fake": fake.detach().mean()})


def build(
    *,
    num_classes: int,
    in_channels: int,
    size: int | tuple[int, int] = 32,
    image_channels: int = 3,
    width: int = 64,
    spectral: bool = True,
    batch_norm: bool | None = None,
) -> DCGAN:
    """DCGAN with the paper's random weights, for ``in_channels`` latents and, where it is not 0, ``num_classes`` classes.

    ``size``: height and width of the images, or the side of square ones: each 8, 16, 32, 64, … ``image_channels``: 1 or 3,
    or any number of bands. ``width``: channels of the layers next to the image. ``spectral``: spectral normalisation of
    the discriminator. ``batch_norm``: batch normalisation of the discriminator; None: where it has not the other.

    Raises ZooError: a size that doubling 4 pixels does not reach, no latents, channels or width.
    """
    height, across = (size, size) if isinstance(size, int) else tuple(size)
    for side in (height, across):
        _doublings(side)
    for name, value in (("latents", in_channels), ("image_channels", image_channels), ("width", width)):
        if value < 1:
            raise ZooError(f"{name} is {value}: it must be 1 or more")
    if batch_norm is None:
        batch_norm = not spectral
    image = (image_channels, height, across)
    return DCGAN(in_channels, num_classes, image, width, spectral=spectral, batch_norm=batch_norm)


def _doublings(side: int) -> int:
    """How often 4 pixels are doubled to give ``side``. Raises ZooError where they never do."""
    steps = max(1, round(math.log2(side / 4))) if side > 0 else 1
    if side != 4 << steps:
        raise ZooError(
            f"size is {side}: DCGAN doubles 4 pixels until the image is there, so a side is 8, 16, 32, 64, …: "
            f"take {4 << steps}"
        )
    return steps


def _drawn(layer: Any) -> Any:
    """The layer with weights from the paper's normal(0, 0.02)."""
    nn.init.normal_(layer.weight, 0.0, 0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    return norm


def _block(layer: nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(_drawn(layer), _norm(layer.out_channels), nn.ReLU())
