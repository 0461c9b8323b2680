"""The zoo's own YOLO: one stage, no anchors, over any timm backbone.

An image classifier's trunk gives maps at strides 8, 16 and 32 (:mod:`~zoo_detect.trunk`); a neck lets them exchange
what they know (:mod:`.neck`: PANet, https://arxiv.org/abs/1803.01534); a decoupled head says at each cell which classes
are there and how far the object's sides are (:mod:`.head`: YOLOX, https://arxiv.org/abs/2107.08430); in training, cells
are assigned to objects by how well they do (:mod:`.assigner`: TOOD, https://arxiv.org/abs/2108.07755). The name is that
of the family: J. Redmon et al., "You Only Look Once", 2016, https://arxiv.org/abs/1506.02640.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..sizes import need_multiple
from ..trunk import STRIDES, trunk
from .head import Head, Raw, boxes_of, cells, distances_of, flatten
from .loss import yolo_loss
from .neck import Neck

__all__ = ["Yolo", "build"]


class Yolo(nn.Module):
    """(N, in_channels, H, W) float32, H and W multiples of 32, to :data:`~zoo_detect.yolo.head.Raw`."""

    def __init__(self, backbone: nn.Module, channels: Sequence[int], num_classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = Neck(channels, width, depth)
        self.head = Head(num_classes, width, depth)

    def forward(self, x: Tensor) -> Raw:
        need_multiple(x, STRIDES[-1], f"YOLO's coarsest map has one cell for {STRIDES[-1]} pixels")
        maps = self.backbone(x)  # at strides 8, 16, 32
        raw: Raw = self.head(self.neck(maps))
        return raw

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """Boxes (N, A, 4) xyxy in input pixels and scores (N, A, C) in 0..1 of all A cells of the three maps."""
        logits, bins = flatten(raw)
        return boxes_of(distances_of(bins), *cells(raw, bins.dtype)), logits.sigmoid()

    def loss(self, raw: Raw, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See :func:`~zoo_detect.yolo.loss.yolo_loss`."""
        return yolo_loss(raw, targets)


def build(*, num_classes: int, in_channels: int, backbone: str, width: int, depth: int) -> Yolo:
    """A YOLO over timm's ``backbone``, with random weights.

    ``width``: channels of neck and head. ``depth``: separable convolutions in each of their stages.
    Raises UnknownName where timm has no such network, ZooError where it has no maps at strides 8, 16 and 32.
    """
    maps, channels = trunk(backbone, in_channels)
    return Yolo(maps, channels, num_classes, width, depth)
