"""The head's inputs for a whole data set, computed once: while the backbone is frozen they never change.

They are written in chunks beside the run, so that an interrupted run goes on where it was. On a CPU they are
computed by ONNX Runtime where it is installed (1.3 to 10 times faster than torch, most on depthwise
convolutions), else by torch; either gives float32.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ZooError
from ..files import write_bytes
from .data import Images

__all__ = ["HeadOnly", "compute", "head_is_last", "trunk"]

CHUNK = 1024
"""Images in one file of features."""

Trunk = Callable[[np.ndarray], np.ndarray]
"""(n, C, H, W) float32 to the head's inputs (n, …) float32."""


class HeadOnly(nn.Module):
    """The head on its own: its inputs (N, …) to logits (N, K). Shares the parameters of ``head``."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x)
        return logits.flatten(1)  # a head that is a 1x1 convolution gives (N, K, 1, 1)


class _HeadInput(nn.Module):
    """A network up to its head: (N, C, H, W) to what the head is given (N, …)."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._caught: list[Tensor] = []
        self._hook = head.register_forward_pre_hook(lambda module, inputs: self._caught.append(inputs[0]))

    def forward(self, x: Tensor) -> Tensor:
        self._caught.clear()
        self.network(x)
        return self._caught[0]

    def remove(self) -> None:
        self._hook.remove()


def head_is_last(network: nn.Module, head: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the head runs once and its output is the network's: only then can it learn on its own."""
    calls: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: calls.append(output))
    try:
        with torch.no_grad():
            device = next(network.parameters()).device
            raw = network.eval()(
                torch.linspace(-1, 1, 2 * shape[0] * shape[1] * shape[2], device=device).reshape(2, *shape)
            )
    finally:
        hook.remove()
    return (
        len(calls) == 1
        and isinstance(calls[0], Tensor)
        and isinstance(raw, Tensor)
        and torch.equal(calls[0].flatten(1), raw)
    )


def trunk(
    network: nn.Module, head: nn.Module, shape: tuple[int, int, int], device: torch.device
) -> tuple[Trunk, str, Callable[[], None]]:
    """The frozen part as a function, what runs it (for a person), and what to call when done with it."""
    # the wrapper too: torch.onnx.export gives every module in it the wrapper's mode back when it is done
    module = _HeadInput(network, head).eval()

    @torch.no_grad()
    def by_torch(batch: np.ndarray) -> np.ndarray:
        array: np.ndarray = module(torch.from_numpy(np.ascontiguousarray(batch)).to(device)).float().cpu().numpy()
        return array

    if device.type == "cpu":
        by_ort = _by_ort(module, shape)
        if by_ort is not None:
            probe = np.linspace(-1, 1, 2 * int(np.prod(shape)), dtype=np.float32).reshape(2, *shape)
            mine, other = by_torch(probe), by_ort(probe)
            if mine.shape == other.shape and np.abs(mine - other).max() <= 1e-3 * max(1e-6, float(np.abs(mine).max())):
                return by_ort, "ONNX Runtime", module.remove
    return by_torch, f"torch on {device.type}", module.remove


def _by_ort(module: nn.Module, shape: tuple[int, int, int]) -> Trunk | None:
    """The same in ONNX Runtime, or None where that is not to be had (not installed, an operator ONNX lacks, > 2 GB)."""
    try:
        import onnxruntime

        file = io.BytesIO()
        quiet = logging.getLogger("torch.onnx")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                # the tracing exporter: a second where the other takes ten, and only the numbers matter here
                torch.onnx.export(
                    module, (torch.zeros(2, *shape),), file, dynamo=False,  # type: ignore[arg-type]  # it writes to files too
                    input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
                )  # fmt: skip
        finally:
            quiet.setLevel(level)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    except Exception:  # torch.onnx and onnxruntime raise many kinds; torch computes the same, only slower
        return None

    def run(batch: np.ndarray) -> np.ndarray:
        array: np.ndarray = session.run(None, {"x": np.ascontiguousarray(batch)})[0]
        return array

    return run


def compute(
    run: Trunk,
    images: Images,
    folder: Path,
    name: str,
    *,
    mirrored: bool = False,
    batch: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """(N, …) float32: the head's input for every image, as a device would see it or ``mirrored``.

    ``folder`` keeps a file for each 1024 images; those that are there already are read, not computed.
    Raises ImageError, OutputError.
    """
    parts: list[np.ndarray] = []
    for start in range(0, len(images), CHUNK):
        stop = min(start + CHUNK, len(images))
        path = folder / f"{name}-{start:08d}.npy"
        part = _read(path, stop - start)
        if part is None:
            outputs = []
            for at in range(start, stop, batch):
                tensor, _ = images.batch(range(at, min(at + batch, stop)))
                outputs.append(run(tensor[:, :, :, ::-1] if mirrored else tensor))
                progress(min(at + batch, stop))
            part = np.concatenate(outputs)
            if not np.isfinite(part).all():
                raise ZooError("the backbone gives NaN or infinity: its weights do not suit this input")
            file = io.BytesIO()
            np.save(file, part)
            write_bytes(path, file.getvalue())
        parts.append(part)
        progress(stop)
    return np.concatenate(parts)


def _read(path: Path, count: int) -> np.ndarray | None:
    try:
        part: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return part if len(part) == count else None
