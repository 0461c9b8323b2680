"""What the values in mask files mean: told by a file beside them, or seen from the values themselves."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from ..errors import DataError
from .targets import VOID, Mask, Values

__all__ = ["VOIDS", "Scheme", "classes_file", "identity", "see", "told"]

Colour: TypeAlias = tuple[int, int, int]

_FILES = (
    "classes.csv",
    "_classes.csv",  # Roboflow
    "class_dict.csv",  # CamVid as it is passed around
    "classes.txt",
    "classes.json",
    "labelmap.txt",  # CVAT
    "label_colors.txt",  # CamVid
    "codes.txt",
    "obj_class_to_machine_color.json",  # Supervisely
    "meta.json",  # Supervisely
)
VOIDS = ("void", "ignore", "unlabelled", "unlabeled")
"""Names (in any case) of what is not to be learnt."""
_BORDER = (224, 224, 192)
"""The colour of what nobody labelled in Pascal VOC's pictures."""
_MOST = 254
"""Classes that a map of bytes can hold beside ``VOID``."""
_INDICES = 64
"""Grey values below this are taken for class indices."""
_LEVELS = 32
"""Up to so many different grey values are taken for a class each."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Labels, and how stored values become indices into them (see :class:`zoo.data.targets.Mask`)."""

    labels: tuple[str, ...]
    values: Values
    others: int | None = None
    note: str = ""
    """How it was come to, where a person should know."""


def identity(count: int) -> Values:
    """For masks that hold class indices, and ``VOID``."""
    return {**{i: i for i in range(count)}, VOID: VOID}


def classes_file(folders: Iterable[Path]) -> Path | None:
    """The first file in the folders that names classes."""
    return next((file for folder in folders for name in _FILES if (file := folder / name).is_file()), None)


# told by a file


class _Class(NamedTuple):
    name: str
    value: int | Colour | None


def told(file: Path, masks: Sequence[Path]) -> Scheme:
    """What a file of classes says of ``masks``: names in the order of the values, or with a value or colour each.

    Void, ignore and unlabelled are not learnt; background comes first. Raises DataError.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        classes = _from_json(json.loads(text)) if file.suffix.lower() == ".json" else _from_lines(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{file}: is no list of classes: {error}: write name,value or name,r,g,b on each line"
        ) from None
    names = [c.name for c in classes]
    if len(set(names)) < len(names) or not names:
        raise DataError(f"{file}: {'two classes have one name' if names else 'names no class'}")
    if len(names) > _MOST:
        raise DataError(f"{file}: names {len(names)} classes; a mask can hold {_MOST}")
    if all(c.value is None for c in classes):
        return _by_names(file, names, masks)
    stored = _stored(file, classes, {_kind(mask) for mask in _sample(masks)})
    mapped: dict[Any, int] = {value: at for at, value in enumerate(stored)}
    if len(mapped) < len(names):
        raise DataError(f"{file}: two classes have one value")
    return _ordered(file, names, mapped)


def _by_names(file: Path, names: list[str], masks: Sequence[Path]) -> Scheme:
    """Names without values: they go to what the masks hold, in ascending order. Raises DataError."""
    seen = see(masks)
    count = len(seen.labels)
    if count == len(names) + 1 and seen.labels[0] == "background" and "background" not in map(str.lower, names):
        names = ["background", *names]
    if count > 2 and any(isinstance(v, tuple) for v in seen.values):
        raise DataError(f"{file}: the masks are in colours: write name,r,g,b on each line")
    mapped: dict[Any, int] = dict(seen.values)
    if count < len(names) and seen.others is None and all(v == k for v, k in mapped.items()):
        mapped |= {i: i for i in range(len(names))}  # indices of classes that no mask holds
    elif count != len(names):
        raise DataError(
            f"{file}: names {len(names)} classes, but the masks hold {count}: name all, or write name,value on each line"
        )
    return replace(_ordered(file, names, mapped), others=seen.others)


def _ordered(file: Path, names: Sequence[str], mapped: dict[Any, int]) -> Scheme:
    """Background first and void taken out; ``mapped`` is stored value to place in ``names``, or VOID. Raises DataError."""
    order = [name for name in names if name.lower() not in VOIDS]
    order.sort(key=lambda name: name.lower() != "background")
    if len(order) < 2:
        raise DataError(f"{file}: names one class beside void: a mask needs two at least")
    index = [order.index(name) if name in order else VOID for name in names]
    values: dict[Any, int] = {value: VOID if at == VOID else index[at] for value, at in mapped.items()}
    values.setdefault(_BORDER if any(isinstance(v, tuple) for v in values) else VOID, VOID)
    return Scheme(labels=tuple(order), values=values)


def _stored(file: Path, classes: Sequence[_Class], kinds: set[str]) -> list[int | Colour]:
    """The value of each class as the masks hold it. Raises DataError."""
    given = [c.value for c in classes]
    colours = [v for v in given if isinstance(v, tuple)]
    if any(v is None for v in given) or (colours and len(colours) < len(given)):
        raise DataError(f"{file}: some classes have a value or colour and some do not: give each one")
    if "colour" in kinds and kinds != {"colour"}:
        raise DataError(f"{file}: some masks are grey or indexed and some in colours: write them all in one way")
    if kinds == {"colour"} and not colours:
        return [(int(v), int(v), int(v)) for v in given]  # type: ignore[arg-type]
    if colours and "grey" in kinds | {"deep"} and "indexed" not in kinds and kinds != {"colour"}:
        if all(r == g == b for r, g, b in colours):
            return [c[0] for c in colours]
        return list(range(len(given)))  # indices in the order of the file
    return given  # type: ignore[return-value]


def _from_lines(text: str) -> list[_Class]:
    """``name``, ``name,value``, ``value,name``, ``name,r,g,b``, ``r g b name`` or CVAT's ``name:r,g,b:parts:actions``.

    Raises ValueError.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if lines and all(re.match(r"[^:]+:\d+,\d+,\d+:", line) for line in lines):
        return [_class(line.split(":")[0], *line.split(":")[1].split(",")) for line in lines]
    if lines and all(re.match(r"\d+\s+\d+\s+\d+\s+\S", line) for line in lines):
        return [_class(rest[3], *rest[:3]) for line in lines if (rest := line.split(maxsplit=3))]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    columns = {0: "name", 1: "value"} if all(len(row) == 2 for row in rows) else dict(enumerate(("name", *"rgb")))
    names = {"name": "name", "class": "name", "label": "name", "value": "value", "index": "value", "id": "value"}
    names |= {"pixel value": "value", "r": "r", "g": "g", "b": "b", "red": "r", "green": "g", "blue": "b"}
    head = {at: names[cell.lower()] for at, cell in enumerate(rows[0]) if cell.lower() in names} if rows else {}
    if "name" in head.values() and len(rows[0]) > 1:
        columns, rows = head, rows[1:]
    classes = []
    for row in rows:
        cell = {columns[at]: text for at, text in enumerate(row) if at in columns and text}
        classes.append(_class(cell["name"], *(cell[key] for key in ("value", "r", "g", "b") if key in cell)))
    return classes


