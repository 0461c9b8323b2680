"""The same scene as another kind of image, the numpy half: paired or unpaired translation, style transfer."""

from __future__ import annotations

from .pictures import PictureTask

__all__ = ["Translate"]


class Translate(PictureTask):
    """Where the network's input was resized, the result has the image's own size again. PSNR is over all colours."""
