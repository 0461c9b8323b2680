"""The edge zoo: vision networks from a plugin to a device, with proof that nothing was lost on the way.

This module holds what a plugin needs and loads nothing heavy: no torch, no onnx, no numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import ZooError
from .specs import (
    Architecture,
    Command,
    DatasetFormat,
    Exporter,
    ImageInput,
    Precision,
    Runtime,
    Spec,
    Task,
    Weights,
)

if TYPE_CHECKING:
    from .hookspecs import hookimpl

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "Command",
    "DatasetFormat",
    "Exporter",
    "ImageInput",
    "Precision",
    "Runtime",
    "Spec",
    "Task",
    "Weights",
    "ZooError",
    "__version__",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    # hookimpl is the one public name that needs pluggy, which a device with only numpy and onnxruntime lacks
    if name == "hookimpl":
        from .hookspecs import hookimpl

        return hookimpl
    raise AttributeError(f"module 'zoo' has no attribute '{name}'")