def _from_json(content: Any) -> list[_Class]:
    """A list of names; ``{name: value or colour}``, ``{value: name}``, or records with a name and a value or colour.

    Raises ValueError, TypeError, KeyError.
    """
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        content = content["classes"]
    if isinstance(content, dict):
        if all(isinstance(name, str) for name in content.values()):
            return [_class(name, value) for value, name in content.items()]
        return [_class(name, *(value if isinstance(value, list) else [value])) for name, value in content.items()]
    classes = []
    for entry in content:
        if isinstance(entry, str):
            classes.append(_class(entry))
            continue
        if not isinstance(entry, dict):
            raise ValueError(f"{entry} is no name")
        name = entry.get("name") or entry["title"]
        value = next((entry[key] for key in ("color", "colour", "value", "id") if entry.get(key) is not None), None)
        if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
            value = list(bytes.fromhex(value[1:]))
        classes.append(_class(name, *(value if isinstance(value, list) else [] if value is None else [value])))
    return classes


def _class(name: str, *values: Any) -> _Class:
    """Raises ValueError."""
    if len(values) not in (0, 1, 3) or not name or not isinstance(name, str):
        raise ValueError(f"'{name}' with {len(values)} values")
    numbers = [int(v) for v in values if 0 <= float(v) <= 65535]
    if len(numbers) < len(values):
        raise ValueError(f"a value of '{name}' is not in 0..65535")
    return _Class(
        name, None if not numbers else numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])
    )


# seen from the values


class _Look(NamedTuple):
    """What one mask holds."""

    values: frozenset[int]
    """Grey values or indices, or colours as 0xrrggbb."""
    between: float
    """Share of the pixels that are neither near black nor near white."""
    many: bool
    """More colours than can be classes."""


