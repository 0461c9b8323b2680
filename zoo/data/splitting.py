"""Recognises a data set, divides it where it comes undivided, and finds its damaged and its shared images."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..builtin import DATASET_FORMATS
from ..errors import DataError, ImageError, UnknownName, nearest
from ..inputs import read_image
from ..specs import DatasetFormat, ImageInput
from . import Dataset, Fault, Format, Sample, Splits
from .naming import images_in

__all__ = ["audit_images", "divide", "open_splits", "shared_images"]

_ANY = ImageInput(height=1, width=1)


def open_splits(root: Path, *, task: str, format: str, val_share: float, seed: int) -> Splits:
    """See :func:`zoo.data.open_data`."""
    if not 0 < val_share < 1:
        raise DataError(f"the validation share is {val_share}: it lies between 0 and 1")
    reader = find_format(root, task, format)
    brought = reader.splits(root)
    if brought and "train" not in brought:
        raise DataError(f"{root} has {' and '.join(brought)} but no train split: name the one to learn from train")
    train = reader.open(root, "train" if brought else None)
    _check_classes(train)
    if "val" in brought:
        val = reader.open(root, "val")
        if not len(val):
            raise DataError(f"{root}: the val split is empty: fill it, or remove it to have one set aside from train")
    else:
        train, val = divide(train, val_share, seed)
    test = reader.open(root, "test") if "test" in brought else None
    return Splits(train=train, val=_note_shared(val, train), test=None if test is None else _note_shared(test, train))


def find_format(root: Path, task: str = "classify", format: str = "") -> Format:
    """The named format, or the one that recognises ``root``. Raises DataError, UnknownName."""
    specs = [s for s in _formats() if task in s.tasks]
    if format:
        specs = [s for s in specs if s.name == format]
        if not specs:
            raise UnknownName("dataset format", format, (s.name for s in _formats() if task in s.tasks))
    _check_root(root)
    # a tree of folders is what everything looks like, so it is asked last
    for spec in sorted(specs, key=lambda s: s.name == "folders"):
        reader: Format = spec.resolve()()
        if format or reader.sniff(root):
            return reader
    raise DataError(
        f"{root} {_what_is(root)}: give a folder with one folder a class, a CSV of path,label, or idx files"
    )


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


def _what_is(root: Path) -> str:
    if root.is_file():
        packed = root.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
        return "is a packed file, unpack it first" if packed else "is a file of no known kind"
    if not any(root.iterdir()):
        return "is empty"
    images, _ = images_in(root)
    return f"holds {len(images)} images but no class folders" if images else "holds no images"


def _check_classes(data: Dataset) -> None:
    if not len(data):
        raise DataError(f"{data.root} holds no images")
    if len(data.labels) < 2:
        raise DataError(f"{data.root} has one class ({data.labels[0]}): a classifier needs at least two")
    counts = Counter(data.targets)
    for index, label in enumerate(data.labels):
        if not counts[index]:
            raise DataError(f"{data.root}: class '{label}' has no image to learn from: add some, or remove the class")


def divide(data: Dataset, val_share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Set aside ``val_share`` of each class, at least one image; by ids and ``seed`` alone, whatever the order.

    Raises DataError where a class has fewer than two images.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(data.samples):
        by_class[sample.target].append(index)
    chosen: set[int] = set()
    for target, members in by_class.items():
        if len(members) < 2:
            raise DataError(
                f"{data.root}: class '{data.labels[target]}' has one image: two are needed, one to learn from and one to judge by"
            )
        ranked = sorted(members, key=lambda i: hashlib.sha256(f"{seed}\0{data.samples[i].id}".encode()).digest())
        chosen.update(ranked[: min(len(members) - 1, max(1, round(val_share * len(members))))])
    train = data.subset([i for i in range(len(data)) if i not in chosen], "train")
    return train, data.subset(sorted(chosen), "val")


def shared_images(one: Dataset, other: Dataset) -> list[tuple[str, str]]:
    """(id in ``one``, id in ``other``) of images that are the same bytes. Only files of equal size are read."""

    def size(sample: Sample) -> int:
        if isinstance(sample.image, Path):
            try:
                return sample.image.stat().st_size
            except OSError:
                return 0  # the audit says what is wrong with it
        return sample.image.nbytes

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
    shared = shared_images(data, train)
    if not shared:
        return data
    mine, theirs = shared[0]
    note = (
        f"{len(shared)} of {len(data)} images of the {data.split} split are also in train (first: {mine} = {theirs}): "
        "its figures flatter"
    )
    return replace(data, notes=(*data.notes, note))


def audit_images(
    data: Dataset,
    *,
    max_bad_share: float,
    progress: Callable[[int, int], None] | None,
) -> Dataset:
    """See :func:`zoo.data.audit`."""
    total = len(data)
    if not any(isinstance(sample.image, Path) for sample in data):
        return data  # arrays were checked when the data set was opened
    reasons: list[str] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, reason in enumerate(pool.map(_fault, data.samples), start=1):
            reasons.append(reason)
            if progress is not None:
                progress(done, total)
    bad = [i for i, reason in enumerate(reasons) if reason]
    if not bad:
        return data
    faults = tuple(Fault(id=data[i].id, reason=reasons[i]) for i in bad)
    if len(bad) > max_bad_share * total:
        raise DataError(
            f"{data.root}: {len(bad)} of {total} images of the {data.split} split cannot be read, more than "
            f"{100 * max_bad_share:g} % (first: {faults[0].reason}): mend or remove them"
        )
    kept = data.subset([i for i, reason in enumerate(reasons) if not reason])
    lost = set(data.targets) - set(kept.targets)
    if lost:
        raise DataError(
            f"{data.root}: no image of class '{data.labels[min(lost)]}' can be read (first: {faults[0].reason})"
        )
    return replace(kept, faults=(*data.faults, *faults))


def _fault(sample: Sample) -> str:
    """Why an image cannot be used; empty where it can. Arrays were checked when the data set was opened."""
    if not isinstance(sample.image, Path):
        return ""
    try:
        if sample.image.suffix.lower() == ".npy":
            array = np.load(sample.image, allow_pickle=False)
            if array.ndim not in (2, 3) or array.dtype not in (np.uint8, np.uint16):
                return f"{sample.id}: array of {array.dtype} {array.shape}; an image is (H, W[, C]) uint8 or uint16"
        else:
            read_image(sample.image, _ANY, sample.id)
    except ImageError as error:
        return str(error)
    except (OSError, ValueError, EOFError) as error:
        return f"{sample.id}: not a readable .npy array: {error}"
    return ""
