"""SSDLite, RetinaNet and FCOS as torchvision builds them, cut so that they can leave PyTorch.

torchvision's own forward filters by score and suppresses inside the network, with branches on how many boxes are left:
no graph can hold that. Here the network ends with its heads; decoding keeps every anchor, and what filters and
suppresses stands outside. Layers, anchors, box coding, matching and losses are torchvision's, so that each detector
finds what torchvision's finds, box for box.

SSDLite: M. Sandler et al., "MobileNetV2", CVPR 2018, https://arxiv.org/abs/1801.04381 (section 6.2), on MobileNetV3:
A. Howard et al., "Searching for MobileNetV3", ICCV 2019, https://arxiv.org/abs/1905.02244 (section 6.3).
RetinaNet: T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002.
FCOS: Z. Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, https://arxiv.org/abs/1904.01355.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

__all__ = ["FCOS", "RetinaNet", "SSDLite", "build_fcos", "build_retinanet", "build_ssdlite"]

LEAST_NEGATIVES = 3
"""From so many anchors SSD learns in an image without objects: those that look most like one."""

Raw = dict[str, Any]
"""``cls_logits`` (N, A, classes) and ``bbox_regression`` (N, A, 4) as the head gives them; ``anchors``: xyxy input
pixels, one (A_level, 4) tensor a level; ``size`` (4,): width, height, width, height of the input."""


class _Detector(nn.Module):
    """``model`` is torchvision's: its layers are used, its forward is not."""

    def __init__(self, model: Any, in_channels: int) -> None:
        super().__init__()
        self.model = model
        _take_channels(self.model.backbone, in_channels)

    def forward(self, x: Tensor) -> Raw:
        """(N, in_channels, H, W), preprocessed, to the raw outputs. Under autocast they and the anchors stay float32."""
        levels = list(self.model.backbone(x).values())  # (N, C, H / stride, W / stride) each
        raw: Raw = {name: value.to(x.dtype) for name, value in self.model.head(levels).items()}
        # the generator looks at shapes and dtype alone; it takes half a millisecond, and a graph has constants for it
        shapes = [x.new_empty((1, 1, *level.shape[-2:])) for level in levels]
        generator = self.model.anchor_generator
        anchors = generator(ImageList(x, [tuple(x.shape[-2:])]), shapes)[0]
        counts = [
            s.shape[2] * s.shape[3] * a for s, a in zip(shapes, generator.num_anchors_per_location(), strict=True)
        ]
        raw["anchors"] = list(anchors.split(counts))
        raw["size"] = x.new_tensor([x.shape[3], x.shape[2], x.shape[3], x.shape[2]])
        return raw

    def _boxes(self, raw: Raw) -> Tensor:
        """(N, A, 4) xyxy input pixels, cut at the input's borders."""
        deltas, anchors = raw["bbox_regression"], torch.cat(raw["anchors"])
        per_image = anchors.expand(deltas.shape[0], -1, -1).reshape(-1, 4)
        boxes = self.model.box_coder.decode_single(deltas.reshape(-1, 4), per_image).reshape(deltas.shape)
        return _cut(boxes, raw)


class SSDLite(_Detector):
    """SSDLite320 on MobileNetV3-Large. The softmax has a background column, which decoding leaves out."""

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """``boxes`` (N, A, 4) xyxy input pixels and ``scores`` (N, A, num_classes)."""
        return self._boxes(raw), raw["cls_logits"].softmax(dim=-1)[..., 1:]

    def loss(self, raw: Raw, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Smooth L1 and cross-entropy over the matched anchors and three times as many hard negatives, but never fewer
        than three in an image.

        torchvision has no such floor (the line that would set it is commented out), and an image without objects teaches
        it nothing. TensorFlow's SSDLite has it: ``min_negatives_per_image: 3`` in ssdlite_mobilenet_v2_coco.config.
        """
        theirs = _named(targets, first_class=1)
        anchors = torch.cat(raw["anchors"])
        matches = []
        for target in theirs:
            if len(target["boxes"]):
                matches.append(self.model.proposal_matcher(box_iou(target["boxes"], anchors)))
            else:
                matches.append(target["labels"].new_full((len(anchors),), -1))
        found: dict[str, Tensor] = self.model.compute_loss(theirs, raw, [anchors] * len(theirs), matches)
        matched = (torch.stack(matches) >= 0).sum(dim=1)
        background = -raw["cls_logits"][matched == 0].log_softmax(dim=-1)[..., 0]  # (images without objects, A)
        hardest = background.topk(LEAST_NEGATIVES, dim=1).values.sum()
        return {**found, "classification": found["classification"] + hardest / matched.sum().clamp(min=1)}


class RetinaNet(_Detector):
    """RetinaNet on ResNet-50 with a feature pyramid. Classes are independent sigmoids: there is no background column."""

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """``boxes`` (N, A, 4) xyxy input pixels and ``scores`` (N, A, num_classes)."""
        return self._boxes(raw), raw["cls_logits"].sigmoid()

    def loss(self, raw: Raw, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Focal loss over all anchors, L1 over the matched ones."""
        anchors = [torch.cat(raw["anchors"])] * len(targets)
        found: dict[str, Tensor] = self.model.compute_loss(_named(targets), raw, anchors)
        return found


class FCOS(_Detector):
    """FCOS on ResNet-50 with a feature pyramid: one square anchor a place, distances to the four sides, centre-ness."""

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """``boxes`` (N, A, 4) xyxy input pixels and ``scores`` (N, A, num_classes): the geometric mean of class
        and centre-ness."""
        boxes = self.model.box_coder.decode(raw["bbox_regression"], torch.cat(raw["anchors"]))
        scores = torch.sqrt(raw["cls_logits"].sigmoid() * raw["bbox_ctrness"].sigmoid())
        return _cut(boxes, raw), scores

    def loss(self, raw: Raw, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Focal loss over all places; generalised IoU and centre-ness over those near an object's centre."""
        anchors = [torch.cat(raw["anchors"])] * len(targets)
        counts = [len(level) for level in raw["anchors"]]
        found: dict[str, Tensor] = self.model.compute_loss(_named(targets), raw, anchors, counts)
        return found


def build_ssdlite(*, num_classes: int, in_channels: int) -> SSDLite:
    """SSDLite320 with random weights; at 320 x 320 pixels its six levels have 3234 anchors."""
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes + 1)
    return SSDLite(model, in_channels)


def build_retinanet(*, num_classes: int, in_channels: int) -> RetinaNet:
    """RetinaNet with random weights; sides that divide by 128 put the anchors of all five levels on their strides."""
    model = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
    return RetinaNet(model, in_channels)


def build_fcos(*, num_classes: int, in_channels: int) -> FCOS:
    """FCOS with random weights; sides that divide by 128 put the anchors of all five levels on their strides."""
    return FCOS(detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes), in_channels)


def _named(targets: Sequence[dict[str, Tensor]], first_class: int = 0) -> list[dict[str, Tensor]]:
    """The targets by torchvision's names, and by its count of the classes."""
    return [{"boxes": t["boxes"], "labels": t["classes"] + first_class} for t in targets]


def _cut(boxes: Tensor, raw: Raw) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), raw["size"])


def _take_channels(backbone: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one that takes ``in_channels`` and is drawn like it."""
    name, first = next((n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == in_channels:
        return
    fresh = nn.Conv2d(
        in_channels,
        first.out_channels,
        kernel_size=first.kernel_size,  # type: ignore[arg-type]
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    nn.init.normal_(fresh.weight, std=float(first.weight.detach().std()))
    backbone.set_submodule(name, fresh)
