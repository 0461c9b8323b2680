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
    ``runtime`` names a registered runtime; by default the best that is installed. ``threads`` bounds the CPU
    threads of one call. ``decode`` lays settings of your own over the bundle's: ``{"confidence": 0.5}`` for a detector.
    The returned predictor owns the session: it is freed with the predictor.

    Raises BundleError (missing, altered, unsafe, unknown schema), MissingPart (no runtime installed).
    """
    from .predictor import open_predictor

    return open_predictor(path, artifact=artifact, runtime=runtime, threads=threads, decode=decode, **options)
