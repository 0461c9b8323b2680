"""The torch half of a task: what every task module of this package answers to. Light: evaluation and export import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..data import Dataset

__all__ = ["Defaults", "Half"]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a run does where the user leaves it open. Two values: from trained weights, and from random ones."""

    epochs: tuple[int, int]
    lr: tuple[float, float]
    batch_size: int = 0
    """0: by the number of images."""
    ema: float = 0.0
    weight_decay: float = 0.05
    lr_decay: float = 0.5


class Half(Protocol):
    """The torch half of a task: what a :attr:`zoo.specs.Task.trainer` path resolves to; built with no arguments."""

    defaults: Defaults
    losses: tuple[str, ...]
    """Names of the losses that a user may choose from, the usual one first; empty where there is no choice."""

    def deployable(self, network: nn.Module) -> nn.Module:
        """The module that is evaluated and exported: (N, C, H, W) to a tuple in the order of the task's outputs."""
        ...

    def loss(
        self,
        network: nn.Module,
        raw: Any,
        target: Any,
        *,
        name: str = "",
        weight: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        """The mean loss of a batch of the network's raw outputs; ``name`` is one of ``losses``."""
        ...

    def outputs(self, network: nn.Module, raw: Any) -> dict[str, Tensor]:
        """The network's raw outputs as the task's outputs, by name."""
        ...

    def target(self, targets: Sequence[Any]) -> Any:
        """A batch's targets, placed in the input (:meth:`zoo.train.data.Images.batch`), as tensors."""
        ...

    def balance(self, data: Dataset) -> Tensor:
        """(K,) weights of the classes that even out how often they occur. Raises ZooError where the task has none."""
        ...

    def mixer(self, classes: int, *, mixup: float, cutmix: float) -> nn.Module | None:
        """What mixes the images of a batch; None where nothing is to be mixed."""
        ...
