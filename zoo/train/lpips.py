"""How far apart two images are to a person's eye, where a network that tells it is already on this machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from ..data.targets import Picture
from ..errors import CheckpointError
from ..parity import Finding
from ..results import ImageResult

__all__ = ["beside_pixels", "beside_targets", "lpips"]

WEIGHTS = {"alex": AlexNet_Weights, "vgg": VGG16_Weights, "squeeze": SqueezeNet1_1_Weights}
"""Torchvision's, the one first that the paper judges best by."""
LEAST = 32
"""Pixels of a side, below which nothing is left of an image in the networks' depths."""


def lpips(pairs: Iterable[tuple[np.ndarray, np.ndarray]], device: torch.device | str = "cpu") -> dict[str, Any]:
    """``LPIPS`` (R. Zhang et al. 2018, arXiv:1801.03924), the mean over pairs of (H, W, C) uint8 images of one size, C 1 or
    3, and ``LPIPS_network``, the network that told it: figures of different ones cannot be compared.

    Nothing is fetched: empty where torch's cache (``torch.hub.get_dir()``) has none of the networks, without any pair, and
    where an image is smaller than ``LEAST`` or its fellow of another size. Raises CheckpointError for a file that is no
    whole one.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = {name: folder / weights.DEFAULT.url.rpartition("/")[2] for name, weights in WEIGHTS.items()}
    name = next((name for name, file in files.items() if file.is_file()), "")
    if not name:
        return {}
    metric, told = _opened(name, files[name]).to(device), False
    for pair in pairs:
        if min(pair[0].shape[:2]) < LEAST or pair[0].shape != pair[1].shape:
            return {}
        with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
            metric.update(*(_shares(pixels).to(device) for pixels in pair))
        told = True
    return {"LPIPS": float(metric.compute()), "LPIPS_network": name} if told else {}


def beside_targets(
    results: Sequence[ImageResult], targets: Sequence[Any], scale: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each result whose target is known, and the part of the target that it shows; ``scale``: of the results."""
    for result, target in zip(results, targets, strict=True):
        if isinstance(target, Picture):
            left, top, right, bottom = (side * scale for side in result.box or (0, 0, result.width, result.height))
            yield result.pixels, target.read(result.pixels.shape[2])[top:bottom, left:right]


def beside_pixels(finding: Finding, ours: Sequence[ImageResult], theirs: Sequence[ImageResult]) -> Finding:
    """The finding of the gate of pixels with the LPIPS between what two networks made of the same inputs, where it can be
    told; other findings as they are."""
    found = lpips((a.pixels, b.pixels) for a, b in zip(ours, theirs, strict=True)) if finding.gate == "pixels" else {}
    if not found:
        return finding
    said = f"{finding.message}; LPIPS {found['LPIPS']:.4f} ({found['LPIPS_network']})"
    return replace(finding, message=said, figures={**finding.figures, **found})


def _opened(name: str, file: Path) -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # seconds, and seldom needed

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LearnedPerceptualImagePatchSimilarity(name, normalize=True)
    except Exception as error:  # torch has many for a file that is not whole
        raise CheckpointError(
            f"{file} is not a whole file of weights ({type(error).__name__}), and LPIPS is told by it: delete it"
        ) from error


def _shares(pixels: np.ndarray) -> Tensor:
    """(H, W, C) uint8 to (1, 3, H, W) in 0..1."""
    return torch.tensor(pixels).permute(2, 0, 1)[None].float().div(255).expand(-1, 3, -1, -1)
