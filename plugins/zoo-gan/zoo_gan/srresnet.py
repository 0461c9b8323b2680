"""SRResNet, and SRGAN, which trains the same network against a critic: super-resolution x2, x3 and x4.

Reference: C. Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network", CVPR
2017, https://arxiv.org/abs/1609.04802 (figure 4). Two things differ from the paper, and options bring both back:
there is no batch norm (``norm``), which B. Lim et al. (EDSR, 2017, https://arxiv.org/abs/1707.02921) found to cost range
and memory; and the network learns what is to be added to the enlarged input (``skip``), so that it starts from a good
picture rather than from noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError

from .restoring import Judge, Restorer

__all__ = ["SRGAN", "Critic", "SRResNet", "Upscaler", "build", "build_gan"]

SCALES = (2, 3, 4)
SKIPS = ("bicubic", "bilinear", "nearest", "none")
"""How the input is enlarged that the network adds to: after a minute's training the first is 0.4 dB ahead of the others."""


class Residual(nn.Module):
    """(N, W, H, W') to the same: two 3x3 convolutions beside the identity."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.act = nn.PReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=not norm)
        self.norm2 = nn.BatchNorm2d(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return x + y


class Enlarged(nn.Module):
    """(N, C, H, W) to (N, C, H * scale, W * scale) as torch's ``interpolate`` does (``align_corners=False``), ``bicubic`` or
    ``bilinear``, as one convolution of edge-padded pixels with what the mode makes of a single bright one.

    The same to rounding, and in ONNX Runtime 17 times as fast as its Resize (x2, three channels).
    """

    reach = 2
    """Pixels to each side that a new one is made of."""

    def __init__(self, channels: int, scale: int, mode: str) -> None:
        super().__init__()
        self.channels, self.scale = channels, scale
        side = 2 * self.reach + 1
        at = torch.eye(side * side).view(side * side, 1, side, side)
        spread = F.interpolate(F.pad(at, (self.reach,) * 4), scale_factor=float(scale), mode=mode, align_corners=False)
        middle = slice(
            2 * self.reach * scale, (2 * self.reach + 1) * scale
        )  # the new pixels of the window's middle one
        filters = spread[:, 0, middle, middle].permute(1, 2, 0).reshape(scale * scale, 1, side, side)
        self.register_buffer("filters", filters.repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        around = F.pad(x, (self.reach,) * 4, mode="replicate")
        return F.pixel_shuffle(F.conv2d(around, self.get_buffer("filters"), groups=self.channels), self.scale)


class Upscaler(nn.Module):
    """(N, in_channels, H, W) in 0..1 to (N, in_channels, H * scale, W * scale), any H and W."""

    def __init__(self, in_channels: int, scale: int, blocks: int, width: int, norm: bool, skip: str, ends: int) -> None:
        super().__init__()
        self.first: nn.Module | None = None
        if skip == "nearest":
            self.first = nn.Upsample(scale_factor=float(scale), mode=skip)
        elif skip != "none":
            self.first = Enlarged(in_channels, scale, skip)
        self.entry = nn.Sequential(nn.Conv2d(in_channels, width, ends, padding=ends // 2), nn.PReLU())
        self.body = nn.Sequential(*(Residual(width, norm) for _ in range(blocks)))
        self.join = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=not norm), nn.BatchNorm2d(width) if norm else nn.Identity()
        )
        steps: list[nn.Module] = []
        for factor in (2, 2) if scale == 4 else (scale,):
            steps += [nn.Conv2d(width, width * factor**2, 3, padding=1), nn.PixelShuffle(factor), nn.PReLU()]
        self.enlarge = nn.Sequential(*steps)
        self.exit = nn.Conv2d(width, in_channels, ends, padding=ends // 2)
        if self.first is not None:  # what is added to the enlarged input starts small
            nn.init.normal_(self.exit.weight, std=1e-3)
            assert self.exit.bias is not None
            nn.init.zeros_(self.exit.bias)

    def forward(self, x: Tensor) -> Tensor:
        first = self.entry(x)  # (N, width, H, W)
        features = first + self.join(self.body(first))
        made: Tensor = self.exit(self.enlarge(features))  # (N, C, H * scale, W * scale)
        return made if self.first is None else self.first(x) + made


class Critic(Judge):
    """(N, in_channels, H, W) in 0..1, H and W at least 16, to logits (N,): is it a photo, or made?

    The paper's layers; its mean over the last map takes the place of a layer as wide as one size of patch.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.LeakyReLU(0.2))]
        before = width
        for factor, stride in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)):
            after = width * factor
            conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            stages.append(nn.Sequential(conv, nn.BatchNorm2d(after), nn.LeakyReLU(0.2)))
            before = after
        self.features = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.Linear(before, 2 * before), nn.LeakyReLU(0.2), nn.Linear(2 * before, 1))

    @property
    def layers(self) -> Sequence[nn.Module]:
        return [*self.features, self.head]

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x * 2 - 1).mean(dim=(2, 3))  # (N, 8 * width)
        logits: Tensor = self.head(features)
        return logits[:, 0]


