"""Faster R-CNN with a fixed number of proposals, so that the second stage fits into a graph of static shapes.

S. Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", NeurIPS 2015,
https://arxiv.org/abs/1506.01497, on a feature pyramid: T.-Y. Lin et al., CVPR 2017, https://arxiv.org/abs/1612.03144.

Four things differ from the papers, each so that no shape depends on the image:

- every level of the pyramid proposes its own fixed number of boxes, and a box is pooled from the level that proposed it;
- proposals are thinned by Matrix NMS (X. Wang et al., "SOLOv2", NeurIPS 2020, https://arxiv.org/abs/2003.10152), which
  lowers the rank of a box that a better one covers and removes nothing;
- RoIAlign (K. He et al., "Mask R-CNN", ICCV 2017, https://arxiv.org/abs/1703.06870) is written as two matrix
  products, which every runtime takes and is quick at: the same sampling points, the same averages;
- one box a proposal, shared by all classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .boxes import iou, pad
from .trunk import trunk

__all__ = ["FasterRCNN", "build", "matrix_nms", "roi_align"]

Raw = dict[str, Any]
"""Per level: ``features`` (N, C, H, W), ``anchors`` (A, 4), ``objectness`` (N, A), ``anchor_deltas`` (N, A, 4).
Per proposal: ``proposals`` (N, K, 4), ``logits`` (N, K, 1 + classes), the background first, ``deltas`` (N, K, 4).
``size`` (4,): width, height, width, height of the input. Boxes are xyxy input pixels."""

SIZES = (32, 64, 128, 256)
"""Side of a level's anchors in pixels; the levels have strides 8, 16, 32 and 64."""
RATIOS = (0.5, 1.0, 2.0)
PROPOSALS = (96, 48, 24, 12)
"""How many boxes each level proposes, fewer where it has fewer anchors: the larger the objects, the fewer fit in."""
CANDIDATES = 4
"""Of so many times as many boxes, those with the highest objectness, each level chooses its proposals."""
POOLED = 7
"""Side of the grid of values that is pooled from each proposal."""
SAMPLES = 2
"""Each pooled value is the mean of SAMPLES x SAMPLES points."""


