"""Preprocessing: every kind of image that people have, and torchvision's own pictures to within one step of 255."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.errors import ImageError
from zoo.inputs import fill_of, frame, normalise, prepare, preprocess, preprocess_batch, read_image, resize
from zoo.parity.evidence import natural_images
from zoo.specs import ImageInput

RGB = ImageInput(height=8, width=8, resize="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
GREY = RGB.with_channels(1)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array(source: Any, spec: ImageInput = RGB) -> np.ndarray:
    return np.asarray(read_image(source, spec))


# -- sources -------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    data = encode(image)
    (tmp_path / "a.png").write_bytes(data)
    with (tmp_path / "a.png").open("rb") as file:
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, image, PIXELS, file, io.BytesIO(data)):
            np.testing.assert_array_equal(array(source), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """The photo as a viewer shows it: the upright image was turned the other way, and tagged."""
    upright = Image.fromarray(PIXELS)
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(array(encode(stored, exif=exif)), PIXELS)


def test_grey_images_and_grey_networks() -> None:
    grey = Image.fromarray(PIXELS).convert("L")
    shown = array(encode(grey))
    assert shown.shape == (6, 10, 3)
    assert (shown == np.asarray(grey)[:, :, None]).all()
    np.testing.assert_array_equal(array(encode(Image.fromarray(PIXELS)), GREY), np.asarray(grey))
    np.testing.assert_array_equal(array(np.asarray(grey), GREY), np.asarray(grey))
    np.testing.assert_array_equal(array(np.asarray(grey)[:, :, None], GREY), np.asarray(grey))


def test_alpha_is_dropped_as_torchvision_drops_it() -> None:
    alpha = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 40, np.uint8)])
    np.testing.assert_array_equal(array(encode(Image.fromarray(alpha))), PIXELS)
    rgba = ImageInput(height=8, width=8, channels=4, color="RGBA", mean=(0.0,) * 4, std=(1.0,) * 4)
    np.testing.assert_array_equal(array(alpha, rgba), alpha)


def test_palette_with_transparency() -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    image.info["transparency"] = 0
    np.testing.assert_array_equal(array(encode(image, transparency=0)), np.asarray(image.convert("RGBA"))[:, :, :3])


def test_16_bit_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 60, dtype=np.uint16).reshape(6, 10)
    wanted = np.round(values / 257).astype(np.uint8)
    for source in (encode(Image.fromarray(values)), values, encode(Image.fromarray(values), "TIFF")):
        np.testing.assert_array_equal(array(source, GREY), wanted)
    np.testing.assert_array_equal(array(encode(Image.fromarray(values)))[:, :, 1], wanted)


def test_cmyk() -> None:
    image = Image.fromarray(PIXELS).convert("CMYK")
    data = encode(image, "JPEG", quality=100)
    np.testing.assert_array_equal(array(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_one_bit() -> None:
    bits = PIXELS[:, :, 0] > 127
    np.testing.assert_array_equal(array(encode(Image.fromarray(bits)), GREY), bits * np.uint8(255))
    np.testing.assert_array_equal(array(bits, GREY), bits * np.uint8(255))


def test_bands(tmp_path: Path) -> None:
    spec = ImageInput(height=3, width=5, channels=6, color="bands", resize="squash", mean=(0.0,) * 6, std=(1.0,) * 6)
    data = np.random.default_rng(0).integers(0, 256, (6, 10, 6), dtype=np.uint8)
    np.save(tmp_path / "a.npy", data)
    tensor = preprocess(tmp_path / "a.npy", spec)
    assert tensor.shape == (6, 3, 5)
    for band in range(6):  # each band is resized as a grey image would be
        alone = preprocess(
            data[:, :, band],
            ImageInput(height=3, width=5, channels=1, color="L", resize="squash", mean=(0.0,), std=(1.0,)),
        )
        np.testing.assert_array_equal(tensor[band], alone[0])
    with pytest.raises(ImageError, match="3 channels; the network takes 6"):
        read_image(PIXELS, spec)
    with pytest.raises(ImageError, match="takes 6 bands"):
        read_image(encode(Image.fromarray(PIXELS)), spec)


# -- what cannot be read -------------------------------------------------------------------------------------------


def broken() -> dict[str, tuple[Any, str]]:
    png, jpeg = encode(Image.fromarray(PIXELS)), encode(Image.fromarray(np.tile(PIXELS, (30, 30, 1))), "JPEG")
    return {
        "empty": (b"", "an empty file"),
        "text": (b"hello world, this is no image", "not an image that Pillow knows"),
        "cut png": (png[: len(png) // 2], "damaged"),
        "cut jpeg": (jpeg[: len(jpeg) // 2], "damaged: image file is truncated"),
        "huge": (encode(Image.new("1", (12000, 12000))), "larger than"),
        "float": (Image.fromarray(np.zeros((4, 4), np.float32)), "beyond 16 bits"),
        "32 bit": (Image.fromarray(np.full((4, 4), 70000, np.int32)), "beyond 16 bits"),
        "no pixels": (np.zeros((0, 4, 3), np.uint8), "an image is"),
        "channels first": (np.zeros((3, 40, 50), np.uint8), r"transpose\(1, 2, 0\)"),
        "float array": (np.zeros((4, 4, 3), np.float32), "give uint8"),
        "five axes": (np.zeros((1, 1, 4, 4, 3), np.uint8), "an image is"),
    }


@pytest.mark.parametrize("what", broken())
def test_broken_images_are_one_clear_line(what: str) -> None:
    source, words = broken()[what]
    with pytest.raises(ImageError, match=words) as caught:
        preprocess(source, RGB)
    assert "\n" not in str(caught.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    for source, name, words in (
        (tmp_path / "gone.jpg", "", "gone.jpg: no such file"),
        (tmp_path, "", "is a folder"),
        (tmp_path / "empty.jpg", "", "empty.jpg: an empty file"),
        (tmp_path / "empty.jpg", "ants/empty.jpg", "^ants/empty.jpg: an empty file"),
    ):
        with pytest.raises(ImageError, match=words):
            preprocess(source, RGB, name)


# -- resize and crop -----------------------------------------------------------------------------------------------

SIZES = [(640, 427), (97, 143), (333, 517), (29, 41), (224, 224), (500, 100)]


def theirs(image: Image.Image, spec: ImageInput) -> np.ndarray:
    """torchvision's Resize, then CenterCrop, on the Pillow image: (H, W, 3) uint8."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    modes = {
        "bilinear": InterpolationMode.BILINEAR,
        "bicubic": InterpolationMode.BICUBIC,
        "nearest": InterpolationMode.NEAREST,
        "lanczos": InterpolationMode.LANCZOS,
    }
    scaled = int(spec.height / spec.crop)
    size = [scaled, int(spec.width / spec.crop)] if spec.resize == "squash" else [scaled]
    resized = F.resize(image, size, modes[spec.interpolation])
    return np.asarray(F.center_crop(resized, [spec.height, spec.width])).astype(int)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "crop"), [(64, 1.0), (64, 0.875), (112, 0.95), (299, 0.9)])
