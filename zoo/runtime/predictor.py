"""A bundle, opened: images in, result records out, through the one data path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bundle import ArtifactEntry, Bundle, open_bundle
from ..errors import BundleError
from ..inputs import Frame, ImageInput, Source, prepare_batch
from ..lookup import find, find_task, runtimes_for
from ..specs import Runtime, first_installed
from ..tasks import TaskHalf
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
    ) -> None:
        self.bundle = bundle
        self.artifact = artifact
        self.session = session
        self.task = task
        self.input: ImageInput = bundle.input
        self.labels = bundle.labels
        deployed = [o["name"] for o in bundle.manifest["outputs"]]
        missing = [name for name in deployed if name not in session.output_names]
        if missing:
            raise BundleError(
                f"{bundle.path}: artefact {artifact.name} has no output '{missing[0]}' (it has {', '.join(session.output_names)}): export it again"
            )
        self._decoded = task.decodes(session.output_names)

    def __call__(self, images: Source | Sequence[Source], *, batch: int = 16) -> Any:
        """One result for one image; for a list, a list of results in its order, run in batches of ``batch``.

        Images: paths, encoded bytes, Pillow images, (H, W[, C]) uint8 RGB arrays. Raises ImageError.
        """
        if isinstance(images, (list, tuple)):
            results: list[Any] = []
            for start in range(0, len(images), batch):
                results += self._predict(images[start : start + batch])
            return results
        return self._predict((images,))[0]  # type: ignore[arg-type]

    def _predict(self, images: Sequence[Source]) -> list[Any]:
        tensor, frames = self.prepare(images)
        return self.task.decode(self.session.run(tensor, self._decoded), labels=self.labels, frames=frames)

    def prepare(self, images: Sequence[Source]) -> tuple[np.ndarray, list[Frame]]:
        """N images to their (N, C, H, W) float32 tensor and where each lies in it. Raises ImageError."""
        return prepare_batch(images, self.input)

    def run(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
        """An already preprocessed (N, C, H, W) float32 tensor to the raw outputs. Raises ValueError on another shape."""
        if tensor.ndim != 4 or tensor.shape[1:] != self.input.shape or tensor.dtype != np.float32:
            c, h, w = self.input.shape
            raise ValueError(
                f"tensor is {tensor.dtype} {tensor.shape}; {self.bundle.name} takes float32 (N, {c}, {h}, {w})"
            )
        return self.session.run(tensor)

    def __repr__(self) -> str:
        return f"Predictor({self.bundle.name!r}, {self.artifact.name}, {self.session.device})"


def open_predictor(
    path: str | os.PathLike[str],
    *,
    artifact: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Predictor:
    """See :func:`zoo.runtime.load`."""
    bundle = open_bundle(path)
    return open_artifact(bundle, artifact, runtime=runtime, threads=threads, **options)


def open_artifact(
    bundle: Bundle,
    artifact: str | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Predictor:
    """One artefact of an opened bundle. Raises BundleError, MissingPart, UnknownName."""
    entry = bundle.artifact(artifact)
    chosen = _choose(entry, runtime)
    session = chosen.resolve()(bundle.open_file(entry.file), threads=threads, **options)
    task = open_half(bundle)
    return Predictor(bundle=bundle, artifact=entry, session=session, task=task)


def open_half(bundle: Bundle) -> TaskHalf:
    """The numpy half of the bundle's task, with the bundle's decode settings. Raises BundleError, UnknownName."""
    try:
        half: TaskHalf = find_task(bundle.task).resolve()(**bundle.manifest.get("decode", {}))
    except (TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: manifest: decode: {error}") from None
    return half


def _choose(entry: ArtifactEntry, name: str | None) -> Runtime:
    candidates = [find(Runtime, name)] if name else runtimes_for(entry.format)
    if name and candidates[0].reads != entry.format:
        raise BundleError(f"runtime {name} reads {candidates[0].reads}, artefact {entry.name} is {entry.format}")
    if not candidates:
        raise BundleError(f"no runtime reads {entry.format} artefacts: `zoo plugins` shows what is installed")
    return first_installed(candidates)
