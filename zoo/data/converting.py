"""Writes a data set in another format, and says what that format cannot hold."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..errors import DataError, UnknownName
from ..files import new_folder
from ..results import Segmentation, drawing
from . import Dataset, Sample
from .maskclasses import VOIDS
from .reading import plural, upright_size
from .splitting import choose_format, recognise
from .targets import VOID, Boxes, Mask

__all__ = ["TARGETS", "Conversion", "convert"]

TARGETS: Mapping[str, tuple[str, ...]] = {
    "coco": ("detect", "segment"),
    "yolo": ("detect",),
    "voc": ("detect",),
    "csv": ("detect",),
    "masks": ("segment",),
}
"""What can be written, and for which tasks."""

_DIGITS = 4
"""Decimals of a pixel that are written: what float32 holds of a coordinate in a photo."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written."""

    out: Path
    source: str
    """Name of the format that was read."""
    task: str
    images: Mapping[str, int]
    """By split; ``""`` where the data is undivided."""
    losses: tuple[str, ...]
    """What the new format does not hold, with counts; and what could not be read."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One image on its way."""

    name: str
    """Of its file in the new folder; no other has the same stem."""
    source: Path
    width: int
    height: int
    target: Any

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name


_Parts: TypeAlias = Mapping[str, Sequence[_Item]]
_Say: TypeAlias = Callable[[str], None]


