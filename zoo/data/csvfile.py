"""A CSV of ``path,label[,split]``: for data whose labels are not in its folders."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from . import Dataset, Sample
from .boxcsv import names_boxes
from .naming import SPLITS, split_of

__all__ = ["CsvFormat"]

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path", "filepath"),
    "label": ("label", "class", "target", "category"),
    "split": ("split", "subset"),
}


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str


class CsvFormat:
    """See :class:`zoo.data.Format`. The root is the CSV file, or a folder that holds exactly one such file.

    Paths count from the CSV's folder. Labels are the label column's values, sorted. Comma, semicolon or tab.
    """

    def sniff(self, root: Path) -> bool:
        try:
            return _find(root) is not None
        except (OSError, DataError):
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        found = {row.split for row in _rows(_the(root))}
        return tuple(split for split in SPLITS if split in found)

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError with the line: no label, an unknown split, one image with two labels."""
        file = _the(root)
        rows: dict[str, _Row] = {}
        repeated = 0
        for row in _rows(file):
            first = rows.setdefault(row.path, row)
            if first is row:
                continue
            if (first.label, first.split) != (row.label, row.split):
                raise DataError(
                    f"{file}, line {row.line}: {row.path} is {row.label} {row.split}".rstrip()
                    + f", but line {first.line} says {first.label} {first.split}".rstrip()
                )
            repeated += 1
        splits = {row.split for row in rows.values()}
        if split is not None and split not in splits:
            raise DataError(
                f"{file} has no {split} split: it has {', '.join(sorted(splits - {''})) or 'one undivided set'}"
            )
        labels = sorted(
            {row.label for row in rows.values() if row.split in ("train", "")} or {r.label for r in rows.values()}
        )
        # absolute paths would tell of this machine in every bundle: what they have in common is left out of the ids
        absolute = [os.path.dirname(row.path) for row in rows.values() if os.path.isabs(row.path)]
        common = os.path.commonpath(absolute) if absolute else ""
        samples = []
        for row in rows.values():
            if row.label not in labels:
                raise DataError(f"{file}, line {row.line}: label '{row.label}' occurs in {row.split} but not in train")
            if split in (None, row.split):
                name = os.path.relpath(row.path, common) if os.path.isabs(row.path) else row.path
                samples.append(Sample(id=name, image=file.parent / row.path, target=labels.index(row.label)))
        notes = (f"{repeated} repeated lines were ignored",) if repeated else ()
        return Dataset(
            samples=tuple(samples), labels=tuple(labels), split=split or "whole", root=file, format="csv", notes=notes
        )


def _find(root: Path) -> Path | None:
    """The CSV that ``root`` is or holds; None where there is none, or more than one."""
    if root.is_file():
        return root if root.suffix.lower() in (".csv", ".tsv") and _header(root) is not None else None
    if not root.is_dir():
        return None
    files = [p for p in sorted(root.iterdir()) if p.suffix.lower() in (".csv", ".tsv") and not p.name.startswith(".")]
    files = [p for p in files if _header(p) is not None]
    return files[0] if len(files) == 1 else None


def _the(root: Path) -> Path:
    file = _find(root)
    if file is None:
        raise DataError(
            f"{root}: no CSV whose first line names the columns path and label (and split, if there are splits)"
        )
    return file


def _header(file: Path) -> tuple[str, dict[str, int]] | None:
    """Delimiter, and which column is path, label and split; None where path or label is not there, or boxes are."""
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        first = lines.readline(4096)
    for delimiter in ",;\t":
        names = [n.strip().strip('"').lower() for n in first.strip().split(delimiter)]
        if names_boxes(names):
            return None
        at = {what: i for what, known in _COLUMNS.items() for i, n in enumerate(names) if n in known}
        if "path" in at and "label" in at:
            return delimiter, at
    return None


def _rows(file: Path) -> Iterator[_Row]:
    head = _header(file)
    assert head is not None
    delimiter, at = head
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            next(reader)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                path, label = (cells[at[k]].strip() if at[k] < len(cells) else "" for k in ("path", "label"))
                word = cells[at["split"]].strip() if at.get("split", len(cells)) < len(cells) else ""
                where = f"{file}, line {reader.line_num}"
                if not path or not label:
                    raise DataError(f"{where}: no {'label' if path else 'path'}: each line gives both")
                split = split_of(word) if word else ""
                if split is None or ("split" in at and not word):
                    raise DataError(f"{where}: split '{word}' is unknown: write train, val or test")
                yield _Row(reader.line_num, path.replace("\\", "/"), label, split)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is not a UTF-8 CSV: {error}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
