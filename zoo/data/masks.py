"""Images and masks: a class for each pixel, in one mask file an image, in folders of many customs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from . import Dataset, Fault, Sample
from .maskclasses import Scheme, classes_file, identity, see, told
from .naming import images_in, split_of
from .reading import IMAGE_FOLDERS, Finder, by_split, folders_in, identify, plural, wanted_splits
from .targets import Mask
from .voc import image_sets

__all__ = ["MaskFormat", "VocMaskFormat"]

MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "annot", "ann", "gt", "groundtruth"),
    *("ground_truth", "segmentation", "segmentations", "targets", "target", "masks_machine", "semantic"),
    *("instances", "instance"),
)
"""The names by which data sets call the folder of their masks, the likeliest first, in any case of letters."""

_SUFFIX = re.compile(r"[-_](masks?|labels?|l|seg|segmentation|gt|annotation|target|labelids)$", re.IGNORECASE)
"""What masks have behind the name of their image."""

# http://host.robots.ox.ac.uk/pascal/VOC/voc2012/segexamples/index.html
VOC_LABELS = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    image: Path
    mask: Path | None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the images of a split, or of a part of it, lie, and where their masks."""

    images: Path
    masks: Path

    def pairs(self) -> tuple[list[_Pair], int]:
        """Each image with its mask, and how many masks have no image."""
        images, masks = images_in(self.images)[0], images_in(self.masks)[0]
        if self.images == self.masks:
            images, masks = (
                [p for p in images if not _SUFFIX.search(p.stem)],
                [p for p in masks if _SUFFIX.search(p.stem)],
            )
        exact = {_key(mask, self.masks): mask for mask in masks}
        index = {_SUFFIX.sub("", key): mask for key, mask in exact.items()} | exact
        pairs = [_Pair(image=image, mask=index.get(_key(image, self.images))) for image in images]
        return pairs, len(set(masks) - {pair.mask for pair in pairs})


class MaskFormat:
    """See :class:`zoo.data.Format`. A mask has the name of its image, perhaps with ``_mask`` behind it, and any suffix.

    Images and masks lie in images/ and masks/ (or what else such folders are called), these in a folder for each split
    or with one in them; in train/ and train_masks/; or side by side. What the values mean says a file of classes beside
    them (classes.csv and its kin), else the values themselves (see :func:`zoo.data.maskclasses.see`).
    """

    name = "masks"

    def sniff(self, root: Path) -> bool:
        try:
            places = self._places(root)[0]
            return any(pair.mask for part in places.values() for place in part for pair in place.pairs()[0])
        except DataError:  # folders of images and masks, but something about them is to be mended
            return True
        except OSError:
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(self._places(root)[0])

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError where no image has a mask, or where it cannot be told what the masks' values mean."""
        places, notes = self._places(root)
        if not places:
            raise DataError(f"{root}: no images/ and masks/ with files of the same names")
        pairs: dict[str, list[_Pair]] = {}
        for part, of_it in places.items():
            found = [place.pairs() for place in of_it]
            pairs[part] = [pair for some, _ in found for pair in some]
            alone = sum(count for _, count in found)
            if alone and split in (None, part):
                have = "has" if alone == 1 else "have"
                notes.append(f"{plural(alone, 'mask')} of {identify(of_it[0].masks, root)}/ {have} no image")
        return self._dataset(root, split, pairs, [p.masks for of_it in places.values() for p in of_it], notes)

    def _dataset(
        self, root: Path, split: str | None, pairs: dict[str, list[_Pair]], folders: list[Path], notes: list[str]
    ) -> Dataset:
        base = pairs["train"] if "train" in pairs else [pair for part in pairs.values() for pair in part]
        masks = [pair.mask for pair in base if pair.mask]
        if not masks:
            raise DataError(f"{root}: no image has a mask: a mask has the name of its image")
        scheme = self._scheme(root, masks, folders)
        samples: list[Sample] = []
        faults: list[Fault] = []
        for part in wanted_splits(root, split, pairs):
            for pair in pairs[part]:
                id = identify(pair.image, root)
                if pair.mask is None:
                    faults.append(Fault(id=id, reason=f"{id}: has no mask: a mask has the name of its image"))
                    continue
                mask = Mask(source=pair.mask, values=scheme.values, others=scheme.others)
                samples.append(Sample(id=id, image=pair.image, target=mask))
        return Dataset(
            samples=tuple(samples),
            labels=scheme.labels,
            split=split or "whole",
            root=root,
            format=self.name,
            faults=tuple(faults),
            notes=(*notes, scheme.note) if scheme.note else tuple(notes),
        )

    def _scheme(self, root: Path, masks: list[Path], folders: list[Path]) -> Scheme:
        around = [root, *folders, *(folder.parent for folder in folders)]
        file = classes_file(dict.fromkeys(around))
        return told(file, masks) if file else see(masks)

    def _places(self, root: Path) -> tuple[dict[str, list[_Place]], list[str]]:
        """Split (or ``""``: undivided) to places, and notes of folders that were left aside."""
        if not root.is_dir():
            return {}, []
        found: dict[str, list[_Place]] = {}
        notes: list[str] = []
        for folder in (root, *(f for f in folders_in(root) if split_of(f.name))):
            split = "" if folder == root else split_of(folder.name) or ""
            for part, place, aside in _in(folder, root):
                found.setdefault(part or split, []).append(place)
                if aside:
                    notes.append(f"left aside: {', '.join(f'{identify(f, root)}/' for f in aside)}")
        if "" in found and len(found) > 1:
            raise DataError(
                f"{root}: {identify(found[''][0].images, root)}/ is in no split, others are: move it into train, val or test"
            )
        return {split: found[split] for split in ("", *by_split(found)) if split in found}, notes