def convert(
    root: Path,
    to: str,
    out: Path,
    *,
    task: str = "",
    format: str = "",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write the data at ``root`` as format ``to`` into a new folder ``out``. Images become hard links, or copies.

    Boxes without area or beyond their image are kept as they are. Raises DataError where the data cannot be read as
    what ``to`` holds, UnknownName, OutputError; ``out`` is written whole or not at all.
    """
    if to not in TARGETS:
        raise UnknownName("format to write", to, TARGETS)
    task = task or (TARGETS[to][0] if len(TARGETS[to]) == 1 else "")
    spec = choose_format(root, task, format)
    task = task or next((t for t in spec.tasks if t in TARGETS[to]), spec.tasks[0])
    if task not in TARGETS[to]:
        fitting = " or ".join(name for name, tasks in TARGETS.items() if task in tasks)
        cure = f"choose --to {fitting}" if fitting else f"what is converted is data for {' and '.join(TARGETS[to])}"
        raise DataError(f"{root} is data for {task}, which {to} does not hold: {cure}")
    reader = spec.resolve()()
    opened: dict[str, Dataset] = {s: reader.open(root, s or None) for s in reader.splits(root) or ("",)}
    losses: list[str] = []
    outlined = {"coco": "coco-segment", "yolo": "yolo-segment"}.get(spec.name)
    if any(s.name == outlined for s in recognise(root)):
        losses.append("outlines become the boxes around them: --task segment keeps them")
    parts = _parts(opened, losses, together=to == "voc")
    labels = next(iter(opened.values())).labels
    total, done = sum(map(len, parts.values())), 0
    write = {"coco": _coco, "yolo": _yolo, "voc": _voc, "csv": _csv, "masks": _masks}[to]
    with new_folder(out, overwrite=overwrite) as folder:
        for split, items in parts.items():
            images = folder / _images(to, split)
            images.mkdir(parents=True, exist_ok=True)
            for item in items:
                _link(item.source, images / item.name)
                done += 1
                if progress is not None:
                    progress(done, total)
        write(folder, parts, labels, losses.append)
    return Conversion(
        out=out,
        source=spec.name,
        task=task,
        images={split: len(items) for split, items in parts.items()},
        losses=tuple(losses),
    )


def _images(to: str, split: str) -> str:
    return "JPEGImages" if to == "voc" else f"images/{split}" if split else "images"


def _parts(opened: Mapping[str, Dataset], losses: list[str], *, together: bool) -> dict[str, list[_Item]]:
    """Every image that can be read, with a name of its own: in its split, or (``together``) in all of them.

    Raises DataError where there is none.
    """
    taken: set[str] = set()
    parts: dict[str, list[_Item]] = {}
    faults: list[str] = []
    for split, data in opened.items():
        faults += [fault.reason for fault in data.faults]
        parts[split] = []
        if not together:
            taken.clear()
        for sample in data:
            if not isinstance(sample.image, Path):
                raise DataError(f"{data.root}: {sample.id} is an array: only images in files are converted")
            try:
                width, height = upright_size(sample.image, sample.id)
                target = _classes(sample, width, height) if isinstance(sample.target, Mask) else sample.target
            except DataError as error:
                faults.append(str(error))
                continue
            name = _name(sample, taken)
            parts[split].append(_Item(name=name, source=sample.image, width=width, height=height, target=target))
    if faults:
        losses.append(f"{plural(len(faults), 'image')} cannot be used and left out (first: {faults[0]})")
    if not any(parts.values()):
        raise DataError(f"no image can be converted (first: {faults[0]})" if faults else "there are no images")
    return parts


def _classes(sample: Sample, width: int, height: int) -> Mask:
    """The sample's mask, once it is known to fit. Raises DataError."""
    mask: Mask = sample.target
    if mask.size() != (width, height):
        raise DataError(f"{sample.id}: its mask is {mask.size()[0]}x{mask.size()[1]}, the image {width}x{height}")
    return mask


def _name(sample: Sample, taken: set[str]) -> str:
    """The file's own name where no other image has its stem, else the whole id in one word."""
    assert isinstance(sample.image, Path)
    suffix = sample.image.suffix
    whole = "_".join(part for part in Path(sample.id).with_suffix("").parts if part not in ("..", "/"))
    names = chain((sample.image.stem, whole), (f"{whole}_{number}" for number in count(2)))
    stem = next(name for name in names if name.lower() not in taken)
    taken.add(stem.lower())
    return stem + suffix


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy where the two places cannot share a file."""
    real = Path(os.path.realpath(source))
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _pixels(value: float) -> int | float:
    """A coordinate as short as it can be written."""
    rounded = round(float(value), _DIGITS)
    return int(rounded) if rounded.is_integer() else rounded


# the writers


def _coco(folder: Path, parts: _Parts, labels: Sequence[str], lose: _Say) -> None:
    maps = any(isinstance(item.target, Mask) for items in parts.values() for item in items)
    first = 1 if maps and labels[0].lower() == "background" else 0
    if maps and not first:
        lose("COCO has no word for data without background: reading it again adds one that no pixel has")
    categories = [{"id": i + (not maps), "name": n} for i, n in enumerate(labels) if i >= first]
    (folder / "annotations").mkdir()
    for split, items in parts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, item in enumerate(items, start=1):
            images.append({"id": number, "file_name": item.name, "width": item.width, "height": item.height})
            target = item.target
            for one in (
                _coco_regions(target, labels, number) if isinstance(target, Mask) else _coco_boxes(target, number)
            ):
                annotations.append({"id": len(annotations) + 1, **one})
        content = {"images": images, "annotations": annotations, "categories": categories}
        file = folder / "annotations" / f"instances{'_' + split if split else ''}.json"
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _coco_boxes(boxes: Boxes, image_id: int) -> Iterator[dict[str, Any]]:
    for (x0, y0, x1, y1), label, ignore in zip(
        boxes.boxes.tolist(), boxes.classes.tolist(), boxes.ignore.tolist(), strict=True
    ):
        box = [_pixels(v) for v in (x0, y0, x1 - x0, y1 - y0)]
        area = _pixels(max(0.0, x1 - x0) * max(0.0, y1 - y0))
        yield {"image_id": image_id, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(ignore)}


def _coco_regions(mask: Mask, labels: Sequence[str], image_id: int) -> Iterator[dict[str, Any]]:
    classes = mask.read()
    yield from Segmentation(classes=classes, labels=tuple(labels)).to_coco(image_id)
    void = Segmentation(classes=(classes == VOID).astype(np.uint8), labels=("background", "void"))
    for one in void.to_coco(image_id):
        yield {**one, "category_id": len(labels) - 1, "iscrowd": 1}


def _yolo(folder: Path, parts: _Parts, labels: Sequence[str], lose: _Say) -> None:
    lost = 0
    for split, items in parts.items():
        place = folder / "labels" / split
        place.mkdir(parents=True, exist_ok=True)
        for item in items:
            boxes: Boxes = item.target
            lost += int(boxes.ignore.sum())
            scale = np.asarray((item.width, item.height) * 2, np.float64)
            lines = []
            for box, label in zip(
                boxes.boxes[~boxes.ignore] / scale, boxes.classes[~boxes.ignore].tolist(), strict=True
            ):
                x0, y0, x1, y1 = box.tolist()
                values = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
                lines.append(" ".join([str(label), *(f"{v:.9f}".rstrip("0").rstrip(".") for v in values)]))
            (place / f"{item.stem}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if lost:
        lose(f"YOLO has no mark for crowds and difficult objects: {plural(lost, 'box')} left out")
    told = [f"{split or 'train'}: {_images('yolo', split)}" for split in parts]
    names = [f"  {i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(labels)]
    (folder / "data.yaml").write_text("\n".join([*told, "names:", *names, ""]), encoding="utf-8")


def _voc(folder: Path, parts: _Parts, labels: Sequence[str], lose: _Say) -> None:
    strange = next((name for name in labels if not name.isprintable() or name != name.strip()), None)
    if strange is not None:
        raise DataError(f"label {strange!r} cannot be written to xml: rename it")
    (folder / "Annotations").mkdir()
    if "" not in parts:
        (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, items in parts.items():
        for item in items:
            (folder / "Annotations" / f"{item.stem}.xml").write_bytes(_voc_file(item, labels))
        if split:
            lines = "".join(f"{item.stem}\n" for item in items)
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="utf-8")
    _lost_labels("Pascal VOC", parts, labels, lose)


def _voc_file(item: _Item, labels: Sequence[str]) -> bytes:
    root = ElementTree.Element("annotation")

    def put(parent: ElementTree.Element, **texts: object) -> None:
        for tag, text in texts.items():
            ElementTree.SubElement(parent, tag).text = str(text)

    put(root, folder="JPEGImages", filename=item.name)
    put(ElementTree.SubElement(root, "source"), database="Unknown")
    put(ElementTree.SubElement(root, "size"), width=item.width, height=item.height, depth=3)
    put(root, segmented=0)
    boxes: Boxes = item.target
    for box, label, ignore in zip(boxes.boxes.tolist(), boxes.classes.tolist(), boxes.ignore.tolist(), strict=True):
        entry = ElementTree.SubElement(root, "object")
        put(entry, name=labels[label], pose="Unspecified", truncated=0, difficult=int(ignore))
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(_pixels, box), strict=True))
        put(ElementTree.SubElement(entry, "bndbox"), **corners)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _csv(folder: Path, parts: _Parts, labels: Sequence[str], lose: _Say) -> None:
    divided = "" not in parts
    marked = any(item.target.ignore.any() for items in parts.values() for item in items)
    with (folder / "boxes.csv").open("w", encoding="utf-8", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["path", "xmin", "ymin", "xmax", "ymax", "label", *["split"] * divided, *["ignore"] * marked])
        for split, items in parts.items():
            for item in items:
                path, boxes = f"{_images('csv', split)}/{item.name}", item.target
                for box, label, ignore in zip(
                    boxes.boxes.tolist(), boxes.classes.tolist(), boxes.ignore.tolist(), strict=True
                ):
                    mark = [int(ignore)] * marked
                    write([path, *map(_pixels, box), labels[label], *[split] * divided, *mark])
                if not len(boxes):
                    write([path, *[""] * 5, *[split] * divided, *[0] * marked])
    _lost_labels("a CSV", parts, labels, lose)


def _lost_labels(format: str, parts: _Parts, labels: Sequence[str], lose: _Say) -> None:
    """Says what becomes of labels where the format knows them by its objects alone."""
    base = parts.get("train") or [item for items in parts.values() for item in items]
    used = {labels[i] for item in base for i in item.target.classes.tolist()}
    unused = [label for label in labels if label not in used]
    if unused:
        lose(
            f"{format} has no list of labels: {plural(len(unused), 'label')} without objects lost ({', '.join(unused[:5])})"
        )
    if list(labels) != sorted(labels):
        lose(f"{format} has no order of labels: read again they are in alphabetical order")


def _masks(folder: Path, parts: _Parts, labels: Sequence[str], lose: _Say) -> None:
    palette = np.asarray([drawing.colour(i) for i in range(256)], np.uint8)
    if labels[0].lower() == "background":
        palette[0] = 0
    palette[VOID] = (224, 224, 192)
    for split, items in parts.items():
        place = folder / "masks" / split
        place.mkdir(parents=True, exist_ok=True)
        for item in items:
            image = Image.fromarray(item.target.read())
            image.putpalette(palette.tobytes())
            image.save(place / f"{item.stem}.png", optimize=True)
    for name in labels:
        if name.lower() in VOIDS:
            lose(f"pixels of label '{name}' are void when read again, for its name: rename it first to keep it a class")
    with (folder / "classes.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("name", "value"), *((n, i) for i, n in enumerate(labels))])
