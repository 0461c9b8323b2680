"""Boxes as the losses see them: overlaps, and the objects of a batch as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

__all__ = ["Objects", "giou", "iou", "pad"]

EPS = 1e-7
"""Keeps a division by the area of two empty boxes finite; far below a pixel."""


class Objects(NamedTuple):
    """The objects of N images, padded to the same number M (at least 1)."""

    boxes: Tensor
    """(N, M, 4) float32 xyxy."""
    classes: Tensor
    """(N, M) int64."""
    real: Tensor
    """(N, M) bool: false where it is padding."""


def pad(targets: Sequence[dict[str, Tensor]], device: torch.device) -> Objects:
    """The ``{"boxes": (M, 4), "classes": (M,)}`` of N images, where M differs and may be 0, as one tensor each."""
    if not any(len(t["classes"]) for t in targets):
        n = len(targets)
        return Objects(
            torch.zeros(n, 1, 4, device=device),
            torch.zeros(n, 1, dtype=torch.int64, device=device),
            torch.zeros(n, 1, dtype=torch.bool, device=device),
        )
    boxes = pad_sequence([t["boxes"].float() for t in targets], batch_first=True).to(device)
    classes = pad_sequence([t["classes"] for t in targets], batch_first=True).to(device)
    counts = torch.tensor([len(t["classes"]) for t in targets], device=device)
    return Objects(boxes, classes, torch.arange(boxes.shape[1], device=device) < counts[:, None])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes (..., 4), whose leading axes broadcast."""
    intersection, union = _overlap(a, b)
    return intersection / union


def giou(a: Tensor, b: Tensor) -> Tensor:
    """The generalised intersection over union of xyxy boxes (..., 4), -1..1: it still tells how far apart boxes are
    that do not meet. H. Rezatofighi et al., CVPR 2019, https://arxiv.org/abs/1902.09630."""
    intersection, union = _overlap(a, b)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = around[..., 0] * around[..., 1] + EPS
    return intersection / union - (hull - union) / hull


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    sizes_a, sizes_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = common[..., 0] * common[..., 1]
    return intersection, sizes_a[..., 0] * sizes_a[..., 1] + sizes_b[..., 0] * sizes_b[..., 1] - intersection + EPS