def see(masks: Sequence[Path]) -> Scheme:
    """What the values of ``masks`` mean by themselves; all are read. Raises DataError where that cannot be told.

    - 16-bit values, or a folder called instances: numbers of objects over a background of 0;
    - 0 and 255: background and object;
    - 0, 1, 2, …: class indices, 255 for what nobody labelled;
    - up to 32 other grey values, or up to 254 colours: a class each, black first;
    - many grey values, nearly all of them near 0 or 255: a blurred (JPEG) mask of background and object.
    """
    kinds = {_kind(mask) for mask in _sample(masks)}
    folder = masks[0].parent
    cure = f"name the classes in {folder.parent / 'classes.csv'} (name,value or name,r,g,b on each line)"
    if "deep" in kinds or folder.name.lower().startswith("instance"):
        if "colour" in kinds:
            raise DataError(f"{folder}: some masks hold numbers of objects and some colours: write them all in one way")
        return Scheme(
            labels=("background", "object"),
            values={0: 0},
            others=1,
            note="masks hold numbers of objects (instance ids): every number but 0 is 'object'",
        )
    if "colour" in kinds and kinds != {"colour"}:
        raise DataError(f"{folder}: some masks are grey or indexed and some in colours: write them all in one way")
    with ThreadPoolExecutor(max_workers=4) as pool:
        looks = [look for look in pool.map(_look_at, masks) if look is not None]
    found = sorted({value for look in looks for value in look.values})
    if not looks or any(look.many for look in looks) or (kinds == {"colour"} and len(found) > _MOST):
        what = (
            "no mask can be read" if not looks else f"masks hold more than {_MOST} colours: are they photos, or JPEG?"
        )
        raise DataError(f"{folder}: {what}: give masks without loss (PNG), or {cure}")
    if len(found) < 2:
        raise DataError(f"{folder}: all masks hold nothing but {found[0]}: a mask needs two classes")
    if kinds == {"colour"}:
        return _by_colour(found, cure)
    rest = [v for v in found if v != VOID]
    if found == [0, 255]:
        return Scheme(labels=("background", "object"), values={0: 0, 255: 1})
    if "indexed" in kinds or rest[-1] < _INDICES:
        if len(rest) < 2 and rest[-1] == 0:
            raise DataError(f"{folder}: all masks hold nothing but 0 and void (255): a mask needs two classes")
        count = rest[-1] + 1
        note = f"masks hold class indices 0 to {count - 1} without names: {cure}" if count > 2 else ""
        return Scheme(labels=_unnamed(count), values=identity(count), note=note)
    if len(found) <= _LEVELS:
        note = f"masks hold {len(found)} grey values without names, a class each: {cure}"
        return Scheme(labels=_unnamed(len(found), found[0] == 0), values={v: i for i, v in enumerate(found)}, note=note)
    if np.mean([look.between for look in looks]) < 0.05:
        return Scheme(
            labels=("background", "object"),
            values={v: int(v >= 128) for v in range(256)},
            note="masks are blurred between 0 and 255 (JPEG, or smoothed): from 128 on a pixel is 'object'",
        )
    raise DataError(
        f"{folder}: masks hold {len(found)} grey values from {found[0]} to {found[-1]}, too many for a class each: {cure}, "
        "or call the folder instances if they are numbers of objects"
    )


def _by_colour(found: list[int], cure: str) -> Scheme:
    colours = [(v >> 16, v >> 8 & 255, v & 255) for v in found]
    kept = [c for c in colours if c != _BORDER]
    values: dict[Any, int] = {c: i for i, c in enumerate(kept)}
    if len(kept) < len(colours):
        values[_BORDER] = VOID
    shown = ", ".join("#{:02x}{:02x}{:02x}".format(*c) for c in kept[:8]) + (", …" if len(kept) > 8 else "")
    note = f"masks hold {len(kept)} colours without names ({shown}): {cure}"
    return Scheme(labels=_unnamed(len(kept), kept[0] == (0, 0, 0)), values=values, note=note if len(kept) > 2 else "")


def _unnamed(count: int, background: bool = True) -> tuple[str, ...]:
    if background and count == 2:
        return ("background", "object")
    return tuple("background" if background and i == 0 else f"class {i}" for i in range(count))


def _sample(masks: Sequence[Path]) -> list[Path]:
    """Sixteen of them, evenly spread."""
    return [masks[i] for i in sorted({round(i) for i in np.linspace(0, len(masks) - 1, 16)})] if masks else []


def _kind(mask: Path) -> str:
    """``indexed``, ``grey``, ``colour`` or ``deep`` (16 bits), by the header alone."""
    try:
        if mask.suffix.lower() == ".npy":
            array = np.load(mask, mmap_mode="r", allow_pickle=False)
            return "colour" if array.ndim == 3 else "grey" if array.dtype.itemsize == 1 else "deep"
        with Image.open(mask) as image:
            mode = image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "grey"  # the audit says what is wrong with it
    if mode in ("P", "PA"):
        return "indexed"
    return "grey" if mode in ("1", "L", "LA") else "deep" if mode[0] in "IF" else "colour"


def _look_at(mask: Path) -> _Look | None:
    try:
        state = mask.stat()
        return _look(mask, state.st_size, state.st_mtime_ns)
    except (OSError, DataError, Image.DecompressionBombError):
        return None  # the audit says what is wrong with it


@lru_cache(maxsize=1 << 16)
def _look(mask: Path, size: int, changed: int) -> _Look:
    """Size and time of change are only what the cache goes by. Raises DataError."""
    stored = Mask(source=mask, values={}).stored()
    if stored.ndim == 3:
        colours = Image.fromarray(stored[:, :, :3].astype(np.uint8)).getcolors(_MOST + 2)
        packed = [r << 16 | g << 8 | b for _, (r, g, b) in colours or ()]  # type: ignore[misc]
        return _Look(frozenset(packed), 0.0, colours is None)
    counts = np.bincount(stored.reshape(-1), minlength=256)
    between = float(counts[32:224].sum() / max(1, counts.sum()))
    return _Look(frozenset(np.flatnonzero(counts).tolist()), between, False)
