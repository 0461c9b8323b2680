"""Recognises a data set, divides it where it comes undivided, and finds the images that its splits share."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..builtin import DATASET_FORMATS
from ..errors import DataError, MissingPart, PluginError, UnknownName, nearest
from ..specs import DatasetFormat
from . import Dataset, Format, Sample, Splits
from .auditing import audit_images
from .folders import FolderFormat
from .naming import images_in
from .targets import Boxes, Mask, Picture

__all__ = [
    "GENERAL",
    "PICTURE_TASKS",
    "assemble",
    "audit_images",
    "check_brought",
    "choose_format",
    "divide",
    "find_format",
    "open_splits",
    "recognise",
    "shared_images",
]


GENERAL = ("folders", "images")
"""Formats that nearly every tree looks like: they count only where nothing else is recognised, the first before the
second."""

PICTURE_TASKS = frozenset(("generate", "restore", "translate"))
"""Tasks of networks that make images, most of which learn from images without labels."""

_MASKS = ("masks", "voc-segment")
"""Formats whose labels are image files, which must not be taken for images."""


def open_splits(root: Path, *, task: str, format: str, val_share: float, seed: int) -> Splits:
    """See :func:`zoo.data.open_data`."""
    if not 0 < val_share < 1:
        raise DataError(f"the validation share is {val_share}: it lies between 0 and 1")
    reader = find_format(root, task, format)
    brought = reader.splits(root)
    check_brought(root, brought)
    parts = {name: reader.open(root, name or None) for name in brought or ("",)}
    if task in PICTURE_TASKS:
        # one class is none: nothing tells it from another
        parts = {name: part.relabelled(()) if len(part.labels) == 1 else part for name, part in parts.items()}
    splits = assemble(parts, val_share, seed)
    return Splits(
        train=splits.train,
        val=_note_shared(splits.val, splits.train),
        test=None if splits.test is None else _note_shared(splits.test, splits.train),
    )


def check_brought(root: Path, brought: Iterable[str]) -> None:
    """Raises DataError where data that comes divided has no train split."""
    brought = list(brought)
    if brought and "train" not in brought:
        raise DataError(f"{root} has {' and '.join(brought)} but no train split: name the one to learn from train")


def assemble(parts: Mapping[str, Dataset], val_share: float = 0.2, seed: int = 0) -> Splits:
    """Splits from what a data set brings: train, perhaps val and test, or (``""``) one undivided set.

    Raises DataError where there is nothing to learn from, or nothing to judge by.
    """
    train = parts["train"] if "train" in parts else parts[""]
    _check_classes(train)
    val = parts.get("val")
    if val is None:
        train, val = divide(train, val_share, seed)
    elif not len(val):
        raise DataError(f"{train.root}: the val split is empty: fill it, or remove it to have one set aside from train")
    else:
        _check_objects(val)
    return Splits(train=train, val=val, test=parts.get("test"))


def find_format(root: Path, task: str = "classify", format: str = "") -> Format:
    """The named format, or the one that recognises ``root``. Raises DataError, UnknownName."""
    return _reader(choose_format(root, task, format))


def choose_format(root: Path, task: str = "", format: str = "") -> DatasetFormat:
    """The record of the named format, or of the one that recognises ``root``; for any task where none is given.

    Raises DataError, UnknownName.
    """
    if format:
        fitting = [s for s in _formats() if not task or task in s.tasks]
        spec = next((s for s in fitting if s.name == format), None)
        if spec is None:
            raise UnknownName("dataset format", format, (s.name for s in fitting))
        _check_root(root)
        return spec
    found = recognise(root)
    fitting = [s for s in found if not task or task in s.tasks]
    if fitting and fitting[0].name not in GENERAL:
        return fitting[0]
    if task in PICTURE_TASKS:
        masks = [s for s in found if s.name in _MASKS]
        found = [*masks, *(s for s in fitting if s.name == "images")] if masks else fitting or found
    elif task:  # what is no data for labels at all does not speak against it
        found = [s for s in found if not PICTURE_TASKS.issuperset(s.tasks)]
    if not found or (task and task not in found[0].tasks):
        raise DataError(f"{root} {_what_is(root, found, task)}")
    if task == "generate" and found[0].name == "folders" and len(FolderFormat().classes(root)) < 2:
        found = found[1:]
    return found[0]


def recognise(root: Path) -> list[DatasetFormat]:
    """The formats that ``root`` looks like, whatever their task; the first is the likeliest. Raises DataError."""
    _check_root(root)
    ranked = sorted(_formats(), key=lambda s: GENERAL.index(s.name) if s.name in GENERAL else -1)
    return [spec for spec in ranked if _recognises(spec, root)]


def _recognises(spec: DatasetFormat, root: Path) -> bool:
    try:
        return _reader(spec).sniff(root)
    except (PluginError, MissingPart):
        return False  # one broken plugin does not take the others down; `zoo plugins` tells of it


def _reader(spec: DatasetFormat) -> Format:
    reader: Format = spec.resolve()()
    return reader


def _formats() -> Iterable[DatasetFormat]:
    if importlib.util.find_spec("pluggy") is None:  # a device: only the core's own formats
        return DATASET_FORMATS
    from ..registry import get_registry

    return get_registry().specs(DatasetFormat)


def _check_root(root: Path) -> None:
    if not root.exists():
        try:
            close = nearest(root.name, [p.name for p in root.parent.iterdir()], 1)
        except OSError:
            close = []
        cure = f"did you mean {root.parent / close[0]}?" if close else "check the path"
        raise DataError(f"{root}: no such file or folder: {cure}")
    if not os.access(root, os.R_OK | os.X_OK if root.is_dir() else os.R_OK):
        raise DataError(f"{root}: no permission to read it: change its owner or mode")


def _what_is(root: Path, found: list[DatasetFormat], task: str) -> str:
    """What ``root`` is instead of data for ``task``, and the cure."""
    if found:
        tasks = " or ".join(
            sorted({t for spec in found if spec.name not in GENERAL for t in spec.tasks}) or found[0].tasks[:1]
        )
        fitting = next(
            (f": --format {spec.name} takes it as that all the same" for spec in found if task in spec.tasks), ""
        )
        return f"looks like {found[0].name} ({found[0].summary}), which is data for {tasks}, not for {task}{fitting}"
    fitting = ", ".join(f"{s.name} ({s.summary})" for s in _formats() if task in s.tasks)
    cure = f"give {fitting}" if fitting else f"known are {', '.join(s.name for s in _formats())}"
    if task == "classify":
        cure = "give a folder with one folder a class, a CSV of path,label, or idx files"
    if root.is_file():
        packed = root.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
        what = "is a packed file, unpack it first" if packed else "is a file of no known kind"
    elif not any(root.iterdir()):
        what = "is empty"
    else:
        images, _ = images_in(root)
        missing = {"": "annotations that are known", "classify": "class folders"}.get(task, f"annotations for {task}")
        what = f"holds {len(images)} images but no {missing}" if images else "holds no images"
    return f"{what}: {cure}"


def _check_classes(data: Dataset) -> None:
    """Raises DataError where there is nothing to learn from."""
    if not len(data):
        raise DataError(f"{data.root} holds no images")
    if isinstance(data[0].target, Boxes):
        _check_objects(data)
        return
    if data[0].target is None or isinstance(data[0].target, Picture):
        return
    if len(data.labels) < 2:
        what = "a mask" if isinstance(data[0].target, Mask) else "a classifier"
        raise DataError(f"{data.root} has one class ({data.labels[0]}): {what} needs at least two")
    if isinstance(data[0].target, Mask):
        return  # whether there is more than background, the audit sees
    counts = np.bincount(data.targets, minlength=len(data.labels))
    for index, label in enumerate(data.labels):
        if not counts[index]:
            raise DataError(f"{data.root}: class '{label}' has no image to learn from: add some, or remove the class")


def _check_objects(data: Dataset) -> None:
    if isinstance(data[0].target, Boxes) and not any((~sample.target.ignore).any() for sample in data):
        raise DataError(
            f"{data.root}: no image of the {data.split} split has an object: add some, or check that labels and images match"
        )


def divide(data: Dataset, val_share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Set aside ``val_share`` of the images, at least one; by ids and ``seed`` alone, whatever the order.

    Each class gives its share; with boxes, so do the images with and those without objects; maps are not looked into.
    The images of another domain are divided by the same share. One image without a class is both learnt from and judged
    by, with a note. Raises DataError where a class, or all there is, has fewer than two images.
    """
    strata: dict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(data.samples):
        strata[_stratum(sample)].append(index)
    chosen: set[int] = set()
    if len(data) == 1 and (data[0].target is None or isinstance(data[0].target, Picture)):
        note = f"{data.root.name} is one image, both learnt from and judged by: its figures flatter"
        train, val = replace(data, split="train"), replace(data, split="val", notes=(*data.notes, note))
        return _with_others(train, val, val_share, seed)
    for stratum, members in strata.items():
        if len(members) < 2:
            if isinstance(data[0].target, Boxes) and not stratum:
                continue  # one image of the background stays in train
            raise DataError(f"{_one_image(data, stratum)}: two are needed, one to learn from and one to judge by")
        chosen.update(_drawn(data.samples, members, val_share, seed))
    train = data.subset([i for i in range(len(data)) if i not in chosen], "train")
    val = replace(data.subset(sorted(chosen), "val"), faults=())  # what was left out is told once, for train
    return _with_others(train, val, val_share, seed)