@pytest.mark.parametrize("resize_by", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_pictures_are_torchvisions(
    size: tuple[int, int], side: int, crop: float, resize_by: str, interpolation: str
) -> None:
    pytest.importorskip("torchvision")
    image = Image.fromarray(natural_images(1, size[1], size[0], seed=size[0])[0])
    spec = ImageInput(height=side, width=side, crop=crop, resize=resize_by, interpolation=interpolation)
    ours = np.asarray(resize(read_image(image, spec), spec)).astype(int)
    difference = np.abs(ours - theirs(image, spec))
    assert difference.max() <= 1
    assert difference.mean() < 0.3


def test_the_test_above_can_tell_resizes_apart() -> None:
    """Its control: a crop that is off by two pixels and nearest for bilinear are far outside its bounds."""
    pytest.importorskip("torchvision")
    image = Image.fromarray(natural_images(1, 427, 640, seed=1)[0])
    spec = ImageInput(height=64, width=64, crop=0.875)
    nearest = ImageInput(height=64, width=64, crop=0.875, interpolation="nearest")
    ours = np.asarray(resize(image, spec)).astype(int)
    assert np.abs(np.asarray(resize(image, nearest)).astype(int) - theirs(image, spec)).max() > 5
    assert np.abs(np.roll(ours, 2, axis=1) - theirs(image, spec)).max() > 5


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (64, 64), (10, 7)])
def test_letterbox_keeps_everything_and_fills_the_rest(size: tuple[int, int]) -> None:
    spec = ImageInput(height=32, width=48, resize="letterbox", fill=(9, 8, 7), interpolation="bilinear")
    image = Image.new("RGB", size, (200, 100, 50))
    out = np.asarray(resize(image, spec))
    left, top, right, bottom = frame(*size, spec).place
    assert out.shape == (32, 48, 3)
    assert (out[top:bottom, left:right] == (200, 100, 50)).all()
    mask = np.ones((32, 48), bool)
    mask[top:bottom, left:right] = False
    assert (out[mask] == (9, 8, 7)).all()
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.08)
    assert right - left == 48 or bottom - top == 32


