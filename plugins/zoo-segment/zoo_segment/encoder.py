"""A timm classifier as an encoder: its feature maps at strides 2, 4, 8, 16 and 32, under its own names of weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from zoo.errors import UnknownName, ZooError

__all__ = ["Encoder"]

STRIDES = (2, 4, 8, 16, 32)


class Encoder(nn.Module):
    """(N, C, H, W) float32 to the image itself and five maps: (N, ``channels[i]``, H / 2**i, W / 2**i) for i in 0..5.

    ``model`` is the timm network without what comes after its last map, every weight called as in the classifier:
    a timm state dict fits it, once what was cut away is left out. Networks that begin at stride 4, as most
    transformers do, give a map of 0 channels at stride 2. With ``dilated`` the last map has the size of the one
    before it. ``img_size`` (H, W) reaches networks whose weights depend on it.

    Raises UnknownName, and ZooError where the network has no such maps or cannot be dilated.
    """

    def __init__(self, name: str, in_channels: int, *, img_size: tuple[int, int], dilated: bool = False) -> None:
        super().__init__()
        if name not in timm.list_models():
            raise UnknownName("encoder", name, timm.list_models())
        options: dict[str, Any] = {"output_stride": 16} if dilated else {}
        cfg = get_pretrained_cfg(name)
        if cfg is not None and cfg.fixed_input_size:
            options["img_size"] = img_size
        try:
            model = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0, **options)
        except (TypeError, NotImplementedError, AssertionError) as error:
            if dilated:
                raise ZooError(
                    f"encoder '{name}' cannot be dilated to stride 16: take one that can, such as mobilenetv2_100 or "
                    "resnet50, or another decoder"
                ) from error
            raise
        self.indices, maps = pyramid(name, model, STRIDES[:4] + (16,) if dilated else STRIDES)
        model.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)
        self.channels = [in_channels, *([0] * (5 - len(maps))), *maps]
        self.model = model

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = self.model.forward_intermediates(x, indices=self.indices, output_fmt="NCHW", intermediates_only=True)
        if self.channels[1] == 0:
            maps = [x.new_empty(x.shape[0], 0, x.shape[2] // 2, x.shape[3] // 2), *maps]
        return [x, *maps]


def pyramid(name: str, model: nn.Module, strides: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Which of a timm network's feature maps have ``strides`` (the first may be absent): their indices and channels."""
    info: list[dict[str, Any]] = list(getattr(model, "feature_info", ()))
    indices: list[int] = []
    at = len(info)
    for stride in reversed(strides):
        at = next((i for i in reversed(range(at)) if info[i]["reduction"] == stride), -1)
        if at < 0:
            break
        indices.insert(0, at)
    if len(indices) < len(strides) - 1 or not hasattr(model, "forward_intermediates"):
        found = ", ".join(map(str, sorted({i["reduction"] for i in info}))) or "none that it tells of"
        raise ZooError(
            f"encoder '{name}' has feature maps at strides {found}; a decoder needs 4, 8, 16 and 32: "
            "take a network with a pyramid, such as mobilenetv2_100, resnet50 or convnext_tiny"
        )
    return indices, [info[i]["num_chs"] for i in indices]
