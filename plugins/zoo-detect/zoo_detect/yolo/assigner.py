"""Which cells answer for which object, decided anew at each step by how well they do.

Reference: C. Feng et al., "TOOD: Task-aligned One-stage Object Detection", ICCV 2021,
https://arxiv.org/abs/2108.07755 (section 3.2): a cell's alignment with an object is ``score ** 1 * IoU ** 6``; the
13 best aligned cells within an object's box answer for it, and their target score is the alignment, scaled so that an
object's best cell is to reach the best IoU among its cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import Objects, iou
from ..trunk import STRIDES

__all__ = ["Assignment", "assign"]

CELLS = 13
"""How many cells answer for an object at most."""


class Assignment(NamedTuple):
    """What each of the A cells of N images is to say."""

    objects: Tensor
    """(N, A) int64: the object it answers for; any where it answers for none."""
    quality: Tensor
    """(N, A) float32 in 0..1: the score it is to reach for the object's class; 0 where it answers for none."""
    share: Tensor
    """(N, A) float32 in 0..1: its alignment as a share of that of the object's best cell."""


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, centres: Tensor, objects: Objects) -> Assignment:
    """The cells' scores (N, A, C), boxes (N, A, 4) xyxy and centres (A, 2) in input pixels, to their assignment.

    The whole batch at once, in tensors of N x M x A float32: 16 images of at most 30 objects at 320 px take 4 MB each.
    """
    count = centres.shape[0]
    overlap = iou(objects.boxes[:, :, None], boxes[:, None])  # (N, M, A)
    wanted = objects.classes[:, :, None].expand(-1, -1, count)
    alignment = scores.transpose(1, 2).gather(1, wanted) * overlap.pow(3).square()  # (N, M, A)
    candidates = _within(centres, objects.boxes) & objects.real[:, :, None]
    alignment = torch.where(candidates, alignment, 0.0)
    best = alignment.topk(min(CELLS, count), dim=2).indices
    chosen = torch.zeros_like(candidates).scatter_(2, best, True) & (alignment > 0)
    # a cell that several objects chose goes to the one it covers best
    index = torch.where(chosen, overlap, -1.0).argmax(dim=1)  # (N, A)
    won = chosen & (index[:, None] == torch.arange(chosen.shape[1], device=index.device)[:, None])
    alignment = torch.where(won, alignment, 0.0)
    share = alignment / alignment.amax(dim=2, keepdim=True).clamp(min=torch.finfo(alignment.dtype).tiny)
    top_overlap = torch.where(won, overlap, 0.0).amax(dim=2, keepdim=True)
    return Assignment(index, (share * top_overlap).amax(dim=1), share.amax(dim=1))


def _within(centres: Tensor, boxes: Tensor) -> Tensor:
    """(N, M, A) bool: the cell's centre lies in the box. A box narrower than a cell counts as one cell wide, so that
    none falls between the cells."""
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2  # (N, M, 2)
    reach = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=STRIDES[0] / 2)
    away = (centres - middle[:, :, None]).abs()  # (N, M, A, 2)
    return (away <= reach[:, :, None]).all(dim=3)
