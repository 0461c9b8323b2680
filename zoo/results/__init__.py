"""What a network says of an image, as plain numpy records: shapes and units on every field, to_dict() and draw()."""

from __future__ import annotations

from .classification import Classification
from .detections import Detections
from .picture import ImageResult
from .segmentation import Segmentation

__all__ = ["Classification", "Detections", "ImageResult", "Segmentation"]
