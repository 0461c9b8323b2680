"""Whether the images that int8 is calibrated on are fit for it: enough, real, different, of all classes, and not the judged ones.

Ranges measured on the wrong images give a network that is wrong on the right ones, and nothing in the graph shows it. What
is found here goes to the person and into the report; it stops nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["INFO", "WARNING", "Concern", "audit", "saturation"]

WARNING, INFO = "warning", "info"

FEW, ENOUGH = 8, 32
"""Below FEW the extremes are those of single photos; from ENOUGH on they hardly move any more."""
FLAT = 1e-3
"""An image whose standard deviation is less than this (in the units of the network's input) shows nothing."""
ALIKE = 0.05
"""Standard deviation between images as a share of that within them, on thumbnails: 0.65 to 0.85 for photos, nuclei and digits,
0 for copies of one."""
THUMBNAIL = 8
WHITE_SLOPE, NATURAL_SLOPE = 0.5, 1.0
"""Power falls with spatial frequency f as f^-slope: 0 for white noise; 2 for photographs (D. J. Field, "Relations between
the statistics of natural images", 1987), 1.6 for handwritten digits (median, MNIST), 0.8 for noise enlarged from 64 to 224 px."""
WHITE_CORRELATION = 0.35
"""Correlation of neighbouring pixels: 0 for white noise, 0.3 where it was resized; never below 0.44 in 1,000 photos and digits."""
CLIPPED = 0.01
"""Share of a tensor's values outside its range from which it is told."""
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Concern:
    """One thing to know about a calibration set."""

    kind: str
    """``size``, ``flat``, ``alike``, ``repeated``, ``noise``, ``classes``, ``overlap`` or ``saturation``."""
    severity: str
    """``warning``: the ranges are likely wrong; ``info``: worth knowing."""
    message: str
    """The value, the rule and the cure, in one line."""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def audit(
    tensors: np.ndarray,
    *,
    targets: Sequence[Any] | None = None,
    labels: Sequence[str] = (),
    digests: Sequence[str] = (),
    judged_digests: Collection[str] = (),
) -> list[Concern]:
    """Look at the calibration images ``tensors`` (N, C, H, W) float32, as the network gets them.

    ``targets``: of these samples; class indices, or :class:`zoo.data.targets.Boxes`; others say nothing of classes.
    ``labels``: names of all classes. ``digests``: of these samples' contents; ``judged_digests``: of those that the
    accuracy is measured on.
    """
    found = [*_size(len(tensors)), *_sameness(tensors, digests), *_overlap(digests, judged_digests)]
    if len(tensors):
        found += _noise(tensors)
    if targets is not None:
        found += _classes(targets, labels)
    return found


def saturation(clipped: Mapping[str, float]) -> list[Concern]:
    """What the ranges that were chosen cut off: share of the calibration values outside, 0..1, by tensor."""
    bad = sorted(((share, name) for name, share in clipped.items() if share >= CLIPPED), reverse=True)
    if not bad:
        return []
    named = ", ".join(f"{name} {100 * share:.2g} %" for share, name in bad[:NAMED])
    message = (
        f"the chosen ranges cut off {100 * CLIPPED:g} % or more of the values of {_count(len(bad), 'tensor')} ({named}): "
        "try another calibrator (minmax cuts nothing), or more images like those to come"
    )
    return [Concern(kind="saturation", severity=WARNING, message=message)]


def _size(count: int) -> list[Concern]:
    if count >= ENOUGH:
        return []
    few = count < FEW
    message = (
        f"{_count(count, 'calibration image')}: {'the ranges are those of single photos; ' if few else ''}"
        f"give {ENOUGH} or more, 128 is usual"
    )
    return [Concern(kind="size", severity=WARNING if few else INFO, message=message)]


def _sameness(tensors: np.ndarray, digests: Sequence[str]) -> list[Concern]:
    """Images that show nothing, that are all alike, or that come more than once."""
    count = len(tensors)
    found = []
    flat = int((tensors.reshape(count, -1).std(axis=1) < FLAT).sum()) if count else 0
    if flat:
        message = (
            f"{flat} of {_count(count, 'calibration image')} are of one colour: leave them out, they measure nothing"
        )
        found.append(Concern(kind="flat", severity=WARNING, message=message))
    repeated = len(digests) - len(set(digests))
    if count > 1 and flat < count:
        small = _thumbnails(tensors)
        within = float(small.std(axis=(2, 3)).mean()) or float(small.std()) or 1.0
        between = float(small.std(axis=0).mean())
        if between < ALIKE * within:
            message = (
                f"the {count} calibration images are all alike (they differ by {100 * between / within:.2g} % of their "
                "contrast): take images of different scenes"
            )
            found.append(Concern(kind="alike", severity=WARNING, message=message))
            return found
    if repeated:
        message = (
            f"{repeated} of {_count(count, 'calibration image')} repeat others: each counts once, give more of them"
        )
        found.append(Concern(kind="repeated", severity=INFO, message=message))
    return found


def _thumbnails(tensors: np.ndarray) -> np.ndarray:
    """(N, C, ≤ 8, ≤ 8) float32: means over blocks of pixels."""
    n, c, h, w = tensors.shape
    rows, columns = min(h, THUMBNAIL), min(w, THUMBNAIL)
    cut = tensors[:, :, : h // rows * rows, : w // columns * columns]
    blocks = cut.reshape(n, c, rows, h // rows, columns, w // columns)
    return np.asarray(blocks.mean(axis=(3, 5)), np.float32)


def _noise(tensors: np.ndarray) -> list[Concern]:
    if min(tensors.shape[2:]) < 16:
        return []  # too small for a spectrum
    slopes, correlations = np.asarray([_statistics(image) for image in tensors]).T
    white = int(((slopes < WHITE_SLOPE) & (correlations < WHITE_CORRELATION)).sum())
    count = len(tensors)
    typical = float(np.median(slopes))
    if typical < NATURAL_SLOPE:
        message = (
            f"the calibration images look like noise (their power falls with frequency as f^-{max(0.0, typical):.1f}; that of "
            "photographs as f^-2): activations on noise are not those on photos, calibrate on images like those to come"
        )
    elif white * 10 >= count:
        message = f"{white} of {_count(count, 'calibration image')} look like noise: leave them out"
    else:
        return []
    return [Concern(kind="noise", severity=WARNING, message=message)]


def _statistics(image: np.ndarray) -> tuple[float, float]:
    """Slope of the power spectrum between 1.5 cycles an image and a quarter of the sampling rate (positive where it
    falls), and correlation of neighbouring pixels, of one (C, H, W) image. An image of one colour counts as natural."""
    image = image.astype(np.float64)
    image -= image.mean(axis=(1, 2), keepdims=True)
    power = float((image**2).mean())
    if power < FLAT**2:
        return 2.0, 1.0
    correlation = min(float((image[:, 1:] * image[:, :-1]).mean()), float((image[:, :, 1:] * image[:, :, :-1]).mean()))
    height, width = image.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    spectrum = (np.abs(np.fft.rfft2(image * window)) ** 2).mean(axis=0)
    radius = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None, :] * width)
    edges = np.geomspace(1.5, min(height, width) / 4, 6)
    rings = [(radius >= low) & (radius < high) for low, high in itertools.pairwise(edges)]
    points = np.asarray([(np.log(radius[r]).mean(), np.log(spectrum[r].mean() + 1e-12)) for r in rings if r.any()])
    slope = -float(np.polyfit(points[:, 0], points[:, 1], 1)[0])
    return slope, correlation / power


def _classes(targets: Sequence[Any], labels: Sequence[str]) -> list[Concern]:
    """Classes that the images could show and do not."""
    per_image = [_classes_of(target) for target in targets]
    if not labels or any(found is None for found in per_image):
        return []
    seen = {index for found in per_image if found is not None for index in found}
    missing = [name for index, name in enumerate(labels) if index not in seen]
    count, total = len(targets), len(labels)
    if not missing or not count:
        return []
    covered = total - len(missing)
    # so many classes would be met if each image showed one at random
    expected = total * (1 - (1 - 1 / total) ** count)
    few = covered < 0.5 * expected
    if not few and total > count:
        return []  # there are more classes than images
    named = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
    message = (
        f"the {_count(count, 'calibration image')} show {covered} of {total} classes (none of {named}): "
        "calibrate on images of all classes, more of them or drawn at random"
    )
    return [Concern(kind="classes", severity=WARNING if few else INFO, message=message)]


def _classes_of(target: Any) -> set[int] | None:
    """Indices of the classes that one target shows; None where it does not say."""
    if isinstance(target, (int, np.integer)):
        return {int(target)}
    classes = getattr(target, "classes", None)
    return {int(index) for index in classes} if isinstance(classes, np.ndarray) else None


def _overlap(digests: Sequence[str], judged: Collection[str]) -> list[Concern]:
    shared = sum(digest in judged for digest in digests) if judged else 0
    if not shared:
        return []
    message = (
        f"{shared} of {_count(len(digests), 'calibration image')} are judged too: int8 was fitted to what it is measured on; "
        "keep the training and validation splits apart"
    )
    return [Concern(kind="overlap", severity=WARNING, message=message)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
