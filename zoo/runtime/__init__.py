"""The device side: open a bundle, map images to results. numpy, Pillow and one inference library; nothing else.

>>> import zoo.runtime
>>> model = zoo.runtime.load("digits.zoo")      # doctest: +SKIP
>>> model("photo.jpg").label                    # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predictor import Predictor

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    *,
    artifact: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    decode: Mapping[str, Any] | None = None,
    **options: Any,
) -> Predictor:
    """Open a bundle (a folder or a packed ``.zoo`` file) for prediction.

    ``artifact`` names one of the manifest's artefacts (``fp32``, ``int8``); by default the manifest's own choice.
    ``runtime`` names a registered runtime; by default the best that works here, and the predictor's ``choice`` tells
    which that is and why better ones did not do. ``threads`` bounds the CPU threads of one call. ``decode`` lays
    settings of your own over the bundle's: ``{"confidence": 0.5}`` for a detector. ``options`` go to the runtime:
    ``progress=print`` tells how far the build of a TensorRT engine is, which may take minutes the first time;
    ``cuda_graph=True`` repeats a TensorRT engine's launches as one.
    The returned predictor owns the session: it is freed with the predictor.

    Raises BundleError (missing, altered, unsafe, unknown schema, no runtime for it here), MissingPart (no runtime
    installed), and, where a TensorRT runtime was asked for by name, ExportError (no engine can be built) and
    DeviceError (the GPU).
    """
    from .predictor import open_predictor

    return open_predictor(path, artifact=artifact, runtime=runtime, threads=threads, decode=decode, **options)
