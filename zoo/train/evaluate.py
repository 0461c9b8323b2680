"""Runs a network over a data set, in float32, through the module that is exported: the figures that are reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..data import Dataset
from .data import Images
from .models import Model, deployable

__all__ = ["evaluate", "outputs_of"]


@torch.no_grad()
def outputs_of(
    model: Model,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """The task's outputs over ``data`` by name, (N, …) float32 each. Raises ImageError."""
    module = deployable(model).to(device).float()
    # twice as fast on depthwise convolutions, and the same numbers to within rounding
    layout = torch.channels_last if min(model.input.height, model.input.width) >= 64 else torch.contiguous_format
    module = module.to(memory_format=layout)
    batch = batch or (16 if layout == torch.channels_last else 256)
    images = Images(data, model.input, budget_bytes=0)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in model.task.outputs}
    for start in range(0, len(data), batch):
        tensor = torch.from_numpy(images.batch(range(start, min(start + batch, len(data)))))
        raw = module(tensor.to(device).contiguous(memory_format=layout))
        for name, value in zip(model.task.outputs, raw, strict=True):
            parts[name].append(value.cpu().numpy())
        progress(min(start + batch, len(data)))
    module.to(memory_format=torch.contiguous_format)
    return {name: np.concatenate(values) for name, values in parts.items()}


def evaluate(
    model: Model,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(figures of the task's metric, JSON-ready; raw outputs). Labels are matched by name.

    Raises DataError where the data has a label that the network has not, ImageError.
    """
    data = data.relabelled(model.labels)
    outputs = outputs_of(model, data, device=device, batch=batch, progress=progress)
    figures: dict[str, Any] = model.task.resolve()().metrics(outputs, data.targets, model.labels)
    return figures, outputs
