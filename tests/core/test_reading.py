"""Images that medicine and satellites bring: every number type, any number of bands, TIFF and .npy, and huge ones."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo.errors import ImageError, MissingPart
from zoo.parity.evidence import natural_images
from zoo.reading import Picture, read_image, viewable
from zoo.specs import ImageInput

RGB8 = ImageInput(height=8, width=8)
RGB16 = replace(RGB8, pixel="uint16")
RGB_FLOAT = replace(RGB8, pixel="float32")
GREY16, GREY_FLOAT = RGB16.with_channels(1), RGB_FLOAT.with_channels(1)
RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (6, 10, 3), dtype=np.uint16)
SHALLOW = RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)


def bands(channels: int, pixel: str = "uint16") -> ImageInput:
    return ImageInput(
        height=8, width=8, channels=channels, color="bands", mean=(0.5,) * channels, std=(0.2,) * channels, pixel=pixel
    )


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def same(found: Any, wanted: np.ndarray) -> None:
    assert isinstance(found, np.ndarray)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


# -- number types --------------------------------------------------------------------------------------------------


def test_eight_bits_for_a_deeper_network() -> None:
    """White stays white: 255 becomes the other type's peak."""
    for source in (SHALLOW, Image.fromarray(SHALLOW), encode(Image.fromarray(SHALLOW))):
        same(read_image(source, RGB16), SHALLOW.astype(np.uint16) * 257)
        same(read_image(source, RGB_FLOAT), SHALLOW.astype(np.float32) / np.float32(255))
    ones = np.ones((4, 4), bool)
    same(read_image(ones, GREY16), np.full((4, 4, 1), 65535, np.uint16))
    same(read_image(encode(Image.fromarray(ones)), GREY16), np.full((4, 4, 1), 65535, np.uint16))


def test_sixteen_bits_keep_them() -> None:
    grey = DEEP[:, :, 0]
    for source in (grey, grey.astype(">u2"), Image.fromarray(grey), encode(Image.fromarray(grey)), tiff(grey)):
        same(read_image(source, GREY16), grey[:, :, None])
        same(read_image(source, RGB16), np.repeat(grey[:, :, None], 3, axis=2))
        same(read_image(source, GREY_FLOAT), (grey / np.float32(65535))[:, :, None])
    same(read_image(DEEP, RGB16), DEEP)


def test_measurements_keep_their_unit() -> None:
    hounsfield = RNG.integers(-1024, 3072, (6, 10), dtype=np.int16)
    kelvin = RNG.normal(280, 20, (6, 10))
    for source in (hounsfield, tiff(hounsfield)):
        same(read_image(source, GREY_FLOAT), hounsfield.astype(np.float32)[:, :, None])
    for source in (kelvin, kelvin.astype(np.float32), tiff(kelvin), tiff(kelvin.astype(np.float32))):
        same(read_image(source, GREY_FLOAT), kelvin.astype(np.float32)[:, :, None])
    same(read_image(Image.fromarray(kelvin.astype(np.float32)), GREY_FLOAT), kelvin.astype(np.float32)[:, :, None])
    counts = RNG.integers(0, 4096, (6, 10), dtype=np.int16)  # a 12-bit camera's
    same(read_image(counts, GREY16), counts.astype(np.uint16)[:, :, None])


def test_colours_are_made_as_pillow_makes_them() -> None:
    alpha = np.dstack([DEEP, np.full(DEEP.shape[:2], 9, np.uint16)])
    same(read_image(alpha, RGB16), DEEP)
    rgba = replace(RGB16.with_channels(4))
    same(read_image(alpha, rgba), alpha)
    same(read_image(DEEP, rgba), np.dstack([DEEP, np.full(DEEP.shape[:2], 65535, np.uint16)]))
    grey = read_image(SHALLOW.astype(np.uint16) * 257, GREY16)
    assert isinstance(grey, np.ndarray)
    pillow = np.asarray(Image.fromarray(SHALLOW).convert("L")).astype(int)
    assert np.abs(grey[:, :, 0] / 257 - pillow).max() < 1
    assert float(np.abs(read_image(DEEP / 65535, GREY_FLOAT) - read_image(DEEP, GREY16) / 65535.0).max()) < 1e-5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(Image.fromarray(SHALLOW), exif=exif)
    upright = np.asarray(read_image(file, RGB8))
    same(read_image(file, RGB16), upright.astype(np.uint16) * 257)
    same(read_image(file, bands(3)), upright.astype(np.uint16) * 257)
    six = np.dstack([SHALLOW, SHALLOW]).astype(np.uint16) * 257
    turned = tiff(six, photometric="minisblack", planarconfig="contig", extratags=[(274, "H", 1, orientation, True)])
    same(read_image(turned, bands(6)), np.dstack([upright, upright]).astype(np.uint16) * 257)


