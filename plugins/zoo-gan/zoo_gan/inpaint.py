"""Two networks that paint what is missing from an image: by gated, and by partial convolutions.

References: J. Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019,
https://arxiv.org/abs/1806.03589, here its first stage alone, without the refining one and its contextual attention, and
its SN-PatchGAN; G. Liu et al., "Image Inpainting for Irregular Holes Using Partial Convolutions", ECCV 2018,
https://arxiv.org/abs/1804.07723, a U-Net whose mask grows from layer to layer (equations 1 and 2).

An input is (N, 4, H, W): three colours in -1..1, and 1 where a pixel is known, 0 in a hole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from zoo.errors import ZooError
from zoo.train.adversarial import DiffAugment, accuracy, discriminator_loss, freeze_layers, generator_loss, still
from zoo.train.players import Batch, Players, Rules, Turn

from .pix2pix import check_multiple
from .style import total_variation

__all__ = ["GatedGenerator", "Inpainter", "PartialConv", "PartialGenerator", "build_gated", "build_partial"]


class Painter(nn.Module):
    """(N, 4, H, W) to (N, 3, H, W) in 0..1: known pixels are the input's, holes are what :meth:`paint` makes."""

    multiple = 1

    def paint(self, x: Tensor) -> Tensor:
        """The whole image (N, 3, H, W) in 0..1 as the network sees it, known pixels too."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return compose(x, self.paint(x))


def compose(x: Tensor, painted: Tensor) -> Tensor:
    """The known pixels of the input (N, 4, H, W) beside painted ones (N, 3, H, W), in 0..1."""
    known = torch.round(x[:, 3:])
    return known * (x[:, :3] * 0.5 + 0.5) + (1 - known) * painted


class GatedConv(nn.Module):
    """(N, before, H, W) to (N, after, H', W'): features times a gate of 0..1 that is learnt for each of them."""

    def __init__(self, before: int, after: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, 2 * after, kernel, stride, dilation * (kernel // 2), dilation)
        # a gate begins at a half, so that features begin twice as large: else a deep network begins with nothing to say
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        with torch.no_grad():
            self.conv.weight[:after].mul_(2.0)
            self.conv.weight[after:].mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        features, gate = self.conv(x).chunk(2, dim=1)
        return F.elu(features) * torch.sigmoid(gate)


class GatedGenerator(Painter):
    """Two halvings, dilated convolutions that see across holes, two doublings. H and W divide by 4."""

    multiple = 4

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        w = width
        self.steps = nn.Sequential(
            GatedConv(4, w, 5),
            GatedConv(w, 2 * w, 3, 2),
            GatedConv(2 * w, 2 * w),
            GatedConv(2 * w, 4 * w, 3, 2),
            GatedConv(4 * w, 4 * w),
            GatedConv(4 * w, 4 * w),
            *(GatedConv(4 * w, 4 * w, dilation=d) for d in (2, 4, 8, 16)),
            GatedConv(4 * w, 4 * w),
            GatedConv(4 * w, 4 * w),
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            GatedConv(4 * w, 2 * w),
            GatedConv(2 * w, 2 * w),
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            GatedConv(2 * w, w),
            GatedConv(w, max(w // 2, 1)),
            nn.Conv2d(max(w // 2, 1), 3, 3, padding=1),
        )

    def paint(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "gated inpainting")
        known = torch.round(x[:, 3:])
        return torch.tanh(self.steps(torch.cat([x[:, :3] * known, known], dim=1))) * 0.5 + 0.5


class PartialConv(nn.Module):
    """A convolution that looks at known pixels alone, and says where it saw one.

    Takes pairs of features (N, C, H, W) and their mask (N, 1, H, W) of 0 and 1, which are joined along C, and gives
    such a pair: the sum over what is known, times (values in the window / known ones), plus bias; 0 where none is.
    """

    counter: Tensor

    def __init__(self, channels: tuple[int, ...], after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        before = sum(channels)
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.bias = nn.Parameter(torch.zeros(1, after, 1, 1))
        shares = torch.tensor([c / before for c in channels]).view(1, -1, 1, 1)
        self.register_buffer("counter", shares.expand(1, -1, kernel, kernel).clone(), persistent=False)
        self.window, self.least = kernel * kernel, min(channels) / before

    def forward(self, *pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        summed = self.conv(torch.cat([features * mask for features, mask in pairs], dim=1))
        masks = torch.cat([mask for _, mask in pairs], dim=1)
        known = F.conv2d(masks, self.counter, stride=self.conv.stride, padding=self.conv.padding)
        # a count is 0 or at least `least`: no comparison, and no division by zero in half precision either
        mask = torch.clamp(known * (1.01 / self.least), 0, 1)
        ratio = self.window / torch.clamp(known, min=0.5 * self.least)
        return (summed * ratio + self.bias) * mask, mask


class PartialGenerator(Painter):
    """A U-Net of partial convolutions with ``depth`` halvings. H and W divide by 2^depth."""

    def __init__(self, width: int = 64, depth: int = 5) -> None:
        super().__init__()
        self.multiple = 2**depth
        widths = [min(width * 2**i, 8 * width) for i in range(depth)]
        kernels = [7, 5, 5] + [3] * depth
        self.down = nn.ModuleList(
            PartialConv((widths[i - 1] if i else 3,), widths[i], kernels[i], 2) for i in range(depth)
        )
        self.down_norms = nn.ModuleList(nn.BatchNorm2d(w) if i else nn.Identity() for i, w in enumerate(widths))
        order = list(reversed(range(depth)))
        self.up = nn.ModuleList(
            PartialConv((widths[i], widths[i - 1] if i else 3), widths[i - 1] if i else width, 3) for i in order
        )
        self.up_norms = nn.ModuleList(nn.BatchNorm2d(widths[i - 1]) if i else nn.Identity() for i in order)
        self.exit = nn.Conv2d(width, 3, 3, padding=1)

    def paint(self, x: Tensor) -> Tensor:
        check_multiple(x, self.multiple, "partial inpainting")
        pair = (x[:, :3], torch.round(x[:, 3:]))
        passed = []
        for down, norm in zip(self.down, self.down_norms, strict=True):
            passed.append(pair)
            features, mask = down(pair)  # (N, C, H / 2, W / 2)
            pair = (F.relu(norm(features)), mask)
        for up, norm in zip(self.up, self.up_norms, strict=True):
            enlarged = tuple(F.interpolate(t, scale_factor=2.0, mode="nearest") for t in pair)
            features, mask = up((enlarged[0], enlarged[1]), passed.pop())  # (N, C, H * 2, W * 2)
            pair = (F.leaky_relu(norm(features), 0.2), mask)
        return torch.tanh(self.exit(pair[0])) * 0.5 + 0.5


class HoleJudge(nn.Module):
    """SN-PatchGAN: (N, 4, H, W), an image in -1..1 and its mask, to logits (N, C, H', W'), one a place and feature."""

    def __init__(self, width: int = 64, layers: int = 5) -> None:
        super().__init__()
        widths = [4] + [width * min(2**i, 4) for i in range(layers)]
        self.steps = nn.Sequential(
            *(
                nn.Sequential(
                    spectral_norm(nn.Conv2d(widths[i], widths[i + 1], 5, 2 if i else 1, 2)),
                    nn.LeakyReLU(0.2) if i < layers - 1 else nn.Identity(),
                )
                for i in range(layers)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.steps(x)
        return logits


class Inpainter(Players):
    """A painter, and a judge where one is given. Losses are terms joined by ``+``: ``l1`` counts holes and known pixels
    apart, ``perceptual`` compares features, ``tv`` smooths, and an adversarial loss goes by its own name."""

    optimizers = {
        "discriminator": {"lr": 1e-4, "betas": (0.5, 0.999)},
        "generator": {"lr": 2e-4, "betas": (0.5, 0.999)},
    }

    def __init__(self, generator: Painter, discriminator: HoleJudge | None = None) -> None:
        super().__init__()
        self.generator = generator
        self.decode = {"holes": True, "multiple": generator.multiple}
        if discriminator is None:
            self.losses = ("l1+tv", "l1", "l1+perceptual+tv")
            self.optimizers = {"generator": type(self).optimizers["generator"]}
        else:
            self.discriminator = discriminator
            self.players = ("discriminator", "generator")
            self.losses = ("l1+hinge", "l1+lsgan", "l1", "l1+perceptual+hinge")

    def needs_perceptual(self, loss: str) -> bool:
        return "perceptual" in loss.split("+")

    def takes_turn(self, player: str, step: int, rules: Rules) -> bool:
        return player == "generator" or bool(_adversarial(rules.loss))

    def play(self, player: str, batch: Batch, rules: Rules, shared: dict[str, Any]) -> Turn:
        target = batch.target
        if target is None:
            raise ZooError("inpainting learns from whole pictures: give each image with holes its whole one")
        known = torch.round(batch.input[:, 3:])
        if "painted" not in shared:
            shared["painted"] = self.generator.paint(batch.input)  # type: ignore[operator]
            shared["fake"] = compose(batch.input, shared["painted"])
        painted, made = shared["painted"], shared["fake"]
        kind, augment = _adversarial(rules.loss), DiffAugment(rules.augment)

        def judged(picture: Tensor) -> Tensor:
            logits: Tensor = self.discriminator(torch.cat([augment(picture) * 2 - 1, known], dim=1))
            return logits

        if player == "discriminator":
            freeze_layers(list(self.discriminator.steps), rules.freeze)
            real, fake = judged(target), judged(made.detach())
            return Turn(
                losses={"adversarial": discriminator_loss(kind, real, fake)},
                figures={"accuracy": accuracy(real, fake, kind)},
            )
        error = (painted - target).abs()
        losses = {
            "hole": rules.weight("hole", 6.0) * (error * (1 - known)).mean(),
            "valid": rules.weight("valid", 1.0) * (error * known).mean(),
        }
        for term in rules.loss.split("+"):
            if term == "tv":
                losses["tv"] = rules.weight("tv", 0.1) * total_variation(made)
            elif term == "perceptual":
                if rules.perceptual is None:
                    raise ZooError(f"loss {rules.loss} compares features: give a network to see them with")
                losses["perceptual"] = rules.weight("perceptual", 0.05) * rules.perceptual(made, target)["content"]
            elif term == kind:
                with still(self.discriminator):
                    logits = judged(made)
                losses["adversarial"] = rules.weight("adversarial", 0.01) * generator_loss(kind, logits)
        return Turn(losses=losses)


def _adversarial(loss: str) -> str:
    """The adversarial term of a loss, or nothing."""
    return next((term for term in loss.split("+") if term in ("hinge", "lsgan")), "")


def build_gated(*, num_classes: int = 0, in_channels: int = 4, width: int = 48, judge_width: int = 64) -> Inpainter:
    """Gated inpainting with random weights. Raises ZooError where the input has not the four channels of RGBA."""
    _need_rgba(in_channels)
    return Inpainter(GatedGenerator(width), HoleJudge(judge_width))


def build_partial(*, num_classes: int = 0, in_channels: int = 4, width: int = 64, depth: int = 5) -> Inpainter:
    """Partial-convolution inpainting with random weights. Raises ZooError as :func:`build_gated` does."""
    _need_rgba(in_channels)
    return Inpainter(PartialGenerator(width, depth))


def _need_rgba(channels: int) -> None:
    if channels != 4:
        raise ZooError(
            f"in_channels={channels}: inpainting takes RGBA images, where alpha 0 is a hole: build it with 4"
        )
