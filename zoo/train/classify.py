"""Classification, the torch half: what is deployed, what is minimised, and how two photos become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset
from .half import Defaults

__all__ = ["ClassifyTrainer", "Deployable"]


class Deployable(nn.Module):
    """What is evaluated and exported: (N, C, H, W) float32 to ``logits`` (N, K) and ``scores`` = softmax(logits)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(x)
        return logits, logits.softmax(dim=1)


class ClassifyTrainer:
    """The torch half of the task: a class without state, built with no arguments."""

    defaults = Defaults(epochs=(5, 10), lr=(1e-4, 2e-3))
    losses: tuple[str, ...] = ()

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
        """Mean cross-entropy. raw: (N, K) logits; target: (N,) class indices or (N, K) shares; weight: (K,)."""
        return F.cross_entropy(raw.float(), target, weight=weight, label_smoothing=smoothing)

    def outputs(self, network: nn.Module, raw: Tensor) -> dict[str, Tensor]:
        """Logits (N, K) to the task's outputs by name, float32: what :class:`Deployable` gives."""
        logits = raw.float()
        return {"logits": logits, "scores": logits.softmax(dim=1)}

    def target(self, targets: Sequence[Any]) -> Tensor:
        """A batch's targets as (N,) int64 class indices."""
        return torch.tensor(targets, dtype=torch.int64)

    def balance(self, data: Dataset) -> Tensor:
        """(K,) loss weights n / (K * n_class): a class with half the images counts double (scikit-learn's "balanced")."""
        classes = len(data.labels)
        counts = torch.bincount(self.target(data.targets), minlength=classes).float()
        return counts.sum() / (classes * counts.clamp(min=1.0))

    def mixer(self, classes: int, *, mixup: float, cutmix: float) -> nn.Module | None:
        """(images, class indices) of a batch to mixed images and (N, K) shares; None where both strengths are 0.

        ``mixup`` (Zhang et al. 2018, arXiv:1710.09412) and ``cutmix`` (Yun et al. 2019, arXiv:1905.04899) are the
        alphas of their Beta distributions; where both are given, each batch draws one of the two.
        """
        if not (mixup or cutmix):
            return None
        from torchvision.transforms import v2  # seconds to import, and evaluation and export come through this module

        ways: list[nn.Module] = []
        if mixup > 0:
            ways.append(v2.MixUp(alpha=mixup, num_classes=classes))
        if cutmix > 0:
            ways.append(v2.CutMix(alpha=cutmix, num_classes=classes))
        return ways[0] if len(ways) == 1 else v2.RandomChoice(ways)
