"""The shape every backend has, so that knowing one is knowing all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Session"]


class Session(Protocol):
    """One opened artefact. Safe to call from several threads at once unless a backend says otherwise.

    A session on a GPU may also offer ``time_ms(batch) -> float``: milliseconds that the GPU computes for a batch, without
    copies, by its own clock. One of TensorRT has ``close()`` and, as ``obtained``, where its engine is from.
    """

    runtime: str
    """Name of the runtime that opened it."""
    device: str
    """Where it runs, for reports: ``CPU (onnxruntime 1.32.0, CPUExecutionProvider, 2 threads)``."""
    output_names: tuple[str, ...]
    input_shape: tuple[int | None, ...]
    """(N, C, H, W) that it takes; None where it takes any."""
    profile: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None
    """Least, usual and largest shape of the input, of what is built for a range of them; None where ``input_shape`` says
    it all."""

    def run(self, batch: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """(N, C, H, W) float32 to the named outputs (all by default). The caller owns what comes back."""
        ...
