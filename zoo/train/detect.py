"""Detection, the torch half: every detector brings its own decode and its own loss; this is what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Dataset
from ..data.targets import Boxes
from ..errors import ZooError
from .half import Defaults

__all__ = ["Deployable", "DetectTrainer"]


class Deployable(nn.Module):
    """What is evaluated and exported: (N, C, H, W) float32 to ``boxes`` (N, A, 4) xyxy in input pixels and ``scores``
    (N, A, C) in 0..1, before any suppression."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = self.network.decode(self.network(x))  # type: ignore[operator]
        return boxes, scores


class DetectTrainer:
    """The torch half of the task: a class without state, built with no arguments.

    A detector is a module with ``forward(x) -> raw`` (the same structure in training and evaluation),
    ``decode(raw) -> (boxes (N, A, 4) xyxy input pixels, scores (N, A, C))`` and ``loss(raw, targets) -> dict`` of scalar
    parts whose sum is minimised; ``targets`` is a list of ``{"boxes": (M, 4), "classes": (M,)}``.
    """

    defaults = Defaults(epochs=(60, 100), lr=(1e-3, 1e-3), batch_size=8, ema=0.998, weight_decay=0.03, lr_decay=0.7)
    losses: tuple[str, ...] = ()

    def deployable(self, network: nn.Module) -> nn.Module:
        return Deployable(network)

    def loss(
        self,
        network: Any,
        raw: Any,
        target: list[dict[str, Tensor]],
        *,
        name: str = "",
        weight: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        """The sum of the network's own parts, in float32."""
        parts: dict[str, Tensor] = network.loss(raw, target)
        return torch.stack([value.float() for value in parts.values()]).sum()

    def outputs(self, network: Any, raw: Any) -> dict[str, Tensor]:
        """The network's own decode: boxes (N, A, 4) and scores (N, A, C)."""
        boxes, scores = network.decode(raw)
        return {"boxes": boxes, "scores": scores}

    def target(self, targets: Sequence[Boxes]) -> list[dict[str, Tensor]]:
        """A batch's boxes in input pixels; those to be ignored are left out."""
        kept = [t.take(~t.ignore) for t in targets]
        return [{"boxes": torch.from_numpy(t.boxes), "classes": torch.from_numpy(t.classes)} for t in kept]

    def balance(self, data: Dataset) -> Tensor:
        """Detectors weigh their candidates themselves. Raises ZooError."""
        raise ZooError(
            "--balance is for classification and segmentation: a detector's loss evens out its candidates itself"
        )

    def mixer(self, classes: int, *, mixup: float, cutmix: float) -> nn.Module | None:
        """Mixing happens where the boxes are (:mod:`zoo.train.augment`). Raises ZooError for cutmix."""
        if cutmix:
            raise ZooError("--cutmix is for classification, not for detection: try --mosaic")
        return None
