"""The raw idx files of MNIST, Fashion-MNIST and their kin, gzipped or not.

Format: http://yann.lecun.com/exdb/mnist/ (big-endian: two zero bytes, type 8 = uint8, number of axes, their
lengths as uint32, then the values).
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import DataError
from . import Dataset, Sample
from .naming import split_of

__all__ = ["IdxFormat"]

_IMAGES = re.compile(r"^(?P<split>.+?)-images[-.]idx3-ubyte(\.gz)?$")
_MAX_BYTES = 8 << 30

# https://github.com/zalandoresearch/fashion-mnist#labels
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class IdxFormat:
    """See :class:`zoo.data.Format`. Images are (H, W) uint8 arrays; labels are the numbers, or Fashion-MNIST's names
    where the folder is called so."""

    def sniff(self, root: Path) -> bool:
        try:
            return root.is_dir() and any(_IMAGES.match(p.name) for p in root.iterdir())
        except OSError:
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return tuple(_files(root))

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError: truncated, of another type, images and labels that do not go together."""
        files = _files(root)
        if split is not None and split not in files:
            raise DataError(f"{root} has no {split} split: it has {', '.join(files)}")
        arrays = {name: _pair(path) for name, path in files.items()}
        classes = max(int(labels.max()) for _, labels in arrays.values()) + 1
        names = tuple(str(i) for i in range(classes))
        notes: tuple[str, ...] = ()
        if classes == len(FASHION) and "fashion" in root.resolve().name.lower():
            names, notes = FASHION, ("the labels are Fashion-MNIST's, by the folder's name",)
        samples = [
            Sample(id=f"{name}/{index}", image=image, target=int(label))
            for name in ([split] if split else files)
            for index, (image, label) in enumerate(zip(*arrays[name], strict=True))
        ]
        return Dataset(
            samples=tuple(samples), labels=names, split=split or "whole", root=root, format="idx", notes=notes
        )


def _files(root: Path) -> dict[str, Path]:
    """Split name to its image file."""
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        match = _IMAGES.match(path.name)
        if match is None or path.name.startswith("."):
            continue
        word = re.split(r"[-_.]", match["split"])[-1]
        split = "test" if word == "t10k" else split_of(word)
        if split is None:
            raise DataError(f"{path}: '{match['split']}' is no split that is known: name it train, val or t10k")
        if split in found and found[split].name.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise DataError(f"{root} has two {split} splits, {found[split].name} and {path.name}: keep one")
        found.setdefault(split, path)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W) and (N,) uint8."""
    base = path.name.removesuffix(".gz").replace("-images", "-labels").replace("idx3", "idx1")
    for candidate in (path.with_name(base + ".gz"), path.with_name(base)):
        if candidate.is_file():
            images, labels = _read(path, 3), _read(candidate, 1)
            if len(images) != len(labels):
                raise DataError(f"{path}: {len(images)} images, but {candidate.name} has {len(labels)} labels")
            return images, labels
    raise DataError(f"{path}: its labels, {base}, are missing: put them beside it")


def _read(path: Path, axes: int) -> np.ndarray:
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            return _parse(gzip.GzipFile(fileobj=raw) if packed else raw, path, axes)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}: copy it again") from None


def _parse(file: BinaryIO, path: Path, axes: int) -> np.ndarray:
    head = file.read(4 + 4 * axes)
    if len(head) < 4 + 4 * axes or head[:2] != b"\0\0":
        raise DataError(f"{path}: is not an idx file: copy it again")
    if head[2] != 8 or head[3] != axes:
        raise DataError(f"{path}: idx type {head[2]} with {head[3]} axes; wanted are uint8 (8) with {axes}")
    shape = tuple(int(n) for n in np.frombuffer(head, ">u4", offset=4))
    size = math.prod(shape)
    if not 0 < size <= _MAX_BYTES:
        raise DataError(f"{path}: claims {'x'.join(map(str, shape))} values; more than none and at most 8 GiB are read")
    data = bytearray()
    while len(data) <= size and (block := file.read(min(1 << 24, size + 1 - len(data)))):
        data += block
    if len(data) != size:
        more = "more" if len(data) > size else f"only {len(data)}"
        raise DataError(f"{path}: holds {more} of the {size} bytes that its header says: copy it again")
    return np.frombuffer(bytes(data), np.uint8).reshape(shape)