class FasterRCNN(nn.Module):
    """``backbone``: see :func:`~zoo_detect.trunk.trunk`; ``width``: channels of the feature pyramid; ``hidden``: units of
    the second stage's two layers."""

    def __init__(self, num_classes: int, in_channels: int, backbone: str, width: int, hidden: int) -> None:
        super().__init__()
        self.backbone, channels = trunk(backbone, in_channels)
        self.pyramid = FeaturePyramidNetwork(channels, width, LastLevelMaxPool())
        self.anchors = AnchorGenerator(tuple((s,) for s in SIZES), (RATIOS,) * len(SIZES))
        self.rpn = RPNHead(width, len(RATIOS))
        self.box_head = TwoMLPHead(width * POOLED**2, hidden)
        self.classifier = nn.Linear(hidden, 1 + num_classes)
        self.regressor = nn.Linear(hidden, 4)
        self.anchor_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
        self.anchor_matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
        self.anchor_sampler = BalancedPositiveNegativeSampler(256, 0.5)
        self.box_matcher = Matcher(0.5, 0.5, allow_low_quality_matches=False)
        self.box_sampler = BalancedPositiveNegativeSampler(128, 0.25)

    def forward(self, x: Tensor) -> Raw:
        """(N, in_channels, H, W), preprocessed, to the raw outputs; boxes stay float32 under autocast."""
        stages = self.backbone(x)
        features = list(self.pyramid(OrderedDict((str(i), s) for i, s in enumerate(stages))).values())
        size = x.new_tensor([x.shape[3], x.shape[2], x.shape[3], x.shape[2]])
        shapes = [x.new_empty((1, 1, *f.shape[-2:])) for f in features]  # the generator looks at shapes and dtype alone
        anchors = self.anchors(ImageList(x, [tuple(x.shape[-2:])]), shapes)[0]
        anchors = list(anchors.split([s.shape[2] * s.shape[3] * len(RATIOS) for s in shapes]))
        maps, delta_maps = self.rpn(features)
        objectness = [_by_anchor(m, 1).squeeze(2).to(x.dtype) for m in maps]  # (N, A) each
        anchor_deltas = [_by_anchor(m, 4).to(x.dtype) for m in delta_maps]  # (N, A, 4) each
        proposals, pooled = [], []
        for level, count in enumerate(PROPOSALS):
            boxes = _decode(self.anchor_coder, anchor_deltas[level].detach(), anchors[level], size)
            proposals.append(_propose(objectness[level].detach(), boxes, count))
            pooled.append(roi_align(features[level], proposals[-1], size))
        logits, deltas = self._second_stage(torch.cat(pooled, dim=1))
        return {
            "features": features,
            "anchors": anchors,
            "objectness": objectness,
            "anchor_deltas": anchor_deltas,
            "proposals": torch.cat(proposals, dim=1),
            "logits": logits.to(x.dtype),
            "deltas": deltas.to(x.dtype),
            "size": size,
        }

    def _second_stage(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K, C, POOLED, POOLED) to logits (N, K, 1 + classes) and deltas (N, K, 4)."""
        hidden = self.box_head(pooled.flatten(0, 1)).unflatten(0, (-1, pooled.shape[1]))
        return self.classifier(hidden), self.regressor(hidden)

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """``boxes`` (N, K, 4) xyxy input pixels and ``scores`` (N, K, num_classes)."""
        boxes = _decode(self.box_coder, raw["deltas"], raw["proposals"], raw["size"])
        return boxes, raw["logits"].softmax(dim=-1)[..., 1:]

    def loss(self, raw: Raw, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Of each stage: cross-entropy over a sample of its boxes, and smooth L1 over those of them that match an
        object. The objects themselves join the proposals, which in the first epochs hardly meet one."""
        anchors = torch.cat(raw["anchors"])
        labels, goals = zip(*(_match(self.anchor_matcher, t, anchors) for t in targets), strict=True)
        first = _sampled_loss(
            self.anchor_sampler,
            [label.clamp(max=1) for label in labels],
            torch.cat(raw["objectness"], dim=1),
            torch.cat(raw["anchor_deltas"], dim=1),
            [anchors] * len(targets),
            goals,
            self.anchor_coder,
        )
        objects = pad(targets, anchors.device)
        pooled = torch.stack([roi_align(f, objects.boxes, raw["size"]) for f in raw["features"]])  # (L, N, M, C, 7, 7)
        sides = (objects.boxes[..., 2:] - objects.boxes[..., :2]).clamp(min=1).prod(dim=-1).sqrt()
        level = (sides.log2() - torch.tensor(SIZES).log2().view(-1, 1, 1).to(sides)).abs().argmin(dim=0)  # (N, M)
        image = torch.arange(level.shape[0], device=level.device)[:, None]
        place = torch.arange(level.shape[1], device=level.device)
        logits, deltas = self._second_stage(pooled[level, image, place])
        proposals = torch.cat([raw["proposals"], objects.boxes.to(anchors.dtype)], dim=1)
        labels, goals = zip(
            *(_match(self.box_matcher, t, p) for t, p in zip(targets, proposals, strict=True)), strict=True
        )
        for label, real in zip(labels, objects.real, strict=True):
            label[-len(real) :][~real] = -1
        second = _sampled_loss(
            self.box_sampler,
            labels,
            torch.cat([raw["logits"], logits.to(anchors.dtype)], dim=1),
            torch.cat([raw["deltas"], deltas.to(anchors.dtype)], dim=1),
            list(proposals),
            goals,
            self.box_coder,
        )
        return {"objectness": first[0], "anchor_boxes": first[1], "classes": second[0], "boxes": second[1]}


def roi_align(features: Tensor, boxes: Tensor, size: Tensor) -> Tensor:
    """The features (N, C, H, W) inside ``boxes`` (N, K, 4), xyxy input pixels that lie in the input of ``size`` (W, H,
    W, H) pixels: (N, K, C, POOLED, POOLED). What ``torchvision.ops.roi_align(..., aligned=True)`` gives.

    Bilinear samples on an upright grid are a product: rows of the map weighted by height, then columns by width.
    """
    channels, height, width = features.shape[1:]
    count = boxes.shape[1]
    down, across = _weights(boxes[..., 1::2] / size[1], height), _weights(boxes[..., 0::2] / size[0], width)
    rows = down.flatten(1, 2) @ features.permute(0, 2, 1, 3).flatten(2).to(down.dtype)  # (N, K * POOLED, C * W)
    rows = rows.reshape(-1, count, POOLED * channels, width)
    pooled = rows @ across.transpose(2, 3)  # (N, K, POOLED * C, POOLED)
    return pooled.reshape(-1, count, POOLED, channels, POOLED).transpose(2, 3)


def _weights(span: Tensor, cells: int) -> Tensor:
    """How much each of a map's ``cells`` counts in each pooled value along one side: (N, K, POOLED, cells), from where
    the boxes begin and end (N, K, 2) as shares of the input."""
    side = POOLED * SAMPLES
    steps = (torch.arange(side, device=span.device, dtype=span.dtype) + 0.5) / side
    low, high = span.chunk(2, dim=-1)
    at = ((low + (high - low) * steps) * cells - 0.5).clamp(0, cells - 1)  # (N, K, side)
    distances = at[..., None] - torch.arange(cells, device=span.device, dtype=span.dtype)
    nearness = (1 - distances.abs()).clamp(min=0)  # (N, K, side, cells)
    return nearness.reshape(-1, span.shape[1], POOLED, SAMPLES, cells).mean(dim=3)


