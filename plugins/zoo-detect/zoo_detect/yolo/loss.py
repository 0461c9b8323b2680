"""What training minimises: wrong scores, boxes that miss, and distances whose distribution is off.

References: X. Li et al., "Generalized Focal Loss", 2020, https://arxiv.org/abs/2006.04388 (scores against a quality
between 0 and 1, equation 3; distances as distributions, equation 6); H. Rezatofighi et al., "Generalized Intersection
over Union", 2019, https://arxiv.org/abs/1902.09630.

One thing is not as in TOOD, whose assignment this is: a cell's box weighs by its share of the object's best alignment
and not by the quality, which has that best cell's IoU in it. With the quality, an object that is hit badly hardly
pulls; with the share it pulls as one that is hit well. On eight images of blood cells, 90 steps so find all nine platelets,
which are small and rare, at an IoU of 0.5, and otherwise none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..boxes import giou, pad
from .assigner import assign
from .head import BINS, Raw, boxes_of, cells, distances_of, flatten

__all__ = ["distribution_loss", "quality_loss", "yolo_loss"]

CLASS_WEIGHT, BOX_WEIGHT, DISTANCE_WEIGHT = 1.0, 2.0, 0.5
"""The first two are TOOD's; GFL's distances weigh an eighth of its boxes, here it is a quarter."""


def yolo_loss(raw: Raw, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """``class``, ``box`` and ``distance``, weighted: the first for each unit of quality that is to be reached, the
    others a weighted mean over the cells that answer for an object.

    ``targets``: for each image ``boxes`` (M, 4) xyxy in input pixels and ``classes`` (M,) int64. Computed in float32
    whatever autocast says: alignment is a seventh power, of which bfloat16 has two digits.
    """
    device = raw[0][0].device
    with torch.autocast(device.type, enabled=False):
        logits, bins = flatten(raw)
        centres, strides = cells(raw, logits.dtype)
        boxes = boxes_of(distances_of(bins), centres, strides)
        objects = pad(targets, device)
        index, quality, share = assign(logits.detach().sigmoid(), boxes.detach(), centres, objects)

        wanted = F.one_hot(objects.classes.gather(1, index), logits.shape[2]) * quality[..., None]  # (N, A, C)
        class_loss = quality_loss(logits, wanted).sum() / quality.sum().clamp(min=1.0)

        image, cell = share.nonzero(as_tuple=True)  # P cells answer for an object
        weight = share[image, cell] / share.sum().clamp(min=1.0)
        truth = objects.boxes[image, index[image, cell]]  # (P, 4)
        box_loss = ((1 - giou(boxes[image, cell], truth)) * weight).sum()

        centre = centres[cell]
        sides = torch.cat([centre - truth[:, :2], truth[:, 2:] - centre], dim=1) / strides[cell]  # (P, 4)
        distance_loss = (distribution_loss(bins[image, cell], sides).mean(dim=1) * weight).sum()
    return {
        "class": CLASS_WEIGHT * class_loss,
        "box": BOX_WEIGHT * box_loss,
        "distance": DISTANCE_WEIGHT * distance_loss,
    }


def quality_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Cross-entropy against a quality in 0..1, times the squared error of the score, so that what is nearly right
    weighs little. Any shape, elementwise."""
    error = (quality - logits.sigmoid()).square()
    return error * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_loss(bins: Tensor, distance: Tensor) -> Tensor:
    """Cross-entropy of a distribution over bins (..., BINS) with the two bins next to ``distance`` (...), each weighted
    by how near it is. Distances beyond the last bin count as the last bin."""
    distance = distance.clamp(0, BINS - 1)
    lower = distance.floor().clamp(max=BINS - 2)
    share = distance - lower
    log_p = bins.log_softmax(dim=-1)
    below = log_p.gather(-1, lower.long()[..., None])[..., 0]
    above = log_p.gather(-1, lower.long()[..., None] + 1)[..., 0]
    return -(below * (1 - share) + above * share)