# -- files ---------------------------------------------------------------------------------------------------------

SIX = RNG.integers(0, 65536, (20, 30, 6), dtype=np.uint16)
PLANES = np.ascontiguousarray(SIX.transpose(2, 0, 1))
WRITTEN: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "samples": (SIX, {"photometric": "minisblack", "planarconfig": "contig"}),
    "rows as pages": (SIX, {}),
    "planes": (PLANES, {"photometric": "minisblack", "planarconfig": "separate"}),
    "pages": (PLANES, {"photometric": "minisblack"}),
    "bare pages": (PLANES, {"photometric": "minisblack", "metadata": None}),
    "ImageJ": (PLANES, {"imagej": True, "metadata": {"axes": "CYX"}}),
    "big endian": (SIX, {"photometric": "minisblack", "planarconfig": "contig", "byteorder": ">"}),
    "BigTIFF": (SIX, {"photometric": "minisblack", "planarconfig": "contig", "bigtiff": True}),
    "packed tiles": (
        SIX,
        {
            "photometric": "minisblack",
            "planarconfig": "contig",
            "compression": "zlib",
            "predictor": True,
            "tile": (16, 16),
        },
    ),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_bands_in_a_tiff(way: str, tmp_path: Path) -> None:
    data = tiff(WRITTEN[way][0], **WRITTEN[way][1])
    (tmp_path / "a.tif").write_bytes(data)
    with (tmp_path / "a.tif").open("rb") as file:
        for source in (data, tmp_path / "a.tif", str(tmp_path / "a.tif"), file):
            same(read_image(source, bands(6)), SIX)
    same(read_image(data, bands(6, "float32")), SIX / np.float32(65535))
    same(read_image(data, bands(6, "uint8")), np.round(SIX / 257).astype(np.uint8))


def test_few_bands_are_not_taken_for_colours() -> None:
    """Pillow would leave out the fourth and fifth band, and the second."""
    for count, kind in ((2, "minisblack"), (4, "minisblack"), (4, "rgb"), (5, "rgb")):
        values = RNG.integers(0, 256, (20, 30, count), dtype=np.uint8)
        extra = {"extrasamples": ["unspecified"] * (count - 3)} if kind == "rgb" else {}
        data = tiff(values, photometric=kind, planarconfig="contig", **extra)
        same(read_image(data, bands(count, "uint8")), values)


