"""By which names data sets call their splits, and which of their files are images."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["SPLITS", "SUFFIXES", "hidden", "images_in", "split_of"]

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The names by which data sets call their splits, in any case of letters."""

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".dib",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".avif",
        ".npy",
    ]
)


def split_of(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for a name that data sets use for it; None for any other."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def images_in(folder: Path) -> tuple[list[Path], int]:
    """Image files anywhere below ``folder``, sorted, and how many other (or hidden) files lie there."""
    images: list[Path] = []
    other = 0
    visited = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not hidden(f))
        for name in files:
            if not hidden(name) and os.path.splitext(name)[1].lower() in SUFFIXES:
                images.append(Path(path, name))
            else:
                other += 1
    return sorted(images), other


def hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "__pycache__", "Thumbs.db")
