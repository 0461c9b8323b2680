"""What the readers of boxes and masks share: images found by name, their upright size, and all faults told at once."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from ..errors import DataError, ImageError
from ..inputs import read_image, size_of
from ..reading import Derived
from ..specs import ImageInput
from . import Dataset, Fault
from .naming import SPLITS, hidden, images_in, split_of

__all__ = [
    "ANY",
    "IMAGE_FOLDERS",
    "FaultyData",
    "Finder",
    "by_split",
    "folders_in",
    "identify",
    "plural",
    "refuse_faults",
    "size_fault",
    "split_in",
    "split_of_path",
    "upright_size",
    "wanted_splits",
]

ANY = ImageInput(height=1, width=1)
"""To read an image as it is, whatever network it is for."""

IMAGE_FOLDERS = ("images", "image", "img", "imgs", "jpegimages", "data", "input", "inputs")
"""The names by which data sets call the folder of their images, in any case of letters."""

_ORIENTATION = 0x0112


class FaultyData(DataError):
    """Annotations that would spoil the training without a sign: they must be mended first.

    ``faults`` has all of them; ``data`` is what is left without them, for :mod:`zoo.data.inspecting`.
    """

    def __init__(self, data: Dataset, faults: Sequence[Fault]) -> None:
        more = f" ({plural(len(faults) - 1, 'more such fault')}: `zoo data inspect` lists all)" if faults[1:] else ""
        super().__init__(faults[0].reason + more)
        self.data, self.faults = data, tuple(faults)


def refuse_faults(data: Dataset, faults: Sequence[Fault]) -> Dataset:
    """``data``, where there are no faults. Raises FaultyData."""
    if faults:
        raise FaultyData(data, faults)
    return data


def plural(count: int, noun: str) -> str:
    """``1 box``, ``2 boxes``, ``3 more such faults``."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('x') else 's'}"


def split_in(name: str) -> str | None:
    """The split that a part of a name tells: ``instances_train2017`` is train, ``_annotations`` is None."""
    return next((found for part in re.split(r"[^A-Za-z]+", name) if (found := split_of(part))), None)


def split_of_path(path: Path, root: Path) -> str | None:
    """The split that the folders between ``root`` and ``path`` tell; the nearest to ``path`` counts."""
    return next((found for part in reversed(path.relative_to(root).parts[:-1]) if (found := split_in(part))), None)


def wanted_splits(root: Path, split: str | None, there: Iterable[str]) -> list[str]:
    """Which of the splits ``there`` (``""``: one undivided set) to read for ``split``. Raises DataError."""
    known = list(there)
    if split is None:
        return known
    if split not in known:
        named = [name for name in known if name]
        raise DataError(f"{root} has no {split} split: it has {', '.join(named) or 'one undivided set'}")
    return [split]


def by_split(names: Iterable[str]) -> tuple[str, ...]:
    """Train, val and test in this order, as far as they are among ``names``."""
    found = set(names)
    return tuple(split for split in SPLITS if split in found)


def folders_in(folder: Path) -> list[Path]:
    """The visible folders in ``folder``, sorted; none where it cannot be listed."""
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not hidden(p.name))
    except OSError:
        return []


def identify(path: Path, root: Path) -> str:
    """A stable id: the path from the data set's folder."""
    base = root if root.is_dir() else root.parent
    return Path(os.path.relpath(path, base)).as_posix()


def upright_size(image: Path | np.ndarray | Derived, name: str = "") -> tuple[int, int]:
    """(width, height) of an image once it is upright, from its header alone. Raises ImageError, as reading it would."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    if isinstance(image, Derived):
        return image.size
    name = name or str(image)
    if image.suffix.lower() == ".npy":
        try:
            shape = np.load(image, mmap_mode="r", allow_pickle=False).shape
        except (OSError, ValueError, EOFError) as error:
            raise ImageError(f"{name}: not a readable .npy array: {error}") from None
        if len(shape) not in (2, 3) or 0 in shape:
            raise ImageError(f"{name}: array of shape {shape}; an image is (H, W) or (H, W, C)")
        return shape[1], shape[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(image) as header:
                width, height = header.size
                turned = header.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
                if width and height:
                    return (height, width) if turned else (width, height)
    except Exception:  # whatever a decoder raises: reading the image says it in one clear line
        size = _tiff_size(image)
        if size is not None:
            return size
    return size_of(read_image(image, ANY, name))


def _tiff_size(file: Path) -> tuple[int, int] | None:
    """(width, height) of the upright image, by the tags of a TIFF that Pillow does not decode (many bands, planes);
    None where it is none."""
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
            head += stream.read(8) if head[2] == 43 else b""  # BigTIFF
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            stream.seek(tags.next)
            tags.load(stream)
        width, height = int(tags[TiffImagePlugin.IMAGEWIDTH]), int(tags[TiffImagePlugin.IMAGELENGTH])
        turned = tags.get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # no TIFF
        return None
    if not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    return (height, width) if turned else (width, height)


def size_fault(image: Path, name: str, declared: tuple[int, int]) -> str:
    """Why annotations made for ``declared`` (width, height) do not fit an image; empty where they do.

    Unreadable images have no fault here: the audit tells of them. A declared size of 0 is none.
    """
    if min(declared) < 1:
        return ""
    try:
        size = upright_size(image)
    except ImageError:
        return ""
    if size == declared:
        return ""
    cure = "give the images that were annotated"
    if size == declared[::-1]:
        cure = "it is turned upright by its EXIF orientation: turn its pixels instead, or annotate it upright"
    return f"{name}: is {size[0]}x{size[1]}, but its annotations were made for {declared[0]}x{declared[1]}: {cure}"


class Finder:
    """Finds the images that annotations name: at the place they name, else anywhere below, by the name alone."""

    def __init__(self, bases: Sequence[Path], split: str) -> None:
        """``bases``: the folders that names may count from. Folders of another split than ``split`` are passed over."""
        self._bases, self._split = bases, split
        self._names: dict[str, Path] | None = None
        self._stems: dict[str, Path] = {}

    def find(self, name: str, *, by_stem: bool = False) -> Path | None:
        """The image called ``name``; with ``by_stem``, whatever its suffix."""
        name = name.replace("\\", "/")
        base = name.rpartition("/")[2]
        if not base or "\0" in name:
            return None
        if not by_stem:
            for folder in self._bases:
                if (path := folder / name).is_file():
                    return path
        if self._names is None:
            self._index()
        assert self._names is not None
        return self._stems.get(base) if by_stem else self._names.get(base)

    def _index(self) -> None:
        ranked = sorted(self._all(), reverse=True)  # the best last: it stays in the dictionaries
        self._names = {path.name: path for _, path in ranked}
        self._stems = {path.stem: path for _, path in ranked}

    def _all(self) -> Iterator[tuple[tuple[bool, bool, int], Path]]:
        for base in self._bases:
            for path in images_in(base)[0]:
                split = split_of_path(path, base)
                if self._split and split not in (None, self._split):
                    continue
                parts = path.relative_to(base).parts[:-1]
                usual = any(part.lower() in IMAGE_FOLDERS for part in parts)
                yield (split is None, not usual, len(parts)), path
