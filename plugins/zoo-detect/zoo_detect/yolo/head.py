"""The head: what is at each cell of the maps, and how far the object's four sides are.

References: Z. Ge et al., "YOLOX", 2021, https://arxiv.org/abs/2107.08430 (one branch for classes, one for boxes, no
anchors); X. Li et al., "Generalized Focal Loss", 2020, https://arxiv.org/abs/2006.04388 (a side's distance as a
distribution over bins, of which the mean is taken).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..trunk import STRIDES
from .neck import stack

__all__ = ["BINS", "Head", "Raw", "boxes_of", "cells", "distances_of", "flatten"]

BINS = 16
"""A side is 0 to 15 strides away: the largest box is 960 pixels wide."""

PRIOR = 0.01
"""Score of every class before training, so that the many cells of background do not drown the first steps (T.-Y. Lin et
al., "Focal Loss for Dense Object Detection", 2017, https://arxiv.org/abs/1708.02002, section 4.1)."""

FIRST_DISTANCE = 2.0
"""Distance of every side before training, in strides: boxes start four strides wide, as RetinaNet's anchors are."""

Raw: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""For each stride: class logits (N, C, h, w), and logits of the distances' bins (N, 4 * BINS, h, w)."""


class Head(nn.Module):
    """Maps of ``width`` channels at each stride to :data:`Raw`. Only ``classes`` depends on the number of classes."""

    def __init__(self, num_classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.class_branches = nn.ModuleList(stack(width, depth) for _ in STRIDES)
        self.box_branches = nn.ModuleList(stack(width, depth) for _ in STRIDES)
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4 * BINS, 1) for _ in STRIDES)
        self.classes = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for _ in STRIDES)
        # a geometric distribution over the bins has the wanted mean, nearly: the bins end at 15
        slope = math.log1p(1 / FIRST_DISTANCE)
        start = (-slope * torch.arange(BINS)).repeat(4)
        for boxes, classes in zip(self.boxes, self.classes, strict=True):
            assert isinstance(boxes, nn.Conv2d)
            assert isinstance(classes, nn.Conv2d)
            nn.init.normal_(boxes.weight, std=0.01)
            nn.init.normal_(classes.weight, std=0.01)
            assert boxes.bias is not None
            assert classes.bias is not None
            with torch.no_grad():
                boxes.bias.copy_(start)
            nn.init.constant_(classes.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, maps: Sequence[Tensor]) -> Raw:
        return tuple(
            (classes(class_branch(x)), boxes(box_branch(x)))
            for x, class_branch, box_branch, classes, boxes in zip(
                maps, self.class_branches, self.box_branches, self.classes, self.boxes, strict=True
            )
        )


def flatten(raw: Raw) -> tuple[Tensor, Tensor]:
    """All A cells of all strides in a row: class logits (N, A, C) and bins (N, A, 4, BINS), at least float32."""
    logits = torch.cat([classes.flatten(2) for classes, _ in raw], dim=2).transpose(1, 2)  # (N, A, C)
    bins = torch.cat([boxes.flatten(2) for _, boxes in raw], dim=2).transpose(1, 2)  # (N, A, 4 * BINS)
    bins = torch.unflatten(bins, 2, (4, BINS))  # (N, A, 4, BINS)
    exact = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(exact), bins.to(exact)


def cells(raw: Raw, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Centre (A, 2) in input pixels and stride (A, 1) of each cell, in the order of :func:`flatten`.

    They depend on the maps' sizes alone: in an exported graph they are constants.
    """
    centres, strides = [], []
    for stride, (classes, _) in zip(STRIDES, raw, strict=True):
        height, width = classes.shape[-2:]
        y = (torch.arange(height, device=classes.device, dtype=dtype) + 0.5) * stride
        x = (torch.arange(width, device=classes.device, dtype=dtype) + 0.5) * stride
        centres.append(torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1))
        strides.append(torch.full((height * width, 1), stride, device=classes.device, dtype=dtype))
    return torch.cat(centres), torch.cat(strides)


def distances_of(bins: Tensor) -> Tensor:
    """Logits over the bins (..., BINS) to the mean distance (...), in strides."""
    # a product and a sum, not a matrix product: what looks like a layer would be quantised like one
    return (bins.softmax(dim=-1) * torch.arange(BINS, device=bins.device, dtype=bins.dtype)).sum(dim=-1)


def boxes_of(distances: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Distances of the left, top, right and bottom sides (N, A, 4), in strides, to xyxy (N, A, 4) in input pixels."""
    outwards = torch.tensor([-1, -1, 1, 1], device=strides.device, dtype=strides.dtype)
    return distances * (strides * outwards) + centres.repeat(1, 2)
