"""CARN and CARN-M: super-resolution whose blocks cascade, and whose published weights load strictly.

Reference: N. Ahn et al., "Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network", ECCV 2018,
https://arxiv.org/abs/1803.08664 (figures 2 and 4), https://github.com/nmhkahn/CARN-pytorch (MIT). The modules are named
and nested as the published weights are. Those hold an upsampler for each of x2, x3 and x4: a network has the one that its
``scale`` asks for, and the others stay in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoo.errors import CheckpointError, ZooError

from .restoring import Restorer

__all__ = ["CARN", "Cascade", "build", "build_mobile"]

SCALES = (2, 3, 4)
WIDTH = 64
MEAN = (0.4488, 0.4371, 0.4040)
"""Of DIV2K's pixels as shares of white, red, green and blue."""


class Shift(nn.Module):
    """Adds a constant to each channel, as the 1x1 convolution that the published weights hold; it is not trained."""

    def __init__(self, channels: int, sign: int) -> None:
        super().__init__()
        mean = MEAN if channels == 3 else (sum(MEAN) / 3,) * channels
        self.shifter = nn.Conv2d(channels, channels, 1)
        assert self.shifter.bias is not None
        with torch.no_grad():
            self.shifter.weight.copy_(torch.eye(channels)[:, :, None, None])
            self.shifter.bias.copy_(sign * torch.tensor(mean))
        self.shifter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shifter(x)
        return y


class Fuse(nn.Module):
    """(N, before, H, W) to (N, after, H, W): what the cascade has collected, made narrow again."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(before, after, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class Residual(nn.Module):
    """(N, WIDTH, H, W) to the same. With ``group`` above 1 the 3x3 convolutions are grouped, and a 1x1 one mixes."""

    def __init__(self, group: int) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=group),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=group),
        ]
        if group > 1:
            layers += [nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Cascade(nn.Module):
    """(N, WIDTH, H, W) to the same: three steps, each of which sees what all steps before it gave.

    ``shared``: the three steps are one residual block, used three times (the paper's recursion).
    """

    def __init__(self, group: int, shared: bool) -> None:
        super().__init__()
        self.b1 = Residual(group)
        if not shared:
            self.b2, self.b3 = Residual(group), Residual(group)
        self.shared = shared
        self.c1, self.c2, self.c3 = (Fuse(count * WIDTH, WIDTH) for count in (2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        steps = (self.b1,) * 3 if self.shared else (self.b1, self.b2, self.b3)
        return _cascade(x, steps, (self.c1, self.c2, self.c3))


def _cascade(x: Tensor, steps: tuple[nn.Module, ...], fuses: tuple[nn.Module, ...]) -> Tensor:
    seen = x
    for step, fuse in zip(steps, fuses, strict=True):
        seen = torch.cat([seen, step(x)], dim=1)  # (N, 2, 3, 4 * WIDTH, H, W)
        x = fuse(seen)
    return x


class Enlarge(nn.Module):
    def __init__(self, factors: tuple[int, ...], group: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [
                nn.Conv2d(WIDTH, WIDTH * factor**2, 3, padding=1, groups=group),
                nn.ReLU(),
                nn.PixelShuffle(factor),
            ]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class Network(nn.Module):
    """(N, in_channels, H, W) in 0..1 to (N, in_channels, H * scale, W * scale), any H and W."""

    def __init__(self, in_channels: int, scale: int, group: int, shared: bool) -> None:
        super().__init__()
        self.scale = scale
        self.sub_mean, self.add_mean = Shift(in_channels, -1), Shift(in_channels, 1)
        self.entry = nn.Conv2d(in_channels, WIDTH, 3, padding=1)
        self.b1, self.b2, self.b3 = (Cascade(group, shared) for _ in range(3))
        self.c1, self.c2, self.c3 = (Fuse(count * WIDTH, WIDTH) for count in (2, 3, 4))
        self.upsample = nn.ModuleDict({f"up{scale}": Enlarge((2, 2) if scale == 4 else (scale,), group)})
        self.exit = nn.Conv2d(WIDTH, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(self.sub_mean(x))  # (N, WIDTH, H, W)
        x = _cascade(x, (self.b1, self.b2, self.b3), (self.c1, self.c2, self.c3))
        x = self.upsample[f"up{self.scale}"](x)  # (N, WIDTH, H * scale, W * scale)
        y: Tensor = self.add_mean(self.exit(x))
        return y


class CARN(Restorer):
    """The network, trained on pixels, as the paper does, or on features besides."""

    optimizers = {"generator": {"lr": 1e-4, "betas": (0.9, 0.999)}}
    schedule = "cosine"

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = f"upsample.up{self.scale}."
        found = sorted({int(m[1]) for key in tensors if (m := re.match(r"upsample\.up(\d+)\.", key))})
        if found and self.scale not in found:
            raise CheckpointError(
                f"scale={self.scale}: these weights enlarge by {', '.join(map(str, found))}: choose scale={found[0]}"
            )
        return {k: v for k, v in tensors.items() if not k.startswith("upsample.up") or k.startswith(own)}


def build(*, num_classes: int = 0, in_channels: int = 3, scale: int = 2, group: int = 1, shared: bool = False) -> CARN:
    """CARN with random weights. ``group``: groups of the 3x3 convolutions; ``shared``: blocks recur.

    Raises ZooError for a scale that it does not have, and for groups that do not divide the 64 channels.
    """
    if scale not in SCALES:
        raise ZooError(f"scale={scale}: CARN enlarges by {', '.join(map(str, SCALES))}: choose one of them")
    if group < 1 or WIDTH % group:
        raise ZooError(f"group={group}: CARN is {WIDTH} channels wide: choose a number of groups that divides it")
    return CARN(Network(in_channels, scale, group, shared), scale=scale)


def build_mobile(*, num_classes: int = 0, in_channels: int = 3, scale: int = 2) -> CARN:
    """CARN-M, the published small variant: four groups, blocks that recur. Raises ZooError as :func:`build` does."""
    return build(in_channels=in_channels, scale=scale, group=4, shared=True)
