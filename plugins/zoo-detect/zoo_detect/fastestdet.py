"""FastestDet: a quarter of a million weights, one map, no anchors. Its published weights load strictly.

Reference: X. Ma, "FastestDet: Ultra lightweight anchor-free real-time object detection algorithm", 2022,
https://github.com/dog-qiuqiu/FastestDet (BSD-3-Clause), over the trunk of N. Ma et al., "ShuffleNet V2", ECCV 2018,
https://arxiv.org/abs/1807.11164 (figure 3 c, d). The modules are named and nested as the published weights are.

Each cell of the map, of stride 16, says whether an object is near (objectness), where its middle is (tanh, up to a cell
away in x and y from the cell's upper left corner), how large it is (sigmoid, shares of the input) and what it is
(softmax). The score is ``objectness ** 0.6 * class ** 0.4``.

The loss is this project's, for the same outputs. An object's middle lies within reach of four cells; those that come no
worse than their mean IoU answer for it, and their objectness is to be their IoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import giou, iou, pad
from .sizes import need_multiple
from .yolo.loss import quality_loss
from .yolo.neck import convolution

__all__ = ["FastestDet", "build"]

STRIDE = 16
WIDTH = 96
"""Channels of the neck and the head."""
OBJECTNESS_POWER, CLASS_POWER = 0.6, 0.4
PRIOR = 0.01
"""Objectness before training."""
OBJECTNESS_WEIGHT, BOX_WEIGHT, CLASS_WEIGHT = 1.0, 2.0, 0.5


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


class Shuffle(nn.Module):
    """One unit of ShuffleNet V2: (N, C, H, W) to the same, or with ``stride`` 2 to (N, 2 C, H/2, W/2)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.branch_main = nn.Sequential(
            *convolution(width, width, 1),
            relu(),
            *convolution(width, width, 3, stride=stride, groups=width),
            *convolution(width, width, 1),
            relu(),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *convolution(width, width, 3, stride=2, groups=width), *convolution(width, width, 1), relu()
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], dim=1)
        # every other channel goes past: this is the shuffle of the two halves that the last unit put side by side
        return torch.cat([x[:, 0::2], self.branch_main(x[:, 1::2])], dim=1)


def stage(width: int, units: int) -> nn.Sequential:
    return nn.Sequential(Shuffle(width, 2), *(Shuffle(width, 1) for _ in range(units - 1)))


class Trunk(nn.Module):
    """(N, C, H, W) to maps of 48, 96 and 192 channels at strides 8, 16 and 32."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*convolution(in_channels, 24, 3, stride=2), relu())
        self.stage2 = stage(24, 4)
        self.stage3 = stage(48, 8)
        self.stage4 = stage(96, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(self.first_conv(x), 3, stride=2, padding=1)  # (N, 24, H/4, W/4)
        fine = self.stage2(x)  # (N, 48, H/8, W/8)
        middle = self.stage3(fine)  # (N, 96, H/16, W/16)
        return fine, middle, self.stage4(middle)  # (N, 192, H/32, W/32)


class Squeeze(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*convolution(before, after, 1), relu())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1x1(x)
        return y


class Pyramid(nn.Module):
    """What one, two and three depthwise convolutions in a row see of the map, beside one another."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()

        def see(times: int) -> nn.Sequential:
            return nn.Sequential(
                *(part for _ in range(times) for part in (*convolution(width, width, 5, groups=width), relu()))
            )

        self.Conv1x1 = Squeeze(before, width)
        self.S1, self.S2, self.S3 = see(1), see(2), see(3)
        self.output = nn.Sequential(*convolution(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return F.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], dim=1)))


