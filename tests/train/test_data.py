"""Batches: the evaluation path is zoo.inputs bit for bit; what is drawn depends on seed, epoch and image alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from zoo.data import Dataset, Sample
from zoo.errors import ImageError
from zoo.inputs import ImageInput, preprocess_batch
from zoo.train.data import Augment, Images, Loader, batches, default_augment, shuffled


def photos(count: int = 5, format: str = "folders") -> Dataset:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (40 + 3 * i, 60 - 2 * i, 3), dtype=np.uint8) for i in range(count)]
    samples = tuple(Sample(id=str(i), image=a, target=i % 2) for i, a in enumerate(arrays))
    return Dataset(samples=samples, labels=("a", "b"), split="train", root=Path("photos"), format=format)


SPECS = [
    ImageInput(height=24, width=24, crop=0.875),
    ImageInput(height=16, width=32, color="BGR", resize="letterbox"),
    ImageInput(height=28, width=28, channels=1, color="L", mean=(0.1,), std=(0.3,), resize="squash"),
]


@pytest.mark.parametrize("spec", SPECS, ids=["rgb", "bgr letterbox", "grey"])
@pytest.mark.parametrize("budget", [0, 1 << 30], ids=["from disk", "kept in memory"])
def test_without_augmentation_the_batch_is_what_a_device_sees(spec: ImageInput, budget: int) -> None:
    data = photos()
    images = Images(data, spec, budget_bytes=budget)
    wanted = preprocess_batch([s.image for s in data], spec)
    order = [3, 0, 4]
    for _ in range(2):  # the second time from memory
        tensor, targets = images.batch(order)
        assert np.array_equal(tensor, wanted[order])
        assert targets == [data[i].target for i in order]


def test_what_is_drawn_depends_on_seed_epoch_and_image_alone() -> None:
    images = Images(photos(), SPECS[0], Augment(crop=0.35, flip=True, magnitude=9))
    one, _ = images.batch([0, 1, 2], seed=1, epoch=4)
    assert np.array_equal(images.batch([2, 0], seed=1, epoch=4)[0], one[[2, 0]])
    assert not np.array_equal(images.batch([0, 1, 2], seed=1, epoch=5)[0], one)
    assert not np.array_equal(images.batch([0, 1, 2], seed=2, epoch=4)[0], one)


@pytest.mark.parametrize("magnitude", [1, 9, 30])
def test_randaugment_keeps_size_and_range(magnitude: int) -> None:
    for spec in SPECS[::2]:
        augment = Augment(magnitude=magnitude)
        for seed in range(40):
            mode = "L" if spec.channels == 1 else "RGB"
            image = Image.fromarray(photos().samples[0].image).convert(mode)
            out = augment(image, spec, np.random.default_rng(seed))
            assert (out.size, out.mode) == ((spec.width, spec.height), mode)


def test_bands_are_cropped_and_mirrored_together() -> None:
    plane = np.arange(30 * 40, dtype=np.uint32).reshape(30, 40) % 251
    array = np.repeat(plane.astype(np.uint8)[:, :, None], 5, axis=2)
    spec = ImageInput(height=16, width=16, channels=5, color="bands", mean=(0.5,) * 5, std=(0.2,) * 5)
    out = Augment(crop=0.35, flip=True)(array, spec, np.random.default_rng(3))
    assert out.shape == (16, 16, 5)
    assert (out == out[:, :, :1]).all()


def test_defaults_know_photos_from_glyphs() -> None:
    assert default_augment(photos(), SPECS[0]).flip
    assert not default_augment(photos(format="idx"), SPECS[0])
    assert not default_augment(photos(), SPECS[2])


def test_batches_never_end_on_a_single_image() -> None:
    assert batches(range(9), 4) == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    assert batches(range(10), 4)[-1] == [8, 9]
    assert batches(range(1), 4) == [[0]]


def test_ranks_share_an_epoch() -> None:
    whole = shuffled(11, seed=5, epoch=2)
    assert sorted(whole) == list(range(11))
    parts = [shuffled(11, 5, 2, rank, 3) for rank in range(3)]
    assert {len(p) for p in parts} == {4}
    assert set().union(*parts) == set(range(11))
    assert whole != shuffled(11, seed=5, epoch=3)


def test_threads_keep_the_order_and_pass_errors_on() -> None:
    def make(indices: list[int], epoch: int) -> tuple[list[int], int]:
        if 13 in indices:
            raise ImageError("image 13: damaged")
        return indices, epoch

    def plan(epoch: int) -> list[list[int]]:
        return batches(range(12), 2)

    loader = Loader(plan, make, epoch=lambda: 7, workers=3)  # type: ignore[arg-type]
    assert list(loader) == [([i, i + 1], 7) for i in range(0, 12, 2)]
    assert len(loader) == 6
    with pytest.raises(ImageError, match="13"):
        list(Loader(lambda epoch: batches(range(20), 2), make, workers=2))  # type: ignore[arg-type]
