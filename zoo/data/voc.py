"""Pascal VOC's xml: one file an image, as LabelImg, CVAT, Label Studio and Roboflow write it too.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html

Coordinates: the challenge's own files count pixels from 1, both ends included, so pixel (1, 1) alone is the box
0, 0, 1, 1. All other tools write the edges, from 0 on, and do not say so; but the challenge's files name their database.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

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
    split_of_path,
    wanted_splits,
)
from .targets import Boxes

__all__ = ["VocFormat", "image_sets"]

_MAX_BYTES = 16 << 20
_CHALLENGE = re.compile(r"The VOC ?\d{4} Database|PASCAL VOC ?\d{4}", re.IGNORECASE)


class VocFormat:
    """See :class:`zoo.data.Format`. Labels are the names of the objects of train, sorted; difficult ones are marked
    ``ignore``. Splits come from ImageSets/Main, else from folders called train, val and test."""

    def sniff(self, root: Path) -> bool:
        try:
            return root.is_dir() and any(_is_annotation(file) for file in _first_files(root))
        except OSError:
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(_layout(root)[0])

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError where there are no annotations, and FaultyData naming the files that are cut off, no VOC,
        or have an object without name or box, or of a class that train does not have."""
        parts, notes = _layout(root)
        wanted = wanted_splits(root, split, parts)
        base = [part for part in parts if part in ("train", "")] or list(parts)
        parsed: dict[Path, _Annotation | str] = {}
        for part in dict.fromkeys((*wanted, *base)):
            parsed |= {file: _parse(file) for file in parts[part] if file not in parsed}
        labels = sorted(
            {t.label for p in base for f in parts[p] if isinstance(a := parsed[f], _Annotation) for t in a.things}
        )
        samples: list[Sample] = []
        refused: list[Fault] = []
        unusable: list[Fault] = []
        for part in wanted:
            finder = Finder([root], part)
            for file in parts[part]:
                read = parsed[file]
                if isinstance(read, str):
                    refused.append(Fault(id=identify(file, root), reason=f"{file}: {read}"))
                    continue
                image = _image(file, read.filename, finder)
                if image is None:
                    id = identify(file, root)
                    unusable.append(Fault(id=id, reason=f"{id}: its image, {read.filename or file.stem}, is missing"))
                    continue
                id = identify(image, root)
                fault = size_fault(image, id, (read.width, read.height))
                if fault:
                    unusable.append(Fault(id=id, reason=fault))
                    continue
                alien = [t for t in read.things if t.label not in labels]
                refused += [
                    Fault(id=id, reason=f"{file}: '{t.label}' occurs in {part or 'it'} but not in train") for t in alien
                ]
                things = [t for t in read.things if t.label in labels]
                samples.append(Sample(id=id, image=image, target=_boxes(things, labels)))
        if unusable and not samples and not refused:
            raise DataError(f"{root}: none of its {plural(len(unusable), 'image')} can be used ({unusable[0].reason})")
        data = Dataset(
            samples=tuple(samples),
            labels=tuple(labels),
            split=split or "whole",
            root=root,
            format="voc",
            faults=tuple(unusable),
            notes=tuple(notes),
        )
        return refuse_faults(data, refused)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Thing:
    label: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Annotation:
    filename: str
    width: int
    height: int
    """0: not told."""
    things: tuple[_Thing, ...]


def _boxes(things: list[_Thing], labels: list[str]) -> Boxes:
    index = {label: at for at, label in enumerate(labels)}
    return Boxes.of([t.box for t in things], [index[t.label] for t in things], [t.difficult for t in things])


# what lies where


def _first_files(root: Path) -> list[Path]:
    """The first xml file of each folder, down to the second level."""
    folders = [root]
    for folder in folders_in(root):
        folders += [folder, *folders_in(folder)[:20]]
    return [file for folder in folders[:200] if (file := next(folder.glob("*.xml"), None))]


def _is_annotation(file: Path) -> bool:
    with file.open("rb") as stream:
        return b"<annotation" in stream.read(4096)


def _annotations(root: Path) -> list[Path]:
    """All xml files below, or those of Annotations/ where there is one."""
    home = next((f for f in folders_in(root) if f.name.lower() == "annotations"), root)
    return sorted(p for p in home.rglob("*.xml") if not hidden(p.name) and not p.name.startswith("._"))


