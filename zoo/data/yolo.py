"""YOLO's text files: one a image, a line an object, in shares of the image's width and height.

Format: https://github.com/AlexeyAB/darknet#how-to-train-to-detect-your-custom-objects (``class cx cy w h``); newer tools
add a ``data.yaml`` with names and folders, and outlines (``class x1 y1 x2 y2 …``) instead of boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ImageError
from . import Dataset, Fault, Sample
from .datayaml import Value, read_data_yaml
from .naming import images_in, split_of
from .reading import by_split, folders_in, identify, plural, refuse_faults, upright_size, wanted_splits
from .shapes import PaintedMask, Shape, box_of
from .targets import Boxes

__all__ = ["YoloFormat", "YoloMaskFormat"]

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
_FAR = 2.0
"""Shares of the image: values farther out than this are no shares but pixels."""


class YoloFormat:
    """See :class:`zoo.data.Format`. The root is a folder, or its ``data.yaml``.

    Labels are the names of ``data.yaml`` (or of ``classes.txt``) in their order. An image without a text file, or with
    an empty one, is background. Outlines become the boxes around them.
    """

    name = "yolo"

    def sniff(self, root: Path) -> bool:
        try:
            return _looks_like(root)
        except (OSError, DataError):
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(_layout(root).images)

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError where names or folders are not there, and FaultyData naming file and line: a class out of
        range, values that are no shares, too few or too many of them."""
        layout = _layout(root)
        samples: list[Sample] = []
        refused: list[Fault] = []
        notes = list(layout.notes)
        labels = self._labels(layout.names)
        known = {_label_file(image) for images in layout.images.values() for image in images}
        for part in wanted_splits(root, split, layout.images):
            for image in layout.images[part]:
                file, id = _label_file(image), identify(image, root)
                things = _read(file, id, layout.names, refused)
                try:
                    size = upright_size(image)
                except ImageError:
                    things, size = [], (1, 1)  # the audit says what is wrong with it
                samples.append(Sample(id=id, image=image, target=self._target(file, id, things, size, refused)))
            _check_labels(root, part, layout.images[part], known, notes)
        data = Dataset(
            samples=tuple(samples),
            labels=labels,
            split=split or "whole",
            root=root,
            format=self.name,
            notes=tuple(notes),
        )
        return refuse_faults(data, refused)

    def _labels(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(names)

    def _target(self, file: Path, id: str, things: list[_Thing], size: tuple[int, int], refused: list[Fault]) -> Any:
        scale = np.asarray((*size, *size))
        boxes = [thing.points.reshape(-1) if thing.is_box else box_of([thing.points]) for thing in things]
        return Boxes.of(np.asarray(boxes).reshape(-1, 4) * scale, [thing.label for thing in things])


class YoloMaskFormat(YoloFormat):
    """See :class:`zoo.data.Format`: the same files with outlines, painted as class maps.

    Label 0 is ``background``, what no outline covers; smaller objects lie upon larger ones.
    """

    name = "yolo-segment"

    def sniff(self, root: Path) -> bool:
        try:
            if not _looks_like(root):
                return False
            images = (image for images in _layout(root).images.values() for image in images)
            return any(_has_outlines(_label_file(image)) for image in islice(images, 50))
        except (OSError, DataError):
            return False

    def _labels(self, names: Sequence[str]) -> tuple[str, ...]:
        return ("background", *names)

    def _target(self, file: Path, id: str, things: list[_Thing], size: tuple[int, int], refused: list[Fault]) -> Any:
        shapes = []
        for thing in things:
            if thing.is_box:
                refused.append(Fault(id=id, reason=f"{file}, line {thing.line}: is a box, not an outline"))
            else:
                shapes.append(Shape(value=thing.label + 1, outlines=(thing.points * np.asarray(size),)))
        return PaintedMask(source=file, values={}, width=size[0], height=size[1], shapes=tuple(shapes))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Thing:
    line: int
    label: int
    points: np.ndarray
    """(M, 2) float64 x and y in shares of the image: corners of the outline, or two of the box."""
    is_box: bool


@dataclass(frozen=True, kw_only=True)
class _Layout:
    names: tuple[str, ...]
    images: dict[str, list[Path]]
    """Split (or ``""``: undivided) to its images, sorted."""
    notes: tuple[str, ...]


# what lies where


def _looks_like(root: Path) -> bool:
    if root.is_file():
        return _is_data_yaml(root)
    if not root.is_dir():
        return False
    return any(_is_data_yaml(p) for p in root.iterdir()) or bool(_pairs(root))


def _is_data_yaml(file: Path) -> bool:
    if file.suffix.lower() not in (".yaml", ".yml") or not file.is_file():
        return False
    with file.open("rb") as stream:
        lines = stream.read(1 << 16).splitlines()
    starts = {line.partition(b":")[0].strip(b" '\"\xef\xbb\xbf") for line in lines if b":" in line[:32]}
    return b"names" in starts and bool(starts & {b"train", b"val", b"nc", b"path"})


def _pairs(root: Path) -> dict[str, list[Path]]:
    """Split to folders of images with text files beside them in labels/; for data without a data.yaml."""
    found: dict[str, list[Path]] = {}
    for folder in (root, *(f for f in folders_in(root) if split_of(f.name))):
        images, labels = folder / "images", folder / "labels"
        if not images.is_dir() or not labels.is_dir() or not _has_texts(labels):
            continue
        parts = {split_of(f.name): f for f in folders_in(images) if split_of(f.name)}
        if folder == root and parts:
            for split, part in parts.items():
                found.setdefault(split or "", []).append(part)
        else:
            found.setdefault(split_of(folder.name) or "" if folder != root else "", []).append(images)
    return found


def _has_texts(labels: Path) -> bool:
    return any(p.name not in _NAME_FILES for p in labels.rglob("*.txt"))


def _layout(root: Path) -> _Layout:
    """Raises DataError."""
    if root.is_file():
        return _from_yaml(root)
    files = sorted(p for p in root.iterdir() if _is_data_yaml(p))
    if len(files) > 1:
        files = [f for f in files if f.stem == "data"] or files
    if len(files) > 1:
        raise DataError(f"{root} has {' and '.join(f.name for f in files[:3])}: give the one to use as data")
    if files:
        return _from_yaml(files[0])
    pairs = _pairs(root)
    if not pairs:
        raise DataError(f"{root}: no data.yaml, and no images/ and labels/ with one text file an image")
    if len(pairs) > 1 and "" in pairs:
        raise DataError(f"{root} has {identify(pairs[''][0], root)}/ beside its splits: move it out")
    names = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if names is None:
        raise DataError(
            f"{root}: nothing names its classes: add a data.yaml with names, or a classes.txt with one a line"
        )
    try:
        labels = tuple(x.strip() for x in names.read_text(encoding="utf-8-sig").splitlines() if x.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{names}: cannot be read: {error}") from None
    images = {
        split: [image for folder in folders for image in images_in(folder)[0]] for split, folders in pairs.items()
    }
    return _Layout(names=_unique(names, labels), images=images, notes=())


def _from_yaml(file: Path) -> _Layout:
    told = read_data_yaml(file)
    if "val" in told and "valid" in told:
        raise DataError(f"{file}: has val and valid: keep one")
    if "valid" in told:
        told["val"] = told.pop("valid")
    images: dict[str, list[Path]] = {}
    notes: list[str] = []
    for split in ("train", "val", "test"):
        if split not in told:
            continue
        entry = told[split]
        places = [_place(file, told.get("path"), one) for one in ([entry] if isinstance(entry, str) else list(entry))]
        if None in places:
            shown = ", ".join([entry] if isinstance(entry, str) else list(entry))
            if split == "test":  # Roboflow names one whether or not it is there
                notes.append(f"{file.name} names {shown} as its test split, but it is not there")
                continue
            raise DataError(f"{file}: {split}: {shown} is not there: counted from this file's folder")
        images[split] = sorted({image for place in places if place for image in _images(place)})
        if not images[split]:
            raise DataError(f"{file}: {split}: {entry} holds no images")
    if not images:
        raise DataError(f"{file}: names no train folder: add train: images/train")
    return _Layout(names=_names(file, told), images=images, notes=tuple(notes))


def _names(file: Path, told: dict[str, Value]) -> tuple[str, ...]:
    names = told.get("names")
    if isinstance(names, dict):
        expected = [str(i) for i in range(len(names))]
        if sorted(names) != sorted(expected):
            raise DataError(f"{file}: names: the numbers of the classes are not 0 to {len(names) - 1} without a gap")
        names = [names[i] for i in expected]
    if not isinstance(names, list):
        raise DataError(f"{file}: names: is no list of the classes' names")
    count = told.get("nc")
    if count is not None and count != str(len(names)):
        raise DataError(f"{file}: nc is {count}, but there are {len(names)} names: correct one of them")
    return _unique(file, names)


def _unique(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise DataError(f"{file}: two classes are called '{twice}': rename one")
    return tuple(names)


def _place(file: Path, path: Value | None, entry: str) -> Path | None:
    """The folder or list of images that an entry means. Paths are written from many points of view."""
    base = file.parent
    inside = Path(*(part for part in Path(entry).parts if part != ".."))
    candidates = [base / str(path) / entry] if isinstance(path, str) else []
    candidates += [base / entry, base / inside]
    return next((c for c in candidates if c.exists()), None)


def _images(place: Path) -> list[Path]:
    if place.is_dir():
        return images_in(place)[0]
    if place.suffix.lower() != ".txt":
        raise DataError(f"{place}: is neither a folder nor a .txt list of images")
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: cannot be read: {error}") from None
    return [_listed(place.parent, Path(line.strip())) for line in lines if line.strip()]


def _listed(folder: Path, image: Path) -> Path:
    """An image of a list: its path, or as much of its end as leads to a file, for lists that came from elsewhere."""
    ends = (folder / Path(*image.parts[at:]) for at in range(len(image.parts)))
    return next((path for path in ends if path.is_file()), folder / image)


def _label_file(image: Path) -> Path:
    """labels/…/1.txt for images/…/1.jpg; beside the image where no folder is called images."""
    parts = list(image.parent.parts)
    for at in range(len(parts) - 1, -1, -1):
        if parts[at].lower() == "images":
            parts[at] = "labels"
            break
    return Path(*parts, image.stem + ".txt")


def _check_labels(root: Path, split: str, images: list[Path], known: set[Path], notes: list[str]) -> None:
    """Notes text files that belong to no image. Raises DataError where no image has one: all would be background."""
    files = {_label_file(image) for image in images}
    there = {p for folder in {file.parent for file in files} for p in folder.glob("*.txt")}
    if images and not there & files:
        where = identify(_label_file(images[0]), root)
        raise DataError(f"{root}: no image of {split or 'this data'} has a text file: the first would be {where}")
    alone = sorted(p for p in there - known if p.name not in _NAME_FILES)
    if alone:
        have = "has" if len(alone) == 1 else "have"
        notes.append(f"{plural(len(alone), 'text file')} {have} no image (first: {identify(alone[0], root)})")


# what they say


def _has_outlines(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        return any(len(line.split()) > 6 for line in islice(lines, 20))


def _read(file: Path, id: str, names: Sequence[str], refused: list[Fault]) -> list[_Thing]:
    """The objects of one text file; lines that cannot be used go to ``refused``."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        refused.append(Fault(id=id, reason=f"{file}: is no text: {error}"))
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            found.append(_thing(number, words, names))
        except ValueError as error:
            refused.append(Fault(id=id, reason=f"{file}, line {number}: {error}"))
    return found


def _thing(number: int, words: list[str], names: Sequence[str]) -> _Thing:
    """Raises ValueError saying what is wrong with a line."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"'{' '.join(words)[:60]}' is not numbers: class cx cy w h") from None
    label, rest = values[0], values[1:]
    if len(rest) != 4 and (len(rest) < 6 or len(rest) % 2):
        raise ValueError(f"{len(words)} values; a box has 5 (class cx cy w h), an outline class and x y of each corner")
    if not label.is_integer() or not 0 <= label < len(names):
        raise ValueError(f"class {words[0]}, but the classes are 0 to {len(names) - 1} ({_few(names)})")
    wrong = next((v for v in rest if not math.isfinite(v) or abs(v) > _FAR), None)
    if wrong is not None:
        raise ValueError(f"{wrong:g} is no share of the image: are these pixels? divide by its width and height")
    if len(rest) == 4:
        cx, cy, w, h = rest
        points = np.asarray([(cx - w / 2, cy - h / 2), (cx + w / 2, cy + h / 2)])
    else:
        points = np.asarray(rest).reshape(-1, 2)
    return _Thing(line=number, label=int(label), points=points, is_box=len(rest) == 4)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
