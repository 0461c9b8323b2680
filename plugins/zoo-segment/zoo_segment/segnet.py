"""SegNet, whose decoder is told by the encoder where each maximum stood, and its small sister SegNet-Basic.

Reference: V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for
Image Segmentation", IEEE TPAMI 39(12), 2017, https://arxiv.org/abs/1511.00561 (figure 2; section 3.1 for SegNet-Basic).

SegNet's encoder is VGG16 with batch norm in the layout of timm's ``vgg16_bn``, so that its ImageNet weights go in as
the paper has it. Convolutions that batch norm follows have no bias, which it would take away again, except where those
weights bring one. What the paper does to images before (local contrast normalisation) is the input record's business.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from zoo.errors import UnknownName

from .sizes import check_size
from .unpool import FORMULATIONS, Winners

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's thirteen convolutions; a max-pooling ends each stage."""


class VGG16(nn.Module):
    """(N, C, H, W) to (N, 512, H/32, W/32), and the winners of the five poolings from the first to the last."""

    def __init__(self, in_channels: int, pool: type[nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for stage in STAGES:
            for after in stage:
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
                before = after
            layers.append(pool())
        self.features = nn.Sequential(*layers)  # numbered as timm numbers them

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Winners]]:
        found: list[Winners] = []
        for layer in self.features:
            x = layer(x)
            if isinstance(x, tuple):
                x, winners = x
                found.append(winners)
        return x, found


class SegNet(nn.Module):
    """(N, in_channels, H, W) float32, H and W divisible by 32, to logits (N, num_classes, H, W)."""

    def __init__(self, num_classes: int, in_channels: int, unpooling: str = "strided") -> None:
        super().__init__()
        pool, unpool = formulation(unpooling)
        self.encoder = VGG16(in_channels, pool)
        self.unpool = unpool()
        self.decoder5 = normalised(512, 512, 512, 512)
        self.decoder4 = normalised(512, 512, 512, 256)
        self.decoder3 = normalised(256, 256, 256, 128)
        self.decoder2 = normalised(128, 128, 64)
        self.decoder1 = normalised(64, 64)
        self.head = nn.Conv2d(64, num_classes, 3, padding=1)
        self.apply(initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_size(x, 32, "SegNet")
        # (N, in_channels, H, W)
        x, (p1, p2, p3, p4, p5) = self.encoder(x)  # (N, 512, H/32, W/32)
        x = self.decoder5(self.unpool(x, p5))  # (N, 512, H/16, W/16)
        x = self.decoder4(self.unpool(x, p4))  # (N, 256, H/8, W/8)
        x = self.decoder3(self.unpool(x, p3))  # (N, 128, H/4, W/4)
        x = self.decoder2(self.unpool(x, p2))  # (N, 64, H/2, W/2)
        x = self.decoder1(self.unpool(x, p1))  # (N, 64, H, W)
        x = self.head(x)  # (N, num_classes, H, W)
        return x


class SegNetBasic(nn.Module):
    """(N, in_channels, H, W) float32, H and W divisible by 16, to logits (N, num_classes, H, W).

    Four encoders and four decoders of 64 channels and 7 x 7 kernels; no biases, and no ReLU in the decoder. A pixel
    of the deepest map sees 106 x 106 pixels of the image.
    """

    def __init__(self, num_classes: int, in_channels: int, unpooling: str = "strided") -> None:
        super().__init__()
        pool, unpool = formulation(unpooling)
        self.encoder1, self.encoder2, self.encoder3, self.encoder4 = (
            nn.Sequential(
                nn.Conv2d(before, 64, 7, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), pool()
            )
            for before in (in_channels, 64, 64, 64)
        )
        self.unpool = unpool()
        self.decoder4, self.decoder3, self.decoder2, self.decoder1 = (
            nn.Sequential(nn.Conv2d(64, 64, 7, padding=3, bias=False), nn.BatchNorm2d(64)) for _ in range(4)
        )
        self.head = nn.Conv2d(64, num_classes, kernel_size=1)
        self.apply(initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_size(x, 16, "SegNet-Basic")
        # (N, in_channels, H, W)
        x, p1 = self.encoder1(x)  # (N, 64, H/2, W/2)
        x, p2 = self.encoder2(x)  # (N, 64, H/4, W/4)
        x, p3 = self.encoder3(x)  # (N, 64, H/8, W/8)
        x, p4 = self.encoder4(x)  # (N, 64, H/16, W/16)
        x = self.decoder4(self.unpool(x, p4))  # (N, 64, H/8, W/8)
        x = self.decoder3(self.unpool(x, p3))  # (N, 64, H/4, W/4)
        x = self.decoder2(self.unpool(x, p2))  # (N, 64, H/2, W/2)
        x = self.decoder1(self.unpool(x, p1))  # (N, 64, H, W)
        x = self.head(x)  # (N, num_classes, H, W)
        return x


def normalised(*channels: int) -> nn.Sequential:
    """3 x 3 convolutions from each channel count to the next, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """He's Gaussian, as the paper has it: K. He et al. 2015, https://arxiv.org/abs/1502.01852."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def formulation(unpooling: str) -> tuple[type[nn.Module], type[nn.Module]]:
    """The pool and the unpool of that name. Raises UnknownName."""
    if unpooling not in FORMULATIONS:
        raise UnknownName("unpooling", unpooling, FORMULATIONS)
    return FORMULATIONS[unpooling]


def segnet(*, num_classes: int, in_channels: int, unpooling: str = "strided") -> SegNet:
    """SegNet with random weights. ``unpooling``: ``strided`` or ``mask`` (see :mod:`zoo_segment.unpool`)."""
    return SegNet(num_classes, in_channels, unpooling)


def segnet_basic(*, num_classes: int, in_channels: int, unpooling: str = "strided") -> SegNetBasic:
    """SegNet-Basic with random weights. ``unpooling``: ``strided`` or ``mask`` (see :mod:`zoo_segment.unpool`)."""
    return SegNetBasic(num_classes, in_channels, unpooling)
