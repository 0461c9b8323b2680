"""Fast neural style: one pass of a network paints a photo in the manner of the one picture that it was trained for.

References: J. Johnson, A. Alahi, L. Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV
2016, https://arxiv.org/abs/1603.08155 (supplementary table 1), with instance norm (D. Ulyanov et al. 2016,
https://arxiv.org/abs/1607.08022), and nearest upsampling with a convolution in place of transposed ones, which leave a
checkerboard. Residual blocks are padded by reflection, so that the picture keeps the photo's size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.train.players import Batch, Players, Rules, Turn

from .norms import InstanceNorm2d
from .pix2pix import check_multiple

__all__ = ["FastStyle", "StyleGenerator", "build", "total_variation"]


def layer(before: int, after: int, kernel: int, stride: int = 1, *, act: bool = True) -> nn.Sequential:
    """Reflected borders, a convolution, instance norm with gain and shift, and where ``act`` a ReLU."""
    steps: list[nn.Module] = [
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(before, after, kernel, stride),
        InstanceNorm2d(after, affine=True),
    ]
    return nn.Sequential(*steps, *([nn.ReLU()] if act else []))


class Residual(nn.Module):
    """(N, W, H, W') to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(layer(width, width, 3), layer(width, width, 3, act=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.steps(x)
        return x + y


class StyleGenerator(nn.Module):
    """(N, in_channels, H, W) in -1..1, H and W divisible by 4 and at least 8, to (N, in_channels, H, W) in 0..1."""

    def __init__(self, in_channels: int = 3, width: int = 32, blocks: int = 5) -> None:
        super().__init__()
        self.steps = nn.Sequential(
            layer(in_channels, width, 9),
            layer(width, 2 * width, 3, 2),
            layer(2 * width, 4 * width, 3, 2),
            *(Residual(4 * width) for _ in range(blocks)),
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            layer(4 * width, 2 * width, 3),
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            layer(2 * width, width, 3),
            nn.ReflectionPad2d(4),
            nn.Conv2d(width, in_channels, 9),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_multiple(x, 4, "fast neural style")
        return torch.tanh(self.steps(x)) * 0.5 + 0.5


class FastStyle(Players):
    """The generator, which another network's eyes teach: the photo's content, the picture's style."""

    losses = ("content+style",)
    optimizers = {"generator": {"lr": 1e-3, "betas": (0.9, 0.999)}}
    needs = ("perceptual", "style")

    def __init__(self, generator: StyleGenerator) -> None:
        super().__init__()
        self.generator = generator
        self.decode = {"multiple": 4}

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        if rules.perceptual is None:
            raise ZooError(
                "style transfer compares features: give a network to see them with, and a picture of the style"
            )
        photo = batch.input * 0.5 + 0.5
        made = shared["fake"] = self.generator(batch.input)
        seen = rules.perceptual(_colour(made), _colour(photo))
        if "style" not in seen:
            raise ZooError("style transfer needs the picture whose style it learns: give one")
        return Turn(
            losses={
                "content": rules.weight("content", 1.0) * seen["content"],
                "style": rules.weight("style", 5.0) * seen["style"],
                "tv": rules.weight("tv", 0.1) * total_variation(made),
            }
        )


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, along both axes, of (N, C, H, W): a scalar."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
    return down + (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean()


def _colour(images: Tensor) -> Tensor:
    """Grey images as the three equal channels that networks of photos take."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def build(*, num_classes: int = 0, in_channels: int = 3, width: int = 32, blocks: int = 5) -> FastStyle:
    """Fast neural style with random weights. Raises ZooError for counts that it cannot have."""
    if min(width, blocks) < 1:
        raise ZooError(f"width={width}, blocks={blocks}: each is at least 1")
    return FastStyle(StyleGenerator(in_channels, width, blocks))
