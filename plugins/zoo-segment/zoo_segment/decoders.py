"""U-Net, U-Net++, DeepLabV3+, FPN and SegFormer over any timm encoder; the decoders are segmentation-models-pytorch's.

Sizes, names of weights and values are those of its own networks over the same encoder (``tu-…``): what was trained
there loads here, for encoders whose names timm keeps when it gives feature maps (ResNet, EfficientNet, MobileNet, …).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from segmentation_models_pytorch.base import SegmentationHead, initialization
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from torch import nn

from .encoder import Encoder
from .sizes import check_maps, check_size

__all__ = ["Segmenter", "deeplabv3plus", "fpn", "segformer", "unet", "unetplusplus"]

WIDTHS = (256, 128, 64, 32, 16)
"""Channels of a U-Net's decoder from the deepest level to the image's own size."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What distinguishes one network from the next."""

    name: str
    divisor: int
    aligned: bool = False
    """Whether the decoder joins or adds maps as they come, so that each must have exactly its stride's size."""
    dilated: bool = False
    parts: Callable[[list[int], int], tuple[nn.Module, nn.Module]]
    """From the encoder's channels and the number of classes to decoder and head."""


class Segmenter(nn.Module):
    """Encoder, decoder, head: (N, C, H, W) float32, H and W divisible by ``kind.divisor``, to logits (N, K, H, W)."""

    def __init__(self, kind: Kind, encoder: Encoder, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.kind = kind
        self.encoder = encoder
        self.decoder = decoder
        self.segmentation_head = head
        initialization.initialize_decoder(decoder)
        initialization.initialize_head(head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        check_size(x, self.kind.divisor, self.kind.name)
        maps = self.encoder(x)
        if self.kind.aligned:
            check_maps(maps, self.kind.name)
        logits: torch.Tensor = self.segmentation_head(self.decoder(maps))
        return logits


def build(
    kind: Kind, *, num_classes: int, in_channels: int, encoder: str, img_size: tuple[int, int] = (256, 256)
) -> Segmenter:
    """The network with random weights over timm's ``encoder``; nothing is downloaded.

    ``img_size`` (H, W) reaches encoders whose weights depend on it; the others take any size that divides.
    Raises UnknownName, and ZooError where the encoder does not suit.
    """
    body = Encoder(encoder, in_channels, img_size=img_size, dilated=kind.dilated)
    decoder, head = kind.parts(body.channels, num_classes)
    return Segmenter(kind, body, decoder, head)


def _unet(channels: list[int], classes: int) -> tuple[nn.Module, nn.Module]:
    return UnetDecoder(channels, WIDTHS), SegmentationHead(WIDTHS[-1], classes, kernel_size=3)


def _unetplusplus(channels: list[int], classes: int) -> tuple[nn.Module, nn.Module]:
    return UnetPlusPlusDecoder(channels, WIDTHS), SegmentationHead(WIDTHS[-1], classes, kernel_size=3)


def _deeplabv3plus(channels: list[int], classes: int) -> tuple[nn.Module, nn.Module]:
    decoder = DeepLabV3PlusDecoder(
        channels,
        encoder_depth=5,
        out_channels=256,
        atrous_rates=(12, 24, 36),
        output_stride=16,
        aspp_separable=True,
        aspp_dropout=0.5,
    )
    return decoder, SegmentationHead(256, classes, kernel_size=1, upsampling=4)


def _fpn(channels: list[int], classes: int) -> tuple[nn.Module, nn.Module]:
    decoder = FPNDecoder(channels, pyramid_channels=256, segmentation_channels=128, dropout=0.2)
    return decoder, SegmentationHead(128, classes, kernel_size=1, upsampling=4)


def _segformer(channels: list[int], classes: int) -> tuple[nn.Module, nn.Module]:
    decoder = SegformerDecoder(channels, segmentation_channels=256)
    return decoder, SegmentationHead(256, classes, kernel_size=1, upsampling=4)


unet = partial(build, Kind(name="U-Net", divisor=1, parts=_unet))
unetplusplus = partial(build, Kind(name="U-Net++", divisor=32, aligned=True, parts=_unetplusplus))
deeplabv3plus = partial(build, Kind(name="DeepLabV3+", divisor=16, aligned=True, dilated=True, parts=_deeplabv3plus))
fpn = partial(build, Kind(name="FPN", divisor=32, aligned=True, parts=_fpn))
segformer = partial(build, Kind(name="SegFormer", divisor=4, parts=_segformer))
