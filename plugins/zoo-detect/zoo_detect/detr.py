"""RT-DETRv2, a detector that needs no suppression, out of the parts that the transformers package has.

Y. Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024, https://arxiv.org/abs/2304.08069;
W. Lv et al., "RT-DETRv2", 2024, https://arxiv.org/abs/2407.17140. The layers are transformers'; the way through them is
written here, because theirs fixes the batch size and decides on the data, which no graph can hold. It is a small
relative of the published networks: any timm backbone, half the width, three decoder layers, and no denoising queries in
training, which would need the targets in the forward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import scipy.optimize  # type: ignore[import-untyped] # noqa: F401  (the loss needs it, and would say so late)
import torch
from torch import Tensor, nn
from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection, TimmBackboneConfig
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

from .sizes import need_multiple
from .trunk import STRIDES, trunk

__all__ = ["RTDetr", "build"]

Raw = dict[str, Tensor]
"""``logits`` (N, layers, Q, classes) and ``boxes`` (N, layers, Q, 4) of every decoder layer, ``first_logits`` (N, Q,
classes) and ``first_boxes`` (N, Q, 4) of the places that the queries start from; boxes are centre, width and height as
shares of the input. ``size`` (4,): width, height, width, height of the input in pixels."""


class RTDetr(nn.Module):
    """``backbone``: see :func:`~zoo_detect.trunk.trunk`; ``width``: channels of everything behind it; ``queries``: the
    most objects that can be found in one image."""

    def __init__(
        self, num_classes: int, in_channels: int, backbone: str, width: int, queries: int, decoder_layers: int
    ) -> None:
        super().__init__()
        stages, _ = trunk(backbone, in_channels)
        self.config = RTDetrV2Config(
            # theirs is replaced below: it has the same maps, but not the names of a classifier's weights
            backbone_config=TimmBackboneConfig(backbone=backbone, out_indices=[-3, -2, -1]),
            num_labels=num_classes,
            d_model=width,
            encoder_hidden_dim=width,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            hidden_expansion=0.5,
            decoder_in_channels=[width] * 3,
            decoder_layers=decoder_layers,
            num_queries=queries,
            num_denoising=0,
            initializer_bias_prior_prob=0.01,
            freeze_backbone_batch_norms=False,
        )
        self.model: Any = RTDetrV2ForObjectDetection(self.config).model
        # transformers draws the gains of BatchNorm from N(0, 0.01): behind the neck no signal is left, every place of
        # the image scores the same to the last bit, and the choice of the queries is a tie
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
        self.model.backbone = stages

    def forward(self, x: Tensor) -> Raw:
        """(N, in_channels, H, W), preprocessed, to the raw outputs. Raises ZooError where 32 does not divide H and W."""
        need_multiple(x, STRIDES[-1], f"RT-DETR's coarsest map has one cell for {STRIDES[-1]} pixels")
        model = self.model
        maps = [project(m) for project, m in zip(model.encoder_input_proj, model.backbone(x), strict=True)]
        maps = model.encoder(maps).last_hidden_state
        maps = [project(m) for project, m in zip(model.decoder_input_proj, maps, strict=True)]  # (N, C, H_l, W_l) each
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        memory = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (N, places, C)
        anchors, valid = _anchors(shapes, x)  # (places, 4), (places, 1)

        # the places that look most like an object become the queries
        places = model.enc_output(memory * valid)
        logits = model.enc_score_head(places)  # (N, places, classes)
        boxes = model.enc_bbox_head(places) + anchors
        count = min(self.config.num_queries, logits.shape[1])
        chosen = logits.amax(dim=-1).topk(count, dim=1).indices
        # in the order of the places, not of their scores: two scores that differ by rounding only would change places
        # between one runtime and the next
        chosen = chosen.sort(dim=1).values[:, :, None]  # (N, Q, 1)
        first_logits = logits.gather(1, chosen.expand(-1, -1, logits.shape[2]))
        first_boxes = boxes.gather(1, chosen.expand(-1, -1, 4))

        with _unchecked():
            found = model.decoder(
                inputs_embeds=places.gather(1, chosen.expand(-1, -1, places.shape[2])).detach(),
                encoder_hidden_states=memory,
                reference_points=first_boxes.detach(),
                spatial_shapes=torch.tensor(shapes, device=x.device),
                spatial_shapes_list=shapes,
            )
        return {
            "logits": found.intermediate_logits.to(x.dtype),
            "boxes": found.intermediate_reference_points.to(x.dtype),
            "first_logits": first_logits.to(x.dtype),
            "first_boxes": first_boxes.sigmoid().to(x.dtype),
            "size": x.new_tensor([x.shape[3], x.shape[2], x.shape[3], x.shape[2]]),
        }

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor]:
        """``boxes`` (N, Q, 4) xyxy input pixels and ``scores`` (N, Q, num_classes) of the last decoder layer."""
        centre, size = raw["boxes"][:, -1].chunk(2, dim=-1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1) * raw["size"]
        return boxes, raw["logits"][:, -1].sigmoid()

    def loss(self, raw: Raw, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Varifocal loss, L1 and generalised IoU of the queries matched one to one, of every layer and of the first
        places; all of it is transformers' own, weights included."""
        wanted = []
        for target in targets:
            low, high = (target["boxes"] / raw["size"]).chunk(2, dim=-1)
            wanted.append(
                {"class_labels": target["classes"], "boxes": torch.cat([(low + high) / 2, high - low], dim=-1)}
            )
        _, parts, _ = RTDetrForObjectDetectionLoss(
            raw["logits"][:, -1],
            wanted,
            raw["logits"].device,
            raw["boxes"][:, -1],
            self.config,
            outputs_class=raw["logits"],
            outputs_coord=raw["boxes"],
            enc_topk_logits=raw["first_logits"],
            enc_topk_bboxes=raw["first_boxes"],
        )
        found: dict[str, Tensor] = parts
        return found


def _anchors(shapes: Sequence[tuple[int, int]], x: Tensor) -> tuple[Tensor, Tensor]:
    """The box that each place starts from, as logits (places, 4) of centre, width and height, of ``x``'s dtype even
    under autocast; and (places, 1) bool: false within a hundredth of the input's borders, where the memory is blanked."""
    levels = []
    for level, shape in enumerate(shapes):
        centres = [(torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n for n in shape]
        down, across = torch.meshgrid(*centres, indexing="ij")
        side = torch.full_like(down, 0.05 * 2**level)
        levels.append(torch.stack([across, down, side, side], dim=-1).flatten(0, 1))
    boxes = torch.cat(levels)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(dim=-1, keepdim=True)
    # 1e4 stands for infinity: its sigmoid is 1 as well, and half precision can hold it
    return torch.where(valid, boxes.logit(), torch.full_like(boxes, 1e4)), valid


@contextmanager
def _unchecked() -> Iterator[None]:
    """Switches off, by transformers' own switch, a check of shapes whose operator has no ONNX form."""
    name = "TRANSFORMERS_DISABLE_TORCH_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def build(
    *,
    num_classes: int,
    in_channels: int,
    backbone: str = "mobilenetv3_large_100",
    width: int = 128,
    queries: int = 100,
    decoder_layers: int = 3,
) -> RTDetr:
    """RT-DETRv2 with random weights over timm's ``backbone``; nothing is fetched."""
    return RTDetr(num_classes, in_channels, backbone, width, queries, decoder_layers)
