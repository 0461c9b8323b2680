"""What a detector stands on: an image classifier of timm, cut off behind its last three stages."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from zoo.errors import UnknownName, ZooError

__all__ = ["STRIDES", "trunk"]

STRIDES = (8, 16, 32)
"""Input pixels to one cell of each of the trunk's maps."""


def trunk(backbone: str, in_channels: int) -> tuple[nn.Module, list[int]]:
    """timm's ``backbone`` with random weights, and how many channels each of its maps has.

    It makes (N, in_channels, H, W) a list of three maps (N, C, H / stride, W / stride); its part ``model`` takes the
    classifier's weights.

    Raises UnknownName where timm has no such network, ZooError where it has no maps at strides 8, 16 and 32.
    """
    if not timm.is_model(backbone):
        raise UnknownName("timm backbone", backbone, timm.list_models())
    try:
        # of timm's ways to take maps, the getter alone leaves every weight the name that it has in the classifier
        network: Any = timm.create_model(
            backbone,
            pretrained=False,
            in_chans=in_channels,
            features_only=True,
            feature_cls="getter",
            out_indices=(-3, -2, -1),
        )
        strides = tuple(network.feature_info.reduction())
    except Exception as error:  # timm raises whatever a network without such maps leads to
        raise ZooError(f"timm's '{backbone}' cannot give maps: {error}: take a convolutional one") from error
    if strides != STRIDES:
        raise ZooError(
            f"timm's '{backbone}' gives its last maps at strides {strides}; a detector needs {STRIDES}: "
            "take another, such as mobilenetv2_100 or resnet50"
        )
    return network, list(network.feature_info.channels())
