"""Decodes what people call an image: 8 and 16 bits, float, any number of bands, TIFF and .npy, upright and checked."""

from __future__ import annotations

import io
import os
import struct
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .errors import ImageError, MissingPart
from .specs import FREE, ImageInput

__all__ = ["MAX_PICTURE_PIXELS", "Derived", "Picture", "Source", "read_image", "rounded", "viewable"]

Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Derived"
"""What can be read as an image: a path, encoded bytes, an open file, a Pillow image, an (H, W[, C]) array, or an image
that is made of another."""

MAX_PICTURE_PIXELS = 2_000_000_000
"""The largest image that :class:`Picture` opens; :func:`read_image` stops at Pillow's own ``MAX_IMAGE_PIXELS``."""

_ORIENTATION = 0x0112
_MODES = {"RGB": "RGB", "BGR": "RGB", "L": "L", "RGBA": "RGBA"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a stored image becomes upright, by its EXIF orientation."""
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_INSTALL_TIFF = 'pip install "edgezoo[tiff]"'


class Derived(ABC):
    """An image that is made of another one when it is read: a part of it, or a damaged copy."""

    __slots__ = ()

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, from no more than the header of the other. Raises ImageError."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the other: of its file, or of its array."""

    @abstractmethod
    def decode(self, spec: ImageInput, name: str = "") -> Image.Image | np.ndarray:
        """What :func:`read_image` gives of it, the same every time. Raises ImageError with ``name`` in front."""

    @abstractmethod
    def digest(self) -> str:
        """sha256 over the other's bytes and how this one is made of them."""

    @abstractmethod
    def key(self) -> bytes:
        """What a data set's fingerprint holds of it: of the other no more than the size of its file."""


def read_image(source: Source, spec: ImageInput, name: str = "") -> Image.Image | np.ndarray:
    """Decode, turn upright (EXIF), and bring to the channels and the pixel type of ``spec``: upright, uncropped.

    For 8-bit inputs a Pillow image of mode L, RGB or RGBA, or for ``bands`` an (H, W, C) uint8 array. For ``uint16``
    and ``float32`` inputs an (H, W, C) array of that type. Alpha is dropped where the network has none, as
    torchvision and timm do; arrays are taken as RGB. Raises ImageError with ``name`` (or the path) in front, and
    MissingPart where a TIFF needs tifffile.

    ========  ==================================  ===========================================
    pixel     8 and 16 bit images                 everything else
    ========  ==================================  ===========================================
    uint8     as they are; divided by 257         refused
    uint16    multiplied by 257; as they are      whole numbers within 0..65535, as they are
    float32   divided by 255; divided by 65535    as they are: measurements in their own unit
    ========  ==================================  ===========================================
    """
    name = name or _name(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, spec, name)
    if isinstance(source, Image.Image):
        return _from_pillow(source, spec, name)
    if isinstance(source, Derived):
        return source.decode(spec, name)
    if _is_npy(source):
        return _from_array(_load_npy(source, name), spec, name)
    data = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
    with _one_line(data, name):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(data) as image:
                    if _pillow_suffices(image, spec, name):
                        return _from_pillow(image, spec, name)
            except UnidentifiedImageError:
                if not _is_tiff(data):
                    raise
        return _from_array(_read_tiff(data, spec, name, Image.MAX_IMAGE_PIXELS or MAX_PICTURE_PIXELS), spec, name)


class Picture:
    """An image of up to ``MAX_PICTURE_PIXELS``, decoded once and handed out by regions: upright, of a spec's channels
    and pixel type. No more of it is held than the decoded pixels, in the type they are stored in; an ``.npy`` file
    stays on the disk.

    Raises ImageError with ``name`` (or the path) in front, and MissingPart where a TIFF needs tifffile.
    """

    def __init__(self, source: Source, spec: ImageInput, name: str = "") -> None:
        self.name = name or _name(source)
        self._spec = spec
        self._orientation = 1
        """EXIF's, where the pixels lie as they are stored."""
        self._pixels = self._open(source)
        if isinstance(self._pixels, np.ndarray):
            _check_axes(self._pixels, spec, self.name)
            self.height, self.width = self._pixels.shape[:2]
        else:
            self.width, self.height = self._pixels.size if self._orientation < 5 else self._pixels.size[::-1]
        self._check(self.width, self.height)

    def region(self, left: int, top: int, right: int, bottom: int) -> Image.Image | np.ndarray:
        """The pixels of a box inside the image, as :func:`read_image` gives them. Raises ImageError."""
        if isinstance(self._pixels, np.ndarray):
            return _from_array(self._pixels[top:bottom, left:right], self._spec, self.name)
        swap, flip_x, flip_y = _turn(self._orientation)
        x0, x1 = (self.width - right, self.width - left) if flip_x else (left, right)
        y0, y1 = (self.height - bottom, self.height - top) if flip_y else (top, bottom)
        part = self._pixels.crop((y0, x0, y1, x1) if swap else (x0, y0, x1, y1))
        part.info = {k: v for k, v in part.info.items() if k == "transparency"}  # no EXIF: it is turned here
        if self._orientation in _TURNS:
            part = part.transpose(_TURNS[self._orientation])
        part.format = self._pixels.format
        return _from_pillow(part, self._spec, self.name)

    def _open(self, source: Source) -> Image.Image | np.ndarray:
        if isinstance(source, np.ndarray):
            return source
        if isinstance(source, Image.Image):
            return self._loaded(source)
        if isinstance(source, Derived):
            return source.decode(self._spec, self.name)
        if _is_npy(source):
            return _load_npy(source, self.name, mmap=True)
        data: Any = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
        with _one_line(data, self.name):
            try:
                with Path(data).open("rb") if isinstance(data, (str, os.PathLike)) else nullcontext(data) as file:
                    image = _open_large(file)
                    self._check(*image.size)
                    if _pillow_suffices(image, self._spec, self.name):
                        # memory of its own: a TIFF that makes it on loading asks the guard of Image.open again
                        image.im = Image.new(image.mode, getattr(image, "_tile_size", image.size)).im
                        return self._loaded(image)
            except UnidentifiedImageError:
                if not _is_tiff(data):
                    raise
            return _read_tiff(data, self._spec, self.name, MAX_PICTURE_PIXELS)

    def _loaded(self, image: Image.Image) -> Image.Image:
        image.load()
        self._orientation = image.getexif().get(_ORIENTATION, 1)
        return image

    def _check(self, width: int, height: int) -> None:
        if width * height > MAX_PICTURE_PIXELS:
            raise _too_large(self.name, MAX_PICTURE_PIXELS)
        if width < 1 or height < 1:
            raise ImageError(f"{self.name}: has no pixels")


def _open_large(file: BinaryIO) -> Image.Image:
    """Image.open without its limit on pixels: that one is a global of the process, and stays for everybody else."""
    Image.init()
    file.seek(0)
    head = file.read(16)
    for kind in Image.ID:
        factory, accept = Image.OPEN[kind]
        try:
            if accept is None or accept(head) is True:
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # what Image.open takes for another format
            continue
    raise UnidentifiedImageError


@contextmanager
def _one_line(data: Any, name: str) -> Iterator[None]:
    """Whatever a decoder raises, as one ImageError."""
    try:
        yield
    except (ImageError, MissingPart):
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: is a folder, not an image") from None
    except PermissionError:
        raise ImageError(f"{name}: no permission to read it") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name, Image.MAX_IMAGE_PIXELS) from None
    except UnidentifiedImageError:
        size = (
            Path(data).stat().st_size
            if isinstance(data, (str, os.PathLike))
            else len(data.getbuffer())
            if isinstance(data, io.BytesIO)
            else -1
        )
        raise ImageError(f"{name}: {'an empty file' if size == 0 else 'not an image that Pillow knows'}") from None
    except MemoryError:
        raise ImageError(f"{name}: too large for this machine's memory: shrink or tile it first") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError, zlib.error, …
        raise ImageError(f"{name}: damaged: {error}") from None


