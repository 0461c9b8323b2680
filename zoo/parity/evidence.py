"""Gathers what the gates judge: outputs over many images, seeded images of natural statistics."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from ..inputs import Frame, Source, prepare_batch
from ..runtime.session import Session
from ..specs import ImageInput
from ..tasks import TaskHalf
from ..tasks.pictures import PictureTask

__all__ = [
    "Batch",
    "Kept",
    "Observed",
    "batch_size",
    "is_own",
    "judged",
    "made_images",
    "natural_images",
    "observe",
    "prepared_batches",
    "stand_in",
]

Batch = tuple[np.ndarray, Sequence[Frame]]
"""(n, C, H, W) float32, and where each image lies in its tensor."""

OUTPUT_BYTES = 128 << 20
"""Raw outputs of the first samples are kept for the numeric gate up to this size, and never fewer than one batch."""
PACKED_BYTES = 32 << 10
"""Results larger than this (class maps) are kept deflated until somebody looks at them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What one network said of many images."""

    outputs: Mapping[str, np.ndarray]
    """By output name, (K, …): raw outputs of the first K images."""
    results: Sequence[Any]
    """N result records, decoded for judging."""


class Kept(Sequence[Any]):
    """Result records, deflated where they are large: a thousand class maps stay in memory, their pixels do not."""

    def __init__(self, half: TaskHalf, labels: Sequence[str]) -> None:
        self._half, self._labels = half, tuple(labels)
        self._items: list[Any] = []

    def extend(self, results: Sequence[Any]) -> None:
        for result in results:
            arrays = self._half.pack([result])
            if sum(a.nbytes for a in arrays.values()) > PACKED_BYTES:
                result = {
                    k: (zlib.compress(np.ascontiguousarray(a).tobytes(), 1), a.dtype, a.shape)
                    for k, a in arrays.items()
                }
            self._items.append(result)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            part = Kept(self._half, self._labels)
            part._items = self._items[index]
            return part
        item = self._items[index]
        if not isinstance(item, dict):
            return item
        arrays = {
            k: np.frombuffer(zlib.decompress(data), dtype).reshape(shape) for k, (data, dtype, shape) in item.items()
        }
        return self._half.unpack(arrays, self._labels)[0]


def is_own(format: str, runtime: str) -> bool:
    """Whether a runtime is an artefact format's own: any but ONNX Runtime's own providers, for what is not ONNX."""
    return format == "onnx" or not runtime.startswith("onnxruntime") or format in runtime


def stand_in(format: str, session: Session, precision: str = "") -> str:
    """Where ONNX Runtime executes the graph of an artefact that is meant for another library, one line that says so and
    what it is worth; empty where the artefact's own runtime opened it. Such a run is nobody's latency.

    ``precision``: of the artefact as it lies in the bundle. ONNX Runtime's CPU provider drops the casts of half
    precision, so that what it computes is float32.
    """
    if is_own(format, session.runtime):
        return ""
    on_cpu = session.device.startswith("CPU")
    wider = ", computed in float32" if on_cpu and precision in ("fp16", "bf16", "mixed") else ""
    where = "CPU" if on_cpu else "GPU"
    return (
        f"executed by ONNX Runtime on the {where}: numbers and accuracy of the graph{wider}; says nothing of an engine"
    )


def batch_size(spec: ImageInput) -> int:
    """Images that are run at once: 16 of 224 pixels, fewer of larger ones."""
    return max(1, min(16, 4_000_000 // int(np.prod(spec.shape))))


def prepared_batches(
    images: Sequence[Source], spec: ImageInput, size: int = 0, progress: Callable[[int], None] | None = None
) -> Iterator[Batch]:
    """Images to batches of ``size`` (0: as :func:`batch_size` says), through the one preprocessing. Raises ImageError."""
    size = size or batch_size(spec)
    for start in range(0, len(images), size):
        yield prepare_batch(images[start : start + size], spec)
        if progress:
            progress(min(start + size, len(images)))


def observe(
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    batches: Iterable[Batch],
    half: TaskHalf,
    labels: Sequence[str],
    spec: ImageInput,
) -> Observed:
    """Run every batch: raw outputs of the first images, results of all. ``spec``: how the images became tensors."""
    parts: dict[str, list[np.ndarray]] = {}
    results = Kept(half, labels)
    held = 0
    for tensor, frames in batches:
        outputs = {name: np.asarray(value) for name, value in run(tensor).items()}
        results.extend(judged(outputs, (tensor, frames), half, labels, spec))
        size = sum(value.nbytes for value in outputs.values())
        if not parts or held + size <= OUTPUT_BYTES:
            held += size
            for name, value in outputs.items():
                parts.setdefault(name, []).append(value)
        else:
            held = OUTPUT_BYTES  # later batches, though smaller, must not follow a gap
    return Observed(outputs={name: np.concatenate(values) for name, values in parts.items()}, results=results)


def judged(
    outputs: Mapping[str, np.ndarray], batch: Batch, half: TaskHalf, labels: Sequence[str], spec: ImageInput
) -> list[Any]:
    """Raw outputs of a batch to what is judged: images as they are given out, all else as decoded for judging."""
    tensor, frames = batch
    results = half.decode(outputs, labels=labels, frames=frames, judging=True)
    return half.composed(results, tensor, frames, spec) if isinstance(half, PictureTask) else results


def natural_images(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> list[np.ndarray]:
    """``count`` images (H, W, C) uint8 whose power spectrum falls as 1/f^2, as that of photographs does
    (Field 1987, "Relations between the statistics of natural images"), with correlated colours.

    White noise would leave most activations of a trained network near zero; these do not.
    """
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    radius = np.sqrt(fy**2 + fx**2)
    radius[0, 0] = np.inf
    images = []
    for _ in range(count):
        planes = []
        for _ in range(channels + 1):
            spectrum = (rng.normal(size=radius.shape) + 1j * rng.normal(size=radius.shape)) / radius
            plane = np.fft.irfft2(spectrum, s=(height, width))
            planes.append(plane / plane.std())
        shared = planes.pop()
        stack = np.stack([0.85 * shared + 0.53 * plane for plane in planes], axis=2)
        level, contrast = rng.uniform(90, 165), rng.uniform(30, 70)
        images.append(np.clip(level + contrast * stack, 0, 255).round().astype(np.uint8))
    return images


def made_images(spec: ImageInput, count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """``count`` made inputs for ``spec``: images of natural statistics, ``height`` x ``width``; with holes (alpha 0, black)
    where the fourth channel is alpha; latents, 1 x 1 x channels, where there are no images."""
    if spec.color == "latent":
        draws = (np.random.default_rng((seed, at)) for at in range(count))
        return [rng.standard_normal((1, 1, spec.channels), np.float32) for rng in draws]
    images = natural_images(count, height, width, spec.source_channels, seed)
    if spec.color != "RGBA":
        return images
    rng = np.random.default_rng(seed)
    return [_with_hole(image, rng) for image in images]


def _with_hole(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) to (H, W, 4): a rectangle of a tenth to a third of the image is not known."""
    height, width = image.shape[:2]
    tall, wide = (max(1, int(side * rng.uniform(0.32, 0.58))) for side in (height, width))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    known = np.full((height, width, 1), 255, np.uint8)
    known[top : top + tall, left : left + wide] = 0
    return np.concatenate((np.where(known > 0, image, 0), known), axis=2).astype(np.uint8)