def _drawn(samples: Sequence[Sample], members: Sequence[int], share: float, seed: int) -> set[int]:
    """A share of ``members``, one at least and never all of them."""
    ranked = sorted(members, key=lambda i: hashlib.sha256(f"{seed}\0{samples[i].id}".encode()).digest())
    return set(ranked[: min(len(members) - 1, max(1, round(share * len(members))))])


def _with_others(train: Dataset, val: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The same two with the images of the other domain divided between them; a single one is in both."""
    others = train.others
    if len(others) < 2:
        return train, val
    chosen = _drawn(others, range(len(others)), share, seed)
    return (
        replace(train, others=tuple(s for i, s in enumerate(others) if i not in chosen)),
        replace(val, others=tuple(others[i] for i in sorted(chosen))),
    )


def _one_image(data: Dataset, stratum: int) -> str:
    if isinstance(data[0].target, int):
        return f"{data.root}: class '{data.labels[stratum]}' has one image"
    return f"{data.root} has one image" + (" with objects" if isinstance(data[0].target, Boxes) else "")


def _stratum(sample: Sample) -> int:
    target = sample.target
    if isinstance(target, Boxes):
        return int((~target.ignore).any())
    return target if isinstance(target, int) else 0


def shared_images(one: Dataset, other: Dataset) -> list[tuple[str, str]]:
    """(id in ``one``, id in ``other``) of images that are the same bytes. Only files of equal size are read."""

    def size(sample: Sample) -> int:
        try:
            return sample.image.stat().st_size if isinstance(sample.image, Path) else sample.image.nbytes
        except OSError:
            return 0  # the audit says what is wrong with it

    sizes = {size(s) for s in one} & {size(s) for s in other} - {0}
    if not sizes:
        return []
    seen: dict[str, str] = {}
    for sample in other:
        if size(sample) in sizes:
            seen.setdefault(_digest(sample), sample.id)
    return [(s.id, seen[d]) for s in one if size(s) in sizes and (d := _digest(s)) in seen and d]


def _digest(sample: Sample) -> str:
    try:
        return sample.digest()
    except OSError:
        return ""


def _note_shared(data: Dataset, train: Dataset) -> Dataset:
    if data.samples == train.samples:
        return data  # one image, of which a note was made
    shared = shared_images(data, train)
    if not shared:
        return data
    mine, theirs = shared[0]
    note = (
        f"{len(shared)} of {len(data)} images of the {data.split} split are also in train (first: {mine} = {theirs}): "
        "its figures flatter"
    )
    return replace(data, notes=(*data.notes, note))
