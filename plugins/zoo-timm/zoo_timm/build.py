"""Builds a timm network with random weights; trained ones are opened by :mod:`zoo_timm.weights`."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import get_pretrained_cfg
from torch import nn

__all__ = ["build"]


def build(
    *, name: str, num_classes: int, in_channels: int, img_size: int | tuple[int, int] | None = None, **options: Any
) -> nn.Module:
    """timm's ``name`` for ``num_classes`` classes: (N, in_channels, H, W) float32 to logits (N, num_classes).

    ``img_size`` (H, W) reaches the networks whose weights depend on it (transformers with a table of positions);
    the others take any size. ``options`` are timm's own: ``drop_rate``, ``drop_path_rate``, ``global_pool``, …
    """
    cfg = get_pretrained_cfg(name, allow_unregistered=False)
    if img_size is not None and (cfg is None or cfg.fixed_input_size):
        options["img_size"] = img_size
    network: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options
    )
    return network
