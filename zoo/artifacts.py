"""What exporters and precision passes hand to one another: one network in one format at one precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .parity import Finding
from .specs import ImageInput, Task

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Artifact", "Calibration", "Judge"]

Judge: TypeAlias = "Callable[[Callable[[np.ndarray], Mapping[str, np.ndarray]]], np.ndarray]"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One network, one format, one precision. ``module`` for in-memory formats (torch), ``path`` for files."""

    format: str
    precision: str
    input: ImageInput
    task: Task
    path: Path | None = None
    module: Any = None
    """The deployable ``torch.nn.Module`` in eval mode: (N, C, H, W) to a tuple in the order of ``task.outputs``."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready facts for the manifest and the report: opset, quantised layers, tool versions."""
    findings: tuple[Finding, ...] = ()
    """What its maker found out about it beside the gates: one that failed keeps the artefact out of the bundle."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready: what a device needs to build an engine of the file at ``path``, and the engines that lie beside it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Real preprocessed images for a precision pass, from the training split."""

    tensors: np.ndarray
    """(N, C, H, W) float32."""
    source: str
    """Where they come from, for the report."""
    concerns: tuple[Mapping[str, str], ...] = ()
    """What the audit of these images found, JSON-ready: ``kind``, ``severity``, ``message``."""
    keep_float: tuple[str, ...] = ()
    """Names of graph nodes to leave in float."""
    method: str = ""
    """The calibrator: ``minmax``, ``mean``, ``entropy``, ``percentile``, ``mse``; empty for the pass's own choice."""
    judge: Judge | None = None
    """Scores in 0..1, one an image, of a network on images that are not among ``tensors`` but come from the training
    split too: the task's metric, or whether the answer is the fp32 network's where no labels are known."""
    budget: float = 0.005
    """How much of that score, on average, a plan of mixed precisions may cost."""

    def batches(self, size: int = 1) -> Iterator[np.ndarray]:
        for start in range(0, len(self.tensors), size):
            yield self.tensors[start : start + size]
