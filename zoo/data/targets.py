"""What is known of an image beside one label: boxes, and masks that are read when they are wanted. numpy and Pillow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError, ImageError
from ..reading import Derived, read_image
from ..specs import ImageInput

__all__ = ["VOID", "Boxes", "Mask", "Picture", "relabelled"]

VOID = 255
"""The class of pixels that nobody labelled: neither learnt from nor counted."""

Values = Mapping["int | tuple[int, int, int]", int]
"""Stored value (a grey level, a palette index, or a colour) to class index."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Boxes:
    """The objects of one image, in the pixels of the upright original. Empty arrays: an image of the background."""

    boxes: np.ndarray
    """(M, 4) float32: left, top, right, bottom."""
    classes: np.ndarray
    """(M,) int64: indices into the data set's labels."""
    ignore: np.ndarray
    """(M,) bool: crowds and objects marked difficult, neither learnt from nor counted."""

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.classes.shape != (count,) or self.ignore.shape != (count,):
            raise ValueError(
                f"boxes {self.boxes.shape}, classes {self.classes.shape}, ignore {self.ignore.shape}: (M, 4), (M,), (M,)"
            )

    @classmethod
    def of(
        cls,
        boxes: Sequence[Sequence[float]] | np.ndarray,
        classes: Sequence[int] | np.ndarray,
        ignore: Sequence[bool] | np.ndarray | None = None,
    ) -> Boxes:
        """From any sequences: (M, 4) left, top, right, bottom in pixels, and M class indices."""
        return cls(
            boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
            classes=np.asarray(classes, np.int64).reshape(-1),
            ignore=np.zeros(len(classes), bool) if ignore is None else np.asarray(ignore, bool).reshape(-1),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, keep: np.ndarray) -> Boxes:
        """Those at the given indices, or where a (M,) bool array is true."""
        return Boxes(boxes=self.boxes[keep], classes=self.classes[keep], ignore=self.ignore[keep])

    def relabelled(self, order: Sequence[int]) -> Boxes:
        """The same boxes, class i called ``order[i]``."""
        return replace(self, classes=np.asarray(order, np.int64)[self.classes] if len(self) else self.classes)

    def key(self) -> bytes:
        """What a data set's fingerprint holds of it."""
        return self.boxes.astype("<f4").tobytes() + self.classes.astype("<i8").tobytes() + self.ignore.tobytes()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mask:
    """The class of each pixel of one image: a file or an array of stored values, and what the values mean."""

    source: Path | np.ndarray
    """An image file (indexed, grey 8 or 16 bit, or RGB), an ``.npy`` file, or an (H, W[, 3]) array."""
    values: Values
    """Stored value to class index; ``VOID`` for pixels that do not count. Empty: stored values are class indices."""
    others: int | None = None
    """Class of every value that ``values`` does not name (1 for instance ids over a background); None: an error."""

    def read(self) -> np.ndarray:
        """(H, W) uint8 class indices, ``VOID`` where nobody knows. Raises DataError naming an unknown value."""
        stored = self.stored()
        if stored.ndim == 3:
            stored = stored[:, :, 0].astype(np.int64) << 16 | stored[:, :, 1].astype(np.int64) << 8 | stored[:, :, 2]
            known = {c[0] << 16 | c[1] << 8 | c[2]: k for c, k in self.values.items() if isinstance(c, tuple)}
        else:
            known = {v: k for v, k in self.values.items() if isinstance(v, int)}
        if not self.values and self.others is None:
            if stored.dtype != np.uint8 and stored.size and int(stored.max()) > VOID:
                raise DataError(f"{self._name}: value {int(stored.max())} is no class index: a mask holds 0..{VOID}")
            return np.ascontiguousarray(stored, dtype=np.uint8)
        small = stored.dtype == np.uint8
        if small:  # one look-up table does, which is thirty times as fast
            found, inverse = np.flatnonzero(np.bincount(stored.reshape(-1), minlength=256)), stored
        else:
            found, inverse = np.unique(stored, return_inverse=True)
        table = np.empty(256 if small else len(found), np.uint8)
        for rank, value in enumerate(found.tolist()):
            index = known.get(value, self.others)
            if index is None:
                shown = value if stored.ndim == 2 and not _has_colours(self.values) else f"#{value:06x}"
                raise DataError(
                    f"{self._name}: value {shown} is no class: the data's classes are {_names(self.values)}"
                )
            table[value if small else rank] = index
        classes: np.ndarray = table[inverse.reshape(stored.shape)]
        return classes

    def stored(self) -> np.ndarray:
        """(H, W) integers or (H, W, 3) uint8, as they lie in the file. Raises DataError where it cannot be read."""
        if isinstance(self.source, np.ndarray):
            return self.source
        try:
            if self.source.suffix.lower() == ".npy":
                return np.asarray(np.load(self.source, allow_pickle=False))
            with Image.open(self.source) as image:
                # palette indices, not their colours, unless the classes are told by colour
                if image.mode == "P" and _has_colours(self.values):
                    image = image.convert("RGB")
                elif image.mode in ("RGBA", "LA"):
                    image = image.convert("RGB" if image.mode == "RGBA" else "L")
                elif image.mode == "1":
                    image = image.convert("L")
                return np.asarray(image)
        except FileNotFoundError:
            raise DataError(f"{self.source}: no such file") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.source}: not a readable mask: {error}") from None

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, from the file's header where there is one. Raises DataError."""
        if isinstance(self.source, Path) and self.source.suffix.lower() != ".npy":
            try:
                with Image.open(self.source) as image:
                    return image.width, image.height
            except FileNotFoundError:
                raise DataError(f"{self.source}: no such file") from None
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{self.source}: not a readable mask: {error}") from None
        stored = self.stored()
        return int(stored.shape[1]), int(stored.shape[0])

    def relabelled(self, order: Sequence[int]) -> Mask:
        """The same mask, class i called ``order[i]``."""
        values = self.values or {i: i for i in range(len(order))} | {VOID: VOID}
        return replace(
            self,
            values={v: k if k == VOID else order[k] for v, k in values.items()},
            others=None if self.others is None else self.others if self.others == VOID else order[self.others],
        )

    def key(self) -> bytes:
        """What a data set's fingerprint holds of it: the file's size, not its bytes."""
        held = str(self.source.stat().st_size if isinstance(self.source, Path) else _digest(self.source))
        return f"{held} {sorted(map(str, self.values.items()))} {self.others}".encode()

    @property
    def _name(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else "mask"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """The image that a network should make of another: the sharp one, the clean one, the same in another domain."""

    source: Path | np.ndarray | Derived
    """An image file, an (H, W[, C]) array, or an image that is made of another when it is read."""
    box: tuple[int, int, int, int] | None = None
    """The part of it that is meant: left, top, right, bottom in its upright pixels; None: all of it."""

    def read(self, channels: int = 3) -> np.ndarray:
        """(H, W, C) uint8, C = ``channels`` (1: grey, 3: RGB), upright. Raises ImageError."""
        spec = ImageInput(height=1, width=1, channels=3, resize="crop").with_channels(channels)
        pixels = np.asarray(read_image(self.source, spec))
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self.box is None:
            return pixels
        left, top, right, bottom = self.box
        if not (0 <= left < right <= pixels.shape[1] and 0 <= top < bottom <= pixels.shape[0]):
            raise ImageError(
                f"{self._name}: is {pixels.shape[1]}x{pixels.shape[0]}, too small for its part {self.box}: "
                "give the image that the pair was made of"
            )
        return pixels[top:bottom, left:right]

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the part that is meant, from the file's header where there is one. Raises
        ImageError."""
        from .reading import upright_size  # which reads images by their headers, and needs what a data set is

        if self.box is None:
            return upright_size(self.source)
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @property
    def _name(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else "picture"

    def key(self) -> bytes:
        """What a data set's fingerprint holds of it: the file's size, not its bytes."""
        if isinstance(self.source, Derived):
            return self.source.key() + f" {self.box}".encode()
        held = str(self.source.stat().st_size) if isinstance(self.source, Path) else _digest(self.source)
        return f"{held} {self.box}".encode()


def relabelled(
    target: int | Boxes | Mask | Picture | None, order: Sequence[int]
) -> int | Boxes | Mask | Picture | None:
    """A sample's target with class i called ``order[i]``."""
    if isinstance(target, (Boxes, Mask)):
        return target.relabelled(order)
    return order[target] if isinstance(target, int) else target


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _has_colours(values: Values) -> bool:
    return any(isinstance(v, tuple) for v in values)


def _names(values: Values) -> str:
    shown = [str(v) if isinstance(v, int) else "#{:02x}{:02x}{:02x}".format(*v) for v in list(values)[:8]]
    return ", ".join(shown) + (", …" if len(values) > 8 else "")
