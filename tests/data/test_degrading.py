"""Degradations: recipes as they are written and miswritten, what they do to an image, and that they do it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import Dataset, Sample, audit
from zoo.data.degrading import HOLES, Degradation, Degraded, Part, degraded
from zoo.data.targets import Picture as Target
from zoo.errors import DataError, ImageError, UnknownName
from zoo.inputs import ImageInput, preprocess
from zoo.reading import Picture, read_image

RGB = ImageInput(height=8, width=8, resize="crop")


def scene(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: soft waves and hard edges, neither flat nor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    bands = [127 + 90 * np.sin(x / rng.uniform(3, 9) + y / rng.uniform(3, 9)) for _ in range(3)]
    pixels = np.stack(bands, axis=2)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (20, 200, 90)
    return pixels.round().astype(np.uint8)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


@pytest.mark.parametrize(
    "recipe", ["bicubic:2", "bicubic", "area:3", "blur:1.5+noise:10+jpeg:40", "blur:0.2-2", "holes", "bilinear:4+holes"]
)
def test_a_recipe_comes_back(recipe: str) -> None:
    assert str(Degradation.parse(recipe)) == recipe
    assert Degradation.parse(f" {recipe.replace('+', ' + ')} ") == Degradation.parse(recipe)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("blur", "write blur:1.5"),
        ("blur:much", "'much' is no number"),
        ("blur:3-1", "low-high"),
        ("noise:-1", "no number"),
        ("noise:nan", r"lies in 0\.\.255"),
        ("noise:999", r"lies in 0\.\.255"),
        ("jpeg:0", r"lies in 1\.\.100"),
        ("jpeg:40.5", "a whole number"),
        ("bicubic:2.5", "one whole number from 1 to 16"),
        ("bicubic:1-4", "one whole number from 1 to 16"),
        ("bicubic:0", "one whole number from 1 to 16"),
        ("area:2+bicubic:2", "shrinks twice"),
        ("holes+jpeg:40", "put them last"),
        ("holes:0.3", "take no value"),
    ],
)
def test_a_strength_that_cannot_be_is_one_line(recipe: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        Degradation.parse(recipe)
    assert "\n" not in str(caught.value)


def test_a_misspelt_step_is_told_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean bicubic"):
        Degradation.parse("bicubik:2")
    with pytest.raises(UnknownName, match="there are: area, bicubic"):
        Degraded(source=scene(), recipe="")


@pytest.mark.parametrize(
    ("recipe", "scale", "says"),
    [
        ("bicubic:2", 4, "shrinks by 2, the network enlarges by 4: write bicubic:4"),
        ("area:2", 1, "shrinks by 2, the network enlarges by 1: write area:1"),
        ("noise:10", 2, "shrinks by 1, the network enlarges by 2: add bicubic"),
    ],
)
def test_a_scale_that_is_not_the_networks(recipe: str, scale: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Degraded(source=scene(), recipe=recipe, scale=scale)


def test_scales() -> None:
    found = [Degradation.parse(r).scale for r in ("bicubic:3", "bicubic", "blur:1", "blur:1+area:2", "holes")]
    assert found == [3, None, 1, 2, 1]
    with pytest.raises(DataError, match="write bicubic:2"):
        Degradation.parse("bicubic")(Image.fromarray(scene()), np.random.default_rng(0))


def test_the_same_every_time_and_another_by_the_seed() -> None:
    one, two, other = (Degraded(source=scene(), recipe="blur:0.2-3+noise:1-30+holes", seed=s) for s in (7, 7, 8))
    assert np.array_equal(np.asarray(one.read()), np.asarray(two.read()))
    assert not np.array_equal(np.asarray(one.read()), np.asarray(other.read()))
    assert one.digest() == two.digest() != other.digest()
    assert one.key() == two.key() != other.key()
    assert Degraded(source=scene(), recipe="blur:1", seed=7).digest() != one.digest()
    assert Degraded(source=scene(seed=1), recipe=one.recipe, seed=7).digest() != one.digest()


def test_area_is_the_mean_and_bicubic_is_pillows() -> None:
    good = scene(60, 90)
    small = np.asarray(Degraded(source=good, recipe="area", scale=3).read())
    off = small - good.reshape(20, 3, 30, 3, 3).mean(axis=(1, 3))
    assert np.abs(off).max() <= 1 and abs(off.mean()) < 0.05  # Pillow rounds after each of two passes
    bicubic = np.asarray(Degraded(source=good, recipe="bicubic", scale=3).read())
    assert np.array_equal(bicubic, np.asarray(Image.fromarray(good).resize((30, 20), Image.Resampling.BICUBIC)))
    back = np.asarray(Image.fromarray(bicubic).resize((90, 60), Image.Resampling.BICUBIC))
    assert 15 < psnr(back, good) < 40


def test_noise_has_the_psnr_of_its_deviation() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    for sigma in (5.0, 20.0):
        noisy = np.asarray(Degraded(source=grey, recipe=f"noise:{sigma}").read())
        assert psnr(noisy, grey) == pytest.approx(20 * np.log10(255 / sigma), abs=0.1)
        assert abs(np.corrcoef(noisy[:, :, 0].ravel(), noisy[:, :, 1].ravel())[0, 1]) < 0.02
    grown = Degraded(source=grey, recipe="noise:20").read(1)
    assert grown.mode == "L"  # a grey network sees all of the noise, not the mean of three
    assert psnr(np.asarray(grown), grey[:, :, 0]) == pytest.approx(20 * np.log10(255 / 20), abs=0.1)


def test_blur_has_the_deviation_that_it_says() -> None:
    dot = np.zeros((101, 101), np.uint8)
    dot[50, 50] = 255
    dot[48:53, 48:53] = 255
    blurred = np.asarray(Degraded(source=dot, recipe="blur:6").read(1), np.float64)
    spread = np.arange(101) - 50
    variance = (blurred.sum(axis=0) * spread**2).sum() / blurred.sum()
    assert np.sqrt(variance - 2.0) == pytest.approx(6, rel=0.08)  # 5 pixels have a variance of 2 of their own


def test_jpeg_is_a_real_one_and_worse_by_quality() -> None:
    good = scene()
    figures = [psnr(np.asarray(Degraded(source=good, recipe=f"jpeg:{q}").read()), good) for q in (95, 50, 10)]
    assert figures[0] > figures[1] > figures[2] > 15
    assert figures[0] > 30
    low = np.asarray(Degraded(source=good, recipe="jpeg:5").read(1), np.float64)
    across = np.abs(np.diff(low, axis=1)).mean(axis=0)
    assert across[7::8].mean() > 1.3 * np.delete(across, np.s_[7::8]).mean()  # edges between blocks of 8


def test_order_counts() -> None:
    good = scene()
    first = np.asarray(Degraded(source=good, recipe="noise:40+blur:2").read())
    last = np.asarray(Degraded(source=good, recipe="blur:2+noise:40").read())
    rough = [np.abs(np.diff(x.astype(np.float64), axis=1)).mean() for x in (first, last)]
    assert rough[1] > 3 * rough[0]


def test_holes_cover_their_share_and_leak_nothing() -> None:
    shares = []
    for seed in range(120):
        good = scene(40 + seed, 150 - seed, seed)
        image = Degraded(source=good, recipe="holes", seed=seed).read()
        assert image.mode == "RGBA"
        pixels = np.asarray(image)
        hole = pixels[:, :, 3] == 0
        assert np.array_equal(pixels[:, :, 3] == 255, ~hole)
        assert not pixels[hole].any()
        assert np.array_equal(pixels[~hole][:, :3], good[~hole])
        shares.append(hole.mean())
    assert HOLES[0] <= min(shares) < 0.17
    assert 0.33 < max(shares) <= HOLES[1]
    tiny = [np.asarray(Degraded(source=scene(4, 5), recipe="holes", seed=s).read())[:, :, 3] == 0 for s in range(30)]
    assert all(HOLES[0] <= hole.mean() <= HOLES[1] for hole in tiny)


def test_odd_sizes_are_cut_and_the_target_with_them(tmp_path: Path) -> None:
    file = tmp_path / "odd.png"
    Image.fromarray(scene(35, 50)).save(file)
    sample = degraded(Sample(id="odd.png", image=file, target=None), "bicubic", scale=4, seed=3)
    assert isinstance(sample.image, Degraded) and isinstance(sample.target, Target)
    assert sample.image.size == sample.image.read().size == (12, 8)
    assert sample.image.box == sample.target.box == (0, 0, 48, 32)
    assert np.array_equal(sample.target.read(), scene(35, 50)[:32, :48])
    assert sample.image.nbytes == file.stat().st_size
    whole = Degraded(source=file, recipe="area:5", scale=5)
    assert whole.box is None and whole.original().size() == (50, 35)
    other = degraded(Sample(id="another.png", image=file, target=None), "bicubic", scale=4, seed=3)
    assert other.image.digest() != sample.image.digest()  # type: ignore[union-attr]


def test_smaller_than_the_scale_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "dot.png"
    Image.fromarray(scene(3, 9)).save(file)
    with pytest.raises(ImageError, match=r"dot\.png: an image of 9x3 cannot shrink by 4"):
        Degraded(source=file, recipe="bicubic", scale=4).read()
    with pytest.raises(ImageError, match="no such file"):
        Degraded(source=tmp_path / "none.png", recipe="bicubic", scale=4).read()


def test_it_is_read_as_any_image_is() -> None:
    image = Degraded(source=scene(), recipe="noise:10+holes", seed=5)
    read = read_image(image, RGB.with_channels(4))
    assert isinstance(read, Image.Image) and read.mode == "RGBA"
    assert np.array_equal(np.asarray(read), np.asarray(image.read()))
    picture = Picture(image, RGB.with_channels(4))
    assert (picture.width, picture.height) == (128, 96)
    assert np.array_equal(np.asarray(picture.region(3, 5, 60, 70)), np.asarray(read)[5:70, 3:60])
    opaque = read_image(Degraded(source=scene(), recipe="noise:10"), RGB.with_channels(4))
    assert (np.asarray(opaque)[:, :, 3] == 255).all()
    assert preprocess(Degraded(source=scene(), recipe="area:2", scale=2), RGB).shape == (3, 8, 8)
    floats = read_image(image, ImageInput(height=1, width=1, pixel="float32"))
    assert isinstance(floats, np.ndarray) and floats.max() <= 1


def test_a_part_is_that_part(tmp_path: Path) -> None:
    file = tmp_path / "two.png"
    Image.fromarray(scene(20, 40)).save(file)
    left, right = Part(source=file, box=(0, 0, 20, 20)), Part(source=file, box=(20, 0, 40, 20))
    assert np.array_equal(np.asarray(read_image(right, RGB)), scene(20, 40)[:, 20:])
    assert left.size == (20, 20) and left.digest() != right.digest()
    nested = Degraded(source=left, recipe="area", scale=2)
    assert nested.size == nested.read().size == (10, 10)
    assert np.array_equal(nested.original().read(), scene(20, 40)[:, :20])
    with pytest.raises(ImageError, match="it has changed"):
        read_image(Part(source=file, box=(20, 0, 60, 20)), RGB)
    picture = Picture(right, RGB)
    assert (picture.width, picture.height) == (20, 20)


def test_a_data_set_of_them_is_audited_and_told_apart(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        Image.fromarray(scene(30, 41, seed=i)).save(file)
    good = [Sample(id=file.name, image=file, target=None) for file in files]

    def data(seed: int) -> Dataset:
        samples = tuple(degraded(sample, "blur:1+bicubic", scale=2, seed=seed) for sample in good)
        return Dataset(samples=samples, labels=(), split="val", root=tmp_path, format="images")

    audited = audit(data(0))
    assert len(audited) == 4 and not audited.faults
    assert data(0).fingerprint() == data(0).fingerprint() != data(1).fingerprint()


@pytest.mark.assets
def test_set5_is_as_the_literature_measures_it(assets: Path) -> None:
    """PSNR of Pillow's bicubic, there and back, on the luma of Set5 at x2: 33.6 dB, as MATLAB's imresize to within 0.3."""
    found = []
    for file in sorted((assets / "set5" / "image_SRF_2").glob("*_HR.png")):
        image = Degraded(source=file, recipe="bicubic", scale=2)
        target = image.original().read()
        back = image.read().resize(target.shape[1::-1], Image.Resampling.BICUBIC)
        weights = np.array((65.481, 128.553, 24.966)) / 255
        found.append(psnr(*((np.asarray(x, np.float64) @ weights)[2:-2, 2:-2] for x in (back, target))))
    assert np.mean(found) == pytest.approx(33.66, abs=0.3)
