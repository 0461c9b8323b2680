"""Says what a data set is before anything learns from it: what was recognised, what it holds, and every fault in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError, ImageError
from ..reading import read_image, viewable
from ..results import Detections, Segmentation, drawing
from ..specs import DatasetFormat
from . import Dataset, Fault, Sample
from .auditing import Examined, examine_both, judge
from .reading import ANY, FaultyData
from .splitting import GENERAL, assemble, check_brought, choose_format, recognise, shared_images
from .targets import Boxes, Mask, Picture

__all__ = ["Inspection", "Part", "grid", "inspect"]

SMALL, LARGE = 32.0**2, 96.0**2
"""Pixels of area below which COCO's evaluation calls an object small, and from which on large."""

_LARGEST = 32_000_000
"""Pixels: larger images are not decoded for a picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One split."""

    data: Dataset
    """Without what cannot be used."""
    examined: Sequence[Examined]
    """All samples, in order."""
    faults: tuple[Fault, ...]
    others: Sequence[Examined] = ()
    """All images of the other domain, in order."""
    alone: int = 0
    """Images without a partner, where images come in pairs; they are among the faults."""

    @property
    def ratios(self) -> Counter[int]:
        """How many times as large what should be made is than what it is made of, and of how many pairs."""
        return Counter(e.ratio for e in self.examined if e.ratio)

    @property
    def counts(self) -> np.ndarray:
        """(K,) int64: images, objects that count, or pixels of each class."""
        return self._sum(lambda counts: counts)

    @property
    def images(self) -> np.ndarray:
        """(K,) int64: images that have each class."""
        return self._sum(lambda counts: (counts > 0).astype(np.int64))

    def _sum(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total = np.zeros(len(self.data.labels), np.int64)
        for one in self.examined:
            if one.counts is not None and not one.reason:
                total += of(one.counts)
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """What was found. ``refusal`` is what training would say, empty where it would take the data."""

    root: Path
    format: DatasetFormat
    task: str
    others: tuple[str, ...]
    """Other formats that the data looks like."""
    parts: Mapping[str, Part]
    """By split; ``""`` for one undivided set."""
    notes: tuple[str, ...]
    refusal: str = ""

    @property
    def labels(self) -> tuple[str, ...]:
        return next(iter(self.parts.values())).data.labels

    @property
    def faults(self) -> list[tuple[str, Fault]]:
        """(split, fault), all of them."""
        return [(split, fault) for split, part in self.parts.items() for fault in part.faults]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with every fault."""
        found: dict[str, Any] = {
            "data": self.root.name,
            "format": self.format.name,
            "task": self.task,
            "also": list(self.others),
            "labels": list(self.labels),
            "usable": not self.refusal,
            "refusal": self.refusal or None,
            "splits": {split or "whole": self._split(part) for split, part in self.parts.items()},
            "image_sizes": [{"width": w, "height": h, "images": n} for (w, h), n in self.sizes().most_common()],
            "notes": list(self.notes),
            "faults": [{"split": split or "whole", "id": f.id, "reason": f.reason} for split, f in self.faults],
        }
        if self.task == "detect":
            found["boxes"] = self.boxes()
        return found

    def _split(self, part: Part) -> dict[str, Any]:
        what = {"detect": "objects", "segment": "pixels"}.get(self.task)
        rows = []
        for label, count, images in zip(self.labels, part.counts.tolist(), part.images.tolist(), strict=True):
            rows.append({"label": label, "images": images} | ({what: count} if what else {}))
        found: dict[str, Any] = {"images": len(part.data), "faults": len(part.faults), "classes": rows}
        if self.task == "detect":
            targets = [sample.target for sample in part.data]
            found["background"] = sum(not len(t) for t in targets)
            found["ignored"] = int(sum(t.ignore.sum() for t in targets))
        elif part.ratios or part.alone:
            found["ratios"] = [{"ratio": ratio, "pairs": n} for ratio, n in part.ratios.most_common()]
            found["without_partner"] = part.alone
        elif part.others:
            found["other_domain"] = len(part.data.others)
        elif self.task == "segment":
            found["void_pixels"] = int(
                sum(e.size[0] * e.size[1] for e in part.examined if not e.reason) - part.counts.sum()
            )
        return found

    def sizes(self) -> Counter[tuple[int, int]]:
        """(width, height) of the upright images, and how many have it."""
        return Counter(
            e.size for part in self.parts.values() for e in (*part.examined, *part.others) if min(e.size) > 0
        )

    def boxes(self) -> dict[str, Any]:
        """Sizes of the objects that count: by COCO's classes of area, and percentiles (5, 50, 95) of their sides in
        pixels, of width over height, and of the root of the share of the image that they cover."""
        sides, scale = [], []
        for part in self.parts.values():
            for one in part.examined:
                target = one.sample.target
                if one.reason or not isinstance(target, Boxes):
                    continue
                kept = target.boxes[~target.ignore]
                sides.append(kept[:, 2:] - kept[:, :2])
                scale.append(np.full(len(kept), one.size[0] * one.size[1], np.float64))
        wh = np.concatenate(sides or [np.zeros((0, 2))]).astype(np.float64)
        area = wh.prod(axis=1)
        found: dict[str, Any] = {
            "small": int((area < SMALL).sum()),
            "medium": int(((area >= SMALL) & (area < LARGE)).sum()),
            "large": int((area >= LARGE).sum()),
        }
        if len(wh):
            relative = np.sqrt(area / np.concatenate(scale))
            figures = {"width": wh[:, 0], "height": wh[:, 1], "aspect": wh[:, 0] / wh[:, 1], "relative": relative}
            found |= {k: [round(float(p), 3) for p in np.percentile(v, (5, 50, 95))] for k, v in figures.items()}
        return found


def inspect(
    root: Path, *, task: str = "", format: str = "", progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Read all of a data set and judge it. Images are checked for being whole, not decoded; masks are read.

    Without ``task`` the first format that recognises the data says it. Raises DataError where nothing can be said of
    the data at all; what training would refuse is in ``refusal``.
    """
    spec = choose_format(root, task, format)
    reader = spec.resolve()()
    brought = reader.splits(root)
    refusals: list[str] = []
    opened: dict[str, tuple[Dataset, tuple[Fault, ...]]] = {}
    for split in brought or ("",):
        try:
            opened[split] = reader.open(root, split or None), ()
        except FaultyData as error:
            opened[split] = error.data, error.faults
            refusals.append(str(error))
    parts: dict[str, Part] = {}
    looked, total = 0, sum(len(data) + len(data.others) for data, _ in opened.values())
    for split, (data, mended) in opened.items():

        def advance(done: int, _: int, before: int = looked) -> None:
            if progress is not None:
                progress(before + done, total)

        examined, others = examine_both(data, decode=False, progress=advance)
        kept, refused = judge(data, examined, 0.1, others)
        refusals += refused
        alone = len(data.faults) if spec.name == "pairs" else 0
        parts[split] = Part(
            data=kept, examined=examined, faults=(*mended, *kept.faults), others=others, alone=alone
        )  # fmt: skip
        looked += len(data) + len(data.others)
    parts = _with_shared(parts)
    try:
        check_brought(root, brought)
        assemble({split: part.data for split, part in parts.items()})
    except DataError as error:
        refusals.append(str(error))
    notes = [note for part in parts.values() for note in part.data.notes]
    if "val" not in parts:
        notes.append(_no_val(parts))
    return Inspection(
        root=root,
        format=spec,
        task=task or spec.tasks[0],
        others=tuple(s.name for s in recognise(root) if s.name not in (spec.name, *GENERAL)),
        parts=parts,
        notes=tuple(dict.fromkeys(notes)),
        refusal=next(iter(refusals), ""),
    )


def _no_val(parts: Mapping[str, Part]) -> str:
    learnt = parts["train"] if "train" in parts else parts.get("")
    if learnt is not None and len(learnt.data) == 1 and not learnt.data.labels:
        return "there is no val split: training judges by the one image that it learns from"
    return "there is no val split: training sets one image in five aside"


def _with_shared(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Images that lie in two splits become faults of the later one."""
    found = dict(parts)
    for one, other in (("val", "train"), ("test", "train"), ("test", "val")):
        if one in found and other in found:
            shared = shared_images(found[one].data, found[other].data)
            faults = [Fault(id=a, reason=f"{a}: is the same image as {b} of {other}") for a, b in shared]
            found[one] = replace(found[one], faults=(*found[one].faults, *faults))
    return found


# the picture


def grid(inspection: Inspection, *, cells: int = 12, columns: int = 4, side: int = 360) -> Image.Image:
    """Samples, evenly picked from all splits, each drawn with its boxes, map, label or partner. RGB.

    ``side``: width and height in pixels of one picture. Raises DataError where no image can be drawn.
    """
    pool = [
        (split, one)
        for split, part in inspection.parts.items()
        for one in (*part.examined, *part.others)
        if not one.reason and one.size[0] * one.size[1] <= _LARGEST
    ]
    # images with something to see come first, in their order
    pool.sort(key=lambda entry: not _has_objects(entry[1].sample))
    seen = sum(_has_objects(one.sample) for _, one in pool) or len(pool)
    if not pool:
        raise DataError(f"{inspection.root}: no image can be drawn")
    picked = [pool[i] for i in sorted({round(i) for i in np.linspace(0, seen - 1, min(cells, seen))})]
    drawn = []
    for split, one in picked:
        target = one.sample.target
        words = [split, inspection.labels[target] if isinstance(target, int) else "", one.sample.id]
        try:
            picture = _draw(one, inspection.labels, 2 * side)
        except DataError:  # damaged in a way that only decoding shows
            continue
        drawn.append(_cell(picture, ": ".join(word for word in words if word), side))
    if not drawn:
        raise DataError(f"{inspection.root}: no image can be drawn")
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (drawn[0].width * len(rows[0]), sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * cell.width, sum(heights[:number])))
    return sheet


def _has_objects(sample: Sample) -> bool:
    return not isinstance(sample.target, Boxes) or len(sample.target) > 0


def _draw(one: Examined, labels: tuple[str, ...], side: int) -> Image.Image:
    """Drawn on the image in small, where it is larger than ``side``. Raises DataError."""
    image, target = _pixels(one.sample), one.sample.target
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    if isinstance(target, Mask):
        return Segmentation(classes=target.read(), labels=labels).draw(image)
    if isinstance(target, Picture):
        made = Image.fromarray(target.read())
        made.thumbnail((side, side), Image.Resampling.BICUBIC)
        both = Image.new("RGB", (2 * made.width, made.height))
        both.paste(image.resize(made.size, Image.Resampling.NEAREST), (0, 0))
        both.paste(made, (made.width, 0))
        return both
    if not isinstance(target, Boxes):
        return drawing.canvas(image)
    return Detections(
        boxes=target.boxes,
        scores=np.ones(len(target), np.float32),
        classes=target.classes,
        labels=labels,
        width=one.size[0],
        height=one.size[1],
    ).draw(image, scores=False)


def _pixels(sample: Sample) -> Image.Image:
    """As a person can look at it. Raises ImageError."""
    image = sample.image
    if isinstance(image, Path) and image.suffix.lower() == ".npy":
        try:
            image = np.load(image, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ImageError(f"{sample.id}: not a readable .npy array: {error}") from None
    if isinstance(image, np.ndarray):
        return viewable(image if image.ndim == 3 else image[:, :, None])
    try:
        return viewable(read_image(image, ANY, sample.id))
    except ImageError:
        for channels in range(2, 17):  # bands: how many, only reading tells
            bands = replace(
                ANY, channels=channels, color="bands", pixel="float32", mean=(0.0,) * channels, std=(1.0,) * channels
            )
            with suppress(ImageError):
                return viewable(read_image(image, bands, sample.id))
        raise


def _cell(picture: Image.Image, caption: str, side: int) -> Image.Image:
    """The picture, at most ``side`` pixels wide and high, its caption below."""
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    letters = ImageFont.load_default(size=12)
    cell = Image.new("RGB", (side + 8, picture.height + 28), "white")
    cell.paste(picture, (4 + (side - picture.width) // 2, 4))
    text = drawing.fitted(caption, letters, side)
    ImageDraw.Draw(cell).text((4, picture.height + 7), text, fill="black", font=letters)
    return cell
