"""What exporters and precision passes hand to one another: one network in one format at one precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .specs import ImageInput, Task

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Artifact", "Calibration"]


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Real preprocessed images for a precision pass, from the training split."""

    tensors: np.ndarray
    """(N, C, H, W) float32."""
    source: str
    """Where they come from, for the report."""
    keep_float: tuple[str, ...] = ()
    """Names of graph nodes to leave in float."""

    def batches(self, size: int = 1) -> Iterator[np.ndarray]:
        for start in range(0, len(self.tensors), size):
            yield self.tensors[start : start + size]
