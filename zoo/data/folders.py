"""The class-per-folder tree: ``ants/1.jpg``, or ``train/ants/1.jpg`` and ``val/ants/2.jpg``."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from . import Dataset, Sample
from .naming import SPLITS, hidden, images_in, split_of

__all__ = ["FolderFormat"]


class FolderFormat:
    """See :class:`zoo.data.Format`. Labels are the folder names below train/ (or below the root), sorted."""

    def sniff(self, root: Path) -> bool:
        try:
            return root.is_dir() and any(images_in(folder)[0] for folder in _folders(root))
        except OSError:
            return False

    def splits(self, root: Path) -> tuple[str, ...]:
        return tuple(_layout(root))

    def classes(self, root: Path) -> list[str]:
        """The folders with images that would be classes; none where all are splits, or the tree is not understood."""
        try:
            layout = _layout(root)
            folders = [f for f in _folders(layout.get("train", root)) if images_in(f)[0]]
        except (OSError, DataError):
            return []
        return [] if all(split_of(f.name) for f in folders) else [f.name for f in folders]

    def open(self, root: Path, split: str | None) -> Dataset:
        """Raises DataError: no such split, a class without images, a class that train does not have."""
        layout = _layout(root)
        if split is not None and split not in layout:
            has = f"it has {', '.join(layout)}" if layout else "it is one undivided set"
            raise DataError(f"{root} has no {split} split: {has}")
        wanted = [layout[split]] if split else list(layout.values()) or [root]
        labels = _labels(layout["train"]) if "train" in layout else sorted({n for f in wanted for n in _labels(f)})
        samples: list[Sample] = []
        hidden_or_other = 0
        for folder in wanted:
            for name in _labels(folder):
                if name not in labels:
                    raise DataError(
                        f"{folder / name}: train has no class '{name}' (it has {', '.join(labels[:8])}"
                        f"{', …' if len(labels) > 8 else ''}): rename the folder, or move it out"
                    )
                images, ignored = images_in(folder / name)
                hidden_or_other += ignored
                if not images and folder == layout.get("train", root):
                    raise DataError(
                        f"{folder / name} holds no images{f' ({ignored} other files)' if ignored else ''}: "
                        "add some, or move the folder out"
                    )
                target = labels.index(name)
                samples += [Sample(id=p.relative_to(root).as_posix(), image=p, target=target) for p in images]
            hidden_or_other += sum(1 for p in folder.iterdir() if not p.is_dir())
        notes = (f"{hidden_or_other} files that are hidden or no images were ignored",) if hidden_or_other else ()
        return Dataset(
            samples=tuple(samples),
            labels=tuple(labels),
            split=split or "whole",
            root=root,
            format="folders",
            notes=notes,
        )


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not hidden(p.name))


def _labels(folder: Path) -> list[str]:
    return [p.name for p in _folders(folder)]


def _layout(root: Path) -> dict[str, Path]:
    """Split name to folder; empty where the root's own folders are the classes.

    Raises DataError where folders look like splits but have no known name: training on them would silently leave
    the validation set out, or take ``train_set`` for a class.
    """
    try:
        folders = _folders(root)
        # `train` is also a vehicle: a folder is a split only where it has folders of its own
        parents = [f for f in folders if _folders(f)]
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read: {error.strerror}") from None
    found: dict[str, Path] = {}
    for folder in parents:
        split = split_of(folder.name)
        if split is None:
            continue
        if split in found:
            raise DataError(f"{root} has {found[split].name}/ and {folder.name}/, both the {split} split: keep one")
        found[split] = folder
    known = ", ".join("|".join(f"{n}/" for n in names) for names in SPLITS.values())
    if found:
        for folder in folders:
            if folder not in found.values() and images_in(folder)[0]:
                raise DataError(
                    f"{folder} is no split that is known beside {found[next(iter(found))].name}/: name it one of "
                    f"{known}, or move it out"
                )
        return {split: found[split] for split in SPLITS if split in found}
    if len(parents) >= 2 and len(parents) == len(folders):
        common = set.intersection(*(set(_labels(f)) for f in parents))
        if len(common) >= 2:
            raise DataError(
                f"{root}: {' and '.join(f'{f.name}/' for f in parents[:3])} hold the same folders ({', '.join(sorted(common)[:4])}): "
                f"if they are splits, name them {known}; if they are classes, flatten them"
            )
    return found
