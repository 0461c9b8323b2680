"""Pictures without labels, alone, in pairs or of two domains: what networks that make images learn from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..errors import DataError, ImageError
from . import Dataset, Fault, Sample
from .degrading import Part
from .naming import SPLITS, SUFFIXES, images_in, split_of
from .reading import by_split, folders_in, identify, plural, upright_size, wanted_splits
from .targets import Picture

__all__ = ["ROLES", "ImagesFormat", "PairsFormat", "SideBySideBackFormat", "SideBySideFormat", "UnpairedFormat"]

ROLES = (
    ("lr", "hr"),
    ("lq", "hq"),
    ("lq", "gt"),
    ("low", "high"),
    ("lowres", "highres"),
    ("input", "target"),
    ("inputs", "targets"),
    ("input", "output"),
    ("input", "gt"),
    ("noisy", "clean"),
    ("blurred", "sharp"),
    ("blurry", "sharp"),
    ("blur", "sharp"),
    ("damaged", "original"),
    ("degraded", "original"),
    ("mask", "image"),
    ("masks", "images"),
    ("a", "b"),
)
"""By which names data sets call the two sides of pairs, in any case of letters: what a network is given, and what it
should make of that."""

_LOOKED_AT = 16
"""Images whose size is asked before a folder counts as one of pairs side by side."""


class ImagesFormat:
    """See :class:`zoo.data.Format`: images anywhere below a folder (or one image file); no labels, targets None.

    Divided where every folder that holds images is called train, val or test.
    """

    name: ClassVar[str] = "images"

    def sniff(self, root: Path) -> bool:
        try:
            return bool(_images(root)[0])
        except OSError:
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(_split_folders(root))

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError: no such split, no images."""
        folders: dict[str, list[Path]] = {k: [v] for k, v in _split_folders(root).items()} or {"": [root]}
        wanted = wanted_splits(root, split, folders)
        images: list[Path] = []
        notes: list[str] = []
        ignored = 0
        for folder in (folder for name in wanted for folder in folders[name]):
            found, other = _images(folder)
            images += found
            ignored += other
        if not images:
            raise DataError(f"{root} holds no images{f' ({ignored} other files)' if ignored else ''}: add some")
        if ignored:
            notes.append(f"{plural(ignored, 'file')} that {'is' if ignored == 1 else 'are'} hidden or no image ignored")
        return self._dataset(root, split, images, notes)

    def _dataset(self, root: Path, split: str | None, images: list[Path], notes: list[str]) -> Dataset:
        samples = [Sample(id=identify(path, root), image=path, target=None) for path in images]
        return _dataset(self.name, root, split, samples, notes=notes)