class Branch(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*convolution(width, width, 5, groups=width), relu(), *convolution(width, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv5x5(x)
        return y


class Head(nn.Module):
    """(N, WIDTH, h, w) to (N, 5 + classes, h, w): objectness, x, y, width, height, classes, all as logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1x1 = Squeeze(WIDTH, WIDTH)
        self.obj_layers = Branch(WIDTH, 1)
        self.reg_layers = Branch(WIDTH, 4)
        self.cls_layers = Branch(WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x)
        return torch.cat([self.obj_layers(x), self.reg_layers(x), self.cls_layers(x)], dim=1)


class FastestDet(nn.Module):
    """(N, in_channels, H, W) float32, H and W multiples of 32, to logits (N, 5 + num_classes, H/16, W/16)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.backbone = Trunk(in_channels)
        self.SPP = Pyramid(48 + 96 + 192, WIDTH)
        self.detect_head = Head(num_classes)
        norm = self.detect_head.obj_layers.conv5x5[-1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.constant_(norm.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, x: Tensor) -> Tensor:
        need_multiple(x, 32, "FastestDet's coarsest map has one cell for 32 pixels")
        fine, middle, coarse = self.backbone(x)
        maps = [F.avg_pool2d(fine, 3, stride=2, padding=1), middle, F.interpolate(coarse, scale_factor=2.0)]
        raw: Tensor = self.detect_head(self.SPP(torch.cat(maps, dim=1)))
        return raw

    def decode(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, A, 4) xyxy in input pixels and scores (N, A, C) in 0..1 of all A = H W / 256 cells."""
        cells = _in_a_row(raw)
        objectness = cells[..., :1].sigmoid()
        classes = cells[..., 5:].softmax(dim=-1)
        return _boxes(cells, raw), objectness**OBJECTNESS_POWER * classes**CLASS_POWER

    def loss(self, raw: Tensor, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """``objectness``, ``box`` and ``class``, weighted. ``targets``: for each image ``boxes`` (M, 4) xyxy in input
        pixels and ``classes`` (M,) int64. Computed in float32 whatever autocast says."""
        with torch.autocast(raw.device.type, enabled=False):
            height, width = raw.shape[-2:]
            cells = _in_a_row(raw)
            objects = pad(targets, raw.device)
            count = objects.classes.shape[1]
            middle = (objects.boxes[..., :2] + objects.boxes[..., 2:]) / (2 * STRIDE)  # (N, M, 2) in cells
            near = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=raw.device)
            at = middle.floor().long()[:, :, None] + near  # (N, M, 4, 2): column, row
            size = torch.tensor([width, height], device=raw.device)
            usable = ((at >= 0) & (at < size)).all(dim=3) & objects.real[:, :, None]  # (N, M, 4)
            index = torch.where(usable, at[..., 1] * width + at[..., 0], 0).flatten(1)  # (N, M * 4)

            boxes = _boxes(cells, raw).gather(1, index[..., None].expand(-1, -1, 4)).view(-1, count, 4, 4)
            truth = objects.boxes[:, :, None]
            reached = torch.where(usable, iou(boxes.detach(), truth), 0.0)  # (N, M, 4)
            mean = reached.sum(dim=2, keepdim=True) / usable.sum(dim=2, keepdim=True).clamp(min=1)
            answers = usable & (reached >= mean.minimum(reached.amax(dim=2, keepdim=True)))  # a mean may be rounded up

            wanted = torch.zeros_like(cells[..., 0])
            wanted.scatter_reduce_(1, index, torch.where(answers, reached, 0.0).flatten(1), "amax")
            objectness = quality_loss(cells[..., 0], wanted).sum() / wanted.sum().clamp(min=1.0)

            total = answers.sum().clamp(min=1)
            box = torch.where(answers, 1 - giou(boxes, truth), 0.0).sum() / total
            logits = cells[..., 5:].gather(1, index[..., None].expand(-1, -1, cells.shape[2] - 5))
            wanted_class = objects.classes[:, :, None].expand(-1, -1, 4).flatten(1)
            surprise = F.cross_entropy(logits.transpose(1, 2), wanted_class, reduction="none")  # (N, M * 4)
            classes = torch.where(answers.flatten(1), surprise, 0.0).sum() / total
        return {
            "objectness": OBJECTNESS_WEIGHT * objectness,
            "box": BOX_WEIGHT * box,
            "class": CLASS_WEIGHT * classes,
        }


def _in_a_row(raw: Tensor) -> Tensor:
    """(N, 5 + C, h, w) to (N, h * w, 5 + C), at least float32."""
    cells = raw.flatten(2).transpose(1, 2)
    return cells.to(torch.promote_types(cells.dtype, torch.float32))


def _boxes(cells: Tensor, raw: Tensor) -> Tensor:
    """(N, h * w, 5 + C) to boxes (N, h * w, 4) xyxy in input pixels."""
    height, width = raw.shape[-2:]
    x = torch.arange(width, device=cells.device, dtype=cells.dtype).repeat(height)
    y = torch.arange(height, device=cells.device, dtype=cells.dtype).repeat_interleave(width)
    size = torch.tensor([width, height], device=cells.device, dtype=cells.dtype) * STRIDE
    middle = (cells[..., 1:3].tanh() + torch.stack([x, y], dim=1)) * STRIDE
    half = cells[..., 3:5].sigmoid() * (size / 2)
    return torch.cat([middle - half, middle + half], dim=-1)


def build(*, num_classes: int, in_channels: int) -> FastestDet:
    """FastestDet with random weights for ``num_classes`` classes."""
    return FastestDet(num_classes, in_channels)
