"""A bundle, opened: images in, result records out, through the one data path."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..bundle import ArtifactEntry, Bundle, open_bundle
from ..errors import BundleError, ImageError, ZooError
from ..inputs import Frame, ImageInput, Source, prepare_batch, read_image
from ..lookup import find_task
from ..results import ImageResult
from ..tasks import TaskHalf
from ..tasks.pictures import PictureTask
from .choosing import Choice, choose
from .session import Session

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

    def __call__(self, images: Source | Sequence[Source], *, batch: int = 16, mask: Source | None = None) -> Any:
        """One result for one image; for a list, a list of results in its order, run in batches of ``batch``.

        Images: paths, encoded bytes, Pillow images, (H, W[, C]) uint8 RGB arrays. Networks that take images as they are
        give a result of the image's own size. ``mask``: of an image with a hole, an image of the same size that is
        white there; without it the hole is where the image is transparent. Raises ImageError.
        """
        if mask is not None or (self.as_it_is and not isinstance(images, (list, tuple))):
            return self._made(images, mask)  # type: ignore[arg-type]
        if isinstance(images, (list, tuple)):
            if self.as_it_is:
                return [self._made(image, None) for image in images]
            results: list[Any] = []
            for start in range(0, len(images), batch):
                results += self._predict(images[start : start + batch])
            return results
        return self._predict((images,))[0]  # type: ignore[arg-type]

    @property
    def as_it_is(self) -> bool:
        """Whether the network takes images of any size at their own pixels, and makes images of them."""
        return isinstance(self.task, PictureTask) and self.input.resize == "crop" and self.input.color != "latent"

    def _made(self, image: Source, mask: Source | None, **how: Any) -> ImageResult:
        from .whole import made_of

        assert isinstance(self.task, PictureTask)
        holes = bool(self.task.settings.get("holes"))
        if mask is not None and not holes:
            raise ImageError(f"{self.bundle.name} fills no holes: leave out the mask")
        if holes:
            image = _holed(image, mask, self.input)
        sides = tuple(self.session.input_shape[2:])
        fixed = None if None in sides else sides
        run = partial(self.session.run, outputs=self._decoded)
        return made_of(run, image, self.input, self.task, **{"fixed": fixed, **how})

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

    def tiled(self, image: Source, *, tile: int | None = None, overlap: int | None = None) -> Any:
        """One result for one image of any size, cut into overlapping tiles that the network sees at their own pixels.

        ``tile``: side of a tile in pixels, by default the network's input size; another one needs a graph of open
        size (``zoo export --dynamic-size``). ``overlap``: by default 64, or a quarter of a smaller tile.
        Raises ImageError, BundleError.
        """
        if self.as_it_is:
            height, width = self.session.input_shape[2:]
            if tile is not None and (height, width) not in ((None, None), (tile, tile)):
                raise BundleError(
                    f"{self.bundle.name} takes tiles of {width}x{height} pixels: leave out the tile's size, or export with --dynamic-size"
                )
            side = {"fixed": (tile, tile)} if tile is not None else {}
            return self._made(image, None, limit=0, overlap=overlap, **side)
        from .tiles import predict_tiled

        return predict_tiled(self, image, tile=tile, overlap=overlap)

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
    pixels = read_image(image, spec)
    assert isinstance(pixels, Image.Image)
    if mask is not None:
        grey = ImageInput(height=1, width=1, channels=1, color="L", resize="crop", mean=(0.0,), std=(1.0,))
        hole = read_image(mask, grey)
        assert isinstance(hole, Image.Image)
        if hole.size != pixels.size:
            raise ImageError(
                f"the mask has {hole.width}x{hole.height} pixels, the image {pixels.width}x{pixels.height}: give one of the same size"
            )
        pixels = pixels.copy()
        pixels.putalpha(hole.point([255] * 128 + [0] * 128))
    if np.asarray(pixels.getchannel("A")).min() > 127:
        raise ImageError(
            "the image has no hole: give a mask (white is the hole), or an image that is transparent there"
        )
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
