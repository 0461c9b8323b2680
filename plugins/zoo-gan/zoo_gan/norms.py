"""Instance normalisation as every runtime computes it alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["InstanceNorm2d"]


class InstanceNorm2d(nn.InstanceNorm2d):
    """(N, C, H, W) to the same, each map with mean 0 and variance 1: torch's, without running statistics, written out.

    ONNX Runtime's InstanceNormalization adds up each map from one end to the other in float32, which costs ten times the
    error of PyTorch's own where an image is all but black. Here columns are added up first, then their sums.
    """

    def forward(self, input: Tensor) -> Tensor:
        centred = input - _mean(input)
        normalised = centred * torch.rsqrt(_mean(centred * centred) + self.eps)
        if not self.affine:
            return normalised
        return normalised * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
