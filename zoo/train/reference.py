"""PyTorch as the reference of the parity gates: the deployable in float32, and the same in float64 as the truth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .models import Model, deployable

__all__ = ["TorchReference", "torch_reference"]


@dataclass(frozen=True, kw_only=True)
class TorchReference:
    """Two callables from (N, C, H, W) float32 arrays to named outputs, and what to call them in a report."""

    name: str
    device: str
    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    """float32 arithmetic, eager, eval mode, on the CPU."""
    exact: Callable[[np.ndarray], dict[str, np.ndarray]]
    """float64 arithmetic, same weights: results are float64."""


def torch_reference(model: Model) -> TorchReference:
    """The evaluated network of a model, ready to be compared with. Uses torch's own thread count."""
    single = deployable(model)
    names = model.task.outputs
    double: list[torch.nn.Module] = []

    @torch.inference_mode()
    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        values = single(torch.from_numpy(batch))
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    @torch.inference_mode()
    def exact(batch: np.ndarray) -> dict[str, np.ndarray]:
        if not double:  # twice the memory: made only where it is asked for
            double.append(copy.deepcopy(single).double())
        values = double[0](torch.from_numpy(batch).double())
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    threads = torch.get_num_threads()
    return TorchReference(
        name=f"PyTorch {torch.__version__.partition('+')[0]} (eager, float32)",
        device=f"CPU (PyTorch {torch.__version__.partition('+')[0]}, {threads} thread{'s' if threads != 1 else ''})",
        run=run,
        exact=exact,
    )
