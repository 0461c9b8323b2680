"""A CSV with a line an object: ``path,xmin,ymin,xmax,ymax,label[,split]``, and what Open Images and Roboflow make of it."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError, ImageError
from . import Dataset, Fault, Sample
from .naming import SUFFIXES, hidden, split_of
from .reading import (
    Finder,
    by_split,
    folders_in,
    identify,
    plural,
    refuse_faults,
    split_in,
    upright_size,
    wanted_splits,
)
from .targets import Boxes

__all__ = ["BoxCsvFormat", "names_boxes"]

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path", "filepath", "imageid", "image_id"),
    "xmin": ("xmin", "x_min", "x1", "left"),
    "ymin": ("ymin", "y_min", "y1", "top"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "label": ("label", "class", "class_name", "classname", "labelname", "label_name", "category", "name"),
    "split": ("split", "subset"),
    "ignore": ("ignore", "difficult", "iscrowd", "isgroupof"),
}
_NEEDED = ("path", "xmin", "ymin", "xmax", "ymax", "label")
_CORNERS = _NEEDED[1:5]
_WITHOUT_HEADER = dict(zip(_NEEDED, range(6), strict=True))


class BoxCsvFormat:
    """See :class:`zoo.data.Format`. The root is the CSV file, or a folder that holds one, or one a split.

    Labels are the label column's values in train, sorted. A line without corners is an image of the background. Corners
    that all lie in 0..1, with a fraction among them, are shares of the image's width and height (Open Images). Without a
    first line of names the columns are path, x1, y1, x2, y2, label. Comma, semicolon or tab.
    """

    def sniff(self, root: Path) -> bool:
        try:
            return bool(_candidates(root))
        except OSError:
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(_layout(root))

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError where a file is no CSV, and FaultyData naming the lines: without a path or label, with a
        corner that is no number, of a class that train does not have, of two splits."""
        layout = _layout(root)
        wanted = wanted_splits(root, split, layout)
        base = [part for part in layout if part in ("train", "")] or list(layout)
        labels = sorted({b.label for part in base for entry in layout[part].values() for b in entry.boxes})
        index = {label: at for at, label in enumerate(labels)}
        samples: list[Sample] = []
        refused = [fault for part in wanted for entry in layout[part].values() for fault in entry.faults]
        for part in wanted:
            found = _find_images(layout[part], part)
            for name, entry in layout[part].items():
                image = found[name] or entry.file.parent / name  # the audit tells that it is missing
                id = identify(image, root) if found[name] else name
                known = [b for b in entry.boxes if b.label in index]
                refused += [
                    Fault(id=id, reason=f"{entry.file}, line {b.line}: '{b.label}' occurs in {part} but not in train")
                    for b in entry.boxes
                    if b.label not in index
                ]
                samples.append(Sample(id=id, image=image, target=_boxes(image, entry, known, index)))
        data = Dataset(
            samples=tuple(samples), labels=tuple(labels), split=split or "whole", root=root, format="csv-boxes"
        )
        return refuse_faults(data, refused)


class _Box(NamedTuple):
    line: int
    corners: tuple[float, float, float, float]
    label: str
    ignore: bool


@dataclass(kw_only=True, slots=True)
class _Entry:
    """One image."""

    file: Path
    shares: bool
    """Whether corners are shares of the image's size."""
    boxes: list[_Box] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def _boxes(image: Path, entry: _Entry, boxes: Sequence[_Box], index: dict[str, int]) -> Boxes:
    corners = np.asarray([b.corners for b in boxes], np.float64).reshape(-1, 4)
    if entry.shares and boxes:
        with contextlib.suppress(ImageError):  # the audit tells of it
            corners = corners * np.asarray(upright_size(image) * 2)
    return Boxes.of(corners, [index[b.label] for b in boxes], [b.ignore for b in boxes])


def _find_images(entries: dict[str, _Entry], split: str) -> dict[str, Path | None]:
    """Name to image. Raises DataError where none is there."""
    finders: dict[Path, Finder] = {}
    found: dict[str, Path | None] = {}
    for name, entry in entries.items():
        finder = finders.setdefault(entry.file.parent, Finder([entry.file.parent], split))
        found[name] = finder.find(name)
        if found[name] is None and Path(name).suffix.lower() not in SUFFIXES:  # Open Images tells ids
            found[name] = finder.find(name, by_stem=True)
    if found and not any(found.values()):
        name = next(iter(entries))
        raise DataError(f"{entries[name].file}: none of its {plural(len(entries), 'image')} is there (first: {name})")
    return found


# what lies where


def names_boxes(columns: Sequence[str]) -> bool:
    """Whether a first line names corners (any case)."""
    at = _header(columns)
    return all(key in at for key in _CORNERS)