def _too_large(name: str, limit: int | None) -> ImageError:
    cure = "cut it into several files" if limit == MAX_PICTURE_PIXELS else "shrink or tile it"
    return ImageError(f"{name}: larger than {limit} pixels: {cure} first")


def _name(source: Source) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "image"


def _is_npy(source: Source) -> bool:
    return isinstance(source, (str, os.PathLike)) and os.fspath(source).lower().endswith(".npy")


def _load_npy(source: Any, name: str, mmap: bool = False) -> np.ndarray:
    with _one_line(source, name):
        try:
            array: np.ndarray = np.load(source, mmap_mode="r" if mmap else None, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ImageError(f"{name}: not a readable .npy array: {error}") from None
    return array


def _check_axes(array: np.ndarray, spec: ImageInput, name: str) -> None:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(f"{name}: array of shape {array.shape}; an image is (H, W) or (H, W, C)")
    channels = 1 if array.ndim == 2 else array.shape[2]
    known = (spec.channels,) if spec.color in FREE else (1, 3, 4)
    if channels in known:
        return
    first = array.ndim == 3 and array.shape[0] in known
    hint = "; is it (C, H, W)? give (H, W, C): array.transpose(1, 2, 0)" if first else ""
    if spec.color in FREE:
        raise ImageError(f"{name}: {channels} channels; the network takes {spec.channels} {spec.color}{hint}")
    raise ImageError(f"{name}: array of shape {array.shape} has {channels} channels, not 1, 3 or 4{hint}")


def _from_array(array: np.ndarray, spec: ImageInput, name: str) -> Image.Image | np.ndarray:
    _check_axes(array, spec, name)
    if array.ndim == 2:
        array = array[:, :, None]
    array = _as_pixel(array, spec.pixel, name)
    if spec.color in FREE:
        return np.ascontiguousarray(array)
    if spec.pixel != "uint8":
        return _in_colour(array, spec)
    image = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))
    return _convert(image, spec, name)


