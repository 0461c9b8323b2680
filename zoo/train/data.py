"""Batches for training and validation: decoded once, augmented by a seed of (seed, epoch, image), whatever loads them.

Validation goes through :mod:`zoo.inputs` as a device does. Training replaces its crop by a random one and ends in the
same ``normalise``. What is drawn for an image depends on the run's seed, the epoch and the image alone, so that
neither the number of loading threads nor a resumed run changes it.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..data import Dataset
from ..data.targets import VOID, Boxes, Mask
from ..errors import DataError
from ..geometry import boxes_to_input, map_to_input
from ..inputs import Frame, ImageInput, crop_resize, frame, normalise, read_image, resize
from .augment import JointAugment

__all__ = ["Augment", "Images", "Loader", "batches", "default_augment", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How a training image is varied. All off is no variation: the image as a device sees it."""

    crop: float = 1.0
    """Smallest share of the image's area that a random crop keeps; 1 means no random crop."""
    flip: bool = False
    """Mirror left and right, half of the time."""
    magnitude: int = 0
    """Strength of RandAugment's two operations, 0 (off) to 30; 9 is the usual one."""

    def __bool__(self) -> bool:
        return self.crop < 1.0 or self.flip or self.magnitude > 0

    def __call__(
        self, image: Image.Image | np.ndarray, spec: ImageInput, rng: np.random.Generator
    ) -> Image.Image | np.ndarray:
        """An image of :func:`zoo.inputs.read_image` to one of ``spec.width x spec.height``, 8 bits."""
        if self.crop < 1.0:
            width, height = (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
            box = _random_box(width, height, spec, self.crop, rng)
            image = crop_resize(image, (spec.width, spec.height), box, spec)
        else:
            image = resize(image, spec)
        if self.flip and rng.random() < 0.5:
            image = (
                np.ascontiguousarray(image[:, ::-1])
                if isinstance(image, np.ndarray)
                else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            )
        if self.magnitude:
            if not isinstance(image, Image.Image) or image.mode not in ("L", "RGB"):
                raise DataError("RandAugment knows grey and RGB images only: leave out --randaugment")
            from .randaugment import rand_augment

            image = rand_augment(image, self.magnitude, spec, rng)
        return image


def default_augment(data: Dataset, spec: ImageInput) -> Augment:
    """Random crops and mirroring for photos; nothing for glyphs (idx files, small grey images), whose sense both may change."""
    if data.format == "idx" or (spec.channels == 1 and max(spec.height, spec.width) <= 64):
        return Augment()
    return Augment(crop=0.35, flip=True)


def _random_box(
    width: int, height: int, spec: ImageInput, least: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random crop as in Szegedy et al. 2015 (arXiv:1409.4842): area ``least``..1, aspect 3/4..4/3 of the input's."""
    area = width * height
    aspect = spec.width / spec.height
    for _ in range(10):
        wanted = area * rng.uniform(least, 1.0)
        ratio = aspect * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return (left, top, left + w, top + h)
    w, h = min(width, round(height * aspect)) or 1, min(height, round(width / aspect)) or 1
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)


class Images:
    """The images of a data set for one network input, kept in memory while they fit in ``budget_bytes``.

    Without augmentation the resized pixels are kept, else the decoded ones: a photo is decoded once a run.
    Safe to call from several threads.
    """

    def __init__(
        self,
        data: Dataset,
        spec: ImageInput,
        augment: Augment | JointAugment | None = None,
        *,
        budget_bytes: int = 1 << 30,
    ) -> None:
        self.data, self.spec, self.augment = data, spec, augment or Augment()
        self._budget = budget_bytes
        self._decoded: dict[int, tuple[Image.Image | np.ndarray, Any]] = {}
        self._dtype = np.dtype(spec.pixel)
        size = len(data) * spec.height * spec.width * spec.channels * self._dtype.itemsize
        self.compact = not self.augment and size <= budget_bytes
        """Whether batches are cut out of one array, which costs so little that no thread has to do it ahead."""
        self._frames: dict[int, Frame] = {}
        self._placed: dict[int, Any] = {}
        self._pixels: np.ndarray | None = None
        if self.compact:
            self._pixels = np.empty((len(data), spec.height, spec.width, spec.channels), self._dtype)
            self._filled = np.zeros(len(data), bool)

    def __len__(self) -> int:
        return len(self.data)

    def varied_by(self, augment: JointAugment) -> Images:
        """The same images, and the same decoded ones in memory, under another augmentation."""
        other = copy.copy(self)
        other.augment = augment
        return other

    def batch(self, indices: Sequence[int], *, seed: int = 0, epoch: int = 0) -> tuple[np.ndarray, list[Any]]:
        """(n, C, H, W) float32 of the images at ``indices``, and their targets placed in the input: class indices,
        (H, W) uint8 class maps, or boxes in input pixels. ``seed`` and ``epoch`` are those of the augmentation.

        Raises ImageError naming the image that cannot be read.
        """
        at = np.asarray(indices)
        if self._pixels is not None:
            for i in at[~self._filled[at]].tolist():
                self._pixels[i] = _hwc(self._plain(i)[0])
                self._filled[i] = True
            return self._tensor(self._pixels[at]), [self._placed[i] for i in at.tolist()]
        pixels = np.empty((len(at), self.spec.height, self.spec.width, self.spec.channels), self._dtype)
        targets = []
        for row, i in enumerate(at.tolist()):
            image, target = self._varied(i, np.random.default_rng((seed, epoch, i))) if self.augment else self._plain(i)
            pixels[row] = _hwc(image)
            targets.append(target)
        return self._tensor(pixels), targets

    def frames(self, indices: Sequence[int]) -> list[Frame]:
        """Where each image lies in its input, where it was placed without augmentation."""
        return [self._frames[i] for i in indices]

    def originals(self, indices: Sequence[int]) -> list[Any]:
        """The targets in the images' own pixels."""
        return [self.data[i].target for i in indices]

    def _tensor(self, pixels: np.ndarray) -> np.ndarray:
        # one call for the whole batch: (n, H, W, C) read as one tall image
        n, h, w, c = pixels.shape
        planes = normalise(pixels.reshape(n * h, w, c), self.spec, np.empty((c, n * h, w), np.float32))
        tensor: np.ndarray = planes.reshape(c, n, h, w).transpose(1, 0, 2, 3)
        return tensor

    def _plain(self, index: int) -> tuple[Image.Image | np.ndarray, Any]:
        """As a device sees it."""
        image = self._read(index)
        if index not in self._frames:
            width, height = (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
            where = frame(width, height, self.spec)
            self._frames[index] = where
            self._placed[index] = _place(self.data[index].target, where, self.spec)
        return resize(image, self.spec), self._placed[index]

    def _varied(self, index: int, rng: np.random.Generator) -> tuple[Image.Image | np.ndarray, Any]:
        if isinstance(self.augment, Augment):
            image, target = self._decode(index)
            return self.augment(image, self.spec, rng), target
        return self.augment(index, self._decode, self.spec, rng, len(self))

    def _read(self, index: int) -> Image.Image | np.ndarray:
        return read_image(self.data[index].image, self.spec, self.data[index].id)

    def _decode(self, index: int) -> tuple[Image.Image | np.ndarray, Any]:
        found = self._decoded.get(index)
        if found is None:
            target = self.data[index].target
            found = self._read(index), target.read() if isinstance(target, Mask) else target
            size = sum(
                part.nbytes if isinstance(part, np.ndarray) else part.width * part.height * len(part.getbands())
                for part in found
                if isinstance(part, (np.ndarray, Image.Image))
            )
            if size <= self._budget:
                self._budget -= size
                self._decoded[index] = found
        return found


def _place(target: Any, where: Frame, spec: ImageInput) -> Any:
    """A target in original pixels to the input's."""
    if isinstance(target, Mask):
        return map_to_input(target.read(), where, spec.height, spec.width, VOID)
    if isinstance(target, Boxes):
        return replace(target, boxes=boxes_to_input(target.boxes, where))
    return target


def _hwc(image: Image.Image | np.ndarray) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def batches(order: Sequence[int], size: int) -> list[list[int]]:
    """Cut into batches of ``size``; a single image left over joins the last batch, since BatchNorm cannot learn from one."""
    cut = [list(order[i : i + size]) for i in range(0, len(order), size)]
    if len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [cut[-2] + cut[-1]]
    return cut


def shuffled(count: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[int]:
    """The order of an epoch, this rank's share of it; filled up from the front so that every rank has as many."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    if world > 1:
        order = np.resize(order, -(-count // world) * world)[rank::world]
    return [int(i) for i in order]


class Loader:
    """Batches (inputs, targets, …), made ahead by threads: Pillow and numpy let go of the interpreter while they work.

    ``plan(epoch)`` gives the batches' indices, ``make(indices, epoch)`` one batch, ``epoch()`` the epoch when the
    iteration starts. Threads rather than processes: the decoded images are shared, and nothing is forked after
    torch and ONNX Runtime have started threads of their own.
    """

    def __init__(
        self,
        plan: Callable[[int], list[list[int]]],
        make: Callable[[list[int], int], Any],
        *,
        epoch: Callable[[], int] = lambda: 0,
        workers: int = 0,
    ) -> None:
        self._plan, self._make, self._epoch, self._workers = plan, make, epoch, workers
        self._length = len(plan(0))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        epoch = self._epoch()
        plan = self._plan(epoch)
        if not self._workers:
            for indices in plan:
                yield self._make(indices, epoch)
            return
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="zoo-loader")
        try:
            ahead: deque[Future[Any]] = deque()
            for indices in plan:
                ahead.append(pool.submit(self._make, indices, epoch))
                if len(ahead) > self._workers + 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