def _in(folder: Path, root: Path) -> Iterator[tuple[str, _Place, list[Path]]]:
    """(split or ``""``, place, folders left aside) of what lies in ``folder``."""
    children = folders_in(folder)
    images = _first(children, IMAGE_FOLDERS)
    masks = _first([c for c in children if c != images], MASK_FOLDERS)
    if images and masks:
        aside = [c for c in children if c not in (images, masks) and not split_of(c.name) and images_in(c)[0]]
        mine = {split_of(f.name): f for f in folders_in(images) if split_of(f.name)}
        theirs = {split_of(f.name): f for f in folders_in(masks) if split_of(f.name)}
        for split in mine if theirs else ():
            if split not in theirs:
                raise DataError(f"{mine[split]}: its masks, {masks / mine[split].name}, are missing")
            yield split or "", _Place(images=mine[split], masks=theirs[split]), aside
            aside = []
        if not theirs:
            yield "", _Place(images=images, masks=masks), aside
        return
    if folder != root:
        sibling = re.compile(rf"{re.escape(folder.name)}[-_ ]?({'|'.join(MASK_FOLDERS)})", re.IGNORECASE)
        beside = next((f for f in folders_in(root) if sibling.fullmatch(f.name)), None)
        if beside is not None:
            yield "", _Place(images=folder, masks=beside), []
            return
    if any(_SUFFIX.search(p.stem) for p in folder.iterdir() if p.is_file() and p.suffix.lower() == ".png"):
        yield "", _Place(images=folder, masks=folder), []


def _first(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    """The folder of the likeliest name that has images in it."""
    by_name = {folder.name.lower(): folder for folder in folders}
    return next((by_name[name] for name in names if name in by_name and images_in(by_name[name])[0]), None)


def _key(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


class VocMaskFormat(MaskFormat):
    """See :class:`zoo.data.Format`: SegmentationClass/ beside JPEGImages/, splits by ImageSets/Segmentation.

    Names come from CVAT's labelmap.txt (or another file of classes); in a folder called VOC2012 (or another year) they
    are the challenge's own. 255 is void.
    """

    name = "voc-segment"

    def sniff(self, root: Path) -> bool:
        try:
            return root.is_dir() and bool(images_in(root / "SegmentationClass")[0])
        except OSError:
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return by_split(self._lists(root)[0])

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError where images, masks or lists are missing."""
        folder = root / "SegmentationClass"
        masks = {_key(mask, folder): mask for mask in images_in(folder)[0]}
        if not masks:
            raise DataError(f"{root}: no masks in SegmentationClass/")
        finder = Finder([root / "JPEGImages"] if (root / "JPEGImages").is_dir() else [root], "")
        lists, notes = self._lists(root)
        pairs: dict[str, list[_Pair]] = {}
        for part, names in (lists or {"": sorted(masks)}).items():
            images = {name: finder.find(name.rpartition("/")[2], by_stem=True) for name in names}
            if not any(images.values()):
                raise DataError(f"{root}: no image of {part or 'SegmentationClass'} is in JPEGImages/")
            missing = root / "JPEGImages"  # the audit tells of it
            pairs[part] = [_Pair(image=images[n] or missing / f"{n}.jpg", mask=masks.get(n)) for n in names]
        return self._dataset(root, split, pairs, [folder], notes)

    def _lists(self, root: Path) -> tuple[dict[str, list[str]], list[str]]:
        """Split to names of images, and notes. Raises DataError."""
        lists = image_sets(root / "ImageSets" / "Segmentation")
        test = lists.get("test", [])
        if test and not any((root / "SegmentationClass" / f"{name}.png").is_file() for name in test):
            del lists["test"]  # the challenge keeps them to itself
            return lists, ["no image of ImageSets/Segmentation/test.txt has a mask: there is no test split"]
        return lists, []

    def _scheme(self, root: Path, masks: list[Path], folders: list[Path]) -> Scheme:
        around = [root, *folders]
        if re.fullmatch(r"VOC\d{4}", root.resolve().name) and classes_file(around) is None:
            return Scheme(labels=VOC_LABELS, values=identity(len(VOC_LABELS)))
        return super()._scheme(root, masks, folders)
