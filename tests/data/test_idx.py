"""idx files: whole, gzipped, and each way of being broken."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from zoo.data import open_data
from zoo.errors import DataError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write(root: Path, split: str, images: np.ndarray, labels: np.ndarray, packed: bool = True) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
        data = idx(array)
        (root / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(data) if packed else data)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (40, 5, 6), dtype=np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    return np.arange(40) % 4


@pytest.mark.parametrize("packed", [True, False])
def test_opens(tmp_path: Path, images: np.ndarray, labels: np.ndarray, packed: bool) -> None:
    write(tmp_path, "train", images[:32], labels[:32], packed)
    write(tmp_path, "t10k", images[32:], labels[32:], packed)
    splits = open_data(tmp_path, val_share=0.25)
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (24, 8, 8)
    assert splits.labels == ("0", "1", "2", "3")
    np.testing.assert_array_equal(splits.test[3].image, images[35])
    assert splits.test[3].target == 3
    assert splits.test[3].id == "test/3"


def test_the_readme_of_fashion_mnist(tmp_path: Path, images: np.ndarray) -> None:
    write(tmp_path / "my-fashion", "train", images, np.arange(40) % 10)
    splits = open_data(tmp_path / "my-fashion")
    assert splits.labels[9] == "Ankle boot"
    assert "Fashion-MNIST" in splits.train.notes[0]


def refuse(root: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(root)
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_truncated(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    write(tmp_path, "train", images, labels, packed=False)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-7])
    refuse(tmp_path, "holds only 1193 of the 1200 bytes", "copy it again")
    file.write_bytes(file.read_bytes() + b"\0" * 8)
    refuse(tmp_path, "holds more of the 1200 bytes")
    file.write_bytes(b"\0\0\x08")
    refuse(tmp_path, "is not an idx file")
    file.write_bytes(b"")
    refuse(tmp_path, "is not an idx file")


def test_truncated_gzip(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    write(tmp_path, "train", images, labels)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-30])
    refuse(tmp_path, "cannot be read", "copy it again")


def test_other_types_and_claims(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    write(tmp_path, "train", images, labels, packed=False)
    file = tmp_path / "train-images-idx3-ubyte"
    data = file.read_bytes()
    file.write_bytes(b"\0\0\x0d\x03" + data[4:])
    refuse(tmp_path, "idx type 13")
    file.write_bytes(data[:4] + struct.pack(">III", 2**31, 2**20, 2**10) + data[16:])
    refuse(tmp_path, "at most 8 GiB")


def test_images_and_labels_that_do_not_go_together(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    write(tmp_path, "train", images, labels[:-1])
    refuse(tmp_path, "40 images", "39 labels")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    refuse(tmp_path, "train-labels-idx1-ubyte, are missing")


def test_an_unexpected_split(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    write(tmp_path, "train", images, labels)
    write(tmp_path, "holdout", images, labels)
    refuse(tmp_path, "'holdout' is no split that is known")


def test_one_class(tmp_path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    write(tmp_path, "train", images, labels * 0)
    refuse(tmp_path, "has one class (0)")


@pytest.mark.assets
def test_mnist(assets: Path) -> None:
    splits = open_data(assets / "mnist")
    assert splits.test is not None
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (60_000, 10_000)
    assert splits.labels == tuple("0123456789")
    # the first test image is the famous seven
    assert splits.test[0].target == 7
