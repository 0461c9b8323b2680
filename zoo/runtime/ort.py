"""ONNX Runtime as a backend. Full graph optimisation always: without it small networks run three times slower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ..errors import BundleError

__all__ = ["OrtSession", "open_session"]


class OrtSession:
    """A network in ONNX Runtime. Thread-safe."""

    runtime = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, threads: int) -> None:
        self._session = session
        self.input_name = session.get_inputs()[0].name
        self.input_shape = tuple(d if isinstance(d, int) else None for d in session.get_inputs()[0].shape)
        self.output_names = tuple(output.name for output in session.get_outputs())
        self._all = list(self.output_names)
        provider = session.get_providers()[0]
        count = f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
        self.device = f"{provider.removesuffix('ExecutionProvider')} (onnxruntime {onnxruntime.__version__}{count})"

    def run(self, batch: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = self._all if outputs is None else list(outputs)
        return dict(zip(names, self._session.run(names, {self.input_name: batch}), strict=True))


def open_session(
    model: Path | bytes, *, threads: int | None = None, providers: Sequence[str] | None = None, **_: Any
) -> OrtSession:
    """Open an ONNX file or its bytes. ``providers`` defaults to the CPU. Raises BundleError where it is no network."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=list(providers or ("CPUExecutionProvider",)),
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        what = "the artefact" if isinstance(model, bytes) else str(model)
        raise BundleError(
            f"{what} is not a network that onnxruntime {onnxruntime.__version__} opens: {_first_line(error)}"
        ) from error
    return OrtSession(session, threads or 0)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