def matrix_nms(boxes: Tensor, sharpness: float = 2.0) -> Tensor:
    """What to add to the logarithm of each score, (N, K) and never above 0; ``boxes`` (N, K, 4) come with the best first.

    A box loses by its overlap with each better box, the less the more that one is covered itself (the Gaussian form,
    equations 4 and 5 of the paper).
    """
    overlap = iou(boxes[:, :, None], boxes[:, None]).triu(diagonal=1) ** 2  # (N, better, worse)
    covered = overlap.amax(dim=1)
    return -sharpness * (overlap - covered[:, :, None]).amax(dim=1)


def _propose(objectness: Tensor, boxes: Tensor, count: int) -> Tensor:
    """The ``count`` best of one level, (N, count, 4), in the order of their anchors.

    Not in the order of their scores: two scores that differ by rounding only would change places between one runtime
    and the next.
    """
    count = min(count, objectness.shape[1])
    scores, anchor = objectness.topk(min(CANDIDATES * count, objectness.shape[1]), dim=1)
    boxes = boxes.gather(1, anchor[:, :, None].expand(-1, -1, 4))
    # the logarithm of the sigmoid, written so that no runtime takes the logarithm of a sigmoid that it rounded to 0:
    # ONNX Runtime does below -18, and all such scores would be level
    chosen = (matrix_nms(boxes) - F.softplus(-scores)).topk(count, dim=1).indices
    chosen = chosen.gather(1, anchor.gather(1, chosen).argsort(dim=1))
    return boxes.gather(1, chosen[:, :, None].expand(-1, -1, 4))


def _by_anchor(level: Tensor, values: int) -> Tensor:
    """(N, anchors x values, H, W) to (N, H x W x anchors, values)."""
    return level.reshape(level.shape[0], -1, values, *level.shape[2:]).permute(0, 3, 4, 1, 2).flatten(1, 3)


def _decode(coder: BoxCoder, deltas: Tensor, reference: Tensor, size: Tensor) -> Tensor:
    """(N, K, 4) deltas to ``reference``, (K, 4) or (N, K, 4), as xyxy input pixels cut at the input's borders."""
    boxes = coder.decode_single(deltas.reshape(-1, 4), reference.expand(deltas.shape).reshape(-1, 4))
    return torch.minimum(boxes.reshape(deltas.shape).clamp(min=0), size)


def _match(matcher: Matcher, target: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Per box its label (-1 left out, 0 background, else 1 + class) and the object it should become, xyxy."""
    if not len(target["boxes"]):
        return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device), boxes
    objects = target["boxes"].to(boxes.dtype)
    match = matcher(iou(objects[:, None], boxes))
    labels = 1 + target["classes"][match.clamp(min=0)]
    labels[match == Matcher.BELOW_LOW_THRESHOLD] = 0
    labels[match == Matcher.BETWEEN_THRESHOLDS] = -1
    return labels, objects[match.clamp(min=0)]


def _sampled_loss(
    sampler: BalancedPositiveNegativeSampler,
    labels: Sequence[Tensor],
    logits: Tensor,
    deltas: Tensor,
    references: Sequence[Tensor],
    goals: Sequence[Tensor],
    coder: BoxCoder,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (binary where ``logits`` is (N, K)) over the sampled boxes of N images, and smooth L1 of the deltas
    over the positive ones among them, both divided by the number sampled."""
    positive, negative = (torch.stack(part).bool() for part in sampler(list(labels)))
    sampled, label = positive | negative, torch.stack(list(labels))
    count = sampled.sum().clamp(min=1)
    if logits.ndim == 2:
        classes = F.binary_cross_entropy_with_logits(logits[sampled], label[sampled].to(logits), reduction="sum")
    else:
        classes = F.cross_entropy(logits[sampled], label[sampled], reduction="sum")
    goal = coder.encode_single(torch.stack(list(goals))[positive], torch.stack(list(references))[positive])
    boxes = F.smooth_l1_loss(deltas[positive], goal, beta=1 / 9, reduction="sum")
    return classes / count, boxes / count


def build(
    *, num_classes: int, in_channels: int, backbone: str = "mobilenetv3_large_100", width: int = 128, hidden: int = 512
) -> FasterRCNN:
    """Faster R-CNN with random weights over timm's ``backbone``; at most 180 proposals an image."""
    return FasterRCNN(num_classes, in_channels, backbone, width, hidden)
