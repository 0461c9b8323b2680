"""The torch halves of the tasks whose networks make images, and the images that these learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..data import Dataset
from ..data.degrading import Degradation
from ..data.targets import Picture
from ..errors import DataError
from ..inputs import ImageInput, normalise, read_image, resize
from ..specs import PEAKS
from .half import Defaults
from .players import Players

__all__ = ["Deployable", "GenerateTrainer", "PictureTrainer", "Pictures", "RestoreTrainer", "TranslateTrainer"]

JITTER = 286 / 256
"""Translators see images a little larger than their input, cut at random (Isola et al. 2017, arXiv:1611.07004)."""
MARGIN = 4
"""Pixels around a patch that are damaged with it, so that its rim is as the middle of an image would be."""
CACHE_BYTES = 1 << 30


class Deployable(nn.Module):
    """What is evaluated and exported: (N, C, H, W) float32 to ``output`` (N, C', H', W'), shares of white."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.network(x),)


class PictureTrainer:
    """The torch half of a task of images: what is deployed is the generator alone, without those who trained it."""

    run = "zoo.train.generative:GenerativeRun"
    """Networks of players do not train as others do."""
    defaults = Defaults(epochs=(20, 20), lr=(0.0, 0.0), batch_size=8)
    least_steps = 1
    """Steps of an epoch: few images are seen several times, each time otherwise."""

    def deployable(self, network: nn.Module) -> nn.Module:
        return Deployable(network.generator if isinstance(network, Players) else network)


class GenerateTrainer(PictureTrainer):
    defaults = Defaults(epochs=(10, 10), lr=(0.0, 0.0), batch_size=64)
    least_steps = 50


class RestoreTrainer(PictureTrainer):
    defaults = Defaults(epochs=(20, 20), lr=(0.0, 0.0), batch_size=8)
    least_steps = 200


class TranslateTrainer(PictureTrainer):
    defaults = Defaults(epochs=(30, 30), lr=(0.0, 0.0), batch_size=4)
    least_steps = 50


class Pictures:
    """A data set for the players of a task: batches of inputs and targets that depend on (seed, epoch, image) alone.

    Decoded images are kept in memory while they fit in ``CACHE_BYTES``. Safe to call from several threads.
    """

    def __init__(
        self,
        data: Dataset,
        task: str,
        spec: ImageInput,
        *,
        makes: ImageInput | None = None,
        scale: int = 1,
        degrade: str = "",
        patch: int = 0,
        flip: bool = True,
        turn: bool = False,
    ) -> None:
        """``spec``: the network's input; ``makes``: of ``generate``, the images; ``patch``: side in input pixels, of
        inputs that are cropped; ``flip``: mirrored half of the time; ``turn``: and turned by quarters."""
        self.data, self.task, self.spec, self.makes = data, task, spec, makes
        self.scale, self.flip, self.turn = scale, flip, turn
        self.size = (patch or spec.height, patch or spec.width)
        self._degradation = Degradation.parse(degrade) if degrade else None
        self._kept: dict[Any, np.ndarray] = {}
        self._budget = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Sequence[int], *, seed: int, epoch: int) -> dict[str, np.ndarray]:
        """``input`` (n, C, H, W) float32, ``target`` (n, C', H', W') in 0..1, ``labels`` (n,) int64: those that there are.

        ``indices`` may be beyond the data's end: image ``i % len(data)`` in its ``i // len(data)``-th variation.
        Raises ImageError, DataError.
        """
        made = [self._one(i, np.random.default_rng((seed, epoch, i))) for i in indices]
        found = {name: np.stack([one[name] for one in made]) for name in made[0]}
        if self.spec.color == "latent":
            rng = np.random.default_rng((seed, epoch, int(indices[0]), 1))
            drawn = rng.standard_normal((len(made), self.spec.channels, 1, 1), np.float32)
            if self.data.labels:
                kinds = len(self.data.labels)
                drawn[:, -kinds:] = np.eye(kinds, dtype=np.float32)[found["labels"]][:, :, None, None]
            found["input"] = drawn
        return found

    def _one(self, at: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        index = at % len(self.data)
        if self.task == "generate":
            return self._real(index, rng)
        low, high = (self._patches if self.task == "restore" else self._views)(index, rng)
        quarters, mirror = int(rng.integers(4)) if self.turn else 0, self.flip and bool(rng.random() < 0.5)
        low = _turned(low, quarters, mirror)
        found = {"input": normalise(low, self.spec, np.empty((self.spec.channels, *low.shape[:2]), np.float32))}
        if high is not None:
            # what is not paired is mirrored by itself
            paired = self.task == "restore" or self.data[index].target is not None
            high = _turned(high, quarters, mirror if paired else self.flip and bool(rng.random() < 0.5))
            found["target"] = _shares(high)
        return found

    # -- one image each ----------------------------------------------------------------------------------------

    def _real(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        assert self.makes is not None
        sample = self.data[index]
        pixels = self._keep(index, lambda: _hwc(resize(read_image(sample.image, self.makes, sample.id), self.makes)))
        found = {"target": _shares(_turned(pixels, 0, self.flip and bool(rng.random() < 0.5)))}
        if self.data.labels:
            found["labels"] = np.asarray(sample.target, np.int64)
        return found

    def _patches(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """The damaged patch and the good one, ``scale`` times as large."""
        sample, s = self.data[index], self.scale
        height, width = self.size
        colours = min(3, self.spec.channels)
        if isinstance(sample.target, Picture):
            low = self._keep(("low", index), lambda: _hwc(read_image(sample.image, self.spec, sample.id)))
            high = self._keep(("high", index), lambda: sample.target.read(colours))
            if high.shape[:2] != (low.shape[0] * s, low.shape[1] * s):
                raise DataError(_ratio(sample.id, low, high, s))
            top, left = _place(low.shape, (height, width), rng)
            return (
                _cut(low, top, left, height, width),
                _cut(high, top * s, left * s, height * s, width * s),
            )
        good = self._keep(index, lambda: Picture(source=sample.image).read(colours))
        assert self._degradation is not None
        margin = 0 if self._degradation.holes else MARGIN
        high_size = ((height + 2 * margin) * s, (width + 2 * margin) * s)
        top, left = _place(good.shape, high_size, rng)
        high = _cut(good, top, left, *high_size)
        image = Image.fromarray(high[:, :, 0] if colours == 1 else high)
        low = _hwc(np.asarray(self._degradation(image, rng, scale=s)))
        m = margin
        return low[m : m + height, m : m + width], high[m * s : (m + height) * s, m * s : (m + width) * s]

    def _views(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """An image for a translator, and what it should make of it, cut alike; or any image of the other domain."""
        sample = self.data[index]
        low = self._keep(("low", index), lambda: self._enlarged(sample.image, sample.id))
        top, left = _place(low.shape, self.size, rng)
        part = _cut(low, top, left, *self.size)
        if isinstance(sample.target, Picture):
            high = self._keep(("high", index), lambda: self._enlarged(Image.fromarray(_flat(sample.target.read())), ""))
            return part, _cut(high, top, left, *self.size)
        if self.data.others:
            other = int(rng.integers(len(self.data.others)))
            mine = self.data.others[other]
            high = self._keep(("other", other), lambda: self._enlarged(mine.image, mine.id))
            return part, _cut(high, *_place(high.shape, self.size, rng), *self.size)
        return part, None

    def _enlarged(self, source: Any, name: str) -> np.ndarray:
        """An image as the network's input has it but somewhat larger; as it is where nothing is resized."""
        spec = self.spec
        image = read_image(source, spec, name)
        if spec.resize == "crop":
            return _hwc(image)
        larger = spec.with_size(round(spec.height * JITTER), round(spec.width * JITTER))
        return _hwc(resize(image, larger))

    def _keep(self, key: Any, make: Any) -> np.ndarray:
        found = self._kept.get(key)
        if found is None:
            found = np.asarray(make())
            if found.nbytes <= self._budget:
                self._budget -= found.nbytes
                self._kept[key] = found
        return found


def _ratio(name: str, low: np.ndarray, high: np.ndarray, scale: int) -> str:
    (h, w), (hh, ww) = low.shape[:2], high.shape[:2]
    cure = f"give the network --option scale={hh // h}" if hh // h == ww // w and hh % h == ww % w == 0 else "cut them"
    return f"{name}: a pair of {w}x{h} and {ww}x{hh} pixels for a network that enlarges {scale} times: {cure}"


def _hwc(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _flat(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _shares(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) pixels to (C, H, W) float32 shares of white."""
    return np.asarray(np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / np.float32(PEAKS["uint8"]))


def _turned(pixels: np.ndarray, quarters: int, mirror: bool) -> np.ndarray:
    turned = np.rot90(pixels, quarters) if quarters else pixels
    return turned[:, ::-1] if mirror else turned


def _place(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """A random corner (top, left) for a part of ``size``; 0 where the image is no larger."""
    return tuple(int(rng.integers(max(0, have - want) + 1)) for have, want in zip(shape, size, strict=False))  # type: ignore[return-value]


def _cut(pixels: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """(height, width, C) from the corner on; what the image lacks is its own reflection."""
    part = pixels[top : top + height, left : left + width]
    down, right = height - part.shape[0], width - part.shape[1]
    if not (down or right):
        return part
    return np.pad(part, ((0, down), (0, right), (0, 0)), "symmetric")
