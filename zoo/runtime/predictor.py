"""A bundle, opened: images in, result records out, through the one data path."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops

from ..bundle import ArtifactEntry, Bundle, open_bundle
from ..errors import BundleError, ImageError, ZooError
from ..inputs import Frame, ImageInput, Source, prepare_batch, read_image
from ..lookup import find_task
from ..reading import Picture
from ..results import ImageResult
from ..tasks import TaskHalf
from ..tasks.pictures import PictureTask
from .choosing import Choice, choose
from .session import Session

if TYPE_CHECKING:
    from .tiles import Progress
    from .whole import Sizes

__all__ = ["Predictor", "open_artifact", "open_half", "open_predictor"]


class Predictor:
    """Callable on one image (one result) or a list of images (a list of results). Thread-safe as its session is."""

    def __init__(
        self,
        *,
        bundle: Bundle,
        artifact: ArtifactEntry,
        session: Session,
        task: TaskHalf,
        choice: Choice,
    ) -> None:
        self.bundle = bundle
        self.artifact = artifact
        self.session = session
        self.task = task
        self.choice = choice
        """The runtime that opened it, and why better ones did not."""
        self.input: ImageInput = bundle.input
        self.labels = bundle.labels
        deployed = [o["name"] for o in bundle.manifest["outputs"]]
        missing = [name for name in deployed if name not in session.output_names]
        if missing:
            raise BundleError(
                f"{bundle.path}: artefact {artifact.name} has no output '{missing[0]}' (it has {', '.join(session.output_names)}): export it again"
            )
        self._decoded = task.decodes(session.output_names)

    def __call__(
        self,
        images: Source | Sequence[Source],
        *,
        batch: int = 16,
        mask: Source | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """One result for one image; for a list, a list of results in its order, run in batches of ``batch``.

        Images: paths, encoded bytes, Pillow images, (H, W[, C]) uint8 RGB arrays. Networks that take images as they are
        give a result of the image's own size. ``mask``: of an image with a hole, an image of the same size that is
        white there; the hole is also where the image is transparent. ``progress(done, total)`` counts the tiles of one
        that is too large to be run at once. Raises ImageError.
        """
        if mask is not None and isinstance(images, (list, tuple)):
            raise ImageError("a mask is for one image, not a list")
        if mask is not None or (self.as_it_is and not isinstance(images, (list, tuple))):
            return self._made(self._holed(images, mask), progress=progress)  # type: ignore[arg-type]
        if isinstance(images, (list, tuple)):
            if self.as_it_is:
                return [self._made(self._holed(image, None)) for image in images]
            results: list[Any] = []
            for start in range(0, len(images), batch):
                results += self._predict(images[start : start + batch])
            return results
        return self._predict((images,))[0]  # type: ignore[arg-type]

    @property
    def as_it_is(self) -> bool:
        """Whether the network takes images of any size at their own pixels, and makes images of them."""
        return isinstance(self.task, PictureTask) and self.input.resize == "crop" and self.input.color != "latent"

    def _made(self, image: Source | Picture, **how: Any) -> ImageResult:
        """``how`` as :func:`zoo.runtime.whole.blocks` takes it."""
        from .whole import WHOLE_PIXELS, made_of

        assert isinstance(self.task, PictureTask)
        sizes = self._sizes()
        # an engine has the memory for its largest size, whatever that is
        limit = WHOLE_PIXELS if sizes is None else math.prod(sizes[2])
        run = partial(self.session.run, outputs=self._decoded)
        return made_of(run, image, self.input, self.task, **{"sizes": sizes, "limit": limit, **how})

    def _sizes(self) -> Sizes | None:
        """Least, usual and largest (height, width) that the network takes; None where it takes any."""
        if self.session.profile is not None:
            least, usual, largest = ((height, width) for *_, height, width in self.session.profile)
            return least, usual, largest
        *_, height, width = self.session.input_shape
        return None if height is None or width is None else ((height, width),) * 3

    def _holed(self, image: Source, mask: Source | None) -> Source:
        """The image; of a network that fills holes with an alpha of 0 where nothing is known. Raises ImageError."""
        if self.task.settings.get("holes"):
            return _holed(image, mask, self.input)
        if mask is not None:
            raise ImageError(f"{self.bundle.name} fills no holes: leave out the mask")
        return image

    def generate(self, count: int, *, seed: int = 0, label: str = "", batch: int = 64) -> list[ImageResult]:
        """``count`` images of a generator. Image i depends on (seed, i) alone; ``label``: the class, of one that is told
        classes, which take turns otherwise. Raises BundleError where the bundle generates nothing, UnknownName."""
        from ..tasks.generate import latents

        if self.input.color != "latent":
            raise BundleError(f"{self.bundle.name} makes no images of random numbers (its task is {self.bundle.task})")
        drawn = latents(self.input, self.labels, count, seed, label)
        results: list[ImageResult] = []
        for start in range(0, count, batch):
            results += self._predict(drawn[start : start + batch])
        return results

    def tiled(
        self,
        image: Source,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        mask: Source | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """One result for one image of any size, cut into overlapping tiles that the network sees at their own pixels.

        ``tile``: side of a tile in pixels, by default the network's input size; another one needs a graph of open
        size (``zoo export --dynamic-size``). ``overlap``: by default 64, or a quarter of a smaller tile. ``mask`` and
        ``progress`` as in a call. Raises ImageError, BundleError.
        """
        holed = self._holed(image, mask)
        if not self.as_it_is:
            from .tiles import predict_tiled

            return predict_tiled(self, image, tile=tile, overlap=overlap, progress=progress)
        sizes = self._sizes()
        if tile is not None:
            if sizes is not None and not all(a <= tile <= b for a, b in zip(sizes[0], sizes[2], strict=True)):
                raise BundleError(self._other_sizes(sizes, tile))
            sizes = ((tile, tile),) * 3
        # one that has been given its holes is decoded already
        source = Picture(image, self.input) if holed is image else holed
        return self._made(source, sizes=sizes, limit=0, overlap=overlap, progress=progress)

    def _other_sizes(self, sizes: Sizes, tile: int) -> str:
        least, largest = (f"{width}x{height}" for height, width in (sizes[0], sizes[2]))
        if least == largest:
            takes, cure = least, "leave out the tile's size, or export with --dynamic-size"
        else:
            takes, cure = f"{least} to {largest}", "give one of these, or export with other sizes"
        return f"{self.bundle.name} takes {takes} pixels, not tiles of {tile}x{tile}: {cure}"

    def _predict(self, images: Sequence[Source]) -> list[Any]:
        tensor, frames = self.prepare(images)
        return self.task.decode(self.session.run(tensor, self._decoded), labels=self.labels, frames=frames)

    def prepare(self, images: Sequence[Source]) -> tuple[np.ndarray, list[Frame]]:
        """N images to their (N, C, H, W) float32 tensor and where each lies in it. Raises ImageError."""
        return prepare_batch(images, self.input)

    def run(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
        """An already preprocessed (N, C, H, W) float32 tensor to the raw outputs. Raises ValueError on another shape."""
        c, h, w = (size or want for size, want in zip(self.session.input_shape[1:], self.input.shape, strict=True))
        fits = tensor.ndim == 4 and all(
            want in (None, size) for size, want in zip(tensor.shape[1:], self.session.input_shape[1:], strict=True)
        )
        if not fits or tensor.dtype != np.float32:
            raise ValueError(
                f"tensor is {tensor.dtype} {tensor.shape}; {self.bundle.name} takes float32 (N, {c}, {h}, {w})"
            )
        return self.session.run(tensor)

    def __repr__(self) -> str:
        return f"Predictor({self.bundle.name!r}, {self.artifact.name}, {self.session.device})"


def _holed(image: Source, mask: Source | None, spec: ImageInput) -> Image.Image:
    """An image whose alpha is 0 where nothing is known. Raises ImageError where there is no hole, or another size."""
    what = os.fspath(image) if isinstance(image, (str, os.PathLike)) else "the image"
    pixels = read_image(image, spec)
    assert isinstance(pixels, Image.Image)
    if mask is not None:
        grey = ImageInput(height=1, width=1, channels=1, color="L", resize="crop", mean=(0.0,), std=(1.0,))
        hole = read_image(mask, grey)
        assert isinstance(hole, Image.Image)
        if hole.size != pixels.size:
            raise ImageError(
                f"the mask has {hole.width}x{hole.height} pixels, {what} {pixels.width}x{pixels.height}: give one of the same size"
            )
        pixels = pixels.copy()
        pixels.putalpha(ImageChops.darker(pixels.getchannel("A"), hole.point([255] * 128 + [0] * 128)))
    if np.asarray(pixels.getchannel("A")).min() > 127:
        raise ImageError(f"{what} has no hole: give a mask (white is the hole), or an image that is transparent there")
    black = np.array(pixels)
    black[black[:, :, 3] <= 127] = 0  # what lies under a hole is not to be seen
    black[black[:, :, 3] > 127, 3] = 255
    return Image.fromarray(black)


def open_predictor(
    path: str | os.PathLike[str],
    *,
    artifact: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    decode: Mapping[str, Any] | None = None,
    **options: Any,
) -> Predictor:
    """See :func:`zoo.runtime.load`."""
    bundle = open_bundle(path)
    return open_artifact(bundle, artifact, runtime=runtime, threads=threads, decode=decode, **options)


def open_artifact(
    bundle: Bundle,
    artifact: str | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    decode: Mapping[str, Any] | None = None,
    **options: Any,
) -> Predictor:
    """One artefact of an opened bundle, in the named runtime or the best that opens it here.

    A runtime that could run here but cannot open this artefact (an engine that cannot be built, or that computes
    something else) gives way to the next one, with the reason in the predictor's ``choice``; one that was asked for by
    name does not. ``options`` go to the runtime: ``progress``, a function that is told a line now and then while an
    engine is built; ``cuda_graph``, ``lanes``, ``force`` (see :mod:`zoo.runtime.tensorrt.engines`).

    Raises BundleError, DeviceError, ExportError, MissingPart, UnknownName.
    """
    entry = bundle.artifact(artifact)
    choice = choose(entry.format, runtime)
    file = bundle.open_file(entry.file)
    given: dict[str, Any] = {"threads": threads, **_recipe(bundle, entry), **options}
    while True:
        try:
            session = choice.runtime.resolve()(file, **given)
            break
        except ZooError as error:
            if runtime:
                raise
            try:
                choice = choose(entry.format, lost={**choice.lost, choice.runtime.name: str(error)})
            except ZooError:
                raise error from None  # what the last one said is what is wrong
    return Predictor(bundle=bundle, artifact=entry, session=session, task=open_half(bundle, decode), choice=choice)


def _recipe(bundle: Bundle, entry: ArtifactEntry) -> dict[str, Any]:
    """What a runtime that builds engines needs to know; others ignore it."""
    if entry.format == "onnx":
        return {}
    return {
        "recipe": entry.build,
        # proved when they are wanted: hashing an engine that does not fit here anyway takes a Jetson a second
        "engines": [partial(bundle.open_file, engine["file"]) for engine in entry.build.get("engines", ())],
        "sha256": bundle.manifest["files"][entry.file]["sha256"],
        "precision": entry.precision,
        "check": _golden_check(bundle, entry),
    }


def _golden_check(bundle: Bundle, entry: ArtifactEntry) -> Callable[[Session], str] | None:
    """Whether a session gives what the artefact gave at export; None where the bundle carries nothing to tell by."""
    if not bundle.manifest.get("golden"):
        return None

    def check(session: Session) -> str:
        from ..parity.golden import golden_arrays, replay_network  # which opens artefacts itself

        stage = replay_network(bundle, entry, session, golden_arrays(bundle)[0])
        return "" if stage else f"it fails the golden vectors: {stage.message}"

    return check


def open_half(bundle: Bundle, decode: Mapping[str, Any] | None = None) -> TaskHalf:
    """The numpy half of the bundle's task, with the bundle's decode settings and a user's own over them.

    Raises BundleError, UnknownName.
    """
    kind = find_task(bundle.task).resolve()
    try:
        half: TaskHalf = kind(**bundle.manifest.get("decode", {}))
    except (TypeError, ValueError, ZooError) as error:
        raise BundleError(f"{bundle.path}: manifest: decode: {error}") from None
    if not decode:
        return half
    for name in decode:
        if name not in half.settings:
            there = f"it has {', '.join(half.settings)}" if half.settings else "its task has none"
            raise BundleError(f"{bundle.name} has no decode setting '{name}': {there}")
    changed: TaskHalf = kind(**{**half.settings, **decode})
    return changed
