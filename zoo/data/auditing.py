"""Finds what would spoil a training: images that cannot be read, boxes without area or beyond their image, masks that
do not fit. The same examination serves the audit before training and `zoo data inspect`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, ImageError
from ..inputs import read_image, size_of
from ..reading import Derived
from ..specs import ImageInput
from . import Dataset, Fault, Sample
from .degrading import Part
from .reading import ANY, plural, upright_size
from .targets import VOID, Boxes, Mask, Picture

__all__ = ["Examined", "audit_images", "clean", "examine", "examine_all", "examine_both", "judge"]

_LEAST = 1e-3
"""Pixels: a box less wide or high than this has no area; float rounding stays below it."""

_BEYOND = 0.5
"""Pixels: a box that reaches farther than this beyond its image is told of; less is rounding by the tool that wrote it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examined:
    """What was found of one sample."""

    sample: Sample
    """With its boxes cut at the image's border, and without those that cannot be used."""
    reason: str = ""
    """Why the whole sample cannot be used; empty where it can."""
    dropped: tuple[str, ...] = ()
    """Why single boxes of it cannot be used."""
    cut: int = 0
    """Boxes that reached beyond the image."""
    size: tuple[int, int] = (0, 0)
    """(width, height) of the upright image; zeros where it cannot be read."""
    ratio: int = 0
    """How many times as large the image that should be made of it is; 0 where there is none."""
    counts: np.ndarray | None = None
    """(K,) int64: images (0 or 1), objects that count, or pixels of each class."""


def audit_images(
    data: Dataset,
    *,
    max_bad_share: float,
    progress: Callable[[int, int], None] | None,
    input: ImageInput | None = None,
) -> Dataset:
    """See :func:`zoo.data.audit`."""
    if all(
        (s.target is None or isinstance(s.target, int)) and isinstance(s.image, np.ndarray)
        for s in (*data.samples, *data.others)
    ):
        return data  # arrays with a label or none were checked when the data set was opened
    if input is not None and input.color == "latent":
        input = None
    examined, others = examine_both(data, decode=True, input=input, progress=progress)
    kept, refusals = judge(data, examined, max_bad_share, others)
    if refusals:
        raise DataError(refusals[0])
    return kept


def examine_both(
    data: Dataset,
    *,
    decode: bool,
    input: ImageInput | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Examined], list[Examined]]:
    """:func:`examine` on every sample and on every image of the other domain."""
    both = replace(data, samples=(*data.samples, *data.others))
    found = examine_all(both, decode=decode, input=input, progress=progress)
    return found[: len(data)], found[len(data) :]


def examine_all(
    data: Dataset,
    *,
    decode: bool,
    input: ImageInput | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Examined]:
    """:func:`examine` on every sample, in their order, several at a time."""
    found: list[Examined] = []
    look = partial(examine, labels=data.labels, decode=decode, input=input)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, one in enumerate(pool.map(look, data.samples), start=1):
            found.append(one)
            if progress is not None:
                progress(done, len(data))
    return found


def examine(sample: Sample, labels: Sequence[str], *, decode: bool, input: ImageInput | None = None) -> Examined:
    """Look at an image and its target.

    ``decode`` reads every pixel of the image, as a network of that ``input`` will (None: of 8-bit colours); without it
    the file is only checked for being whole, in a fraction of the time and memory. Masks are read either way.
    """
    try:
        size = _decoded(sample, input) if decode else _whole(sample)
    except ImageError as error:
        return Examined(sample=sample, reason=str(error))
    target = sample.target
    if isinstance(target, Boxes):
        kept, dropped, cut = clean(target, *size, labels)
        counts = np.bincount(kept.classes[~kept.ignore], minlength=len(labels))
        return Examined(
            sample=replace(sample, target=kept),
            dropped=tuple(f"{sample.id}: {reason}" for reason in dropped),
            cut=cut,
            size=size,
            counts=counts,
        )
    if isinstance(target, Mask):
        reason, counts = _mask(target, size, labels)
        return Examined(
            sample=sample,
            reason=f"{sample.id}: {reason}" if reason else "",
            size=size,
            counts=None if reason else counts,
        )
    if isinstance(target, Picture):
        reason, ratio = _pair(target, size, decode=decode)
        return Examined(sample=sample, reason=f"{sample.id}: {reason}" if reason else "", size=size, ratio=ratio)
    if target is None:
        return Examined(sample=sample, size=size)
    return Examined(sample=sample, size=size, counts=np.bincount([target], minlength=len(labels)))


