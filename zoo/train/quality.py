"""Whether made images are as good as real ones: figures of two sets, a warning of collapse, and the gate of generators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data import Dataset, Sample
from ..errors import DataError
from ..inputs import ImageInput, read_image, resize
from ..parity import FAIL, INCONCLUSIVE, PASS, Finding
from ..parity.evidence import observe, prepared_batches
from ..results import ImageResult
from ..tasks import TaskHalf
from ..tasks.distances import diversity, fid, kid, paired_kid, precision_recall
from .extractor import Extractor, open_extractor

__all__ = ["QualityGate", "collapsed", "figures", "judge_set", "real_images"]

COLLAPSED = 0.5
"""Below this share of the real images' diversity a generator has given up part of what it should make."""
MOST_ASKED_FOR = 1e6
REAL = 1000
"""Real images that made ones are compared with, and as many are made, unless the user wants fewer."""


def figures(
    made: Sequence[np.ndarray] | np.ndarray, real: Sequence[np.ndarray] | np.ndarray, extractor: Extractor
) -> dict[str, Any]:
    """KID with its 95 % interval, FID, precision, recall and diversity of two sets of (H, W, C) uint8 images, JSON-ready.

    Either may be given as its features (N, D), where the same set is asked of often.
    """
    if min(len(made), len(real)) < 2:
        raise DataError(_too_few(len(made), len(real)))
    ours = made if isinstance(made, np.ndarray) else extractor(made)
    theirs = real if isinstance(real, np.ndarray) else extractor(real)
    value, low, high = kid(ours, theirs)
    precision, recall = precision_recall(ours, theirs)
    return {
        "KID": value,
        "KID_interval_95": [low, high],
        "FID": fid(ours, theirs),
        "precision": precision,
        "recall": recall,
        "diversity_made": diversity(ours),
        "diversity_real": diversity(theirs),
        "images_made": len(ours),
        "images_real": len(theirs),
        "extractor": extractor.name,
    }


def collapsed(found: Mapping[str, Any]) -> str:
    """A line of warning where the samples are much more alike than real images are; empty where they are not."""
    share = found["diversity_made"] / max(found["diversity_real"], 1e-12)
    if share >= COLLAPSED:
        return ""
    return (
        f"the samples are {100 * share:.0f} % as diverse as the real images: the generator may have collapsed; "
        "look at the samples, lower the discriminator's learning rate, or try --loss hinge or wgan-gp, or --diffaugment"
    )


class QualityGate:
    """The gate of what has no right answer: is a candidate's KID worse than the trained network's by more than the margin?

    Pass where that is ruled out at 95 %, fail where it is shown, inconclusive otherwise. The margin is ``quality_share`` of
    the trained network's KID, and no less than what it changes by where all images are a step of 255 darker or brighter,
    which nobody sees: this alone knows the scale of an extractor's features.
    """

    def __init__(self, reference: Sequence[ImageResult], real: Sequence[np.ndarray], extractor: Extractor) -> None:
        """What the trained network makes, and (H, W, C) uint8 images that are real. Raises DataError: fewer than two."""
        if min(len(reference), len(real)) < 2:
            raise DataError(_too_few(len(reference), len(real)))
        made = [result.pixels for result in reference]
        self._extractor, self._trained, self._real = extractor, extractor(made), extractor(real)
        self._told = figures(self._trained, self._real, extractor)
        shifted = ([(i + np.int16(step)).clip(0, 255).astype(np.uint8) for i in made] for step in (-1, 1))
        self.unseen = max(abs(paired_kid(extractor(images), self._trained, self._real)[0]) for images in shifted)
        """By how much KID changes where all of the trained network's images are a step of 255 darker or brighter."""

    def __call__(self, candidate: Sequence[ImageResult], tolerances: Mapping[str, float]) -> Finding:
        """``candidate``: what it makes of the same inputs in the same order."""
        made, told = self._extractor([result.pixels for result in candidate]), self._told
        ours = figures(made, self._real, self._extractor)
        difference, low, high = paired_kid(made, self._trained, self._real)
        margin = max(tolerances.get("quality_share", 0.0) * abs(told["KID"]), self.unseen)
        said = (
            f"KID {ours['KID']:.5f} against {told['KID']:.5f} of the trained network ({difference:+.5f}, at worst {high:+.5f}; "
            f"{margin:+.5f} allowed), FID {ours['FID']:.3f} against {told['FID']:.3f}; {len(made)} images, {len(self._real)} real, "
            f"features of {self._extractor.name}"
        )
        found = {
            "candidate": ours,
            "reference": told,
            "difference": difference,
            "bounds_95": [low, high],
            "margin": margin,
        }
        if high <= margin:
            return Finding(gate="quality", verdict=PASS, message=said, figures=found)
        if low > margin:
            return Finding(gate="quality", verdict=FAIL, message=said, figures=found)
        cure = "more images would have to show less"
        if margin > difference:
            more = len(made) * (((high - difference) / (margin - difference)) ** 2 - 1)
            if more < MOST_ASKED_FOR:
                cure = f"about {math.ceil(more)} more images would settle it"
        return Finding(gate="quality", verdict=INCONCLUSIVE, message=f"{said}: {cure}", figures=found)


def _too_few(made: int, real: int) -> str:
    return f"{made} made and {real} real images are too few to compare: give two of each at least"


def real_images(samples: Sequence[Sample], spec: ImageInput, count: int = REAL) -> list[np.ndarray]:
    """(H, W, C) uint8: at most ``count`` evenly spaced images, brought to what a network makes. Raises ImageError."""
    found = []
    step = len(samples) / max(1, min(count, len(samples)))
    for at in range(min(count, len(samples))):
        sample = samples[int(at * step)]
        pixels = np.asarray(resize(read_image(sample.image, spec, sample.id), spec))
        found.append(pixels[:, :, None] if pixels.ndim == 2 else pixels)
    return found


def judge_set(
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    judged: Dataset,
    spec: ImageInput,
    half: TaskHalf,
    makes: ImageInput,
    features: str,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """:func:`figures` of what a network makes of the ``judged`` inputs (see :meth:`zoo.tasks.TaskHalf.samples`), against
    as many of their ``others``, which are real. ``run``: (N, C, H, W) float32 to named outputs."""
    size = 64 if spec.color == "latent" else 0
    batches = prepared_batches([s.image for s in judged], spec, size)
    made = observe(run, batches, half, labels, spec).results
    real = real_images(judged.others, makes, len(judged))
    return {**figures([result.pixels for result in made], real, open_extractor(features)), "classes": []}