def test_deep_colour_tiffs() -> None:
    for data in (
        tiff(DEEP, photometric="rgb"),
        tiff(DEEP.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    ):
        same(read_image(data, RGB16), DEEP)
        same(read_image(data, RGB_FLOAT), DEEP / np.float32(65535))
        assert np.abs(np.asarray(read_image(data, RGB8)).astype(float) - DEEP / 257).max() <= 1
    floats = RNG.random((6, 10, 3), dtype=np.float32)
    same(read_image(tiff(floats, photometric="rgb"), RGB_FLOAT), floats)


def test_the_first_of_several_pages_for_colour_networks() -> None:
    pages = RNG.integers(0, 65536, (5, 20, 30), dtype=np.uint16)
    same(read_image(tiff(pages, photometric="minisblack"), GREY16), pages[0][:, :, None])


def test_npy_files(tmp_path: Path) -> None:
    for values, spec in (
        (SHALLOW, RGB8),
        (DEEP[:, :, 0], GREY16),
        (DEEP, RGB16),
        (SIX, bands(6)),
        (RNG.normal(size=(6, 10, 16)).astype(np.float32), bands(16, "float32")),
        (RNG.integers(-9, 9, (6, 10)).astype(np.int16), GREY_FLOAT),
    ):
        np.save(tmp_path / "a.npy", values)
        found = np.asarray(read_image(tmp_path / "a.npy", spec))
        np.testing.assert_array_equal(found.reshape(values.shape), values)


# -- what cannot be read -------------------------------------------------------------------------------------------


@cache
def broken() -> dict[str, tuple[Any, ImageInput, str]]:
    gap = np.zeros((4, 5, 6), np.float32)
    gap[0, 0, 0], gap[1, 1, 1] = np.nan, np.inf
    return {
        "gaps": (gap, bands(6, "float32"), "2 of 120 values are NaN or infinite: fill them first"),
        "beyond float32": (np.full((4, 4), 1e300), GREY_FLOAT, "16 of 16 values are NaN or infinite"),
        "gaps in a tiff": (tiff(gap[:, :, 0]), GREY_FLOAT, "1 of 20 values"),
        "floats for 16 bits": (np.zeros((4, 4)), GREY16, "array of float64; give uint8 .* or uint16"),
        "negative": (np.full((4, 4), -3, np.int16), GREY16, r"values -3..-3 beyond 0..65535"),
        "complex": (np.zeros((4, 4), complex), GREY_FLOAT, "array of complex128"),
        "text": (np.array([["a", "b"]]), GREY_FLOAT, "array of <U1"),
        "bands first": (PLANES, bands(6), r"30 channels; the network takes 6 bands; is it \(C, H, W\)\?"),
        "too few bands": (DEEP, bands(6), "3 channels; the network takes 6 bands"),
        "colour for bands": (encode(Image.fromarray(SHALLOW)), bands(6), "3 channels; the network takes 6 bands"),
        "volume": (
            tiff(np.zeros((2, 3, 8, 9), np.uint16), photometric="minisblack", metadata={"axes": "TZYX"}),
            bands(6),
            "an image is",
        ),
        "cut tiff": (tiff(SIX, photometric="minisblack", planarconfig="contig")[:900], bands(6), "damaged"),
        "cut header": (b"II*\0\x08", bands(6), "damaged|not an image"),
        "gone": (Path("missing.tif"), bands(6), "no such file"),
        "gone npy": (Path("missing.npy"), bands(6), "no such file"),
        "too large": (tiff(np.zeros((9000, 10000, 1), np.uint8), compression="zlib"), bands(1), "larger than"),
    }


@pytest.mark.parametrize("what", broken())
def test_broken_images_are_one_clear_line(what: str) -> None:
    source, spec, words = broken()[what]
    with pytest.raises(ImageError, match=words) as caught:
        read_image(source, spec, "scan")
    assert str(caught.value).startswith("scan: ")
    assert "\n" not in str(caught.value)


def test_broken_npy_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, SIX)
    for data in (file.read_bytes()[:500], b"", b"hello"):
        file.write_bytes(data)
        with pytest.raises(ImageError, match=r"a\.npy: not a readable \.npy array"):
            read_image(file, bands(6))
        with pytest.raises(ImageError, match=r"a\.npy: not a readable \.npy array"):
            Picture(file, bands(6))
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ImageError, match="not a readable"):
        read_image(file, bands(6))


