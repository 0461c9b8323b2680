"""RandAugment with a random generator of its own, so that what is drawn for an image does not depend on the others."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ..specs import ImageInput

__all__ = ["rand_augment"]

# Cubuk et al. 2020, arXiv:1909.13719: operations and ranges; the magnitude runs over 0..30 as in torchvision.
_OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


def rand_augment(image: Image.Image, magnitude: int, spec: ImageInput, rng: np.random.Generator) -> Image.Image:
    """Two random operations of strength ``magnitude`` (0..30) on a grey or RGB image; the same for the same ``rng``."""
    share = magnitude / 30.0
    fill = [round(255 * m) for m in spec.mean]
    for name in rng.choice(_OPERATIONS, size=2):
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"):
            angle, move, shear = 0.0, [0, 0], [0.0, 0.0]
            axis = 0 if name.endswith("_x") else 1
            if name == "rotate":
                angle = sign * 30.0 * share
            elif name.startswith("shear"):
                shear[axis] = math.degrees(math.atan(sign * 0.3 * share))
            else:
                move[axis] = round(sign * share * 150.0 / 331.0 * image.size[axis])
            image = F.affine(
                image,
                angle=angle,
                translate=move,
                scale=1.0,
                shear=shear,
                interpolation=F.InterpolationMode.BILINEAR,
                fill=fill,
            )
        elif name == "posterize":
            image = F.posterize(image, 8 - round(4 * share))
        elif name == "solarize":
            image = F.solarize(image, 255.0 * (1.0 - share))
        elif name == "autocontrast":
            image = F.autocontrast(image)
        elif name == "equalize":
            image = F.equalize(image)
        elif name in ("brightness", "color", "contrast", "sharpness"):
            if name == "color" and image.mode == "L":
                continue
            change = {
                "brightness": F.adjust_brightness,
                "color": F.adjust_saturation,
                "contrast": F.adjust_contrast,
                "sharpness": F.adjust_sharpness,
            }
            image = change[name](image, 1.0 + sign * 0.9 * share)
    return image
