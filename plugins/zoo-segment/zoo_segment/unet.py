"""U-Net, the network of biomedical segmentation, written out to be read beside the paper.

Reference: O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015, https://arxiv.org/abs/1505.04597 (figure 1; section 2 counts 23 convolutional layers).

One thing is not as published: the 3 x 3 convolutions are padded, so that the output has the input's size and nothing
is cropped on the way across. The paper says that there is dropout at the end of the contracting path; where and how
much (0.5, on the last two levels) is what the authors' released network has.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .sizes import check_size


class UNet(nn.Module):
    """(N, in_channels, H, W) float32, H and W divisible by 16, to logits (N, num_classes, H, W)."""

    def __init__(self, num_classes: int = 2, in_channels: int = 1) -> None:
        super().__init__()
        self.down1 = two_convolutions(in_channels, 64)
        self.down2 = two_convolutions(64, 128)
        self.down3 = two_convolutions(128, 256)
        self.down4 = two_convolutions(256, 512)
        self.bottom = two_convolutions(512, 1024)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.5)
        self.up4, self.join4 = nn.ConvTranspose2d(1024, 512, 2, stride=2), two_convolutions(1024, 512)
        self.up3, self.join3 = nn.ConvTranspose2d(512, 256, 2, stride=2), two_convolutions(512, 256)
        self.up2, self.join2 = nn.ConvTranspose2d(256, 128, 2, stride=2), two_convolutions(256, 128)
        self.up1, self.join1 = nn.ConvTranspose2d(128, 64, 2, stride=2), two_convolutions(128, 64)
        self.head = nn.Conv2d(64, num_classes, kernel_size=1)
        self.apply(initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_size(x, 16, "U-Net")
        # (N, in_channels, H, W)
        d1 = self.down1(x)  # (N, 64, H, W)
        d2 = self.down2(self.pool(d1))  # (N, 128, H/2, W/2)
        d3 = self.down3(self.pool(d2))  # (N, 256, H/4, W/4)
        d4 = self.dropout(self.down4(self.pool(d3)))  # (N, 512, H/8, W/8)
        x = self.dropout(self.bottom(self.pool(d4)))  # (N, 1024, H/16, W/16)
        x = self.join4(torch.cat([d4, self.up4(x)], dim=1))  # (N, 512, H/8, W/8)
        x = self.join3(torch.cat([d3, self.up3(x)], dim=1))  # (N, 256, H/4, W/4)
        x = self.join2(torch.cat([d2, self.up2(x)], dim=1))  # (N, 128, H/2, W/2)
        x = self.join1(torch.cat([d1, self.up1(x)], dim=1))  # (N, 64, H, W)
        x = self.head(x)  # (N, num_classes, H, W)
        return x


def two_convolutions(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
    )


def initialise(module: nn.Module) -> None:
    """Gaussian weights of standard deviation sqrt(2 / N), N the number of values that one output sees (section 3)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    elif isinstance(module, nn.ConvTranspose2d):
        # kernel and stride are 2, so that one output sees one pixel of each map; no ReLU follows, so 1 and not 2
        nn.init.normal_(module.weight, std=math.sqrt(1 / module.in_channels))
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def build(*, num_classes: int, in_channels: int) -> UNet:
    """U-Net with random weights for ``num_classes`` classes and images of ``in_channels`` channels."""
    return UNet(num_classes, in_channels)
