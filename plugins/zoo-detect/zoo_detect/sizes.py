"""One rule of many detectors, and the one line that says how to keep it."""

from __future__ import annotations

from torch import Tensor

from zoo.errors import ZooError

__all__ = ["need_multiple"]


def need_multiple(x: Tensor, multiple: int, why: str) -> None:
    """Raises ZooError where ``multiple`` does not divide height and width of ``x`` (N, C, H, W)."""
    channels, height, width = x.shape[-3:]
    if height % multiple or width % multiple:
        up = [-(-side // multiple) * multiple for side in (height, width)]
        raise ZooError(
            f"input is {channels}x{height}x{width}; {why}, so H and W must divide by {multiple}: make it {up[0]}x{up[1]}"
        )
