"""Max-pooling that remembers where each maximum stood, and its inverse, out of operators that TensorRT takes.

SegNet's decoder puts each value back where the encoder's maximum was (https://arxiv.org/abs/1511.00561, section 3).
PyTorch does that with ``MaxPool2d(return_indices=True)`` and ``MaxUnpool2d``; their ONNX forms, a MaxPool with two
outputs and MaxUnpool or ScatterND, TensorRT refuses. Two formulations without indices stand here. Windows are 2 x 2,
heights and widths even. Both give what PyTorch's pair gives to the last bit, gradients too, ties included: of equal
maxima the first one of the window wins, read row by row. (Windows with NaN aside.) What no formulation cures: where
two pixels of a window differ by less than rounding, another runtime may take the other one, and its output steps there
as PyTorch's own does between float32 and float64.

``strided``, the default, compares the four pixels of each window with one another: slices, comparisons, And, Where,
Concat; nothing of more than five axes, and no operator whose order among equals a runtime is free to choose.
``mask`` gathers each window on an axis of its own and takes its arg-max: fewer nodes, but two transpositions of six
axes, and a runtime whose ArgMax takes the last of equal values would be wrong on flat regions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FORMULATIONS", "MaskPool", "MaskUnpool", "StridedPool", "StridedUnpool", "Winners"]

Winners: TypeAlias = tuple[Tensor, ...]
"""Where the maxima stood; what a pool gives to the unpool of the same formulation and to nobody else."""


class StridedPool(nn.Module):
    """(N, C, H, W) to maxima (N, C, H/2, W/2) and, for each pixel of a window, whether it won: four such bools."""

    def forward(self, x: Tensor) -> tuple[Tensor, Winners]:
        with torch.no_grad():
            a, b = x[:, :, 0::2, 0::2], x[:, :, 0::2, 1::2]  # each (N, C, H/2, W/2)
            c, d = x[:, :, 1::2, 0::2], x[:, :, 1::2, 1::2]
            # a knock-out: whoever comes first wins a tie, and there is always exactly one winner
            top, bottom = a >= b, c >= d
            upper = torch.maximum(a, b) >= torch.maximum(c, d)
            winners = (upper & top, upper & ~top, ~upper & bottom, ~upper & ~bottom)
        return F.max_pool2d(x, 2), winners


class StridedUnpool(nn.Module):
    """(N, C, H/2, W/2) and the pool's winners to (N, C, H, W): each value where the maximum stood, elsewhere 0."""

    def forward(self, x: Tensor, winners: Winners) -> Tensor:
        a, b, c, d = (torch.where(won, x, 0.0) for won in winners)  # each (N, C, H/2, W/2)
        upper = torch.stack([a, b], dim=-1).flatten(-2)  # (N, C, H/2, W)
        lower = torch.stack([c, d], dim=-1).flatten(-2)
        return torch.stack([upper, lower], dim=-2).flatten(2, 3)  # (N, C, H, W)


class MaskPool(nn.Module):
    """(N, C, H, W) to maxima (N, C, H/2, W/2) and one bool (N, C, H/2, W/2, 4): which pixel of each window won."""

    def forward(self, x: Tensor) -> tuple[Tensor, Winners]:
        with torch.no_grad():
            n, c, height, width = x.shape
            windows = x.reshape(n, c, height // 2, 2, width // 2, 2)
            windows = windows.transpose(3, 4).flatten(4)  # (N, C, H/2, W/2, 4)
            first = windows.argmax(dim=-1, keepdim=True)  # (N, C, H/2, W/2, 1)
            won = first == torch.arange(4, device=x.device)  # (N, C, H/2, W/2, 4)
        return F.max_pool2d(x, 2), (won,)


class MaskUnpool(nn.Module):
    """(N, C, H/2, W/2) and the pool's winners to (N, C, H, W): each value where the maximum stood, elsewhere 0."""

    def forward(self, x: Tensor, winners: Winners) -> Tensor:
        (won,) = winners
        windows = torch.where(won, x.unsqueeze(-1), 0.0)  # (N, C, H/2, W/2, 4)
        n, c, height, width = x.shape
        windows = windows.reshape(n, c, height, width, 2, 2).transpose(3, 4)  # (N, C, H/2, 2, W/2, 2)
        return windows.reshape(n, c, 2 * height, 2 * width)


FORMULATIONS: Mapping[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "strided": (StridedPool, StridedUnpool),
    "mask": (MaskPool, MaskUnpool),
}
"""Name: the pool and the unpool that belong together."""
