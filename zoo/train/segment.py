"""Segmentation, the torch half: what is deployed, and the losses of a class map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset
from ..data.targets import VOID
from ..errors import ZooError
from .half import Defaults

__all__ = ["Deployable", "SegmentTrainer", "dice_loss", "focal_loss", "jaccard_loss"]


class Deployable(nn.Module):
    """What is evaluated and exported: (N, C, H, W) float32 to ``logits`` (N, K, H, W) and ``classes`` (N, H, W) uint8."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(x)
        return logits, logits.argmax(dim=1).to(torch.uint8)


class SegmentTrainer:
    """The torch half of the task: a class without state, built with no arguments."""

    defaults = Defaults(epochs=(20, 30), lr=(1e-3, 1e-3), batch_size=8, ema=0.99, weight_decay=0.01, lr_decay=0.7)
    losses = ("ce+dice", "ce", "dice", "jaccard", "focal", "ce+jaccard", "focal+dice")

    def deployable(self, network: nn.Module) -> nn.Module:
        return Deployable(network)

    def loss(
        self,
        network: nn.Module,
        raw: Tensor,
        target: Tensor,
        *,
        name: str = "",
        weight: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        """raw: (N, K, H, W) logits; target: (N, H, W) int64, VOID where nobody knows; weight: (K,) of cross-entropy.

        Sums of the named parts: cross-entropy, focal (Lin et al. 2017, arXiv:1708.02002, gamma 2), Dice (Milletari et
        al. 2016, arXiv:1606.04797) and Jaccard.
        """
        logits = raw.float()
        total = logits.new_zeros(())
        for part in (name or self.losses[0]).split("+"):
            if part == "ce":
                counted = (target != VOID).sum().clamp(min=1)
                if weight is None:
                    pixels = F.cross_entropy(
                        logits, target, ignore_index=VOID, label_smoothing=smoothing, reduction="sum"
                    )
                    total = total + pixels / counted
                else:
                    total = total + F.cross_entropy(
                        logits, target, weight=weight, ignore_index=VOID, label_smoothing=smoothing
                    )
            else:
                total = total + {"dice": dice_loss, "jaccard": jaccard_loss, "focal": focal_loss}[part](logits, target)
        return total

    def outputs(self, network: nn.Module, raw: Tensor) -> dict[str, Tensor]:
        """Logits (N, K, H, W) to the task's outputs by name: what :class:`Deployable` gives."""
        return {"logits": raw.float(), "classes": raw.argmax(dim=1).to(torch.uint8)}

    def target(self, targets: Sequence[np.ndarray]) -> Tensor:
        """A batch's (H, W) uint8 class maps as (N, H, W) int64."""
        return torch.from_numpy(np.stack(targets)).long()

    def balance(self, data: Dataset) -> Tensor:
        """(K,) loss weights by the classes' pixels: median frequency / frequency (Eigen and Fergus 2015,
        arXiv:1411.4734), at most 10."""
        counts = np.zeros(256, np.int64)
        for sample in data:
            counts += np.bincount(sample.target.read().reshape(-1), minlength=256)
        seen = torch.from_numpy(counts[: len(data.labels)]).float().clamp(min=1.0)
        return (seen.median() / seen).clamp(max=10.0)

    def mixer(self, classes: int, *, mixup: float, cutmix: float) -> nn.Module | None:
        """Class maps are not mixed. Raises ZooError where it is asked for."""
        if mixup or cutmix:
            raise ZooError(
                "--mixup and --cutmix are for classification (mixup also for detection), not for segmentation"
            )
        return None


def _shares(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Over the batch, (K,) each: overlap, predicted and actual mass of each class; and whether it occurs (void apart)."""
    known = (target != VOID).unsqueeze(1)
    actual = F.one_hot(target.masked_fill(target == VOID, 0), logits.shape[1]).movedim(-1, 1).to(logits.dtype) * known
    predicted = logits.softmax(dim=1) * known
    axes = (0, 2, 3)
    mass = actual.sum(axes)
    return (actual * predicted).sum(axes), predicted.sum(axes), mass, mass > 0


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice, mean over the classes that occur in the batch. logits (N, K, H, W); target (N, H, W) int64."""
    overlap, predicted, actual, occurs = _shares(logits, target)
    dice = (2 * overlap + 1.0) / (predicted + actual + 1.0)
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


def jaccard_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Jaccard index (intersection over union), mean over the classes that occur in the batch."""
    overlap, predicted, actual, occurs = _shares(logits, target)
    jaccard = (overlap + 1.0) / (predicted + actual - overlap + 1.0)
    return ((1 - jaccard) * occurs).sum() / occurs.sum().clamp(min=1)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that fades where the answer is already right (arXiv:1708.02002), mean over the known pixels."""
    entropy = F.cross_entropy(logits, target, ignore_index=VOID, reduction="none")
    faded = (1 - torch.exp(-entropy)) ** gamma * entropy
    return faded.sum() / (target != VOID).sum().clamp(min=1)