def viewable(image: Image.Image | np.ndarray) -> Image.Image:
    """An image of :func:`read_image` as a person can look at it: RGB, 8 bits. Of more bands the first three are
    shown; what is not 8 bits is stretched so that its 2nd percentile is black and its 98th is white."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    shown = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1].repeat(3, axis=2)
    if shown.dtype != np.uint8:
        low, high = np.percentile(shown[:: max(1, shown.shape[0] // 512), :: max(1, shown.shape[1] // 512)], (2, 98))
        shown = ((shown - low) * (255.0 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(shown))


def _as_pixel(array: np.ndarray, pixel: str, name: str) -> np.ndarray:
    """Numbers of any type in the type of the network's pixels: the table of :func:`read_image`."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if pixel == "float32":
        return _as_float(array, name)
    if array.dtype == pixel:
        return array
    if pixel == "uint8":
        if array.dtype != np.uint16:
            raise ImageError(f"{name}: array of {array.dtype}; give uint8 (0..255) or uint16 (0..65535)")
        return _from_16_bit(array)
    if array.dtype == np.uint8:
        return np.asarray(array.astype(np.uint16) * np.uint16(257))
    if array.dtype.kind not in "iu":
        raise ImageError(f"{name}: array of {array.dtype}; give uint8 (0..255) or uint16 (0..65535)")
    if array.min() < 0 or array.max() > 65535:
        raise ImageError(
            f"{name}: values {array.min()}..{array.max()} beyond 0..65535, which is what the network takes: shift or scale them first"
        )
    return array.astype(np.uint16)


