"""Data sets without torch: a data set is a sequence of samples; training wraps it, the device reads it as it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

from ..errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from ..reading import Derived
    from ..specs import ImageInput

__all__ = ["Dataset", "Fault", "Format", "Sample", "Splits", "audit", "division", "open_data"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """One image and what is known of it."""

    id: str
    """Stable name within the data set: the relative path, or the index in an array."""
    image: Path | np.ndarray | Derived
    """A file, an (H, W[, C]) array, or an image that is made of another when it is read
    (:class:`zoo.data.degrading.Degraded`): what :func:`zoo.inputs.read_image` takes."""
    target: Any
    """classify: the index into the data set's labels; segment: a :class:`zoo.data.targets.Mask`; detect: its
    :class:`zoo.data.targets.Boxes`; restore and translate: a :class:`zoo.data.targets.Picture`; generate: the class,
    where there are classes. None: nobody knows, or nothing is to be known."""

    def digest(self) -> str:
        """sha256 of the image's bytes: how a device recognises a sample that the workstation judged."""
        if isinstance(self.image, Path):
            from ..files import sha256_file

            return sha256_file(self.image)
        from ..reading import Derived

        if isinstance(self.image, Derived):
            return self.image.digest()
        return hashlib.sha256(str(self.image.shape).encode() + self.image.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One image, or one box of an image, that cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(Sequence[Sample]):
    """Samples of one split, their labels, and where they come from."""

    samples: tuple[Sample, ...]
    labels: tuple[str, ...]
    split: str
    root: Path
    format: str
    faults: tuple[Fault, ...] = ()
    """What was left out, and why: whole images, or single boxes of images that stay."""
    others: tuple[Sample, ...] = ()
    """The images of the other domain, where the two are not paired (translation without pairs)."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the data was read: ignored files, images that two splits share."""

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def targets(self) -> list[Any]:
        return [sample.target for sample in self.samples]

    @property
    def source(self) -> str:
        """For reports: ``val split of photos (153 images)``."""
        return f"{self.split} split of {self.root.name} ({len(self)} images)"

    def fingerprint(self) -> str:
        """sha256 over ids, targets and sizes: changes when images are added, removed, relabelled or resized."""
        from ..reading import Derived

        digest = hashlib.sha256()
        for sample in (*self.samples, *self.others):
            size = sample.image.stat().st_size if isinstance(sample.image, Path) else sample.image.nbytes
            target = sample.target
            key = str(target).encode() if target is None or isinstance(target, int) else target.key()
            if isinstance(sample.image, Derived):
                key += b"\0" + sample.image.key()
            digest.update(b"%b\0%b\0%d\n" % (sample.id.encode(), key, size))
        return digest.hexdigest()

    def subset(self, indices: Sequence[int], split: str | None = None) -> Dataset:
        return replace(self, samples=tuple(self.samples[i] for i in indices), split=split or self.split)

    def relabelled(self, labels: Sequence[str]) -> Dataset:
        """The same samples with targets counted in another order of labels. Without any, for a network that tells no
        classes, targets that are classes become None.

        Raises DataError where a label of this data set is not among ``labels``.
        """
        labels = tuple(labels)
        if labels == self.labels:
            return self
        if not labels and all(target is None or isinstance(target, int) for target in self.targets):
            return replace(self, samples=tuple(replace(s, target=None) for s in self.samples), labels=())
        unknown = [name for name in self.labels if name not in labels]
        if unknown:
            shown = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
            raise DataError(
                f"{self.root}: label '{unknown[0]}' is not one of the network's {len(labels)} labels ({shown}): "
                "use the data it was trained for, or fine-tune it on these"
            )
        from .targets import relabelled

        order = [labels.index(name) for name in self.labels]
        samples = tuple(replace(s, target=relabelled(s.target, order)) for s in self.samples)
        return replace(self, samples=samples, labels=labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """What a training run needs: ``train`` and ``val`` always, ``test`` where the data brings one."""

    train: Dataset
    val: Dataset
    test: Dataset | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return self.train.labels

    def get(self, name: str) -> Dataset:
        """The split of that name. Raises DataError naming those there are."""
        there = {"train": self.train, "val": self.val} | ({"test": self.test} if self.test else {})
        if name not in there:
            raise DataError(f"{self.train.root} has no {name} split: it has {', '.join(there)}")
        return there[name]


class Format(Protocol):
    """What a :class:`zoo.specs.DatasetFormat` resolves to: a class without state, built with no arguments."""

    def sniff(self, root: Path) -> bool:
        """Whether ``root`` looks like this format. Cheap; never raises."""
        ...

    def splits(self, root: Path) -> tuple[str, ...]:
        """Which of train, val, test the data itself brings; empty where it is one undivided set."""
        ...

    def open(self, root: Path, split: str | None) -> Dataset:
        """One split, or (None) everything. Raises DataError."""
        ...


def open_data(
    root: str | os.PathLike[str],
    *,
    task: str = "classify",
    format: str = "",
    val_share: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Recognise a data set and give its splits.

    Where it brings no validation split, ``val_share`` of each class (stratified, seeded, at least one image) is
    set aside from ``train``; the division depends on ids and ``seed`` only. One image without a class is both learnt
    from and judged by, with a note. Raises DataError where the data is missing, empty, of one class, or of no known
    format; UnknownName for a format nobody registered.
    """
    from .splitting import open_splits

    return open_splits(Path(root), task=task, format=format, val_share=val_share, seed=seed)


def division(
    provenance: Mapping[str, Any], val_share: float | None = None, seed: int | None = None
) -> tuple[float, int]:
    """(share, seed) with which the data of a checkpoint or a bundle were divided, a user's own laid over them.

    ``provenance`` is what travels in either; where it tells of no data the defaults of :func:`open_data` hold.
    """
    known = provenance.get("data") or {}
    return (
        float(known.get("val_share", 0.2)) if val_share is None else val_share,
        int(known.get("split_seed", 0)) if seed is None else seed,
    )


def audit(
    data: Dataset,
    *,
    max_bad_share: float = 0.1,
    input: ImageInput | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Decode every image once, those of the other domain and those that should be made included; leave out those that
    cannot be read, whose mask or partner does not fit, and boxes without area or outside their image: all kept in
    ``faults`` with the reason. ``input`` is the network's, which says how images are read; without it, or where it
    takes latents, as 8-bit colour.

    Raises DataError where more than ``max_bad_share`` of them are bad, or where a class loses its last image.
    """
    from .auditing import audit_images

    return audit_images(data, max_bad_share=max_bad_share, input=input, progress=progress)