class SideBySideFormat(ImagesFormat):
    """See :class:`zoo.data.Format`: each file holds two images of equal size, left what a network is given and right
    what it should make of it. Recognised where all images that are looked at are exactly twice as wide as high."""

    name = "side-by-side"
    _sides: ClassVar[tuple[str, str]] = ("left", "right")

    def sniff(self, root: Path) -> bool:
        try:
            # class folders are not looked into: that their images are wide says nothing
            flat = [p for f in _split_folders(root).values() or [root] for p in f.iterdir() if _is_image(p)]
            if len(flat) < 2 or len(flat) != len(_images(root)[0]):
                return False
            flat.sort()
            looked_at = [flat[i] for i in sorted({round(i) for i in np.linspace(0, len(flat) - 1, _LOOKED_AT)})]
            return all(width == 2 * height for width, height in map(upright_size, looked_at))
        except (OSError, ImageError):
            return False

    def _dataset(self, root: Path, split: str | None, images: list[Path], notes: list[str]) -> Dataset:
        samples: list[Sample] = []
        faults: list[Fault] = []
        for path in images:
            id = identify(path, root)
            try:
                width, height = upright_size(path, id)
            except ImageError as error:
                faults.append(Fault(id=id, reason=str(error)))
                continue
            if width % 2:
                faults.append(Fault(id=id, reason=f"{id}: is {width} pixels wide, which are no two images of one size"))
                continue
            halves = {"left": (0, 0, width // 2, height), "right": (width // 2, 0, width, height)}
            given, made = (halves[side] for side in self._sides)
            target = Picture(source=path, box=made)
            samples.append(Sample(id=id, image=Part(source=path, box=given), target=target))
        if not samples:
            raise DataError(f"{root}: no image holds two of one size side by side (first: {faults[0].reason})")
        other = {"side-by-side": "side-by-side-ba", "side-by-side-ba": "side-by-side"}[self.name]
        notes.append(
            f"each file holds two images: the {self._sides[0]} one is what a network is given, the {self._sides[1]} "
            f"one what it should make (--format {other} swaps them, --format images takes each file as one image)"
        )
        return _dataset(self.name, root, split, samples, faults=faults, notes=notes)


class SideBySideBackFormat(SideBySideFormat):
    """:class:`SideBySideFormat`, from right to left. Never recognised by itself: it is asked for by name."""

    name = "side-by-side-ba"
    _sides = ("right", "left")

    def sniff(self, root: Path) -> bool:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where pairs lie: two folders, or one in which the ends of names tell the sides."""

    given: Path
    made: Path
    roles: tuple[str, str]
    """The two sides' names as they are written."""

    @property
    def together(self) -> bool:
        return self.given == self.made

    def files(self) -> tuple[dict[str, Path], dict[str, Path], list[Path]]:
        """Key to file of what is given and of what should be made, and images that are neither."""
        if self.together:
            sides = _by_ends(images_in(self.given)[0], self.given, self.roles)
            return sides[0], sides[1], sides[2]
        folders = (self.given, self.made)
        files = [images_in(folder)[0] for folder in folders]
        exact, loose = (
            [{key(p, folder): p for p in found} for found, folder in zip(files, folders, strict=True)]
            for key in (_key, self._loose)
        )
        # names may tell their side or their factor (0001x2, 0001_LR), which is asked only where they differ
        better = len(loose[0].keys() & loose[1].keys()) > len(exact[0].keys() & exact[1].keys()) and all(
            len(by_key) == len(found) for by_key, found in zip(loose, files, strict=True)
        )
        given, made = loose if better else exact
        return given, made, []

    def _loose(self, path: Path, folder: Path) -> str:
        """The key of a file without the side, the factor and the folder of the factor that its name may tell."""
        key = re.sub(r"^x\d/", "", _key(path, folder), flags=re.IGNORECASE)
        key = re.sub(rf"[-_. ]({'|'.join(map(re.escape, self.roles))})$", "", key, flags=re.IGNORECASE)
        return re.sub(r"[-_ ]?x\d$", "", key, flags=re.IGNORECASE)


class PairsFormat:
    """See :class:`zoo.data.Format`: two folders with the same file names, or one folder with names that end alike, called
    by one of ``ROLES``: ``LR/1.png`` and ``HR/1.png``, ``1_input.png`` and ``1_target.png``; below train/, val/ and
    test/, with these below the two, or with the split in the folders' names (``train_LR``)."""

    name: ClassVar[str] = "pairs"

    def sniff(self, root: Path) -> bool:
        try:
            places = [place for found in _places(root).values() for place in found]
            # trainA and trainB are by convention no pairs, and often numbered from 0 on both sides
            return bool(places) and all(map(_matches, places)) and not UnpairedFormat().sniff(root)
        except (OSError, DataError):
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(_places(root))

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError: no such split, no pair."""
        places = _places(root)
        if not places:
            names = ", ".join(f"{a}/{b}" for a, b in ROLES[:6])
            raise DataError(f"{root} holds no pairs: call the folders, or the ends of names, by {names}, …")
        samples: list[Sample] = []
        faults: list[Fault] = []
        notes: list[str] = []
        for name in wanted_splits(root, split, places):
            for place in places[name]:
                given, made, neither = place.files()
                for key in sorted(given.keys() & made.keys()):
                    id = identify(given[key], root)
                    samples.append(Sample(id=id, image=given[key], target=Picture(source=made[key])))
                faults += _alone(root, place, given, made)
                if neither:
                    notes.append(f"left aside: {plural(len(neither), 'image')} of no pair (first: {neither[0].name})")
                notes.append(_told(root, place))
        used = {folder for found in places.values() for p in found for folder in (p.given, p.made)}
        aside = [f for f in folders_in(root) if images_in(f)[0] and not any(_within(u, f) for u in used)]
        if aside and root not in used:
            notes.append(f"left aside: {', '.join(f'{f.name}/' for f in aside)}")
        if not samples:
            first = f" (first: {faults[0].reason})" if faults else ""
            raise DataError(f"{root}: no two files make a pair{first}: give partners the same name")
        return _dataset(self.name, root, split, samples, faults=faults, notes=notes)


class UnpairedFormat:
    """See :class:`zoo.data.Format`: trainA/ and trainB/, perhaps valA/ and valB/, testA/ and testB/: images of two domains
    that have nothing to do with each other. The samples are A's; B's are the data set's ``others``."""

    name: ClassVar[str] = "unpaired"

    def sniff(self, root: Path) -> bool:
        try:
            return "train" in self._folders(root)
        except (OSError, DataError):
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(self._folders(root))

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError: no such split, a domain without images."""
        folders = self._folders(root)
        if not folders:
            raise DataError(f"{root} holds no two domains: name their folders trainA and trainB")
        sides: list[list[Sample]] = []
        for side in (0, 1):
            paths = [p for name in wanted_splits(root, split, folders) for p in images_in(folders[name][side])[0]]
            sides.append([Sample(id=identify(p, root), image=p, target=None) for p in paths])
        return _dataset(self.name, root, split, sides[0], others=sides[1])

    def _folders(self, root: Path) -> dict[str, tuple[Path, Path]]:
        """Split to the folders of the two domains. Raises DataError where one has no partner or no images."""
        found: dict[str, dict[str, Path]] = {}
        for folder in folders_in(root):
            if (match := _DOMAIN.fullmatch(folder.name)) and (split := split_of(match[1])):
                found.setdefault(split, {})[match[2].upper()] = folder
        for by_side in found.values():
            for side, partner in (("A", "B"), ("B", "A")):
                if side not in by_side:
                    there = by_side[partner]
                    raise DataError(f"{there}: its other domain, {there.name[:-1]}{side}, is missing")
                if not images_in(by_side[side])[0]:
                    raise DataError(f"{by_side[side]} holds no images: add some")
        return {split: (found[split]["A"], found[split]["B"]) for split in SPLITS if split in found}


_DOMAIN = re.compile(r"([A-Za-z]+?)[-_ ]?([AaBb])")


def _dataset(
    format: str,
    root: Path,
    split: str | None,
    samples: Sequence[Sample],
    *,
    others: Sequence[Sample] = (),
    faults: Sequence[Fault] = (),
    notes: Sequence[str] = (),
) -> Dataset:
    return Dataset(
        samples=tuple(samples),
        labels=(),
        split=split or "whole",
        root=root,
        format=format,
        faults=tuple(faults),
        others=tuple(others),
        notes=tuple(dict.fromkeys(notes)),
    )


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _images(root: Path) -> tuple[list[Path], int]:
    """Image files at or below ``root``, and how many other files."""
    return ([root], 0) if _is_image(root) else images_in(root)


def _split_folders(root: Path) -> dict[str, Path]:
    """Split to folder, where all that hold images are splits; else empty. Raises DataError where two are one split."""
    found: dict[str, Path] = {}
    for folder in folders_in(root):
        split = split_of(folder.name)
        if split is None and images_in(folder)[0]:
            return {}  # `train` beside `bus` is a vehicle
        if split is not None and split in found:
            raise DataError(f"{root} has {found[split].name}/ and {folder.name}/, both the {split} split: keep one")
        if split is not None:
            found[split] = folder
    if not root.is_dir() or any(_is_image(path) for path in root.iterdir()):
        return {}
    return found


# pairs


def _places(root: Path) -> dict[str, list[_Place]]:
    """Split (or ``""``: undivided) to where its pairs lie."""
    if not root.is_dir():
        return {}
    found: dict[str, list[_Place]] = {}
    below = folders_in(root)
    for place in _sides((f.name, f) for f in below):
        parts = [{split_of(f.name): f for f in folders_in(side)} for side in (place.given, place.made)]
        both = [split for split in SPLITS if all(split in part for part in parts)]
        for split in both:
            given, made = (part[split] for part in parts)
            found.setdefault(split, []).append(_Place(given=given, made=made, roles=place.roles))
        if not both:
            found.setdefault("", []).append(place)
    for split, names in SPLITS.items():
        longest_first = "|".join(sorted(names, key=len, reverse=True))
        named = re.compile(rf"(?:.*[-_ ])?(?:{longest_first})[-_ ]?(.*)", re.IGNORECASE)
        inside = [(m[1], f) for f in below if (m := named.fullmatch(f.name))]
        places = _sides((re.split(r"[-_ ]", rest)[0], f) for rest, f in inside if rest)  # train_LR, train_HR
        for folder in (f for rest, f in inside if not rest):
            places += _sides((f.name, f) for f in folders_in(folder)) or _suffixed(folder)
        if places:
            found.setdefault(split, []).extend(places)
    if not found and (places := _suffixed(root)):
        return {"": places}
    return found


def _sides(folders: Iterable[tuple[str, Path]]) -> list[_Place]:
    """The two of the likeliest names, where there are two. Each folder comes with what it is called by."""
    by_role = {name.lower(): folder for name, folder in folders}
    for given, made in ROLES:
        if given in by_role and made in by_role and images_in(by_role[given])[0] and images_in(by_role[made])[0]:
            return [_Place(given=by_role[given], made=by_role[made], roles=(given, made))]
    return []


def _suffixed(folder: Path) -> list[_Place]:
    """The folder itself, where at least half of the images in it have names that end as the two sides."""
    images = images_in(folder)[0]
    for roles in ROLES:
        given, made, _ = _by_ends(images, folder, roles)
        if given and 4 * len(given.keys() & made.keys()) >= len(images):
            return [_Place(given=folder, made=folder, roles=roles)]
    return []


def _by_ends(
    images: Iterable[Path], folder: Path, roles: tuple[str, str]
) -> tuple[dict[str, Path], dict[str, Path], list[Path]]:
    """Images by the key that is left of their names without the side."""
    sides: dict[str, dict[str, Path]] = {role: {} for role in roles}
    neither: list[Path] = []
    for path in images:
        key, _, end = re.sub(r"[-. ](?=[^-_. /]*$)", "_", _key(path, folder)).rpartition("_")
        if key and end.lower() in sides:
            sides[end.lower()][key] = path
        else:
            neither.append(path)
    return sides[roles[0]], sides[roles[1]], neither


def _matches(place: _Place) -> bool:
    """Whether half of the smaller side, and one at least, has a partner."""
    given, made, _ = place.files()
    both = len(given.keys() & made.keys())
    return both > 0 and 2 * both >= min(len(given), len(made))


def _alone(root: Path, place: _Place, given: dict[str, Path], made: dict[str, Path]) -> list[Fault]:
    """Images without a partner, as faults."""
    faults = []
    for mine, theirs, role, where in (
        (given, made, place.roles[1], place.made),
        (made, given, place.roles[0], place.given),
    ):
        for key in sorted(mine.keys() - theirs.keys()):
            id = identify(mine[key], root)
            partner = f"{key}_{role}" if place.together else f"{identify(where, root)}/{key}"
            faults.append(Fault(id=id, reason=f"{id}: its partner, {partner}, is missing: add it, or remove this one"))
    return faults


def _told(root: Path, place: _Place) -> str:
    given, made = (
        (f"*_{side}" for side in place.roles)
        if place.together
        else (f"{identify(f, root)}/" for f in (place.given, place.made))
    )
    return f"pairs: {given} is what a network is given, {made} what it should make"


def _within(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()
