"""ESRGAN: dense residual blocks against a relativistic critic; the generator of most restoration weights in the wild.

References: X. Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCV workshops 2018,
https://arxiv.org/abs/1809.00219 (figures 3 and 4, equation 1); X. Wang et al., "Real-ESRGAN: Training Real-World Blind
Super-Resolution with Pure Synthetic Data", 2021, https://arxiv.org/abs/2107.10833 (pixel unshuffle, U-Net critic). The
modules have the names of Real-ESRGAN's weights; those of ESRGAN (``model.0``, …) and of BSRGAN (``RRDB_trunk``, …) are
translated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from zoo.errors import CheckpointError, ZooError

from .restoring import Judge, Restorer
from .srresnet import Critic

__all__ = ["ESRGAN", "RRDBNet", "UNetCritic", "build"]

ENLARGEMENTS = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""The steps in which nearest neighbours enlarge the features, by what the steps come to."""
UNSHUFFLES = {1: 4, 2: 2}
"""By scale, Real-ESRGAN's: smaller scales are its x4 network on an input folded into channels."""
SLOPE = 0.2
SHARE = 0.2
"""Of what a block adds to its input."""
CRITICS = ("vgg", "unet")


class Dense(nn.Module):
    """(N, width, H, W) to the same: five convolutions, each of which sees what all before it gave."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(4)
        )
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, padding=1)
        for module in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            assert module.bias is not None
            nn.init.kaiming_normal_(module.weight)
            module.weight.data.mul_(0.1)  # ESRGAN's: residual networks of this depth start as nearly the identity
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, F.leaky_relu(conv(seen), SLOPE)], dim=1)
        y: Tensor = x + SHARE * self.conv5(seen)
        return y


class RRDB(nn.Module):
    """Residual in residual dense block, (N, width, H, W) to the same."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + SHARE * self.rdb3(self.rdb2(self.rdb1(x)))
        return y


class RRDBNet(nn.Module):
    """(N, in_channels, H, W) in 0..1, H and W multiples of ``unshuffle``, to (N, in_channels, H * scale, W * scale)."""

    def __init__(self, in_channels: int, scale: int, unshuffle: int, blocks: int, width: int, growth: int) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.factors = ENLARGEMENTS[scale * unshuffle]
        self.conv_first = nn.Conv2d(in_channels * unshuffle**2, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        for step in range(1, len(self.factors) + 1):
            self.add_module(f"conv_up{step}", nn.Conv2d(width, width, 3, padding=1))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.unshuffle > 1:
            _need_multiple(x, self.unshuffle)
            x = F.pixel_unshuffle(x, self.unshuffle)  # (N, C * unshuffle ** 2, H / unshuffle, W / unshuffle)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for step, factor in enumerate(self.factors, 1):
            x = F.interpolate(x, scale_factor=float(factor), mode="nearest")
            x = F.leaky_relu(self.get_submodule(f"conv_up{step}")(x), SLOPE)
        y: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))
        return y


class UNetCritic(Judge):
    """(N, in_channels, H, W) in 0..1, H and W multiples of 8, to a logit a pixel, (N, H, W): which parts look made?

    Every inner convolution is spectrally normalised, as Real-ESRGAN's are.
    """

    def __init__(self, in_channels: int, width: int = 64) -> None:
        super().__init__()

        def conv(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Module:
            made: nn.Module = spectral_norm(nn.Conv2d(before, after, kernel, stride, padding=1, bias=False))
            return made

        self.entry = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList(conv(width << i, width << (i + 1), kernel=4, stride=2) for i in range(3))
        self.up = nn.ModuleList(conv(width << (i + 1), width << i) for i in (2, 1, 0))
        self.refine = nn.ModuleList([conv(width, width), conv(width, width)])
        self.exit = nn.Conv2d(width, 1, 3, padding=1)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return [self.entry, *self.down, *self.up, *self.refine, self.exit]

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.leaky_relu(self.entry(x * 2 - 1), SLOPE)]
        for layer in self.down:
            maps.append(F.leaky_relu(layer(maps[-1]), SLOPE))
        y = maps.pop()
        for layer in self.up:
            y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
            y = F.leaky_relu(layer(y), SLOPE) + maps.pop()
        for layer in self.refine:
            y = F.leaky_relu(layer(y), SLOPE)
        logits: Tensor = self.exit(y)
        return logits[:, 0]


