"""Says which sizes a network takes, and the nearest that it does, before a layer deep inside fails on two shapes.

Sizes that are free in an export are symbols and not numbers: they are left to whoever runs the graph.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from zoo.errors import ZooError

__all__ = ["check_maps", "check_size"]


def check_size(x: torch.Tensor, divisor: int, network: str) -> None:
    """Raise ZooError where the height or the width of (N, C, H, W) does not divide by ``divisor``, a power of two."""
    channels, height, width = x.shape[1:]
    if known(height, width) and (height % divisor or width % divisor):
        halvings = divisor.bit_length() - 1
        pad = "x".join(str(-(-side // divisor) * divisor) for side in (height, width))
        raise ZooError(
            f"input is {channels}x{height}x{width}; {network} halves it {halvings} times, "
            f"so H and W must divide by {divisor}: pad to {pad}"
        )


def check_maps(maps: list[torch.Tensor], network: str) -> None:
    """Raise ZooError where a map (N, C, H, W) of an encoder is neither half as high and wide as the one before it nor,
    as in a dilated encoder, of its size."""
    for before, after in pairwise(maps):
        (height, width), (h, w) = before.shape[2:], after.shape[2:]
        if known(height, width, h, w) and (h, w) not in ((height, width), (height // 2, width // 2)):
            raise ZooError(
                f"the encoder makes a map of {h}x{w} from one of {height}x{width}; {network} needs exact halves: "
                "take an encoder with padded convolutions, such as mobilenetv2_100, or a U-Net"
            )


def known(*sizes: int) -> bool:
    return all(type(size) is int for size in sizes)