def png_of_16_bits(array: np.ndarray) -> bytes:
    """A PNG by hand: Pillow writes no colours of 16 bits."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_precision_is_not_lost_in_silence() -> None:
    data = png_of_16_bits(DEEP)
    np.testing.assert_array_equal(np.asarray(read_image(data, RGB8)), DEEP >> 8)  # an 8-bit network does not mind
    for spec in (RGB16, RGB_FLOAT, bands(3)):
        with pytest.raises(ImageError, match="a PNG of 16 bits a colour, of which Pillow reads 8: save it as TIFF"):
            read_image(data, spec)


def test_a_missing_tifffile_says_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    six, grey = tiff(SIX, photometric="minisblack", planarconfig="contig"), tiff(DEEP[:, :, 0])
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingPart, match=r'tifffile.*pip install "edgezoo\[tiff\]"'):
        read_image(six, bands(6))
    same(read_image(grey, GREY16), DEEP[:, :, :1])  # Pillow is enough


def test_a_missing_decoder_says_the_install_line(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    if "imagecodecs" in sys.modules or __import__("importlib.util").util.find_spec("imagecodecs"):
        pytest.skip("imagecodecs is installed")
    file = tmp_path / "a.tif"
    file.write_bytes(tiff(SIX, photometric="minisblack", planarconfig="contig"))
    with tifffile.TiffFile(file, mode="r+b") as opened:
        opened.pages[0].tags[259].overwrite(5)  # says LZW
    with pytest.raises(MissingPart, match=r'imagecodecs.*pip install "edgezoo\[tiff\]"'):
        read_image(file, bands(6))


# -- pictures, read by regions -------------------------------------------------------------------------------------

BOXES = [(0, 0, 30, 20), (3, 5, 17, 18), (29, 0, 30, 20), (0, 19, 30, 20)]


@cache
def pictures() -> dict[str, tuple[Any, ImageInput]]:
    pixels = natural_images(1, 20, 30, seed=1)[0]
    image = Image.fromarray(pixels)
    palette = image.quantize(16)
    return {
        "rgb": (encode(image), RGB8),
        "jpeg": (encode(image, "JPEG"), RGB8),
        "grey for rgb": (encode(image.convert("L")), RGB8),
        "rgb for grey": (encode(image), RGB8.with_channels(1)),
        "palette": (encode(palette, transparency=0), RGB8),
        "16 bits": (encode(Image.fromarray(SIX[:, :, 0])), RGB8),
        "16 bits kept": (encode(Image.fromarray(SIX[:, :, 0])), GREY16),
        "signed tiff": (tiff(SIX[:, :, 0].view(np.int16)), GREY_FLOAT),
        "raw tiff": (encode(image, "TIFF"), RGB8),
        "packed tiff": (encode(image, "TIFF", compression="tiff_lzw"), RGB8),
        "bands": (tiff(SIX, photometric="minisblack", planarconfig="contig"), bands(6)),
        "planes": (tiff(PLANES, photometric="minisblack", planarconfig="separate"), bands(6, "uint8")),
        "array": (pixels, RGB8),
        "deep array": (SIX, bands(6, "float32")),
        "pillow": (image, RGB8),
    }


@pytest.mark.parametrize("what", pictures())
def test_regions_are_those_of_the_whole_image(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, spec = pictures()[what]
    whole = np.asarray(read_image(source, spec))
    # smaller than half the guard lets no image of this size through Image.open
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 290)
    sources = [source]
    if isinstance(source, bytes):
        (tmp_path / "a.img").write_bytes(source)
        sources += [tmp_path / "a.img", io.BytesIO(source)]
        with pytest.raises(ImageError, match="larger than 290 pixels: shrink or tile it first"):
            read_image(source, spec)
    for each in sources:
        picture = Picture(each, spec)
        assert (picture.width, picture.height) == (30, 20)
        for left, top, right, bottom in BOXES[1:]:
            found = picture.region(left, top, right, bottom)
            np.testing.assert_array_equal(np.asarray(found), whole[top:bottom, left:right])
    assert Image.MAX_IMAGE_PIXELS == 290


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_are_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encode(Image.fromarray(natural_images(1, 20, 30, seed=2)[0]), kind, exif=exif)
    for spec in (RGB8, bands(3)):
        whole = np.asarray(read_image(source, spec))
        picture = Picture(source, spec)
        assert (picture.height, picture.width) == whole.shape[:2]
        for left, top, right, bottom in ((0, 0, picture.width, picture.height), (2, 3, 9, 17)):
            found = np.asarray(picture.region(left, top, right, bottom))
            np.testing.assert_array_equal(found, whole[top:bottom, left:right])


def test_an_npy_picture_stays_on_the_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SIX)
    picture = Picture(tmp_path / "a.npy", bands(6))
    assert isinstance(picture._pixels, np.memmap)
    same(picture.region(2, 1, 9, 7), SIX[1:7, 2:9])


def test_broken_pictures_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    png = encode(Image.fromarray(SHALLOW))
    noise = encode(Image.fromarray(RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8)))
    for source, words in (
        (tmp_path / "gone.jpg", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.jpg", "an empty file"),
        (b"hello world, this is no image", "not an image that Pillow knows"),
        (noise[: len(noise) // 2], "damaged"),
        (np.zeros((3, 40, 50), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((0, 40, 3), np.uint8), "an image is"),
    ):
        with pytest.raises(ImageError, match=words):
            Picture(source, RGB8)
    monkeypatch.setattr("zoo.reading.MAX_PICTURE_PIXELS", 59)
    for source in (png, SHALLOW):
        with pytest.raises(ImageError, match="larger than 59 pixels: cut it into several files first"):
            Picture(source, RGB8)


def test_a_picture_of_more_pixels_than_pillow_takes() -> None:
    """20,000 x 9,500 pixels are beyond twice the guard, where Image.open raises."""
    source = encode(Image.new("1", (20000, 9500), 1), compress_level=1)
    with pytest.raises(ImageError, match="larger than"):
        read_image(source, RGB8)
    picture = Picture(source, RGB8)
    assert (picture.width, picture.height) == (20000, 9500)
    assert (np.asarray(picture.region(19990, 9490, 20000, 9500)) == 255).all()


# -- to look at ----------------------------------------------------------------------------------------------------


def test_anything_can_be_looked_at() -> None:
    np.testing.assert_array_equal(np.asarray(viewable(Image.fromarray(SHALLOW))), SHALLOW)
    np.testing.assert_array_equal(np.asarray(viewable(np.dstack([SHALLOW, SHALLOW]))), SHALLOW)
    ramp = np.linspace(-1000, 3000, 5000, dtype=np.float32).reshape(50, 100, 1)
    shown = np.asarray(viewable(ramp))
    assert shown.shape == (50, 100, 3)
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.abs(shown[:, :, 0].reshape(-1).astype(float) - np.linspace(-5.3, 260.3, 5000).clip(0, 255)).max() < 2
    assert np.asarray(viewable(np.zeros((4, 4, 1), np.float32))).max() == 0  # nothing to stretch