def clean(boxes: Boxes, width: int, height: int, labels: Sequence[str]) -> tuple[Boxes, list[str], int]:
    """Cut boxes at the border of their image, and leave out those that cannot be used.

    Returns what is left, a reason for each that is left out, and how many reached beyond the image.
    """
    if not len(boxes):
        return boxes, [], 0
    given = boxes.boxes
    border = np.asarray((width, height, width, height), np.float32)
    cut = given.clip(0, border)
    flat = ~((given[:, 2:] - given[:, :2]) >= _LEAST).all(axis=1)  # NaN is flat as well
    outside = ~flat & ~((cut[:, 2:] - cut[:, :2]) >= _LEAST).all(axis=1)
    reasons = []
    for index in np.flatnonzero(flat | outside).tolist():
        corners = ", ".join(f"{v:g}" for v in given[index].tolist())
        why = "has no area" if flat[index] else f"lies outside the {width}x{height} image"
        reasons.append(f"box {index + 1} ({labels[boxes.classes[index]]} {corners}) {why}")
    keep = ~(flat | outside)
    beyond = int((np.abs(given - cut)[keep] > _BEYOND).any(axis=1).sum())
    return replace(boxes, boxes=cut).take(keep), reasons, beyond


def _mask(mask: Mask, size: tuple[int, int], labels: Sequence[str]) -> tuple[str, np.ndarray]:
    """Why a mask cannot be used (empty where it can), and the pixels of each class."""
    none = np.zeros(len(labels), np.int64)
    try:
        its = mask.size()
        if its != size:
            swapped = its == size[::-1]
            cure = "the image is turned upright by its EXIF orientation" if swapped else "give the mask of this image"
            return f"its mask is {its[0]}x{its[1]}, the image {size[0]}x{size[1]}: {cure}", none
        counts = np.bincount(mask.read().reshape(-1), minlength=VOID + 1)
    except Image.DecompressionBombError:
        return f"its mask is larger than {Image.MAX_IMAGE_PIXELS} pixels", none
    except DataError as error:
        return str(error), none
    beyond = np.flatnonzero(counts[len(labels) : VOID])
    if len(beyond):
        return f"its mask holds class {len(labels) + int(beyond[0])}; the classes are 0 to {len(labels) - 1}", none
    return "", counts[: len(labels)]


def _pair(picture: Picture, size: tuple[int, int], *, decode: bool) -> tuple[str, int]:
    """Why an image of ``size`` and the one that should be made of it are no pair (empty where they are), and how many
    times as large the second is."""
    try:
        made = picture.size()
        if decode:
            height, width = picture.read().shape[:2]
            made = width, height
        elif picture.box is None:
            _whole(Sample(id="its partner", image=picture.source, target=None))
    except ImageError as error:
        return f"its partner cannot be read: {error}", 0
    ratio = made[0] // size[0]
    if ratio and made == (ratio * size[0], ratio * size[1]):
        return "", ratio
    return (
        f"is {size[0]}x{size[1]}, its partner {made[0]}x{made[1]}: both sides must be the same whole number of times as "
        "large: cut them to fit, or remove the pair",
        0,
    )


def _decoded(sample: Sample, input: ImageInput | None) -> tuple[int, int]:
    """Size of the upright image, once every pixel was read. Raises ImageError."""
    image = sample.image
    if isinstance(image, np.ndarray):
        return upright_size(image)
    if isinstance(image, Derived):
        return size_of(read_image(image, input or ANY, sample.id))
    if input is None and image.suffix.lower() == ".npy":
        size = upright_size(image, sample.id)
        dtype = np.load(image, mmap_mode="r", allow_pickle=False).dtype
        if dtype not in (np.uint8, np.uint16):
            raise ImageError(f"{sample.id}: array of {dtype}; an image is (H, W[, C]) uint8 or uint16")
        return size
    return size_of(read_image(image, input or ANY, sample.id))


def _whole(sample: Sample) -> tuple[int, int]:
    """Size of the upright image, once its file is known to be whole. Raises ImageError.

    A JPEG is decoded at an eighth of its size, which reads all of the file; a PNG's checksums are computed.
    """
    image = sample.image
    size = upright_size(image, sample.id)
    if isinstance(image, Part):
        image = image.source
    if isinstance(image, Path) and image.suffix.lower() in (".png", ".jpg", ".jpeg"):
        try:
            with Image.open(image) as file:
                if file.format == "PNG":
                    file.verify()
                elif file.format == "JPEG":
                    file.draft("RGB", (1, 1))
                    file.load()
        except Exception as error:  # whatever a decoder raises
            raise ImageError(f"{sample.id}: damaged: {error}") from None
    return size