class SRResNet(Restorer):
    """The generator alone: trained on pixels."""

    optimizers = {"generator": {"lr": 1e-3, "betas": (0.9, 0.999)}}
    schedule = "cosine"


class SRGAN(Restorer):
    """The generator against the critic. ``l1`` is the paper's first stage: train it so first, then go on from there."""

    losses: tuple[str, ...] = (
        "perceptual+adversarial",
        "l1+perceptual+adversarial",
        "l1+adversarial",
        "l1",
        "mse",
        "l1+perceptual",
    )
    usual: Mapping[str, float] = {"l1": 1.0, "mse": 1.0, "perceptual": 1.0, "adversarial": 1e-3}
    optimizers = {
        "discriminator": {"lr": 1e-4, "betas": (0.9, 0.999)},
        "generator": {"lr": 1e-4, "betas": (0.9, 0.999)},
    }


def build(
    *,
    num_classes: int = 0,
    in_channels: int = 3,
    scale: int = 2,
    blocks: int = 16,
    width: int = 64,
    norm: bool = False,
    skip: str = "bicubic",
    ends: int = 9,
) -> SRResNet:
    """SRResNet with random weights; blocks and width are the paper's, and half of each trains in minutes on a CPU.

    ``ends``: the kernel of the first and the last layer; with 3, as EDSR has it, the last no longer takes half of the time of
    a small network in ONNX Runtime. Raises ZooError for a scale, a skip or a kernel that it does not have.
    """
    return SRResNet(_upscaler(in_channels, scale, blocks, width, norm, skip, ends), scale=scale)


def build_gan(
    *,
    num_classes: int = 0,
    in_channels: int = 3,
    scale: int = 4,
    blocks: int = 16,
    width: int = 64,
    norm: bool = False,
    skip: str = "bicubic",
    ends: int = 9,
    critic_width: int = 64,
) -> SRGAN:
    """SRGAN with random weights; its generator is SRResNet's. Raises ZooError as :func:`build` does."""
    generator = _upscaler(in_channels, scale, blocks, width, norm, skip, ends)
    return SRGAN(generator, scale=scale, discriminator=Critic(in_channels, critic_width))


def _upscaler(in_channels: int, scale: int, blocks: int, width: int, norm: bool, skip: str, ends: int) -> Upscaler:
    if scale not in SCALES:
        raise ZooError(f"scale={scale}: SRResNet enlarges by {', '.join(map(str, SCALES))}: choose one of them")
    if skip not in SKIPS:
        raise ZooError(f"skip={skip}: the enlarged input is one of {', '.join(SKIPS)}")
    if ends < 1 or ends % 2 == 0:
        raise ZooError(f"ends={ends}: the kernel of the first and the last layer is odd, as 9 or 3")
    if blocks < 1 or width < 1:
        raise ZooError(f"blocks={blocks}, width={width}: SRResNet has at least one block of one channel")
    return Upscaler(in_channels, scale, blocks, width, norm, skip, ends)