def _header(columns: Sequence[str]) -> dict[str, int]:
    names = [c.strip().strip('"').lower() for c in columns]
    return {what: at for what, known in _COLUMNS.items() for at, name in enumerate(names) if name in known}


def _dialect(file: Path) -> tuple[str, dict[str, int], bool] | None:
    """Delimiter, the column of each value, and whether a first line names them; None where it is no CSV of boxes."""
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        first = lines.readline(4096).strip()
    for delimiter in ",;\t":
        cells = first.split(delimiter)
        at = _header(cells)
        if all(key in at for key in _NEEDED):
            return delimiter, at, True
        names_image = len(cells) == 6 and Path(cells[0].strip('"')).suffix.lower() in SUFFIXES
        if names_image and (all(_is_number(c) for c in cells[1:5]) or not any(c.strip() for c in cells[1:])):
            return delimiter, _WITHOUT_HEADER, False
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _candidates(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() in (".csv", ".tsv", ".txt") and _dialect(root) else []
    folders = [root, *(f for f in folders_in(root) if split_in(f.name) or f.name.lower().startswith("annot"))]
    files = [p for folder in folders for p in sorted(folder.iterdir())] if root.is_dir() else []
    return [p for p in files if p.suffix.lower() in (".csv", ".tsv") and not hidden(p.name) and _dialect(p)]


def _layout(root: Path) -> dict[str, dict[str, _Entry]]:
    """Split (or ``""``: undivided) to image name to what is told of it. Raises DataError."""
    files = _candidates(root)
    if not files:
        raise DataError(f"{root}: no CSV with the columns path, xmin, ymin, xmax, ymax and label")
    told: dict[str, Path] = {}
    for file in files if len(files) > 1 else ():
        split = split_in(file.stem) or (split_in(file.parent.name) if file.parent != root else None)
        if split is None or split in told:
            raise DataError(
                f"{root}: {identify(file, root)} {'names no split' if split is None else f'is a second {split} split'}: "
                "give one file as data, or name each by its split"
            )
        told[split] = file
    layout: dict[str, dict[str, _Entry]] = {}
    for split, file in told.items() or [("", files[0])]:
        _read(file, split, layout)
    if "" in layout and len(layout) > 1:
        name, entry = next(iter(layout[""].items()))
        raise DataError(f"{entry.file}: {name} has no split, others have: write train, val or test on each line")
    return layout


# what it says


def _read(file: Path, split: str, layout: dict[str, dict[str, _Entry]]) -> None:
    """Add the lines of one file. Raises DataError where it is no CSV."""
    dialect = _dialect(file)
    assert dialect is not None
    delimiter, at, named = dialect
    entries: dict[str, tuple[str, _Entry]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            if named:
                next(reader)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    cell = {
                        key: " ".join(cells[n].splitlines()).strip() if n < len(cells) else "" for key, n in at.items()
                    }
                    _line(file, reader.line_num, cell, split, entries)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is not a UTF-8 CSV: {error}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    if not entries:
        raise DataError(f"{file}: has no lines")
    values = [v for _, entry in entries.values() for b in entry.boxes for v in b.corners]
    shares = bool(values) and all(0 <= v <= 1 for v in values) and any(v % 1 for v in values)
    for name, (part, entry) in entries.items():
        entry.shares = shares
        layout.setdefault(part, {})[name] = entry


def _line(file: Path, line: int, cell: dict[str, str], split: str, entries: dict[str, tuple[str, _Entry]]) -> None:
    """Add one line to its image, in ``entries``; what is wrong with it goes to the image's faults."""
    name = cell["path"].replace("\\", "/")
    where = f"{file}, line {line}"
    if not name:
        raise DataError(f"{where}: no path: each line gives one")
    if cell.get("split"):
        split = split_of(cell["split"]) or ""
        if not split:
            raise DataError(f"{where}: split '{cell['split']}' is unknown: write train, val or test")
    part, entry = entries.setdefault(name, (split, _Entry(file=file, shares=False)))
    if part != split:
        entry.faults.append(Fault(id=name, reason=f"{where}: {name} is {split or 'no split'}, but was {part} before"))
        return
    corners = [cell[key] for key in _CORNERS]
    if not any(corners):
        return  # background
    if not all(_is_number(text) for text in corners):
        wrong = next(key for key, text in zip(_CORNERS, corners, strict=True) if not _is_number(text))
        entry.faults.append(Fault(id=name, reason=f"{where}: {wrong} is '{cell[wrong]}', not a number"))
    elif not cell["label"]:
        entry.faults.append(Fault(id=name, reason=f"{where}: no label: each box has one"))
    else:
        left, top, right, bottom = (float(text) for text in corners)
        ignore = cell.get("ignore", "").lower() in ("1", "true", "yes")
        entry.boxes.append(_Box(line, (left, top, right, bottom), cell["label"], ignore))
