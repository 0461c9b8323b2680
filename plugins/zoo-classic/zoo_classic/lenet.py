"""LeNet-5, the network that reads digits, written out.

Reference: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86(11), 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf (figure 2, section II.B).

The sizes are the paper's (6, 16, 120, 84; 5 x 5 kernels; 28 x 28 images padded to 32 x 32). Three things are what
is done today and not what was published: ReLU for the scaled tanh, max-pooling for the trainable average pooling, and
a linear layer over all 16 maps for C3's table of partial connections and for the RBF output units.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class LeNet5(nn.Module):
    """(N, in_channels, 28, 28) float32 to logits (N, num_classes)."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, kernel_size=5, padding=2)  # the padding makes 32 x 32 of 28 x 28
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)
        self.c5 = nn.Linear(16 * 5 * 5, 120)
        self.f6 = nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (N, in_channels, 28, 28)
        x = F.relu(self.c1(x))  # (N, 6, 28, 28)
        x = F.max_pool2d(x, 2)  # (N, 6, 14, 14)      S2
        x = F.relu(self.c3(x))  # (N, 16, 10, 10)
        x = F.max_pool2d(x, 2)  # (N, 16, 5, 5)       S4
        x = torch.flatten(x, 1)  # (N, 400)
        x = F.relu(self.c5(x))  # (N, 120)
        x = F.relu(self.f6(x))  # (N, 84)
        x = self.head(x)  # (N, num_classes)
        return x


def build(*, num_classes: int, in_channels: int) -> LeNet5:
    """LeNet-5 with random weights for ``num_classes`` classes and images of ``in_channels`` x 28 x 28 pixels."""
    return LeNet5(num_classes, in_channels)