def test_frames_lead_back_to_the_original() -> None:
    spec = ImageInput(height=50, width=50, crop=0.5)
    place = frame(400, 200, spec)
    # the short side becomes 100, so 50 pixels of the middle are 100 of the original
    assert place.box == (150, 50, 250, 150)
    assert place.place == (0, 0, 50, 50)


def test_normalise_is_the_formula_and_bgr_is_reversed() -> None:
    spec = ImageInput(height=6, width=10, resize="squash")
    wanted = ((PIXELS / 255 - np.array(spec.mean)) / np.array(spec.std)).transpose(2, 0, 1)
    np.testing.assert_allclose(normalise(PIXELS, spec), wanted, atol=2e-6)
    bgr = ImageInput(height=6, width=10, color="BGR", resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3)
    np.testing.assert_allclose(preprocess(PIXELS, bgr), PIXELS[:, :, ::-1].transpose(2, 0, 1) / 255, atol=1e-6)


def test_a_batch_is_its_images() -> None:
    images = natural_images(3, 30, 40, seed=2)
    batch = preprocess_batch(images, RGB)
    assert batch.shape == (3, 3, 8, 8)
    assert batch.dtype == np.float32
    for tensor, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(tensor, preprocess(image, RGB))


# -- deeper pixels -------------------------------------------------------------------------------------------------