def image_sets(folder: Path) -> dict[str, list[str]]:
    """Split to names, of an ImageSets/Main or ImageSets/Segmentation; trainval is train where there is no train.txt.

    Raises DataError where a list cannot be read.
    """
    found: dict[str, list[str]] = {}
    for split, names in {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}.items():
        file = next((p for name in names if (p := folder / f"{name}.txt").is_file()), None)
        if file is None:
            continue
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from None
        found[split] = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    return found


def _layout(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Split (or ``""``: undivided) to annotation files, and notes. Raises DataError."""
    files = _annotations(root)
    if not files:
        raise DataError(f"{root}: no Pascal VOC annotations: xml files in Annotations/, or beside the images")
    sets = image_sets(root / "ImageSets" / "Main")
    if "train" in sets or "val" in sets:
        by_name = {file.stem: file for file in files}
        notes = []
        if "test" in sets and not by_name.keys() & set(sets["test"]):  # the challenge keeps them to itself
            notes.append("no image of ImageSets/Main/test.txt has an annotation: there is no test split")
            del sets["test"]
        missing = [(split, name) for split, names in sets.items() for name in names if name not in by_name]
        if missing:
            split, name = missing[0]
            raise DataError(
                f"{root}: {plural(len(missing), 'image')} of ImageSets/Main have no annotation (first: {name} of "
                f"{split}): add the xml files, or take the lines out"
            )
        listed = {name for names in sets.values() for name in names}
        unlisted = len(by_name.keys() - listed)
        if unlisted:
            notes.append(f"left aside, as no list of ImageSets/Main names them: {plural(unlisted, 'annotation')}")
        return {split: [by_name[name] for name in names] for split, names in sets.items()}, notes
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(split_of_path(file, root) or "", []).append(file)
    if len(parts) > 1 and "" in parts:
        raise DataError(
            f"{root}: {plural(len(parts['']), 'annotation')} lie in no split (first: {identify(parts[''][0], root)}), "
            "the others do: move them into train, val or test, or out"
        )
    return parts, []


def _image(file: Path, filename: str, finder: Finder) -> Path | None:
    """The image that an annotation file is of: by the name it tells, else by its own."""
    beside = file.parent / filename if filename else None
    if beside is not None and beside.is_file():
        return beside
    return (finder.find(filename) if filename else None) or finder.find(file.stem, by_stem=True)


# what it says


class _Unusable(Exception):
    """Why a file is no annotation."""


def _parse(file: Path) -> _Annotation | str:
    """What a file says, or what is wrong with it."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            return f"is larger than {_MAX_BYTES >> 20} MiB"
        return _annotation(_tree(data))
    except expat.ExpatError as error:
        what = "is empty" if not data.strip() else f"is cut off or no xml: {error}"
        return f"{what}: copy it again"
    except _Unusable as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _tree(data: bytes) -> Element:
    """Without entities: a document type is refused, so that no file can unfold into gigabytes or name others."""

    def refuse(*_: object) -> None:
        raise _Unusable("has a document type (DOCTYPE), which annotations do without: remove it")

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(data, True)
    return builder.close()


def _annotation(root: Element) -> _Annotation:
    """Raises _Unusable."""
    if root.tag != "annotation":
        raise _Unusable(f"is no annotation: it starts with <{root.tag}>")
    source = root.find("source")
    told = " ".join(_text(source, key) for key in ("database", "annotation")) if source is not None else ""
    start = 1.0 if _CHALLENGE.search(told) else 0.0
    things = []
    for number, entry in enumerate(root.findall("object"), start=1):
        label = _text(entry, "name")
        if not label:
            raise _Unusable(f"object {number} has no name")
        box = entry.find("bndbox")
        if box is None:
            raise _Unusable(f"object {number} ({label}) has no bndbox")
        left, top, right, bottom = (_number(box, key, number, label) for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = _text(entry, "difficult") not in ("", "0")
        things.append(_Thing(label=label, box=(left - start, top - start, right, bottom), difficult=difficult))
    size = root.find("size")
    told_size = [_text(size, key) for key in ("width", "height")]
    width, height = (int(text) if text.isdecimal() and len(text) < 9 else 0 for text in told_size)
    filename = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
    return _Annotation(filename=filename, width=width, height=height, things=tuple(things))


def _text(parent: Element | None, key: str) -> str:
    return " ".join((parent.findtext(key) or "").splitlines()).strip() if parent is not None else ""


def _number(box: Element, key: str, number: int, label: str) -> float:
    text = _text(box, key)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _Unusable(f"object {number} ({label}): {key} is '{text}', not a number")
    return value
