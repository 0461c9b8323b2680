"""Images and masks in two folders (being written)."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from . import Dataset


class MaskFormat:
    """Being written."""

    def sniff(self, root: Path) -> bool:
        return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return ()

    def open(self, root: Path, split: str | None) -> Dataset:
        raise DataError(f"{root}: not readable yet")


class VocMaskFormat(MaskFormat):
    """Being written."""
