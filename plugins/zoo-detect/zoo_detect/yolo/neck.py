"""The neck: carries what the coarse maps know to the fine ones, and back.

Reference: S. Liu et al., "Path Aggregation Network for Instance Segmentation", CVPR 2018,
https://arxiv.org/abs/1803.01534 (section 3.1), on top of T.-Y. Lin et al., "Feature Pyramid Networks", CVPR 2017,
https://arxiv.org/abs/1612.03144.

As in the papers, maps of one size are added. The 3 x 3 convolution after each addition is a depthwise 5 x 5 and a
pointwise one here: a seventh of the arithmetic, and more of the image for each pixel. The activation is ReLU, which
ONNX Runtime and TensorRT fold into the convolution before it, in integers too; SiLU would be a sigmoid and a product,
two more passes over memory, in integers slow on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Neck", "Separable", "convolution", "stack"]


def convolution(before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution that keeps the size (or halves it), and batch norm."""
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after)]


class Separable(nn.Sequential):
    """Depthwise 5 x 5, pointwise 1 x 1, each with batch norm and ReLU: (N, C, H, W) to (N, C, H/stride, W/stride)."""

    def __init__(self, width: int, *, stride: int = 1) -> None:
        super().__init__(
            *convolution(width, width, 5, stride=stride, groups=width),
            nn.ReLU(inplace=True),
            *convolution(width, width, 1),
            nn.ReLU(inplace=True),
        )


def stack(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(Separable(width) for _ in range(depth)))


class Neck(nn.Module):
    """Maps of ``channels`` at strides 8, 16, 32 to maps of ``width`` channels at the same strides."""

    def __init__(self, channels: Sequence[int], width: int, depth: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Sequential(*convolution(before, width, 1)) for before in channels)
        self.top_down = nn.ModuleList(stack(width, depth) for _ in channels)
        self.down = nn.ModuleList(Separable(width, stride=2) for _ in channels[1:])
        self.bottom_up = nn.ModuleList(stack(width, depth) for _ in channels[1:])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fine, middle, coarse = (lateral(x) for lateral, x in zip(self.lateral, maps, strict=True))
        coarse = self.top_down[2](coarse)  # (N, width, H/32, W/32)
        middle = self.top_down[1](middle + F.interpolate(coarse, scale_factor=2.0))  # (N, width, H/16, W/16)
        fine = self.top_down[0](fine + F.interpolate(middle, scale_factor=2.0))  # (N, width, H/8, W/8)
        middle = self.bottom_up[0](middle + self.down[0](fine))
        coarse = self.bottom_up[1](coarse + self.down[1](middle))
        return [fine, middle, coarse]