def judge(
    data: Dataset, examined: Sequence[Examined], max_bad_share: float, others: Sequence[Examined] = ()
) -> tuple[Dataset, list[str]]:
    """What can be used, with what is left out in ``faults``; and why training should refuse even that (mostly nothing):
    more than ``max_bad_share`` of the images or boxes cannot be used, a class lost its last one, or the other domain
    (``others``: what was found of its images)."""
    examined = _of_one_ratio(examined)
    good = [e for e in examined if not e.reason]
    bad = [*data.faults, *(Fault(id=e.sample.id, reason=e.reason) for e in examined if e.reason)]
    dropped = [Fault(id=e.sample.id, reason=reason) for e in good for reason in e.dropped]
    total = len(data) + len(data.faults)
    if others:
        bad += [Fault(id=e.sample.id, reason=e.reason) for e in others if e.reason]
        total += len(others)
    refusals = []
    if len(bad) > max_bad_share * total:
        verb = "read" if all(s.target is None or isinstance(s.target, int) for s in data) else "used"
        refusals.append(
            f"{data.root}: {len(bad)} of {total} images of the {data.split} split cannot be {verb}, "
            f"more than {100 * max_bad_share:g} % (first: {bad[0].reason}): mend or remove them"
        )
    boxes = sum(len(e.sample.target) for e in good if isinstance(e.sample.target, Boxes)) + len(dropped)
    if len(dropped) > max_bad_share * boxes:
        refusals.append(
            f"{data.root}: {len(dropped)} of {boxes} boxes of the {data.split} split have no area or lie outside their "
            f"images, more than {100 * max_bad_share:g} % (first: {dropped[0].reason}): are they in pixels of these images?"
        )
    lost = _lost(data, examined)
    if not lost and len(data) and not good:
        lost = "no image can be used"
    if not lost and others and all(e.reason for e in others):
        lost = "no image of the other domain can be used"
    if lost:
        first = next((f" (first: {fault.reason})" for fault in (*bad, *dropped)), "")
        refusals.append(f"{data.root}: {lost}{first}")
    notes = list(data.notes)
    beyond = [e for e in good if e.cut]
    if beyond:
        count = sum(e.cut for e in beyond)
        notes.append(
            f"{plural(count, 'box')} reached beyond the image and {'was' if count == 1 else 'were'} cut at its border "
            f"(first: {beyond[0].sample.id})"
        )
    kept = replace(
        data,
        samples=tuple(e.sample for e in good),
        others=tuple(e.sample for e in others if not e.reason) if others else data.others,
        faults=(*bad, *dropped),
        notes=tuple(notes),
    )
    return kept, refusals


def _of_one_ratio(examined: Sequence[Examined]) -> Sequence[Examined]:
    """The same; pairs of another ratio than most have it as their reason."""
    ratios = Counter(e.ratio for e in examined if e.ratio)
    if len(ratios) < 2:
        return examined
    most, count = max(ratios.items(), key=lambda item: (item[1], -item[0]))
    why = f"as large as it, the partners of {plural(count, 'other')} {most} times: a network has one scale, remove the pair"
    return [
        replace(e, reason=f"{e.sample.id}: its partner is {e.ratio} times {why}") if e.ratio not in (0, most) else e
        for e in examined
    ]


def _lost(data: Dataset, examined: Sequence[Examined]) -> str:
    """Which class has lost all it had, or that there is nothing but background to learn; empty where all is well."""
    had, left = np.zeros(len(data.labels), bool), np.zeros(len(data.labels), np.int64)
    for one, sample in zip(examined, data, strict=True):
        if not one.reason and one.counts is not None:
            left += one.counts
        if isinstance(sample.target, Boxes):
            had[sample.target.classes[~sample.target.ignore]] = True
        elif isinstance(sample.target, int):
            had[sample.target] = True
    gone = np.flatnonzero(had & (left == 0))
    if len(gone):
        what, verb = ("box", "used") if isinstance(data[0].target, Boxes) else ("image", "read")
        return f"no {what} of class '{data.labels[int(gone[0])]}' can be {verb}"
    learns = data.split in ("train", "whole") and any(isinstance(sample.target, Mask) for sample in data)
    if learns and data.labels[0] == "background" and not left[1:].any():
        return f"no mask of the {data.split} split holds anything but background"
    return ""