class ESRGAN(Restorer):
    """RRDBNet against a critic that compares real with made images. ``l1`` alone is the paper's first stage."""

    losses: tuple[str, ...] = ("l1+perceptual+adversarial", "l1+adversarial", "l1", "mse", "l1+perceptual")
    usual: Mapping[str, float] = {"l1": 1e-2, "mse": 1.0, "perceptual": 1.0, "adversarial": 5e-3}
    optimizers = {
        "discriminator": {"lr": 1e-4, "betas": (0.9, 0.99)},
        "generator": {"lr": 1e-4, "betas": (0.9, 0.99)},
    }
    ema = 0.999
    relativistic = True

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {_name(key, tensors): value for key, value in tensors.items()}
        own = self.generator
        assert isinstance(own, RRDBNet)
        first, last = found.get("conv_first.weight"), found.get("conv_last.weight")
        if first is not None and last is not None and first.ndim == last.ndim == 4:
            folded = round((first.shape[1] / last.shape[0]) ** 0.5)
            steps = max((int(m[1]) for key in found if (m := re.fullmatch(r"conv_up(\d)\.weight", key))), default=0)
            if folded != own.unshuffle or steps != len(own.factors):
                raise CheckpointError(
                    f"these weights fold {folded}x{folded} pixels and enlarge {steps} times, which is "
                    f"scale={2**steps // folded}, unshuffle={folded}; this network is "
                    f"scale={self.scale}, unshuffle={own.unshuffle}: give their options"
                )
        return found


_OLD_BLOCK = re.compile(r"(?:model\.)?1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)")
_OLD_LAYER = re.compile(r"(?:model\.)?(\d+)\.(weight|bias)")
_OLD_TRUNK = re.compile(r"(?:model\.)?1\.sub\.\d+\.(weight|bias)")
_BSRGAN = re.compile(r"RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d)\.(weight|bias)")
_BSRGAN_LAYERS = {"trunk_conv": "conv_body", "HRconv": "conv_hr", "upconv1": "conv_up1", "upconv2": "conv_up2"}


def _name(key: str, keys: Mapping[str, Tensor]) -> str:
    """What RRDBNet calls a tensor of any of the three layouts; a name that is in none of them stays."""
    if m := _OLD_BLOCK.fullmatch(key) or _BSRGAN.fullmatch(key):
        return f"body.{m[1]}.rdb{m[2]}.conv{m[3]}.{m[4]}"
    if m := _OLD_TRUNK.fullmatch(key):
        return f"conv_body.{m[1]}"
    if m := _OLD_LAYER.fullmatch(key):
        # the old layers are numbered: the first, the trunk, three to each enlargement, and two convolutions at the end
        numbers = {int(n[1]) for other in keys if (n := _OLD_LAYER.fullmatch(other))}
        at, last = int(m[1]), max(numbers)
        if at == 0:
            return f"conv_first.{m[2]}"
        if at >= last - 2:
            return f"{'conv_last' if at == last else 'conv_hr'}.{m[2]}"
        return f"conv_up{at // 3}.{m[2]}"
    layer, _, kind = key.rpartition(".")
    return f"{_BSRGAN_LAYERS[layer]}.{kind}" if layer in _BSRGAN_LAYERS else key


def _need_multiple(x: Tensor, multiple: int) -> None:
    if torch.compiler.is_compiling():
        return  # a graph's sides are symbols: who runs the graph keeps the rule
    channels, height, width = x.shape[1:]
    if height % multiple or width % multiple:
        up = [-(-side // multiple) * multiple for side in (height, width)]
        raise ZooError(
            f"input is {channels}x{height}x{width}; this ESRGAN folds {multiple}x{multiple} pixels into channels, so H "
            f"and W must divide by {multiple}: pad to {up[0]}x{up[1]}"
        )


def build(
    *,
    num_classes: int = 0,
    in_channels: int = 3,
    scale: int = 4,
    blocks: int = 23,
    width: int = 64,
    growth: int = 32,
    unshuffle: int = 0,
    critic: str = "vgg",
    critic_width: int = 64,
) -> ESRGAN:
    """ESRGAN with random weights for ``scale`` 1, 2, 3 or 4.

    ``unshuffle``: how many pixels a side are folded into channels first; 0 means Real-ESRGAN's way (4 for x1, 2 for
    x2, 1 above), 1 the original ESRGAN's. ``critic``: ``vgg`` judges a patch, ``unet`` each pixel of it.
    Raises ZooError for what it cannot be.
    """
    unshuffle = unshuffle or UNSHUFFLES.get(scale, 1)
    if scale not in (1, 2, 3, 4):
        raise ZooError(f"scale={scale}: ESRGAN enlarges by 1, 2, 3, 4: choose one of them")
    if unshuffle < 1 or scale * unshuffle not in ENLARGEMENTS:
        raise ZooError(f"unshuffle={unshuffle}: scale={scale} goes with {', '.join(map(str, _unshuffles(scale)))}")
    if critic not in CRITICS:
        raise ZooError(f"critic={critic}: choose one of {', '.join(CRITICS)}")
    if min(blocks, width, growth) < 1:
        raise ZooError(f"blocks={blocks}, width={width}, growth={growth}: each is at least 1")
    judge: Judge = Critic(in_channels, critic_width) if critic == "vgg" else UNetCritic(in_channels, critic_width)
    network = RRDBNet(in_channels, scale, unshuffle, blocks, width, growth)
    return ESRGAN(network, scale=scale, multiple=unshuffle, discriminator=judge)


def _unshuffles(scale: int) -> list[int]:
    return [u for u in (1, 2, 4) if scale * u in ENLARGEMENTS]
