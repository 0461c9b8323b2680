"""A small network of depthwise separable convolutions (Howard et al. 2017, https://arxiv.org/abs/1704.04861)."""

import torch
from torch import nn


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),  # each channel by itself
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),  # each pixel by itself
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class PebbleNet(nn.Module):
    """(N, in_channels, H, W) float32 to logits (N, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(separable(width, 2 * width, 2), separable(2 * width, 4 * width, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)  # (N, width, H/2, W/2)
        x = self.blocks(x)  # (N, 4 width, H/8, W/8)
        x = self.pool(x).flatten(1)  # (N, 4 width)
        return self.head(x)  # (N, num_classes)


def build(*, num_classes: int, in_channels: int, width: int = 16) -> PebbleNet:
    """The network with random weights; ``width`` is the channel count of the first layer."""
    return PebbleNet(num_classes, in_channels, width)