def taps(size: int, out: int, low: float, high: float, interpolation: str) -> np.ndarray:
    """(out, size) float64: the weights of an antialiased resize of ``low..high`` to ``out`` pixels, written down anew."""
    scale = (high - low) / out
    wide = max(1.0, scale)
    at = np.abs((np.arange(size) + 0.5 - (low + (np.arange(out)[:, None] + 0.5) * scale)) / wide)
    if interpolation == "bilinear":
        weights = np.clip(1 - at, 0, None)
    else:  # Keys 1981 with a = -0.5
        near, far = 1.5 * at**3 - 2.5 * at**2 + 1, -0.5 * at**3 + 2.5 * at**2 - 4 * at + 2
        weights = np.where(at < 1, near, np.where(at < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


def reference(pixels: np.ndarray, spec: ImageInput) -> np.ndarray:
    """(C, H, W) float64, from (H, W, C) and the formulas alone: no rounding on the way."""
    height, width = pixels.shape[:2]
    where = frame(width, height, spec)
    x0, y0, x1, y1 = where.place
    across = taps(width, x1 - x0, where.box[0], where.box[2], spec.interpolation)
    down = taps(height, y1 - y0, where.box[1], where.box[3], spec.interpolation)
    out = np.empty((spec.height, spec.width, spec.channels))
    out[...] = np.asarray(spec.fill or spec.peak * np.asarray(spec.mean))
    values = across @ np.tensordot(down, pixels.astype(np.float64), 1)  # (h, W, C), then (h, w, C)
    out[y0:y1, x0:x1] = values.clip(0, 65535) if spec.pixel == "uint16" else values
    return ((out / spec.peak - np.asarray(spec.mean)) / np.asarray(spec.std)).transpose(2, 0, 1)


DEEP = ImageInput(height=48, width=64, pixel="uint16")


@pytest.mark.parametrize("size", [(200, 150), (150, 400), (30, 20), (64, 48), (50, 90)], ids=str)
@pytest.mark.parametrize("resize_by", ["shortest", "squash", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_sixteen_bits_come_through(size: tuple[int, int], resize_by: str, interpolation: str) -> None:
    """Shrinking and growing, within one step of 65535 of float64; eight bits are a hundred times as far off."""
    rng = np.random.default_rng(size[0])
    smooth = natural_images(1, size[1], size[0], seed=7)[0].astype(float) * 257
    pixels = (smooth + rng.uniform(-300, 300, smooth.shape)).clip(0, 65535).astype(np.uint16)
    spec = replace(DEEP, resize=resize_by, interpolation=interpolation, crop=0.9 if resize_by != "letterbox" else 1.0)
    steps = 65535 * np.asarray(spec.std)[:, None, None]
    wanted = reference(pixels, spec)
    assert np.abs((preprocess(pixels, spec) - wanted) * steps).max() < 1.0
    eight = np.abs((preprocess(pixels, replace(spec, pixel="uint8")) - wanted) * steps)
    assert eight.mean() > 20


@pytest.mark.parametrize("size", [(200, 150), (30, 20)], ids=str)
@pytest.mark.parametrize("resize_by", ["shortest", "letterbox"])
def test_measurements_come_through(size: tuple[int, int], resize_by: str) -> None:
    """Sixteen bands of a unit of their own, negative values and all, to seven digits of their range."""
    spec = ImageInput(
        height=48,
        width=64,
        channels=16,
        color="bands",
        resize=resize_by,
        interpolation="bicubic",
        mean=tuple(float(100 * k) for k in range(16)),
        std=(500.0,) * 16,
        pixel="float32",
    )
    rng = np.random.default_rng(1)
    pixels = rng.normal(np.arange(16) * 100.0, 500.0, (size[1], size[0], 16)).astype(np.float32)
    np.testing.assert_allclose(preprocess(pixels, spec), reference(pixels, spec), atol=2e-6 * 10)


def test_the_size_that_is_wanted_already_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (48, 64, 3), dtype=np.uint16)
    spec = replace(DEEP, resize="squash")
    assert resize(pixels, spec) is pixels
    wanted = ((pixels / 65535 - np.array(spec.mean)) / np.array(spec.std)).transpose(2, 0, 1)
    np.testing.assert_allclose(normalise(pixels, spec), wanted, atol=2e-6)


def test_an_image_is_the_same_at_any_depth() -> None:
    """A photo of 8 bits gives a network of each pixel type the same values, but for the rounding of 8 bits."""
    photo = natural_images(1, 100, 140, seed=4)[0]
    shallow = preprocess(photo, replace(DEEP, pixel="uint8"))
    for pixel in ("uint16", "float32"):
        assert np.abs(preprocess(photo, replace(DEEP, pixel=pixel)) - shallow).max() < 1.2 / 255 / 0.224
    tensor, where = prepare(photo, replace(DEEP, pixel="float32"))
    assert tensor.dtype == np.float32
    assert where == frame(140, 100, DEEP)


def test_fill_is_in_the_networks_channel_order() -> None:
    """As mean and std are: in BGR blue comes first, and each band has its own."""
    mean = (0.1, 0.5, 0.9)
    for spec in (
        ImageInput(height=8, width=8, color="BGR", resize="letterbox", mean=mean, std=(1.0,) * 3),
        ImageInput(height=8, width=8, color="bands", resize="letterbox", mean=mean, std=(1.0,) * 3),
        ImageInput(height=8, width=8, color="BGR", resize="letterbox", mean=mean, std=(1.0,) * 3, pixel="float32"),
    ):
        tensor = preprocess(np.full((4, 8, 3), 200, np.uint8), spec)
        np.testing.assert_allclose(tensor[:, 0, 0], 0, atol=0.51 / 255)  # a mean pixel is zero
    explicit = ImageInput(height=8, width=8, color="BGR", resize="letterbox", fill=(10, 20, 30))
    assert fill_of(explicit) == (30, 20, 10)
    unit = ImageInput(height=8, width=8, resize="letterbox", fill=(0.25, -3.5, 0.0), pixel="float32")
    assert fill_of(unit) == (0.25, -3.5, 0.0)


def test_records_without_the_field_open() -> None:
    """Manifests that were written before pixels had a type mean 8 bits."""
    old = RGB.to_dict()
    assert old.pop("pixel") == "uint8"
    assert ImageInput.from_dict(old) == RGB
    deep = replace(RGB, pixel="uint16", fill=(1, 2, 3))
    assert ImageInput.from_dict(deep.to_dict()) == deep
    assert deep.with_channels(6).pixel == "uint16"
    with pytest.raises(ValueError, match="pixel is one of uint8, uint16, float32"):
        replace(RGB, pixel="int8")