def _as_float(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype in (np.uint8, np.uint16):
        return np.asarray(np.divide(array, np.iinfo(array.dtype).max, dtype=np.float32))
    if array.dtype.kind not in "iuf":
        raise ImageError(f"{name}: array of {array.dtype}; give whole or floating-point numbers")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and told as that
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        raise ImageError(
            f"{name}: {finite.size - np.count_nonzero(finite)} of {finite.size} values are NaN or infinite: fill them first, with the band's mean or what stands for no data"
        )
    return array


def _from_16_bit(array: np.ndarray) -> np.ndarray:
    return np.asarray((array.astype(np.uint32) + 128) // 257, np.uint8)


def _in_colour(array: np.ndarray, spec: ImageInput) -> np.ndarray:
    """(H, W, 1, 3 or 4) of the network's pixel type to the channels of its colour, as Pillow does for 8 bits."""
    if array.shape[2] != spec.channels:
        if spec.channels == 1:
            grey = array[:, :, :3] @ np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601, as Pillow's L
            array = rounded(grey, spec.pixel)[:, :, None]
        elif spec.channels == 3:
            array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
        else:
            opaque = np.full((*array.shape[:2], 1), spec.peak, spec.pixel)
            array = np.concatenate((_in_colour(array, spec.with_channels(3)), opaque), axis=2)
    return np.ascontiguousarray(array)


def rounded(values: np.ndarray, pixel: str | np.dtype) -> np.ndarray:
    """float32 values in the type of a network's pixels: rounded and cut to its range where it has one."""
    if values.dtype == pixel:
        return values
    return np.asarray(np.rint(values.clip(0, np.iinfo(pixel).max)), pixel)


def _from_pillow(image: Image.Image, spec: ImageInput, name: str) -> Image.Image | np.ndarray:
    if spec.pixel == "uint8" and spec.color != "bands":
        return _convert(image, spec, name)
    _check_size(image, name)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        # PNG and PGM of 16 bits come as I from older Pillows; a TIFF of that mode holds other numbers
        if image.mode == "I" and image.format != "TIFF" and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)
    elif spec.color == "bands":
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        values = np.asarray(image)
    else:
        return _from_array(np.asarray(_convert(image, spec, name)), spec, name)
    return _from_array(_upright(values, image.getexif().get(_ORIENTATION, 1)), spec, name)


def _check_size(image: Image.Image, name: str) -> None:
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{name}: has no pixels")
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise _too_large(name, Image.MAX_IMAGE_PIXELS)


def _convert(image: Image.Image, spec: ImageInput, name: str) -> Image.Image:
    """To 8 bits, upright, of the colour of ``spec``."""
    _check_size(image, name)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own convert() clips these at 255: a 16-bit photo would come out white
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name}: pixels of mode {image.mode} beyond 16 bits: convert it to 8 or 16 bits first")
        exif = image.getexif()
        image = Image.fromarray(_from_16_bit(values))
        image.getexif().update(exif)
    if image.getexif().get(_ORIENTATION, 1) != 1:  # exif_transpose copies the pixels even where nothing is to be done
        image = ImageOps.exif_transpose(image)
    mode = _MODES[spec.color]
    if image.mode == mode:
        image.load()
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _turn(orientation: int) -> tuple[bool, bool, bool]:
    """What makes a stored image upright: swap x and y, then mirror x, then mirror y."""
    return orientation in (5, 6, 7, 8), orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    swap, flip_x, flip_y = _turn(orientation)
    if swap:
        array = array.swapaxes(0, 1)
    return array[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _is_tiff(data: Any) -> bool:
    if isinstance(data, (str, os.PathLike)):
        with Path(data).open("rb") as file:
            return file.read(4) in _TIFF_HEADS
    data.seek(0)
    return data.read(4) in _TIFF_HEADS


def _pillow_suffices(image: Any, spec: ImageInput, name: str) -> bool:
    """Whether Pillow gives a file's pixels as the network wants them, or tifffile must. Raises ImageError where
    neither can. ``image`` was opened by Pillow, and is not loaded yet."""
    plain = spec.pixel == "uint8" and spec.color != "bands"
    if image.format != "TIFF":
        if not plain and _is_16_bit_colour(image):
            raise ImageError(
                f"{name}: a {image.format} of 16 bits a colour, of which Pillow reads 8: save it as TIFF or .npy"
            )
        return True
    tags = image.tag_v2
    samples, planes = int(tags.get(277, 1)), int(tags.get(284, 1))
    bits, unsigned = int(max(tags.get(258, (1,)))), tags.get(339, (1,))[0] == 1
    if plain:
        return planes == 1 or bits <= 8  # of deeper planes Pillow makes noise
    if spec.color == "bands" and image.n_frames > 1:
        return False
    if samples == 1:
        return bits <= 16 or not unsigned
    return bits <= 8 and samples == len(image.getbands())


def _is_16_bit_colour(image: ImageFile.ImageFile) -> bool:
    """Asked before loading: an image's tiles name the raw pixels of the file, and are gone afterwards."""
    raw = " ".join(str(tile[3]) for tile in image.tile)
    return not image.mode.startswith("I") and ("16" in raw or "65535" in raw)


def _read_tiff(data: Any, spec: ImageInput, name: str, limit: int) -> np.ndarray:
    """(H, W[, C]) of any number type, upright. Bands may be samples, planes or pages."""
    try:
        import tifffile
    except ModuleNotFoundError as error:
        if error.name != "tifffile":
            raise
        raise MissingPart(f"{name}: tifffile, which a TIFF of this kind needs,", _INSTALL_TIFF) from None
    if not isinstance(data, (str, os.PathLike)):
        data.seek(0)
    with tifffile.TiffFile(data) as tiff:
        page, series = tiff.pages[0], tiff.series[0]
        if page.imagewidth * page.imagelength > limit:
            raise _too_large(name, limit)
        found = series if spec.color == "bands" or "C" in series.axes else page
        try:
            array = np.asarray(found.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise MissingPart(f"{name}: imagecodecs, which a TIFF compressed like this needs,", _INSTALL_TIFF) from None
        orientation = int(page.tags.valueof(274, default=1))
    axes = found.axes
    if array.ndim == 3 and axes[-1] != "S":
        if axes[-2:] != "YX":
            raise ImageError(f"{name}: a TIFF of axes {axes} and shape {array.shape}: save it as one image of H, W, C")
        # a writer that is given (H, W, C) and not told so makes a page of each row
        if array.shape[2] != spec.channels or array.shape[0] == spec.channels:
            array = np.moveaxis(array, 0, 2)
    return _upright(array, orientation)
