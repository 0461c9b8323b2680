"""COCO's json, which most labelling tools write: one file a split, with the images beside it or in folders around it.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from . import Dataset, Fault, Sample
from .naming import hidden
from .reading import (
    Finder,
    by_split,
    folders_in,
    identify,
    plural,
    refuse_faults,
    size_fault,
    split_in,
    upright_size,
    wanted_splits,
)
from .shapes import PaintedMask, Shape, box_of, decode_runs
from .targets import VOID, Boxes

__all__ = ["CocoFormat", "CocoMaskFormat"]

_HEAD = 1 << 16
_FAR = 1e9
"""Pixels: no coordinate and no run is longer."""
_LISTS = re.compile(rb'"(images|annotations)"\s*:\s*\[')
_CATEGORIES = re.compile(r'"categories"\s*:\s*(?=\[)')
_OUTLINES = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[|\{)')
_FOLDERS = ("annot", "label", "json")
"""Beginnings of the names of folders that json files lie in."""


class CocoFormat:
    """See :class:`zoo.data.Format`. The root is a folder, or one json file.

    Labels are the categories in the order of their ids; crowds are marked ``ignore``; an object without a box gets the
    one around its outlines. Roboflow's category for the whole project, which no object has, is left out.
    """

    name = "coco"

    def sniff(self, root: Path) -> bool:
        try:
            return bool(_candidates(root))
        except OSError:
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(_files(root)[0])

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError where a file is cut off or is no COCO, and FaultyData with the ids of records whose
        category or image is not there, whose box or outlines are none, or that occur twice."""
        files, notes = _files(root)
        wanted = wanted_splits(root, split, files)
        names, left_out = _names([files["train"]] if "train" in files else list(files.values()))
        if left_out:
            notes.append(f"category '{left_out}' only groups the others and has no objects: it is left out")
        labels = self._labels(names)
        samples: list[Sample] = []
        refused: list[Fault] = []
        unusable: list[Fault] = []
        for part in wanted:
            file = files[part]
            images = _read(file, {name: _at(labels, name) for name in names}, refused)
            finder = Finder(_bases(file), part)
            found = {image.name: finder.find(image.name) for image in images}
            if images and not any(found.values()):
                raise DataError(
                    f"{file}: none of its {plural(len(images), 'image')} is there (first: {images[0].name}): put them "
                    "beside it, into images/, or into a folder named like the split"
                )
            for image in images:
                path = found[image.name] or file.parent / image.name  # the audit tells that it is missing
                id = identify(path, root) if found[image.name] else image.name
                fault = size_fault(path, id, (image.width, image.height))
                if fault:
                    unusable.append(Fault(id=id, reason=fault))
                else:
                    samples.append(Sample(id=id, image=path, target=self._target(file, image, path, refused)))
        data = Dataset(
            samples=tuple(samples),
            labels=labels,
            split=split or "whole",
            root=root,
            format=self.name,
            faults=tuple(unusable),
            notes=tuple(notes),
        )
        return refuse_faults(data, refused)

    def _labels(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(names)

    def _target(self, file: Path, image: _Image, path: Path, refused: list[Fault]) -> Any:
        boxes, classes, ignore = [], [], []
        for thing in image.objects:
            box = thing.box
            if box is None:
                try:
                    box = box_of(thing.shape(image.height, image.width).outlines)
                except ValueError as error:
                    refused.append(Fault(id=image.name, reason=f"{file}, annotation {thing.id}: no bbox, and {error}"))
                    continue
            boxes.append(box)
            classes.append(thing.label)
            ignore.append(thing.crowd)
        return Boxes.of(boxes, classes, ignore)


class CocoMaskFormat(CocoFormat):
    """See :class:`zoo.data.Format`: the same files, their outlines and run lengths painted as class maps.

    Label 0 is ``background``, what no object covers; crowds are void; smaller objects lie upon larger ones.
    """

    name = "coco-segment"

    def sniff(self, root: Path) -> bool:
        try:
            return any(_has_outlines(file) for file in _candidates(root))
        except (OSError, ValueError):
            return False

    def _labels(self, names: Sequence[str]) -> tuple[str, ...]:
        return ("background", *(name for name in names if name.lower() != "background"))

    def _target(self, file: Path, image: _Image, path: Path, refused: list[Fault]) -> Any:
        width, height = image.width, image.height
        if min(width, height) < 1:
            with contextlib.suppress(DataError):  # the audit tells of it
                width, height = upright_size(path)
        shapes = []
        for thing in image.objects:
            try:
                shapes.append(thing.shape(height, width))
            except ValueError as error:
                refused.append(Fault(id=image.name, reason=f"{file}, annotation {thing.id}: {error}"))
        return PaintedMask(source=file, values={}, width=width, height=height, shapes=tuple(shapes))


def _at(labels: Sequence[str], name: str) -> int:
    return labels.index(name) if name in labels else labels.index(name.lower())  # Background


# what lies where


def _candidates(root: Path) -> list[Path]:
    """The files that look like COCO; where a folder has instances_*.json, its others (captions, keypoints) are not."""
    if root.is_file():
        return [root] if _is_coco(root) else []
    found: list[Path] = []
    for folder in [root, *folders_in(root)]:
        if folder != root and not folder.name.lower().startswith(_FOLDERS) and split_in(folder.name) is None:
            continue
        files = sorted(p for p in folder.glob("*.json") if not hidden(p.name))[:50]
        files = [p for p in files if _is_coco(p)]
        found += [p for p in files if p.name.startswith("instances")] or files
    return found


def _is_coco(file: Path) -> bool:
    if file.suffix.lower() != ".json":
        return False
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _LISTS.search(head) is not None


def _has_outlines(file: Path) -> bool:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return _OUTLINES.search(text) is not None


def _files(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Split (or ``""``: undivided) to file, and notes of those that were left aside. Raises DataError."""
    candidates = _candidates(root)
    if not candidates:
        raise DataError(f"{root}: no COCO json: a file with images, annotations and categories")
    if len(candidates) == 1 and root.is_file():
        return {"": root}, []
    found: dict[str, Path] = {}
    others: list[Path] = []
    for file in candidates:
        split = split_in(file.stem) or (split_in(file.parent.name) if file.parent != root else None)
        if split is None:
            others.append(file)
        elif split in found:
            raise DataError(
                f"{root}: {identify(found[split], root)} and {identify(file, root)} are both the {split} split: "
                "give the one file as data, or move the other out"
            )
        else:
            found[split] = file
    if found:
        aside = [f"{identify(file, root)} names no split and was left aside" for file in others]
        return {split: found[split] for split in by_split(found)}, aside
    if len(others) > 1:
        raise DataError(
            f"{root}: {', '.join(identify(f, root) for f in others[:3])} name no split (train, val, test): rename them, "
            "or give one file as data"
        )
    return {"": others[0]}, []


def _bases(file: Path) -> list[Path]:
    """The folders that file names may count from."""
    folder = file.parent
    return [folder, folder.parent] if folder.name.lower().startswith(_FOLDERS) else [folder]


# what it says


@dataclass(kw_only=True, slots=True)
class _Object:
    id: Any
    label: int
    box: tuple[float, float, float, float] | None
    """Left, top, right, bottom."""
    crowd: bool
    segmentation: Any

    def shape(self, height: int, width: int) -> Shape:
        """Raises ValueError: no segmentation, or one that is none."""
        value = VOID if self.crowd else self.label
        given = self.segmentation
        if isinstance(given, dict):
            return Shape(value=value, runs=_runs(given, height, width))
        if not isinstance(given, list) or not given:
            raise ValueError("no segmentation")
        outlines = []
        for corners in given:
            if not _numbers(corners) or len(corners) < 6 or len(corners) % 2:
                raise ValueError("segmentation is no list of outlines: each is x, y of three corners or more")
            outlines.append(np.asarray(corners, np.float64).reshape(-1, 2))
        return Shape(value=value, outlines=tuple(outlines))


@dataclass(kw_only=True, slots=True)
class _Image:
    name: str
    width: int
    height: int
    """0: not told."""
    objects: list[_Object] = field(default_factory=list)


def _runs(given: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    counts, size = given.get("counts"), given.get("size")
    if isinstance(counts, str):
        runs = decode_runs(counts)
    elif _numbers(counts):
        runs = np.asarray(counts, np.int64)
    else:
        raise ValueError("segmentation has no counts")
    if size != [height, width]:
        raise ValueError(f"segmentation is for size {size}, the image is [{height}, {width}]")
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its run lengths make {runs.sum()} pixels, not {height}x{width}")
    return runs


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) in (int, float) and -_FAR < v < _FAR for v in value)


def _json(file: Path) -> tuple[str, dict[str, Any]]:
    """Text and content. Raises DataError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated"):
            raise DataError(f"{file}: is cut off after {len(text)} characters: copy it again") from None
        raise DataError(f"{file}: is no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, numbers of thousands of digits
        raise DataError(f"{file}: is no JSON: {error}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{file}: is no COCO: it has no list '{key}'")
    return text, content


def _names(files: Sequence[Path]) -> tuple[list[str], str]:
    """Names of the categories of all files in the order of their ids, and the one that only groups others."""
    names: list[str] = []
    grouping = ""
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            text = ""
        categories: Any = None
        for match in _CATEGORIES.finditer(text):  # without parsing the images and annotations
            try:
                categories = json.JSONDecoder().raw_decode(text, match.end())[0]
            except (ValueError, RecursionError):
                continue
        if categories is None:
            categories = _json(file)[1]["categories"]
        by_id = _categories(file, categories)
        groups = {c.get("supercategory") for c in categories if c.get("supercategory") != c["name"]}
        for c in sorted(categories, key=lambda c: (isinstance(c["id"], str), c["id"])):
            unused = not re.search(rf'"category_id"\s*:\s*{re.escape(json.dumps(c["id"]))}\s*[,}}]', text)
            if c.get("supercategory") == "none" and c["name"] in groups and unused:
                grouping = c["name"]
            elif c["name"] not in names:
                names.append(c["name"])
        if not by_id:
            raise DataError(f"{file}: has no categories")
    return [name for name in names if name != grouping], grouping


def _categories(file: Path, categories: list[Any]) -> dict[Any, str]:
    """Id to name. Raises DataError."""
    found: dict[Any, str] = {}
    for at, entry in enumerate(categories):
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str) or not entry.get("name"):
            raise DataError(f"{file}: categories[{at}] has no id (a number) and name")
        if not isinstance(entry["name"], str):
            raise DataError(f"{file}: category {entry['id']}: its name, {entry['name']}, is no text")
        if entry["id"] in found:
            raise DataError(f"{file}: category {entry['id']} is there twice, {found[entry['id']]} and {entry['name']}")
        if entry["name"] in found.values():
            raise DataError(f"{file}: two categories are called '{entry['name']}': rename one, or merge them")
        found[entry["id"]] = entry["name"]
    return found


def _read(file: Path, classes: Mapping[str, int], refused: list[Fault]) -> list[_Image]:
    """The images with their objects; records that cannot be used go to ``refused``. Raises DataError."""
    _, content = _json(file)
    categories = _categories(file, content["categories"])
    images: dict[Any, _Image] = {}
    names: set[str] = set()

    def refuse(id: str, reason: str) -> None:
        refused.append(Fault(id=id, reason=f"{file}, {reason}"))

    for at, entry in enumerate(content["images"]):
        if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
            refuse(f"images[{at}]", f"images[{at}]: has no id")
            continue
        id, name = entry["id"], entry.get("file_name")
        if not isinstance(name, str) or not name:
            refuse(f"image {id}", f"image {id}: has no file_name")
        elif id in images:
            refuse(name, f"image {id}: is there twice, {images[id].name} and {name}")
        elif name in names:
            refuse(name, f"image {id}: {name} is there twice, under two ids")
        else:
            names.add(name)
            width, height = (v if type(v) is int else 0 for v in (entry.get("width"), entry.get("height")))
            images[id] = _Image(name=name, width=width, height=height)
    for at, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict):
            refuse(f"annotations[{at}]", f"annotations[{at}]: is no record")
            continue
        number = entry.get("id", f"[{at}]")
        what = f"annotation {number}"
        image_id, category_id, box = entry.get("image_id"), entry.get("category_id"), entry.get("bbox")
        image = images.get(image_id) if type(image_id) in (int, str) else None
        if image is None:
            refuse(what, f"{what}: image_id {image_id} is not among the images")
            continue
        category = categories.get(category_id) if type(category_id) in (int, str) else None
        if category is None:
            known = ", ".join(f"{i} {n}" for i, n in list(categories.items())[:6])
            known += ", …" if len(categories) > 6 else ""
            refuse(image.name, f"{what}: category_id {category_id} is not among the categories ({known})")
        elif category not in classes:
            refuse(image.name, f"{what}: category '{category}' is not among those of train")
        elif box and not (_numbers(box) and len(box) == 4):
            refuse(image.name, f"{what}: bbox {json.dumps(box)[:60]} is not x, y, width, height")
        else:
            image.objects.append(
                _Object(
                    id=number,
                    label=classes[category],
                    box=(box[0], box[1], box[0] + box[2], box[1] + box[3]) if box else None,
                    crowd=bool(entry.get("iscrowd")),
                    segmentation=entry.get("segmentation"),
                )
            )
    return list(images.values())
